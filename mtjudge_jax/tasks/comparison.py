"""Candidates against each other: who beats whom, from verdicts about pairs or from scores of each alone."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.tasks.base import Task
from mtjudge_jax.tasks.verdicts import Shares

_BY = '"pairs" needs a task of pairs, "score" one about a single picture or a pair'


class WinRates(NamedTuple):
    """Of `Judge.compare`, float64 arrays; over HTTP, lists."""

    win_rate: Sequence[float]  # [N], the mean probability of winning against the others; the sum is N / 2
    matrix: Sequence[Sequence[float]]  # [N, N], the probability that i beats j; m[i][j] + m[j][i] = 1, NaN where never compared
    unread: int  # answers that gave no probabilities; one order then counts alone, and a pair without any as 0.5


def compared_by(task: Task, by: str | None, find: Callable[[str], Task]) -> Task:
    """The task whose questions compare pictures: the task of pairs itself by "pairs", its twin about one picture by "score"; by
    default as the task asks. find: the task of a name. Raises UserError where the task cannot compare so.
    """
    by = ("pairs" if task.kind == "pairwise" else "score") if by is None else by
    if by not in ("pairs", "score") or (by == "pairs" and task.kind != "pairwise") or task.kind == "listwise":
        said = f"by = {by!r} with task {task.name!r}, which asks {task.kind} questions"
        raise UserError(f"{said}: give 'pairs' or 'score', {_BY}")
    if by == "pairs" or task.kind != "pairwise":
        return task
    if not task.single:
        raise UserError(f"task {task.name!r} has no pointwise twin: compare by pairs, or name a task about one picture")
    return find(task.single)


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
    pairs = opponents(count, None)
    grades = [None if one is None else list(one.values()) for one in shares]
    leads = [0.0 if grades[i] is None or grades[j] is None else _lead(grades[i], grades[j]) for i, j in pairs]
    return _comparison(count, pairs, leads, sum(one is None for one in shares))


def _lead(a: Sequence[float], b: Sequence[float]) -> float:
    """The probability that a grade drawn from `a` is above one from `b`, minus that it is below."""
    return math.fsum(p * q * ((i > j) - (i < j)) for i, p in enumerate(a) for j, q in enumerate(b))


def _comparison(count: int, pairs: Sequence[tuple[int, int]], leads: Sequence[float], unread: int) -> WinRates:
    """leads: for each pair, the probability that the first wins minus that of the second."""
    matrix = [[math.nan] * count for _ in range(count)]
    for (i, j), lead in zip(pairs, leads, strict=True):
        half = round(lead * 2**40) / 2**41  # a multiple of a power of two, so that the two sum to 1 without rounding
        matrix[i][j], matrix[j][i] = 0.5 + half, 0.5 - half
    met = [[p for p in row if not math.isnan(p)] for row in matrix]
    return WinRates([math.fsum(row) / len(row) for row in met], matrix, unread)
