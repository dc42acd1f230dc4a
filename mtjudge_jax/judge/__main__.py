"""Judges one question about your own images.

mtjudge judge --model=runs/demo/best --task=technical --image=photo.jpg
mtjudge judge --model=runs/demo/best --task=pairwise_safety --image=first.jpg --image=second.jpg
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import define_list, need

MODEL = flags.DEFINE_string("model", None, "Hugging Face folder, or workdir of a run (its best/ is used), e.g. runs/demo.")
IMAGE = flags.DEFINE_multi_string("image", None, "Image file; give the flag twice for a pair.")
TASK = flags.DEFINE_string("task", None, "Task name, e.g. technical or pairwise_safety; without it the model's own are listed.")
INSTRUCTION = flags.DEFINE_string("instruction", "", "What the image should show, for tasks that ask for it, e.g. 'a dog'.")
DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the weights; default: as in the model's config.json.")
MESH = define_list("mesh", [], "Devices along each mesh axis, e.g. fsdp=2,tensor=2; default: all devices share the weights.")
JSON = flags.DEFINE_bool("json", False, "Print the verdict as one JSON object.")


def main() -> None:
    need(
        (MODEL, "give a model folder or the workdir of a run, e.g. --model=runs/demo"),
        (IMAGE, "name an image file, e.g. --image=a.jpg, and give it twice for a pair"),
        *([] if MODEL.value else [(TASK, "name a task, e.g. --task=technical")]),
    )
    from mtjudge_jax.judge.one_question import print_verdict  # imports jax, which --help must not wait for

    how = {"as_json": JSON.value, "dtype": DTYPE.value, "mesh": MESH.value}
    print_verdict(MODEL.value, IMAGE.value, task=TASK.value, instruction=INSTRUCTION.value, **how)


if __name__ == "__main__":
    run_command(main)
