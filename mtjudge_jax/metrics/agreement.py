"""How far answers agree with labels and native scores, over plain arrays: kappa, AUROC, correlations, errors, orders of lists.

`weight`, where a function takes it, is `[.., N]`: how often each row was drawn. With all ones it is the plain number, with the
rows of a bootstrap each `[N]` of it is one resample; a row drawn twice is tied with itself.
"""

import numpy as np

from mtjudge_jax.correlate import kendall_tau_b, levenshtein


def kappa(counts: np.ndarray, *, grades: np.ndarray | None = None) -> np.ndarray:
    """Cohen's kappa of counts `[.., T, T + 1]` -> `[..]`: 1 - observed disagreement / that of independent answers.

    Disagreement is 0 or 1, or with `grades` [T] the squared distance of the two over that of the extremes (quadratic weights).
    No valid answer is a disagreement of 1. Cohen 1960; weighted: Cohen 1968. 0 where nothing could disagree.

        [[20, 5, 0], [10, 15, 0]]: observed 15/50, expected (25 * 20 + 25 * 30) / 2500 = 1/2 -> 1 - 0.3 / 0.5 = 0.4
    """
    labels = counts.shape[-2]
    cost = 1.0 - np.eye(labels, labels + 1)
    if grades is not None:
        span = max(float(np.ptp(grades)), 1e-12)
        cost[:, :labels] = ((grades[:, None] - grades[None, :]) / span) ** 2
    total = np.maximum(counts.sum(axis=(-2, -1)), 1)
    chance = np.einsum("...i,...j->...ij", counts.sum(axis=-1), counts.sum(axis=-2)) / total[..., None, None]
    seen, expected = (counts * cost).sum(axis=(-2, -1)), (chance * cost).sum(axis=(-2, -1))
    return np.where(expected > 0, 1.0 - seen / np.where(expected > 0, expected, 1.0), 0.0)


def auroc(positive: np.ndarray, value: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Chance that a positive row has the larger value than a negative one, a tie counts half; bool `[N]`, `[N]` -> `[..]`.

    NaN where one of the two is absent. Values 1 2 2 3 of labels - - + +: (2 + 1.5) / 4 = 0.875.
    """
    weight = np.ones(len(value)) if weight is None else weight
    yes, no = _by_value(value, weight * positive), _by_value(value, weight * ~positive)
    below = np.cumsum(no, axis=-1) - no
    pairs = yes.sum(axis=-1) * no.sum(axis=-1)
    return np.where(pairs > 0, (yes * (below + no / 2)).sum(axis=-1) / np.where(pairs > 0, pairs, 1), np.nan)


def pearson(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Correlation of `[.., N]` and `[.., N]` -> `[..]`, NaN where one of them is constant."""
    weight = np.ones(x.shape[-1]) if weight is None else weight
    total = np.maximum(weight.sum(axis=-1, keepdims=True), 1)
    dx, dy = (v - (weight * v).sum(axis=-1, keepdims=True) / total for v in (x, y))
    cov, xx, yy = ((weight * p).sum(axis=-1) for p in (dx * dy, dx * dx, dy * dy))
    spread = np.sqrt(xx * yy)
    varied = spread > 1e-12 * total[..., 0]
    return np.where(varied, cov / np.where(varied, spread, 1), np.nan)


def spearman(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Pearson of the ranks of `[N]` and `[N]`, equal values sharing the middle one -> `[..]`."""
    weight = np.ones(len(x)) if weight is None else weight
    return pearson(_ranks(x, weight), _ranks(y, weight), weight)


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Tau-b of `[N]` and `[N]` (Kendall 1945): (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y).

    NaN where all of one are tied. x = 1 2 3 4, y = 1 3 2 2: (3 - 2) / sqrt(6 * 5).
    """
    tau = kendall_tau_b(x, y)
    return float("nan") if tau is None else tau


def grade_errors(label: np.ndarray, verdict: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Distance in grades of each answer from its label, `[N]`; no valid answer is as far off as that label allows.

    Grades 1 to 5, label 4: answered 2 -> 2, invalid -> 3.
    """
    true = grades[label]
    worst = np.maximum(true - grades.min(), grades.max() - true)
    return np.where(verdict < 0, worst, np.abs(grades[verdict] - true))


def ranks_of(order: str) -> dict[str, int]:
    """Rank of each name in an order in words, 1 = best: "B > A = C" -> {"B": 1, "A": 2, "C": 2}."""
    ranks, at = {}, 1
    for tied in order.split(">"):
        names = [name.strip() for name in tied.split("=")]
        ranks |= dict.fromkeys(names, at)
        at += len(names)
    return ranks


def order_tau(label: str, verdict: str | None) -> float:
    """Tau-b of two orders of the same names; -1, the worst, for an invalid one or other names; 0 where one is all ties."""
    true, said = ranks_of(label), ranks_of(verdict or "")
    if true.keys() != said.keys():
        return -1.0
    tau = kendall(np.array([true[name] for name in true]), np.array([said[name] for name in true]))
    return 0.0 if np.isnan(tau) else tau


def order_distance(label: str, verdict: str | None) -> float:
    """Levenshtein distance of the two sequences of names over the longer length: 0 equal, 1 nothing in place or invalid.

    Names that are tied stand in alphabetical order. "A > B > C" and "B > A > C": two substitutions of three.
    """
    true, said = (sorted(ranks_of(o), key=lambda name: (ranks_of(o)[name], name)) for o in (label, verdict or ""))
    return 1.0 if verdict is None else levenshtein(true, said) / max(len(true), len(said))


def _by_value(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weight `[.., N]` of each different value, from the smallest `[.., U]`."""
    order = np.argsort(value, kind="stable")
    first = np.flatnonzero(np.diff(value[order], prepend=np.nan) != 0)
    return np.add.reduceat(weight[..., order], first, axis=-1)


def _ranks(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    of_value = _by_value(value, weight)
    middle = np.cumsum(of_value, axis=-1) - of_value / 2
    return middle[..., np.unique(value, return_inverse=True)[1]]
