"""Two judges on the same questions: is one more often right, and by how much?"""

import math

import numpy as np

from mtjudge_jax.metrics.bootstrap import bootstrap_interval


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of the exact test: how likely so uneven a split of the questions that only one of them has right is by chance.

    Twice the tail of a binomial with one half, at most 1; 1 where they never disagree (McNemar 1947). It takes the questions as
    independent. 1 and 7: 2 * (1 + 8) / 256 = 0.0703.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)


def paired_interval(difference: np.ndarray, task: np.ndarray, group: np.ndarray) -> list[float]:
    """95 % interval of the mean over tasks of each task's mean difference.

    difference: float `[N]`, what the second judge scores on a question minus what the first does. task: int `[N]`. group: int
    `[N]`; the questions of a group are drawn together, whatever their task. A task that a resample lacks counts 0 in it.
    """
    groups, tasks = int(group.max()) + 1, int(task.max()) + 1
    cell = np.ravel_multi_index((group, task), (groups, tasks))
    sums = [np.bincount(cell, weights=values, minlength=groups * tasks) for values in (difference, np.ones(len(cell)))]
    stacked = np.stack([part.reshape(groups, tasks) for part in sums], axis=-1)
    return bootstrap_interval(stacked, lambda s: np.mean(s[..., 0] / np.maximum(s[..., 1], 1), axis=-1))
