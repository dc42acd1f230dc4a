"""What carries over to pairs, by setting: MT-RL from the demo's base, one setting changed at a time, on validation photographs.

    python benchmarks/sensitivity.py --workdir=runs/sensitivity --out=docs/study/sensitivity.csv [--only=alpha,kl] [--seeds=11,12]

A run takes about four minutes on two idle CPU cores. The same command does the missing ones, and those made with another base or
other settings of the demo. The seeds are none of those of the table of arms, and nothing is measured on test photographs, so that
a setting may be chosen by it.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tables
from absl import app, flags

from mtjudge_jax.config import Config
from mtjudge_jax.demo.cases import DEMO_TASKS, PAIRWISE, POINTWISE
from mtjudge_jax.demo.config import get_config
from mtjudge_jax.demo.dataset import make_examples, write_demo_data
from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.eval.evaluate import evaluate
from mtjudge_jax.paths import as_path, remove_tree
from mtjudge_jax.policy.model import eval_format, open_model
from mtjudge_jax.tasks.demo import NEUTRAL
from mtjudge_jax.train.fit import fit

OUT = flags.DEFINE_string("out", None, "the CSV to write or to continue", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for data and runs", required=True)
ONLY = flags.DEFINE_list("only", [], "settings; default: all")
SEEDS = flags.DEFINE_list("seeds", ["11"], "of the runs")

SCORES = ("count", "accuracy", "macro_f1", "consistency", "first_share", "probability_accuracy", "invalid_rate")
HEAD = ("setting", "value", "seed", "task", *SCORES)
_COUNT, _SEED = 100, 7  # validation questions a task, and the seed of these pictures
_TRAIN = 1000  # distinct training questions a task, as in the demo


def _set(section: str, field: str) -> Callable[[Config, float], None]:
    return lambda cfg, value: setattr(getattr(cfg, section), field, value)


def _tasks(cfg: Config, value: int) -> None:
    """So many of the six beside the neutral pairs; of 16 prompts as many as give each label as often."""
    cfg.data.tasks = (*("technical", "safety", "alignment", "naturalness", "preference", "rationality")[:value], *NEUTRAL)
    labels = 2 * len(cfg.data.tasks)
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 16 // labels * labels


def _alone(cfg: Config, value: str) -> None:
    cfg.data.tasks = POINTWISE
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 12


# Of each setting: its values, and what they change. "questions" is the number of distinct training questions a task.
SETTINGS: dict[str, tuple[tuple, Callable]] = {
    "demo": (("",), lambda cfg, value: None),
    "alpha": ((0.0, 0.3, 0.5), _set("reward", "alpha")),
    "group": ((4, 16, 20), _set("rollout", "group_size")),
    "kl": ((0.0, 0.1, 1.0), _set("loss", "kl_coef")),
    "warmup": ((10,), _set("optim", "warmup_steps")),
    "freeze": (((),), _set("model", "freeze")),
    "neutral pairs": (("none",), _alone),
    "tasks": ((1, 2, 4), _tasks),
    "questions": ((24, 96), lambda cfg, value: None),
}


def config_of(setting: str, value, seed: int, workdir: Path) -> Config:
    """The demo's config with one setting changed."""
    cfg = get_config()
    SETTINGS[setting][1](cfg, value)
    cfg.seed, train = seed, value if setting == "questions" else _TRAIN
    cfg.data.path = str(workdir / f"data{train}")
    write_demo_data(cfg.data.path, seed=0, train=train)
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples, cfg.checkpoint.every_steps = cfg.steps, 24, 1, cfg.steps
    return cfg


def rows_of(setting: str, value, seed: int, examples: dict, workdir: Path) -> list[dict]:
    """Trains a model and judges all forms."""
    cfg, folder = config_of(setting, value, seed, workdir), workdir / "run"
    remove_tree(as_path(folder))
    model = open_model(cfg)
    _, trained = fit(cfg, str(folder), model=model)
    how = Judging(model.programs, eval_format(model, cfg), 50, np.zeros(1, np.float32), cfg.reward.alpha, seed)
    _, result = evaluate(trained.params, examples, how, step=0, probabilities=True)
    rows = []
    for task, scores in result["tasks"].items():
        about = {"setting": setting, "value": str(value), "seed": str(seed), "task": task}
        rows.append(about | tables.written(scores, SCORES))
    return rows


def main(argv: list[str]) -> None:
    if unknown := [name for name in ONLY.value if name not in SETTINGS]:
        raise SystemExit(f"--only={','.join(unknown)}: not among {', '.join(SETTINGS)}")
    out, workdir = Path(OUT.value), Path(WORKDIR.value)
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))  # runs of the same sizes are the same programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    rows = tables.read(out)
    examples = {task: list(make_examples(split="val", task=task, count=_COUNT, seed=_SEED)) for task in DEMO_TASKS}
    runs = [(name, value, int(seed)) for seed in SEEDS.value for name in ONLY.value or SETTINGS for value in SETTINGS[name][0]]
    for setting, value, seed in runs:
        if any((row["setting"], row["value"], row["seed"]) == (setting, str(value), str(seed)) for row in rows):
            continue
        rows += rows_of(setting, value, seed, examples, workdir)
        tables.write(out, HEAD, rows)
        latest = {row["task"]: float(row["accuracy"]) for row in rows[-len(DEMO_TASKS) :] if row["accuracy"]}
        six, pairs = (np.mean([latest[task] for task in tasks]) for tasks in (POINTWISE, PAIRWISE))
        print(f"{setting} {value} seed {seed}: six tasks {six:.3f}, pairs {pairs:.3f}", flush=True)


if __name__ == "__main__":
    app.run(main)
