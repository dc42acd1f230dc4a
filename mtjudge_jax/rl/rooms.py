"""The room that prompts of unequal lengths get in training, fitted to some of the run's own prompts: a short ladder of shapes for
prompts that have a stream to themselves, and shapes for prompts that share one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config, answers_learned
from mtjudge_jax.types import PromptRoom

_MOST = 3  # shapes beside the largest; each costs the compilation of two or three programs
_WORTH = 300  # tokens and patches of the largest shape; below, compiling others would cost more than it saves
_ENOUGH = 0.8  # of what the largest shape alone would compute; if the ladder computes more, it is not used
_SAVES = 0.95  # of what a ladder with one shape fewer computes; if a ladder computes more, the shorter one is taken
_TRIED = 8  # batches drawn from the prompts
_SLACK = (1.0, 1.2)  # times the room that all of these need
_PATCH = 0.5  # of the memory of a token of the decoder, at most: of a patch in the tower
_SWAPS, _GAINS = 100, 0.999  # of rows between streams, at most; each lowers the largest sum to this share of it
_SLOTS = 1.5  # prompts that a stream may hold, of those that it holds in the mean
_PLACES = 4096  # of a device's micro-batch, tokens and patches, in the largest shape; with fewer its programs are not busy


class SharedRoom(NamedTuple):
    """A way for prompts to share streams."""

    prompts: float  # of a stream, in the mean
    slots: int  # the same, at most
    shape: PromptRoom  # of a stream's prompts together
    places: int  # of its answers, at most


class Rooms(NamedTuple):
    """How the rows of a run's batches are put into micro-batches."""

    shapes: tuple[PromptRoom, ...]  # the room for a prompt: the least first, the last holds any
    size: int  # rows of a device that run together
    shared: tuple[SharedRoom, ...] = ()  # the fewest streams first


def rooms_of(cfg: Config, prompts: Sequence[tuple[int, int]], *, devices: int) -> Rooms | None:
    """`make_rooms` with the config's limits. devices: over how many the rows of a batch are sharded."""
    places = answers_learned(cfg) * (cfg.rollout.completion_tokens - 1)
    largest = PromptRoom(cfg.data.prompt_tokens, cfg.data.patches)
    most, rows = max(1, cfg.update.micro_prompts // devices), cfg.update.prompts // devices
    return make_rooms(prompts, largest, answers=places, most=most, rows=rows, devices=devices)


def make_rooms(
    prompts: Sequence[tuple[int, int]], largest: PromptRoom, *, answers: int, most: int, rows: int, devices: int
) -> Rooms | None:
    """The rooms of a run, or None where all rows may as well have the largest shape.

    prompts: (tokens, patches) of some of the run's prompts. answers: places that the longest answers of a prompt take. most: rows
    of a device that may run together, of its `rows` in an update.
    """
    shapes = fit_shapes(prompts, largest)
    places = sum(largest) + answers
    size = next(size for size in range(1, most + 1) if most % size == 0 and (size * places >= _PLACES or size == most))
    shared = fit_shared(prompts, largest, answers=answers, most=most, rows=rows, devices=devices) if devices > 1 else ()
    return Rooms(shapes, size, shared) if len(shapes) > 1 or shared else None


def quarters_of(largest: PromptRoom) -> tuple[PromptRoom, ...]:
    """Shapes for prompts that are only sampled, of any run: a quarter of the largest, a half, three quarters and the whole."""
    part = lambda share: PromptRoom(math.ceil(share * largest.prompt), 4 * math.ceil(share * largest.patches / 4))  # noqa: E731
    return (*(part(share) for share in (0.25, 0.5, 0.75)), largest)


def fit_shared(
    prompts: Sequence[tuple[int, int]], largest: PromptRoom, *, answers: int, most: int, rows: int, devices: int
) -> tuple[SharedRoom, ...]:
    """The ways for prompts to share streams that take no more memory than `most` of the longest rows. Arguments of `make_rooms`.

    A way has the room that some drawn batches need; the next has somewhat more.
    """
    if sum(largest) + answers < _PLACES:
        return ()
    rng, sizes, out = np.random.default_rng(0), np.array(prompts, int), []
    batches = [sizes[rng.integers(len(sizes), size=devices * rows)] for _ in range(_TRIED)]
    for streams in range(1, rows):
        slots = math.ceil(_SLOTS * rows / streams)
        needed = np.max([sums_of(batch, balance(batch, devices * streams, slots)).max(0) for batch in batches], axis=0)
        for slack in _SLACK:
            shape = PromptRoom(*(64 * math.ceil(slack * size / 64) for size in needed.tolist()))
            room = lambda one, weight: one.prompt + weight * one.patches  # noqa: E731
            places = min(most * (room(largest, weight) + answers) - room(shape, weight) for weight in (0, _PATCH))
            if places > 0:
                out.append(SharedRoom(rows / streams, slots, shape, int(places)))
    return tuple(out)


def balance(sizes: np.ndarray, streams: int, slots: int) -> np.ndarray:
    """Rows to streams, so that in no column of sizes, [N, K], a stream has much more than the others. Returns int32 [streams,
    slots], N where a stream has no further row.

    The largest row goes first, each to the stream that is then the least full (Graham's LPT, 1969, in several dimensions). Then
    the fullest stream swaps rows with others as long as that helps.
    """
    share = np.concatenate([sizes / np.maximum(sizes.sum(0), 1), np.zeros((1, sizes.shape[1]))])
    out, load = np.full((streams, slots), len(sizes), np.int32), np.zeros((streams, sizes.shape[1]))
    count = np.zeros(streams, int)
    for row in np.argsort(-share[:-1].max(1), kind="stable").tolist():
        full = np.where(count < slots, (load + share[row]).max(1), np.inf)
        at = int(full.argmin())
        out[at, count[at]] = row
        load[at], count[at] = load[at] + share[row], count[at] + 1
    for _ in range(_SWAPS):
        a = int(load.max(1).argmax())
        gain = share[out][None] - share[out[a]][:, None, None]  # [slots, streams, slots, K], what `a` has more after a swap
        fuller = np.maximum((load[a] + gain).max(-1), (load[None, :, None] - gain).max(-1))
        fuller[:, a] = np.inf
        mine, b, other = np.unravel_index(fuller.argmin(), fuller.shape)
        if fuller[mine, b, other] >= load[a].max() * _GAINS:
            break
        moved = gain[mine, b, other]
        load[a], load[b] = load[a] + moved, load[b] - moved
        out[a, mine], out[b, other] = out[b, other], out[a, mine]
    return out


def of_streams(values: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """The values, [N, K], of the rows of each stream, [streams, slots, K]; zeros where it has no further row."""
    return np.concatenate([values, np.zeros_like(values[:1])])[dealt]


def sums_of(sizes: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """The sums of the columns of sizes, [N, K], over the rows of each stream, [streams, K]."""
    return of_streams(sizes, dealt).sum(1)


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
