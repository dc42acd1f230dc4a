"""`mtjudge eval`: judges a split of prepared data with a model and writes scores and predictions."""

import collections
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from mtjudge_jax import hosts
from mtjudge_jax.checkpoint import check_workdir
from mtjudge_jax.command import config_file, eval_flags, run_command, typed
from mtjudge_jax.config import Config, HostsConfig, check, unknown
from mtjudge_jax.data.records import JudgeExample
from mtjudge_jax.data.sources import BadRowCounter, read_manifest, read_split
from mtjudge_jax.evaluate import Judging, count_rows, evaluate, write_evaluation
from mtjudge_jax.judge import judge_config
from mtjudge_jax.paths import as_path
from mtjudge_jax.policy import open_model, read_params
from mtjudge_jax.tasks import get_task


def table(result: dict) -> str:
    """The scores as text, a task a line."""
    lines = [f"{'task':20s} count  macro-F1   95 % interval  constant  sampled  invalid"]
    for name, score in result["tasks"].items():
        low, high = score["macro_f1_ci"]
        sampled = "" if score["sampled_accuracy"] is None else f"{score['sampled_accuracy']:.3f}"
        lines.append(
            f"{name:20s} {score['count']:5d} {score['macro_f1']:9.3f}     {low:.3f}-{high:.3f} {score['constant_macro_f1']:9.3f}"
            f" {sampled:>8s} {score['invalid_rate']:8.3f}"
        )
        if "consistency" in score:
            lines.append(
                f"{'':20s} both orders: accuracy {score['accuracy']:.3f}, same winner {score['consistency']:.3f}, both right "
                f"{score['consistent_accuracy']:.3f}; by probability {score['probability_accuracy']:.3f}, each picture alone "
                f"{score['single_accuracy']:.3f}"
            )
    if result["mean"]:
        sampled = result["mean"]["sampled_accuracy"]
        shown = "" if sampled is None else f"{sampled:.3f}"
        lines.append(f"{'mean of tasks':20s} {'':5s} {result['mean']['macro_f1']:9.3f} {'':25s} {shown:>8s}")
    if result["unusable"]:
        lines.append(f"left out, they cannot be used: {', '.join(f'{reason} {n}' for reason, n in result['unusable'].items())}")
    return "\n".join(lines)


def read_examples(unreadable: BadRowCounter) -> dict[str, list[JudgeExample]]:
    """What the flags ask to judge, by task. Raises ValueError where that is nothing."""
    files = read_manifest(DATA.value)["files"]
    splits = list(dict.fromkeys(name.split("/")[0] for name in files))
    if SPLIT.value not in splits:
        raise ValueError(f"{DATA.value}: {unknown('split', SPLIT.value, splits)}")
    names = TASKS_FLAG.value or [name.split("/")[1] for name in files if name.split("/")[0] == SPLIT.value]
    examples = {get_task(name).name: read_split(DATA.value, SPLIT.value, name, unreadable) for name in names}
    if empty := [name for name, group in examples.items() if not group]:
        raise ValueError(f"{DATA.value} has no record of {', '.join(empty)} in {SPLIT.value}: leave out by --tasks what is empty")
    return {name: group[: LIMIT.value or None] for name, group in examples.items()}


def stoppable(bar: tqdm) -> Callable[[int], None]:
    """Moves the bar, and ends an evaluation that was asked to stop."""

    def progress(rows: int) -> None:
        bar.update(rows)
        hosts.stop_if_asked("asked to stop: nothing is written, the same command starts again")

    return progress


def main() -> None:
    with hosts.joined(HostsConfig()):
        evaluate_split()


def settings() -> Config:
    """Mesh, dtype and sizes to judge with: a whole model a device and its judge.json's, or all of --config."""
    if not config_file(sys.argv):
        return judge_config(MODEL.value, batch=BATCH.value)
    cfg = typed(CONFIG.value)
    cfg.stage, cfg.model.path = "grpo", MODEL.value
    check(cfg, jax.device_count(), jax.process_count())
    return cfg


def evaluate_split() -> None:
    cfg = settings()
    unreadable = BadRowCounter()
    examples = read_examples(unreadable)
    check_workdir(OUT.value)
    model = open_model(cfg)
    temperature = np.full(SAMPLES.value, cfg.rollout.temperature, np.float32)
    temperature[0] = 0
    how = Judging(model.stages, model.fmt, cfg.rollout.prompts, temperature, cfg.reward.alpha, SEED.value)
    began = time.perf_counter()
    quiet = not sys.stderr.isatty() or jax.process_index() > 0
    with tqdm(total=count_rows(examples), unit="prompt", disable=quiet) as bar:
        options = {"step": 0, "probabilities": True, "progress": stoppable(bar)}
        predictions, result = evaluate(read_params(model, cfg), examples, how, **options)
    seconds = time.perf_counter() - began
    result["unusable"] = dict(unreadable.reasons + collections.Counter(result["unusable"]))
    result |= {"split": SPLIT.value, "model": str(MODEL.value), "seconds": seconds}
    write_evaluation(OUT.value, NAME.value or SPLIT.value, predictions, result)
    if jax.process_index() > 0:
        return
    print(table(result))
    written = as_path(OUT.value) / f"{NAME.value or SPLIT.value}.json"
    print(f"{len(predictions)} predictions in {seconds:.1f} s, written to {written}")


if __name__ == "__main__":
    CONFIG, MODEL, DATA, OUT, NAME, SPLIT, TASKS_FLAG, LIMIT, BATCH, SAMPLES, SEED = eval_flags()
    run_command(main)
