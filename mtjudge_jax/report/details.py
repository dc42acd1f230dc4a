"""What the predictions of a run show beside its scores: confusion matrices, reliability, pairs that fail in both orders."""

from typing import NamedTuple

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.metrics.calibration import bin_sums
from mtjudge_jax.metrics.confusion import group_confusion
from mtjudge_jax.report import plots
from mtjudge_jax.report.examples import pair_outcome
from mtjudge_jax.report.plots import BASE_COLOR, TRAINED_COLOR, Plot
from mtjudge_jax.report.read import BASE_TEST, TRAINED_TEST, Evaluation, RunFolder
from mtjudge_jax.tasks import task_of

_MOST_LABELS = 11  # a matrix of more would not fit


class Matrix(NamedTuple):
    """Counts of answers: a row per true label, a column per verdict and one, the last, for no readable verdict."""

    task: str
    model: str
    labels: tuple[str, ...]
    counts: list[list[int]]


class PairFailures(NamedTuple):
    """Of the pairs that were judged in both orders."""

    pairs: int
    both_wrong: int
    flipped: int  # right in one order only: the verdict follows the order


def _last_judged(run: RunFolder) -> dict[str, Evaluation]:
    """Base and trained model on the test split; before they are judged, the best validation."""
    named = {"base": run.evaluations.get(BASE_TEST), "trained": run.evaluations.get(TRAINED_TEST)}
    if found := {name: one for name, one in named.items() if one is not None and one.predictions}:
        return found
    validations = sorted(name for name in run.evaluations if name.startswith("val_"))
    return {"best validation": run.evaluations[validations[-1]]} if validations else {}


def confusion_matrices(run: RunFolder) -> list[Matrix]:
    """Of the tasks with three labels or more, such as grades, by task and model."""
    found: dict[str, list[Matrix]] = {}
    for model, evaluation in _last_judged(run).items():
        by_task: dict[str, list[dict]] = {}
        for p in evaluation.predictions:
            if not p.get("unusable"):
                by_task.setdefault(p["task"], []).append(p)
        for task, rows in by_task.items():
            labels = _labels_of(rows[0])
            if 3 <= len(labels) <= _MOST_LABELS and all(p["label"] in labels for p in rows):
                found.setdefault(task, []).append(Matrix(task, model, labels, _counts(rows, labels)))
    return [matrix for matrices in found.values() for matrix in matrices]


def _labels_of(p: dict) -> tuple[str, ...]:
    """The labels of the task of a prediction, () for a list or a task that is not known."""
    try:
        task = task_of(p)
    except UserError:
        return ()
    return task.labels if task.kind != "listwise" else ()


def _counts(rows: list[dict], labels: tuple[str, ...]) -> list[list[int]]:
    place = {word: number for number, word in enumerate(labels)}
    true = np.array([place[p["label"]] for p in rows])
    said = np.array([place.get(p["verdict"], -1) for p in rows])
    return group_confusion(true, said, np.zeros(len(rows), int), num_labels=len(labels))[0].tolist()


def reliability_plot(run: RunFolder, tasks: list[str]) -> Plot | None:
    """Over the answers to `tasks`; None where no probabilities were computed."""
    bins = {}
    for model, evaluation in _last_judged(run).items():
        rows = [p for p in evaluation.predictions if p["task"] in tasks and not p.get("unusable")]
        rows = [p for p in rows if p.get("probability") is not None]
        if rows:
            right = np.array([float(p["correct"]) for p in rows])
            bins[model] = bin_sums(np.array([p["probability"] for p in rows]), right).sum(axis=0)
    colors = {"base": BASE_COLOR, "trained": TRAINED_COLOR, "best validation": TRAINED_COLOR}
    return plots.draw_reliability("Reliability", bins, colors)


def pair_failures(evaluation: Evaluation | None) -> dict[str, PairFailures]:
    """By task."""
    orders: dict[tuple[str, str], list[dict]] = {}
    for p in evaluation.predictions if evaluation else ():
        if p.get("order") in ("ab", "ba") and not p.get("unusable"):
            orders.setdefault((p["task"], p["example_id"]), []).append(p)
    found: dict[str, PairFailures] = {}
    for (task, _), ps in orders.items():
        if len(ps) == 2:
            pairs, wrong, flipped = found.get(task, PairFailures(0, 0, 0))
            outcome = pair_outcome(ps)
            found[task] = PairFailures(pairs + 1, wrong + (outcome == "bothwrong"), flipped + (outcome == "flipped"))
    return found
