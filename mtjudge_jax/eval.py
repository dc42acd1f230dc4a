"""`mtjudge eval`: judges a split of prepared data with a model and writes scores and predictions."""

import sys
import time
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from mtjudge_jax.command import run_command
from mtjudge_jax.data.sources import read_manifest, read_split
from mtjudge_jax.evaluate import Judging, count_rows, evaluate, write_evaluation
from mtjudge_jax.judge import judge_config
from mtjudge_jax.run import open_model, read_params
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
    return "\n".join(lines)


def main() -> None:
    cfg = judge_config(MODEL.value, batch=BATCH.value)
    known = [name.split("/")[1] for name in read_manifest(DATA.value)["files"] if name.split("/")[0] == SPLIT.value]
    names = TASKS_FLAG.value or known
    examples = {get_task(name).name: read_split(DATA.value, SPLIT.value, name) for name in names}
    if LIMIT.value:
        examples = {name: group[: LIMIT.value] for name, group in examples.items()}
    model = open_model(cfg)
    temperature = np.full(SAMPLES.value, cfg.rollout.temperature, np.float32)
    temperature[0] = 0
    how = Judging(model.stages, model.fmt, BATCH.value, temperature, cfg.reward.alpha, SEED.value)
    began = time.perf_counter()
    with tqdm(total=count_rows(examples), unit="prompt", disable=not sys.stderr.isatty()) as bar:
        predictions, result = evaluate(read_params(model, cfg), examples, how, step=0, probabilities=True, progress=bar.update)
    seconds = time.perf_counter() - began
    result |= {"split": SPLIT.value, "model": str(MODEL.value), "seconds": seconds}
    write_evaluation(OUT.value, NAME.value or SPLIT.value, predictions, result)
    print(table(result))
    print(f"{len(predictions)} predictions in {seconds:.1f} s, written to {Path(OUT.value) / (NAME.value or SPLIT.value)}.json")


if __name__ == "__main__":
    MODEL = flags.DEFINE_string("model", None, "Hugging Face folder, e.g. runs/demo/best.", required=True)
    DATA = flags.DEFINE_string("data", None, "Folder of `mtjudge prepare`, e.g. runs/demo/data.", required=True)
    OUT = flags.DEFINE_string("out", None, "Folder for scores and predictions.", required=True)
    NAME = flags.DEFINE_string("name", "", "Name of the files; default: the split.")
    SPLIT = flags.DEFINE_string("split", "test", "Which split to judge.")
    TASKS_FLAG = flags.DEFINE_list("tasks", [], "Tasks to judge; default: all of the split.")
    LIMIT = flags.DEFINE_integer("limit", 0, "Examples a task; 0 = all.")
    BATCH = flags.DEFINE_integer("batch", 24, "Prompts judged at a time.")
    SAMPLES = flags.DEFINE_integer("samples", 8, "Answers a prompt: one greedy, the rest sampled.")
    SEED = flags.DEFINE_integer("seed", 0, "Of the sampled answers.")
    run_command(main)
