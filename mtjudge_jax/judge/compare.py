"""Candidates against each other: who beats whom, from verdicts about pairs or from scores of each alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.eval.probabilities import Shares
from mtjudge_jax.tasks import Task


class WinRates(NamedTuple):
    win_rate: np.ndarray  # float64 [N], the mean probability of winning against the others; the sum is N / 2
    matrix: np.ndarray  # float64 [N, N], the probability that i beats j; m[i, j] + m[j, i] = 1, NaN where never compared
    unread: int  # answers that gave no probabilities; one order then counts alone, and a pair without any as 0.5


def opponents(count: int, anchors: int | None) -> list[tuple[int, int]]:
    """The pairs i < j to judge: all, or each candidate with the next `anchors` ones in a ring, so that all have equally many."""
    if count < 2:
        raise UserError(f"{count} candidate(s): give two or more to compare")
    if anchors is not None and anchors < 1:
        raise UserError(f"anchors = {anchors} must be at least 1, or None for all pairs")
    if anchors is None or 2 * anchors >= count - 1:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    return sorted({tuple(sorted((i, (i + step) % count))) for i in range(count) for step in range(1, anchors + 1)})


def from_pairs(count: int, pairs: Sequence[tuple[int, int]], shares: Sequence[Sequence[Shares | None]], task: Task) -> WinRates:
    """shares: for each pair, the probabilities after each of its answers, those of the other order turned back. A tie counts half
    for either.
    """
    first, second = task.labels[:2]
    leads, unread = [], 0
    for of_pair in shares:
        given = [one[first] - one[second] for one in of_pair if one]
        unread += len(of_pair) - len(given)
        leads.append(math.fsum(given) / len(given) if given else 0.0)
    return _comparison(count, pairs, leads, unread)


def from_scores(shares: Sequence[Shares | None]) -> WinRates:
    """Candidate i beats j with the probability that its grade is the higher one, where both are drawn independently; equal grades
    count half.
    """
    count = len(shares)
    pairs, leads = opponents(count, None), []
    for i, j in pairs:
        if shares[i] is None or shares[j] is None:
            leads.append(0.0)
            continue
        a, b = (np.array(list(shares[at].values())) for at in (i, j))
        table = np.outer(a, b)
        leads.append(float(np.tril(table, -1).sum() - np.triu(table, 1).sum()))
    return _comparison(count, pairs, leads, sum(one is None for one in shares))


def _comparison(count: int, pairs: Sequence[tuple[int, int]], leads: Sequence[float], unread: int) -> WinRates:
    """leads: for each pair, the probability that the first wins minus that of the second."""
    matrix = np.full((count, count), np.nan)
    for (i, j), lead in zip(pairs, leads, strict=True):
        half = round(lead * 2**40) / 2**41  # a multiple of a power of two, so that the two sum to 1 without rounding
        matrix[i, j], matrix[j, i] = 0.5 + half, 0.5 - half
    return WinRates(np.nanmean(matrix, axis=1), matrix, unread)
