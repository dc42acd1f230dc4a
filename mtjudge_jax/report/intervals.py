"""95 % interval of a mean over tasks. Tasks share source pictures, so their own intervals cannot simply be averaged."""

import numpy as np

from mtjudge_jax.metrics import bootstrap_interval, macro_f1
from mtjudge_jax.tasks import task_of


def mean_interval(predictions: list[dict], tasks: list[str], *, score: str) -> list[float] | None:
    """[low, high] of the mean over `tasks`, all answers of one `group_id`, whatever the task, being drawn together.

    `score` is "macro_f1" or "sampled_accuracy". None when a task has no predictions (or none was sampled).
    """
    rows = [p for p in predictions if p["task"] in tasks]
    if score == "sampled_accuracy":
        rows = [p for p in rows if p.get("sampled_accuracy") is not None]
    if not rows or {p["task"] for p in rows} != set(tasks):
        return None
    groups = {name: i for i, name in enumerate(dict.fromkeys(p["group_id"] for p in rows))}
    parts, statistic = (_f1_parts, _mean_f1) if score == "macro_f1" else (_accuracy_parts, _mean_accuracy)
    sums = [parts([p for p in rows if p["task"] == task], task, groups) for task in tasks]
    widths = np.cumsum([part.shape[1] for part in sums])[:-1]
    return bootstrap_interval(np.concatenate(sums, axis=1), lambda s: statistic(np.split(s, widths, axis=1)))


def _f1_parts(rows: list[dict], task: str, groups: dict[str, int]) -> np.ndarray:
    """Confusion counts of each group, float64 `[groups, T * (T + 1)]`; the last column of T + 1 is no valid answer."""
    column = {word: i for i, word in enumerate(task_of(rows[0]).labels)}
    counts = np.zeros((len(groups), len(column), len(column) + 1))
    for p in rows:
        counts[groups[p["group_id"]], column[p["label"]], column.get(p["verdict"], len(column))] += 1
    return counts.reshape(len(groups), -1)


def _mean_f1(parts: list[np.ndarray]) -> np.ndarray:
    """[resamples] from one `[resamples, T * (T + 1)]` a task."""
    labels = [int((np.sqrt(1 + 4 * part.shape[1]) - 1) / 2) for part in parts]  # T (T + 1) -> T
    return np.mean([macro_f1(part.reshape(-1, n, n + 1)) for part, n in zip(parts, labels, strict=True)], axis=0)


def _accuracy_parts(rows: list[dict], task: str, groups: dict[str, int]) -> np.ndarray:
    """Summed sampled accuracy and number of questions of each group, float64 `[groups, 2]`."""
    sums = np.zeros((len(groups), 2))
    for p in rows:
        sums[groups[p["group_id"]]] += (p["sampled_accuracy"], 1)
    return sums


def _mean_accuracy(parts: list[np.ndarray]) -> np.ndarray:
    return np.mean([part[:, 0] / np.maximum(part[:, 1], 1) for part in parts], axis=0)
