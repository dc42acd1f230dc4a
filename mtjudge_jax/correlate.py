"""Statistics of two lists of numbers, in numpy: correlations, area under the ROC curve, distance of two orders.

None is returned where the number is not defined: fewer than two values, or all of them equal.
"""

from collections.abc import Sequence

import numpy as np

_BLOCK = 512  # rows of the pairwise signs that are in memory at once


def average_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values share the mean of theirs: [30, 10, 30] -> [2.5, 1, 2.5]."""
    _, place, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if (
        len(a) < 2 or np.all(a == a[0]) or np.all(b == b[0])
    ):  # by equality: a mean rounds, so the deviations of equal values may not be 0
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    return pearson(average_ranks(x), average_ranks(y))


def kendall_tau_b(x: Sequence[float], y: Sequence[float]) -> float | None:
    """(concordant - discordant) / sqrt(pairs not tied in x * pairs not tied in y)."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    both = in_a = in_b = 0
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        sign_a, sign_b = np.sign(a[rows, None] - a[None, :]), np.sign(b[rows, None] - b[None, :])
        both += int(np.sum(sign_a * sign_b))
        in_a, in_b = in_a + int(np.count_nonzero(sign_a)), in_b + int(np.count_nonzero(sign_b))
    return both / float(np.sqrt(float(in_a) * in_b)) if in_a and in_b else None


def roc_auc(positive: Sequence[bool], score: Sequence[float]) -> float | None:
    """Chance that a positive has a higher score than a negative, equal scores count half (Mann-Whitney)."""
    is_positive = np.asarray(positive, bool)
    count, others = int(is_positive.sum()), int((~is_positive).sum())
    if not count or not others:
        return None
    return float((average_ranks(score)[is_positive].sum() - count * (count + 1) / 2) / (count * others))


def levenshtein(a: Sequence, b: Sequence) -> int:
    """Least number of insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def f1(true: Sequence[bool], answered: Sequence[bool]) -> float:
    """2 TP / (2 TP + FP + FN) of the class True; 0 where it is neither true nor answered."""
    t, a = np.asarray(true, bool), np.asarray(answered, bool)
    total = int(t.sum() + a.sum())
    return 2.0 * int((t & a).sum()) / total if total else 0.0
