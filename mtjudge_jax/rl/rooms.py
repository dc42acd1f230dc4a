"""The room that prompts of unequal lengths get in training: a short ladder of shapes, fitted to some of the run's own prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config, answers_learned
from mtjudge_jax.types import PromptRoom

_MOST = 3  # shapes beside the largest; each costs the compilation of two or three programs
_WORTH = 300  # tokens and patches of the largest shape; below, compiling others would cost more than it saves
_ENOUGH = 0.8  # of what the largest shape alone would compute; if the ladder computes more, it is not used
_SAVES = 0.95  # of what a ladder with one shape fewer computes; if a ladder computes more, the shorter one is taken
_PLACES = 4096  # of a device's micro-batch, tokens and patches, in the largest shape; with fewer its programs are not busy


class Rooms(NamedTuple):
    """How the rows of a run's batches are put into micro-batches."""

    shapes: tuple[PromptRoom, ...]  # the room for a prompt: the least first, the last holds any
    size: int  # rows of a device that run together


def rooms_of(cfg: Config, prompts: Sequence[tuple[int, int]], *, devices: int) -> Rooms | None:
    """`make_rooms` with the config's limits. devices: over how many the rows of a batch are sharded."""
    places = answers_learned(cfg) * (cfg.rollout.completion_tokens - 1)
    largest = PromptRoom(cfg.data.prompt_tokens, cfg.data.patches)
    return make_rooms(prompts, largest, answers=places, most=max(1, cfg.update.micro_prompts // devices))


def make_rooms(prompts: Sequence[tuple[int, int]], largest: PromptRoom, *, answers: int, most: int) -> Rooms | None:
    """The rooms of a run, or None where all rows may as well have the largest shape.

    prompts: (tokens, patches) of some of the run's prompts. answers: places that the longest answers of a prompt take. most: rows
    of a device that may run together.
    """
    shapes = fit_shapes(prompts, largest)
    if len(shapes) == 1:
        return None
    places = sum(largest) + answers
    size = next(size for size in range(1, most + 1) if most % size == 0 and (size * places >= _PLACES or size == most))
    return Rooms(shapes, size)


def fit_shapes(prompts: Sequence[tuple[int, int]], largest: PromptRoom) -> tuple[PromptRoom, ...]:
    """At most _MOST shapes that hold these prompts with the fewest tokens and patches, and the largest.

    Each shape holds those before it. Of all ways to cut the prompts, ordered by size, into groups that share a shape, the best is
    found by dynamic programming.
    """
    if sum(largest) < _WORTH:
        return (largest,)
    sizes = np.array(sorted({_rounded(PromptRoom(*one), largest) for one in prompts}, key=sum))
    shapes = np.maximum.accumulate(sizes)  # of the first n sizes
    counts = np.zeros(len(sizes), int)
    for one in prompts:
        counts[np.argmax((shapes >= one).all(1))] += 1
    until, cost = np.concatenate([[0], counts.cumsum()]), shapes.sum(1)
    # best[n]: the least cost of the first n sizes with so many shapes, the last of them shapes[n - 1]
    best, ladders = np.where(until == 0, 0, np.inf), [()] * len(until)
    found = []
    for _ in range(_MOST):
        group = np.where(np.tri(len(sizes), dtype=bool), cost[:, None] * (until[1:, None] - until[None, :-1]), np.inf)
        tried = best[None, :-1] + group
        at = tried.argmin(1)
        ladders = [(), *[(*ladders[before], end) for end, before in enumerate(at.tolist())]]
        best = np.concatenate([[0], tried.min(1)])
        found.append((best[-1], ladders[-1]))
    total, ladder = next(one for one, more in zip(found, [*found[1:], found[-1]], strict=True) if more[0] >= _SAVES * one[0])
    if total > _ENOUGH * sum(largest) * len(prompts):
        return (largest,)
    return tuple(dict.fromkeys([*(PromptRoom(*shapes[end].tolist()) for end in ladder), largest]))


def _rounded(one: PromptRoom, largest: PromptRoom) -> PromptRoom:
    """Up to a number that is good for the kernels, and not above the largest."""
    steps = (16 if most < 512 else 64 for most in largest)
    return PromptRoom(*(min(-(-size // step) * step, most) for size, step, most in zip(one, steps, largest, strict=True)))
