"""Serves a judge over HTTP: POST /v1/score, /v1/compare and /v1/judge, GET /health and /metrics.

mtjudge serve --model=runs/demo --port=8000
mtjudge serve --model=runs/demo --host=0.0.0.0 --token_file=token.txt

SIGTERM and Ctrl-C answer what waits, then end. See docs/serve.md.
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import define_list, need

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder, or workdir of a run (its best/ is used), e.g. runs/demo.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all, then give a token.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
TOKEN = flags.DEFINE_string("token_file", None, "File with a token that every request must bear; default: none is asked for.")
TASKS = define_list("tasks", [], "Tasks to compile at the start; default: those the model was trained on.")
SAMPLES = define_list("samples", ["1"], "Answers per question that a request may ask for, e.g. 1,5.")
BATCH = flags.DEFINE_integer("batch", 8, "Questions judged at a time.", lower_bound=1)
WAIT = flags.DEFINE_float("wait_ms", 5.0, "How long a question waits for others to fill a batch.", lower_bound=0.0)
QUEUE = flags.DEFINE_integer("queue", 1024, "Questions that may wait; a request above it is answered 503.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 256, "Most images in a request.", lower_bound=1)
BODY = flags.DEFINE_integer("body_mb", 32, "Most megabytes of a request.", lower_bound=1)
BODY_SECONDS = flags.DEFINE_float("body_seconds", 30.0, "Most seconds that a client may take to send a request.", lower_bound=0.1)
DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the weights; default: as in the model's config.json.")
MESH = define_list("mesh", [], "Devices along each mesh axis, e.g. fsdp=2,tensor=2; default: all devices share the weights.")


def main() -> None:
    need((MODEL, "give a model folder or the workdir of a run, e.g. --model=runs/demo"))
    from mtjudge_jax.serve.run import Place, serve  # imports jax, which --help must not wait for

    limits = (BODY.value * 10**6, BODY_SECONDS.value, IMAGES.value, QUEUE.value, WAIT.value / 1000)
    place = Place(HOST.value, PORT.value, TOKEN.value)
    serve(MODEL.value, place, limits, TASKS.value, SAMPLES.value, BATCH.value, DTYPE.value, MESH.value or None)


if __name__ == "__main__":
    run_command(main)
