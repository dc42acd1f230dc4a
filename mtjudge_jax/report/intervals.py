"""95 % interval of a mean over tasks. Tasks share source pictures, so their own intervals cannot simply be averaged."""

from collections.abc import Callable
from functools import partial

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.metrics.bootstrap import bootstrap_interval
from mtjudge_jax.metrics.confusion import accuracy, macro_f1
from mtjudge_jax.tasks import task_of


def mean_interval(predictions: list[dict], tasks: list[str], *, score: str) -> list[float] | None:
    """[low, high] of the mean over `tasks`. All answers of one `group_id` are drawn together, whatever their task.

    `score` is "macro_f1", "accuracy" or "sampled_accuracy". None if a task has no predictions (or no sampled ones), and for
    any other score.
    """
    rows = _countable(predictions, tasks)
    if score == "sampled_accuracy":
        rows = [p for p in rows if p.get("sampled_accuracy") is not None]
    if not rows or {p["task"] for p in rows} != set(tasks):
        return None
    groups = {name: i for i, name in enumerate(dict.fromkeys(p["group_id"] for p in rows))}
    if score not in _SCORES:
        return None
    parts, statistic = _SCORES[score]
    sums = [parts([p for p in rows if p["task"] == task], task, groups) for task in tasks]
    widths = np.cumsum([part.shape[1] for part in sums])[:-1]
    return bootstrap_interval(np.concatenate(sums, axis=1), lambda s: statistic(np.split(s, widths, axis=1)))


def _countable(predictions: list[dict], tasks: list[str]) -> list[dict]:
    """The predictions of those `tasks` that have a closed set of labels, so that they can be counted."""
    first = {p["task"]: p for p in reversed(predictions)}
    closed = {task for task in tasks if task in first and _has_labels(first[task])}
    return [p for p in predictions if p["task"] in closed and not p.get("unusable")]


def _has_labels(prediction: dict) -> bool:
    try:
        return task_of(prediction).kind != "listwise"
    except UserError:  # a task of another version
        return False


def _f1_parts(rows: list[dict], task: str, groups: dict[str, int]) -> np.ndarray:
    """Confusion counts of each group, float64 `[groups, T * (T + 1)]`; the last of T + 1 columns is for invalid answers."""
    column = {word: i for i, word in enumerate(task_of(rows[0]).labels)}
    counts = np.zeros((len(groups), len(column), len(column) + 1))
    for p in rows:
        counts[groups[p["group_id"]], column[p["label"]], column.get(p["verdict"], len(column))] += 1
    return counts.reshape(len(groups), -1)


def _mean_of(metric: Callable[[np.ndarray], np.ndarray], parts: list[np.ndarray]) -> np.ndarray:
    """[resamples] from one `[resamples, T * (T + 1)]` per task."""
    labels = [int((np.sqrt(1 + 4 * part.shape[1]) - 1) / 2) for part in parts]  # T (T + 1) -> T
    return np.mean([metric(part.reshape(-1, n, n + 1)) for part, n in zip(parts, labels, strict=True)], axis=0)


def _accuracy_parts(rows: list[dict], task: str, groups: dict[str, int]) -> np.ndarray:
    """Summed sampled accuracy and number of questions of each group, float64 `[groups, 2]`."""
    sums = np.zeros((len(groups), 2))
    for p in rows:
        sums[groups[p["group_id"]]] += (p["sampled_accuracy"], 1)
    return sums


def _mean_accuracy(parts: list[np.ndarray]) -> np.ndarray:
    return np.mean([part[:, 0] / np.maximum(part[:, 1], 1) for part in parts], axis=0)


# By score: what each group adds to the sums, and the statistic of the sums.
_SCORES = {
    "macro_f1": (_f1_parts, partial(_mean_of, macro_f1)),
    "accuracy": (_f1_parts, partial(_mean_of, accuracy)),
    "sampled_accuracy": (_accuracy_parts, _mean_accuracy),
}


def score_difference(before: list[dict], after: list[dict], tasks: list[str], *, score: str) -> tuple[float, float, float] | None:
    """(value, low, high) of the mean macro-F1 or accuracy over `tasks`, after minus before. Both models' answers to a group are
    drawn together.

    None if one model lacks the predictions of a task, and for any other score.
    """
    kept = [_countable(rows, tasks) for rows in (before, after)]
    if score not in ("macro_f1", "accuracy") or any({p["task"] for p in side} != set(tasks) for side in kept):
        return None
    groups = {name: i for i, name in enumerate(dict.fromkeys(p["group_id"] for side in kept for p in side))}
    parts, mean = _SCORES[score]
    sums = [parts([p for p in side if p["task"] == task], task, groups) for side in kept for task in tasks]
    widths = np.cumsum([part.shape[1] for part in sums])[:-1]

    def difference(drawn: np.ndarray) -> np.ndarray:
        pieces = np.split(drawn, widths, axis=1)
        return mean(pieces[len(tasks) :]) - mean(pieces[: len(tasks)])

    whole = np.concatenate(sums, axis=1)
    return (float(difference(whole.sum(axis=0, keepdims=True))[0]), *bootstrap_interval(whole, difference))
