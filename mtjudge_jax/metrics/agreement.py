"""Agreement of answers with labels: kappa, errors of grades, orders of lists."""

import numpy as np

from mtjudge_jax.metrics.correlation import kendall_tau_b, levenshtein


def kappa(counts: np.ndarray, *, grades: np.ndarray | None = None) -> np.ndarray:
    """Cohen's kappa of counts `[.., T, T + 1]` -> `[..]`: 1 - observed disagreement / disagreement of independent answers.

    Disagreement is 0 or 1; with `grades` [T] it is the squared distance of the grades divided by the largest one (quadratic
    weights). An invalid answer is a disagreement of 1. 0 if nothing can disagree. Cohen 1960; weighted: Cohen 1968.

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


def grade_errors(label: np.ndarray, verdict: np.ndarray, grades: np.ndarray) -> np.ndarray:
    """Distance in grades of each answer from its label, `[N]`; an invalid answer gets the largest distance that the label allows.

    Grades 1 to 5, label 4: answered 2 -> 2, invalid -> 3.
    """
    true = grades[label]
    worst = np.maximum(true - grades.min(), grades.max() - true)
    return np.where(verdict < 0, worst, np.abs(grades[verdict] - true))


def rank_by_name(order: str) -> dict[str, int]:
    """Rank of each name in a written order, 1 = best: "B > A = C" -> {"B": 1, "A": 2, "C": 2}."""
    ranks, at = {}, 1
    for tied in order.split(">"):
        names = [name.strip() for name in tied.split("=")]
        ranks |= dict.fromkeys(names, at)
        at += len(names)
    return ranks


def order_tau(label: str, verdict: str | None) -> float:
    """Tau-b of two orders of the same names; -1, the worst, for an invalid order or other names; 0 if one order is all ties."""
    true, said = rank_by_name(label), rank_by_name(verdict or "")
    if true.keys() != said.keys():
        return -1.0
    return kendall_tau_b([true[name] for name in true], [said[name] for name in true]) or 0.0


def order_distance(label: str, verdict: str | None) -> float:
    """Levenshtein distance of the two sequences of names, divided by the longer length: 0 equal, 1 nothing in place, or invalid.

    Tied names are in alphabetical order. "A > B > C" and "B > A > C": two substitutions of three.
    """
    true, said = (sorted(rank_by_name(o), key=lambda name: (rank_by_name(o)[name], name)) for o in (label, verdict or ""))
    return 1.0 if verdict is None else levenshtein(true, said) / max(len(true), len(said))
