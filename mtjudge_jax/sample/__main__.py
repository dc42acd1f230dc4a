"""Samples a model's answers to the training split and keeps right ones as reasoning for SFT, or pairs of answers for DPO.

mtjudge sample --model=runs/demo --data=runs/demo/data --tasks=technical,safety --samples=16 --keep=right --out=data/sampled

The labels decide which answers are right. --out is a data folder with the same validation and test splits. The same command
continues after a kill.
"""

import sys

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.flags import config_file, define_config, define_list, need, typed
from mtjudge_jax.sample import BALANCE, CHOOSE, KEEP

CONFIG = define_config()
MODEL = flags.DEFINE_string(
    "model", None, "Hugging Face folder, or workdir of a run, whose best/ is used; default: --config's model.path."
)
DATA = flags.DEFINE_string("data", None, "Folder of `mtjudge prepare`; only its training split is sampled.")
OUT = flags.DEFINE_string("out", None, "Data folder to write.")
TASKS = define_list("tasks", [], "Tasks to sample; default: all tasks of the training split.")
LIMIT = flags.DEFINE_integer("limit", 0, "Records per task; 0 = all.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch", 24, "Prompts sampled at a time; with --config its rollout.prompts.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 16, "Answers per prompt.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Temperature of the answers.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the answers, and of which records go where labels are balanced.", lower_bound=0)
KEEP_FLAG = flags.DEFINE_enum(
    "keep", "right", KEEP, "right: prompts with a right answer; hard: that and a wrong one; pairs: one of each, for DPO."
)
CHOOSE_FLAG = flags.DEFINE_enum(
    "choose", "shortest", CHOOSE, "Which right answer of a prompt: the shortest, or the one that the others are most like."
)
BALANCE_FLAG = flags.DEFINE_enum(
    "balance", "labels", BALANCE, "labels: each label of a task is kept equally often; tasks: each task too."
)
MESH = define_list("mesh", [], "Devices along each mesh axis, e.g. fsdp=2,tensor=2; default: all along data.")


def main() -> None:
    with_config = bool(config_file(sys.argv))
    model = "give a model folder or the workdir of a run, e.g. --model=runs/demo, or a --config=FILE.py with a model"
    need(
        *([] if with_config else [(MODEL, model)]),
        (DATA, "give a folder of mtjudge prepare, e.g. --data=runs/demo/data"),
        (OUT, "name a folder for the data, e.g. --out=data/sampled"),
    )
    if SAMPLES.value < 2 and KEEP_FLAG.value != "right":
        raise ConfigError(
            f"--samples=1 with --keep={KEEP_FLAG.value}: a right and a wrong answer are two, give --samples=2 or more"
        )
    cfg = typed(CONFIG.value) if with_config else None
    from mtjudge_jax.eval.split import Request  # imports jax, which --help must not wait for
    from mtjudge_jax.sample.sampling import Choice, run

    sizes = (TASKS.value, LIMIT.value, BATCH.value, SAMPLES.value, SEED.value)
    ask = Request(cfg, MODEL.value, DATA.value, OUT.value, "", "train", *sizes, "train", MESH.value)
    run(ask, Choice(KEEP_FLAG.value, CHOOSE_FLAG.value, BALANCE_FLAG.value, TEMPERATURE.value))


if __name__ == "__main__":
    run_command(main)
