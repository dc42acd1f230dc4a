"""95 % interval of a mean over tasks. Tasks share source pictures, so their own intervals cannot simply be averaged."""

from collections.abc import Callable

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.metrics.bootstrap import bootstrap_interval
from mtjudge_jax.metrics.confusion import accuracy, macro_f1
from mtjudge_jax.tasks import task_of

# One array `[resamples, ..]` of summed parts per task -> the mean over the tasks, `[resamples]`.
Statistic = Callable[[list[np.ndarray]], np.ndarray]


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
    widths, mean = np.cumsum([part.shape[1] for part in sums])[:-1], statistic([part.sum(axis=0) for part in sums])
    return bootstrap_interval(np.concatenate(sums, axis=1), lambda s: mean(np.split(s, widths, axis=1)))


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


def _table(counts: np.ndarray) -> np.ndarray:
    """`[.., T * (T + 1)]` -> `[.., T, T + 1]`."""
    labels = int((np.sqrt(1 + 4 * counts.shape[-1]) - 1) / 2)
    return counts.reshape(*counts.shape[:-1], labels, labels + 1)


def _mean_macro_f1(whole: list[np.ndarray]) -> Statistic:
    def mean(parts: list[np.ndarray]) -> np.ndarray:
        return np.mean([macro_f1(_table(p), whole=_table(w)) for p, w in zip(parts, whole, strict=True)], axis=0)

    return mean


def _mean_accuracy(_: list[np.ndarray]) -> Statistic:
    return lambda parts: np.mean([accuracy(_table(part)) for part in parts], axis=0)


def _accuracy_parts(rows: list[dict], task: str, groups: dict[str, int]) -> np.ndarray:
    """Summed sampled accuracy and number of questions of each group, float64 `[groups, 2]`."""
    sums = np.zeros((len(groups), 2))
    for p in rows:
        sums[groups[p["group_id"]]] += (p["sampled_accuracy"], 1)
    return sums


def _mean_sampled(_: list[np.ndarray]) -> Statistic:
    return lambda parts: np.mean([part[:, 0] / np.maximum(part[:, 1], 1) for part in parts], axis=0)


# By score: what each group adds to the sums, and how the sums of all groups of each task give the statistic of resamples.
_SCORES = {
    "macro_f1": (_f1_parts, _mean_macro_f1),
    "accuracy": (_f1_parts, _mean_accuracy),
    "sampled_accuracy": (_accuracy_parts, _mean_sampled),
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
    parts, statistic = _SCORES[score]
    sums = [parts([p for p in side if p["task"] == task], task, groups) for side in kept for task in tasks]
    old, new = (statistic([part.sum(axis=0) for part in side]) for side in (sums[: len(tasks)], sums[len(tasks) :]))
    widths = np.cumsum([part.shape[1] for part in sums])[:-1]

    def difference(drawn: np.ndarray) -> np.ndarray:
        pieces = np.split(drawn, widths, axis=1)
        return new(pieces[len(tasks) :]) - old(pieces[: len(tasks)])

    whole = np.concatenate(sums, axis=1)
    return (float(difference(whole.sum(axis=0, keepdims=True))[0]), *bootstrap_interval(whole, difference))
