"""Exports the best model of a run, or one of its checkpoints, as a Hugging Face folder with a model card.

mtjudge export --workdir=runs/mine --out=my_judge
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import need

WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run, e.g. runs/mine.")
STEP = flags.DEFINE_string("step", "", "Step to export: a number, latest, or best (by validation, the default).")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Instead of those two: a step's folder, e.g. runs/mine/checkpoints/8.")
OUT = flags.DEFINE_string("out", None, "Folder to write; it must not exist.")
DTYPE = flags.DEFINE_enum("dtype", "", ["", "bfloat16", "float32"], "Of the weights; default: as the run computed.")
ADAPTER = flags.DEFINE_enum(
    "adapter", "merge", ["merge", "peft"], "For a run with LoRA: merge writes the whole model, peft an adapter."
)
BASE = flags.DEFINE_string("base", "", "Folder of the starting model, if it has moved.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an older export in --out.")


def main() -> None:
    need((OUT, "name the folder to write, e.g. --out=my_judge"))
    from mtjudge_jax.export.export import run  # imports jax, which --help must not wait for

    form = {"dtype": DTYPE.value, "form": ADAPTER.value, "base": BASE.value, "overwrite": OVERWRITE.value}
    run(WORKDIR.value, STEP.value, CHECKPOINT.value, OUT.value, **form)


if __name__ == "__main__":
    run_command(main)
