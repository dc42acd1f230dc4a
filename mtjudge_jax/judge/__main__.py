"""Judges one question about your own images, or a file of questions.

mtjudge judge --model=runs/demo/best --task=technical --image=photo.jpg
mtjudge judge --model=runs/demo/best --task=pairwise_safety --image=first.jpg --image=second.jpg
mtjudge judge --model=runs/demo/best --task=technical --data=rows.jsonl --images=photos --out=verdicts.jsonl
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.flags import define_list, need

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder, or workdir of a run (its best/ is used), e.g. runs/demo.")
IMAGE = flags.DEFINE_multi_string("image", None, "Image file; give the flag twice for a pair.")
TASK = flags.DEFINE_string("task", None, "Task name, e.g. technical or pairwise_safety; without it the model's own are listed.")
INSTRUCTION = flags.DEFINE_string("instruction", "", "What the image should show, for tasks that ask for it, e.g. 'a dog'.")
DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the weights; default: as in the model's config.json.")
MESH = define_list("mesh", [], "Devices along each mesh axis, e.g. fsdp=2,tensor=2; default: all devices share the weights.")
DATA = flags.DEFINE_string("data", None, "Rows to judge, without labels: a .jsonl or .parquet file; the same command continues.")
IMAGES = flags.DEFINE_string("images", None, "Folder that the paths in --data start from; default: the folder of the file.")
OUT = flags.DEFINE_string("out", None, "Of --data: the file of verdicts, a line per row, e.g. verdicts.jsonl.")
BATCH = flags.DEFINE_integer("batch", 8, "Of --data: rows judged at a time.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 1, "Answers per question; of more than 1 the majority decides.", lower_bound=1)
BOTH = flags.DEFINE_bool("both_orders", False, "Ask a pair in both orders; the answers vote together.")
JSON = flags.DEFINE_bool("json", False, "Print the verdict as one JSON object.")


def main() -> None:
    if DATA.value:
        need(
            (MODEL, "give a model folder or the workdir of a run, e.g. --model=runs/demo"),
            (OUT, "name the file of verdicts, e.g. --out=verdicts.jsonl"),
        )
        if IMAGE.value or INSTRUCTION.value or JSON.value:
            raise ConfigError(
                "--image, --instruction and --json are of one question: leave them out beside --data; the folder of its pictures "
                "is --images"
            )
        from mtjudge_jax.judge.many import FileRequest, judge_rows

        how = (TASK.value, BATCH.value, SAMPLES.value, BOTH.value, DTYPE.value, MESH.value)
        judge_rows(FileRequest(MODEL.value, DATA.value, IMAGES.value, OUT.value, *how))
        return
    need(
        (MODEL, "give a model folder or the workdir of a run, e.g. --model=runs/demo"),
        (IMAGE, "name an image file, e.g. --image=a.jpg, and give it twice for a pair; or a file of many, --data=rows.jsonl"),
        *([] if MODEL.value else [(TASK, "name a task, e.g. --task=technical")]),
    )
    if OUT.value or IMAGES.value:
        raise ConfigError(
            "--out and --images (the folder of a file's pictures) are for a file of questions: name it, e.g. "
            "--data=rows.jsonl; the picture of one question is --image"
        )
    from mtjudge_jax.judge.one_question import print_verdict  # imports jax, which --help must not wait for

    how = {"as_json": JSON.value, "dtype": DTYPE.value, "mesh": MESH.value, "samples": SAMPLES.value, "both_orders": BOTH.value}
    print_verdict(MODEL.value, IMAGE.value, task=TASK.value, instruction=INSTRUCTION.value, **how)


if __name__ == "__main__":
    run_command(main)
