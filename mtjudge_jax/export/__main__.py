"""Writes a Hugging Face folder with a model card from the best model of a run, or from one of its checkpoints.

mtjudge export --workdir=runs/mine --out=my_judge
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import need

WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run, e.g. runs/mine.")
STEP = flags.DEFINE_string("step", "", "A number, latest, or best (the default): the best by validation.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Instead of the two: the folder of a step, e.g. runs/mine/checkpoints/8.")
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.")
DTYPE = flags.DEFINE_enum("dtype", "", ["", "bfloat16", "float32"], "Of the weights; default: what the run computed in.")
ADAPTER = flags.DEFINE_enum("adapter", "merge", ["merge", "peft"], "For a run with LoRA: the whole model, or a PEFT adapter.")
BASE = flags.DEFINE_string("base", "", "Folder of the starting model, where it has moved.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an older export.")


def main() -> None:
    need((OUT, "name the folder to write, e.g. --out=my_judge"))
    from mtjudge_jax.export.export import run  # imports jax, which --help must not wait for

    form = {"dtype": DTYPE.value, "form": ADAPTER.value, "base": BASE.value, "overwrite": OVERWRITE.value}
    run(WORKDIR.value, STEP.value, CHECKPOINT.value, OUT.value, **form)


if __name__ == "__main__":
    run_command(main)
