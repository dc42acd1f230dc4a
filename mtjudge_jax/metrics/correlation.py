"""Statistics of two lists of numbers, in numpy: correlations, area under the ROC curve, distance of two orders.

`pearson`, `spearman`, `roc_auc` and `kendall_tau_b` are None if the number is undefined: fewer than two values, all values equal,
one class only. The weighted ones are NaN there. Their `weight` is `[.., N]`, how often each row was drawn, with one resample of
a bootstrap per row; a row drawn twice is tied with itself.

Not scipy.stats: it has no weights, and takes seconds to import, while `kendall_tau_b` is also a reward in training.
"""

from collections.abc import Sequence

import numpy as np

_BLOCK = 512  # rows of the pairwise signs that are in memory at once


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    return _number(weighted_pearson(*_arrays(x, y), np.ones(len(x))))


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    return _number(weighted_spearman(*_arrays(x, y), np.ones(len(x))))


def roc_auc(positive: Sequence[bool], score: Sequence[float]) -> float | None:
    """Probability that a positive has a higher score than a negative; equal scores count half (Mann-Whitney)."""
    return _number(weighted_roc_auc(np.asarray(positive, bool), np.asarray(score, np.float64), np.ones(len(score))))


def weighted_pearson(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation of `[.., N]` and `[.., N]` -> `[..]`."""
    total = np.maximum(weight.sum(axis=-1, keepdims=True), 1)
    dx, dy = (v - (weight * v).sum(axis=-1, keepdims=True) / total for v in (x, y))
    cov, xx, yy = ((weight * p).sum(axis=-1) for p in (dx * dy, dx * dx, dy * dy))
    varied = _varied(x, weight) & _varied(y, weight)
    return np.where(varied, np.clip(cov / np.where(varied, np.sqrt(xx) * np.sqrt(yy), 1), -1, 1), np.nan)


def weighted_spearman(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Pearson of the ranks of `[N]` and `[N]` -> `[..]`."""
    return weighted_pearson(average_ranks(x, weight), average_ranks(y, weight), weight)


def weighted_roc_auc(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """bool `[N]`, `[N]` -> `[..]`. Scores 1 2 2 3 of classes - - + +: (2 + 1.5) / 4 = 0.875."""
    yes, no = _by_value(score, weight * positive), _by_value(score, weight * ~positive)
    below = np.cumsum(no, axis=-1) - no
    pairs = yes.sum(axis=-1) * no.sum(axis=-1)
    return np.where(pairs > 0, (yes * (below + no / 2)).sum(axis=-1) / np.where(pairs > 0, pairs, 1), np.nan)


def average_ranks(values: Sequence[float], weight: np.ndarray | None = None) -> np.ndarray:
    """Ranks of `[N]` from 1, `[.., N]`; equal values share the mean of their ranks: 30 10 30 -> 2.5 1 2.5."""
    of_value = _by_value(np.asarray(values), np.ones(len(values)) if weight is None else weight)
    middle = np.cumsum(of_value, axis=-1) - of_value / 2 + 0.5
    return middle[..., np.unique(values, return_inverse=True)[1]]


def kendall_tau_b(x: Sequence[float], y: Sequence[float]) -> float | None:
    """(concordant - discordant) / sqrt(pairs not tied in x * pairs not tied in y) (Kendall 1945).

    x = 1 2 3 4, y = 1 3 2 2: (3 - 2) / sqrt(6 * 5).
    """
    a, b = _arrays(x, y)
    both = in_a = in_b = 0
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        sign_a, sign_b = np.sign(a[rows, None] - a[None, :]), np.sign(b[rows, None] - b[None, :])
        both += int(np.sum(sign_a * sign_b))
        in_a, in_b = in_a + int(np.count_nonzero(sign_a)), in_b + int(np.count_nonzero(sign_b))
    return both / float(np.sqrt(float(in_a) * in_b)) if in_a and in_b else None


def levenshtein(a: Sequence, b: Sequence) -> int:
    """Least number of insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def f1(true: Sequence[bool], answered: Sequence[bool]) -> float:
    """2 TP / (2 TP + FP + FN) of the class True; 0 if it is neither true nor answered anywhere."""
    t, a = np.asarray(true, bool), np.asarray(answered, bool)
    total = int(t.sum() + a.sum())
    return 2.0 * int((t & a).sum()) / total if total else 0.0


def _arrays(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(x, np.float64), np.asarray(y, np.float64)


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _varied(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Whether the drawn values of `[.., N]` differ, `[..]`.

    By equality: a mean rounds, so the deviations of equal values may not be 0.
    """
    highest, lowest = np.where(weight > 0, values, -np.inf), np.where(weight > 0, values, np.inf)
    return highest.max(axis=-1, initial=-np.inf) > lowest.min(axis=-1, initial=np.inf)


def _by_value(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weight `[.., N]` of each different value, from the smallest `[.., U]`."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    return np.add.reduceat(weight[..., order], first, axis=-1) if len(first) else weight
