"""Judges a split of prepared data with a model and writes scores and predictions.

mtjudge eval --model=runs/demo --data=runs/demo/data --tasks=technical,safety --out=runs/again

The same command continues a killed evaluation, and writes the same bytes.
"""

import sys

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import config_file, define_config, define_list, need, typed
from mtjudge_jax.tasks.base import TEMPLATES

CONFIG = define_config()
MODEL = flags.DEFINE_string(
    "model", None, "Hugging Face folder, or workdir of a run, whose best/ is used; default: --config's model.path."
)
DATA = flags.DEFINE_string("data", None, "Folder of `mtjudge prepare`, e.g. runs/demo/data.")
OUT = flags.DEFINE_string("out", None, "Folder for scores and predictions.")
NAME = flags.DEFINE_string("name", "", "Name of the files to write; default: the split.")
SPLIT = flags.DEFINE_string("split", "test", "Which split to judge.")
TASKS = define_list("tasks", [], "Tasks to judge; default: all tasks of the split.")
LIMIT = flags.DEFINE_integer("limit", 0, "Examples per task; 0 = all.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch", 24, "Prompts judged at a time; with --config its rollout.prompts.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 8, "Answers per prompt: one greedy, the others sampled.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampled answers.", lower_bound=0)
WORDINGS = flags.DEFINE_enum("templates", "train", TEMPLATES, "Which wordings of the questions to use: train, held_out or all.")
MESH = define_list("mesh", [], "Devices along each mesh axis, e.g. fsdp=2,tensor=2; default: all along data.")


def main() -> None:
    with_config = bool(config_file(sys.argv))
    model = "give a model folder or the workdir of a run, e.g. --model=runs/demo, or a --config=FILE.py with a model"
    cfg = typed(CONFIG.value) if with_config else None
    data = DATA.value or (cfg.data.path if cfg else "")
    need(
        *([] if with_config else [(MODEL, model)]),
        *([] if data else [(DATA, "give a folder of mtjudge prepare, e.g. --data=runs/demo/data")]),
        (OUT, "name a folder for the scores, e.g. --out=runs/demo/eval"),
    )
    from mtjudge_jax.eval.split import Request, run  # imports jax, which --help must not wait for

    given = (OUT, NAME, SPLIT, TASKS, LIMIT, BATCH, SAMPLES, SEED, WORDINGS, MESH)
    run(Request(cfg, MODEL.value, data, *(flag.value for flag in given)))


if __name__ == "__main__":
    run_command(main)
