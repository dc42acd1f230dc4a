"""Which rows of a batch learn together, and where the tokens of their answers lie in the stream of training.

The stream of a prompt is `[prompt | bin 1 | .. | bin B]`. A bin has W places and holds whole answers, end to end. The last token
of an answer of full length predicts nothing and has no place. With G = 3, C = 6 and answers of 2, 6 and 3 tokens, two bins of 5:

    tokens     b0 b1 b2 b3 b4 | c0 c1 c2 a0 a1
    places      6  7  8  9 10 | 12 13 14  0  1        of a token t of answer g: g * C + t; -1 where there is none

A micro-batch has one shape on all devices, so a long row makes all others pay. There are two ways out, and which of them a batch
takes depends on its lengths alone. Rows of much the same size run together: a micro-batch has the least bins of a short ladder
that hold the answers of all its rows, and the least room of another that holds their prompts and pictures. Or several prompts
share a stream, `[prompt a prompt b .. | bin 1 | .. | bin B]`: the rows are dealt out so that all devices have much the same to
do. Their answers are numbered through, first those of a. Where nothing is saved so, all rows have the same bins and the room of
the config.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtjudge_jax.rl.rooms import Rooms, SharedRoom, balance, of_streams, sums_of
from mtjudge_jax.sharding import BATCH_AXES, batch_sharding, replicated, take_rows
from mtjudge_jax.types import (
    NO_CHOICE,
    AnswerPlaces,
    Array,
    Joined,
    Lengths,
    MicroBatch,
    PromptBatch,
    PromptRoom,
    Routing,
)

_WORTH_PACKING = 256  # tokens that the answers to a prompt may have together
BIN_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16)  # of the places that G answers of full length take
_BY_TOKEN = ("tokens", "valid", "positions", "image_index")
_BY_PATCH = ("patches", "patch_hw", "patch_grid", "patch_segment")
_BY_PROMPT = ("next_position", "uid", "heat", "longest")
_SHARES_OF_ROOMS = tuple((2 / 3) ** step for step in range(6))  # where rows have rooms of their own: a program for each pair
_SHARES_OF_STREAMS = tuple(0.88**step for step in range(20))
_WORTH_SHARING = 0.8  # of what rows of one size compute: attention reads the keys of all prompts of a stream


class Bins(NamedTuple):
    count: int  # B
    width: int  # W, places of a bin


def bins_ladder(group: float, length: int, shares: Sequence[float] = BIN_SHARES) -> list[Bins]:
    """The bins that a run may use for G answers of at most `length` tokens, the fewest places first.

    The last one has a bin for each answer, so it holds any. A bin is at least as wide as an answer, unless there is only one bin,
    and less than twice as wide: attention within a bin costs the square of its width.
    """
    longest, shapes = length - 1, []
    for share in reversed(shares):
        places = math.ceil(share * group * longest)
        count = max(1, places // longest)
        shapes.append(Bins(count, math.ceil(places / count)))
    return list(dict.fromkeys(shapes))


def pack_row(lengths: np.ndarray, bins: Bins, group: int) -> list[tuple[int, int]] | None:
    """(bin, first place in it) of each answer of a stream, or None if the bins do not hold them. lengths int [k * G], in places.

    The answers of one prompt come after the other's, so that few bins hold answers of several. Of these the longest comes first,
    and each goes to the first bin with room for it.
    """
    used, where = [0] * bins.count, [(0, 0)] * len(lengths)
    for g in np.lexsort((-lengths, np.arange(len(lengths)) // group)).tolist():
        size = int(lengths[g])
        at = next((at for at, filled in enumerate(used) if filled + size <= bins.width), None)
        if at is None:
            return None
        where[g], used[at] = (at, used[at]), used[at] + size
    return where


def places_needed(lengths: np.ndarray, length: int) -> np.ndarray:
    """The places that answers of so many tokens take: all but the last token of an answer of full length, `length`."""
    return np.minimum(lengths, length - 1)


def least_bins(lengths: np.ndarray, length: int, rungs: Sequence[Bins], group: int | None = None) -> Bins | None:
    """The first of the rungs that holds every stream; None where none does. lengths int [Q, k * G], in tokens."""
    least = 0
    for row in places_needed(lengths, length):
        while pack_row(row, rungs[least], group or len(row)) is None:
            least += 1
            if least == len(rungs):
                return None
    return rungs[least]


def bins_of(lengths: np.ndarray, length: int, shares: Sequence[float]) -> Bins:
    """The bins of rows that run together: the least of the ladder that hold them; for answers as short as the demo's the largest,
    because further compilations would cost more than they save.
    """
    group = lengths.shape[1]
    rungs = bins_ladder(group, length, shares)
    return rungs[-1] if group * length < _WORTH_PACKING else least_bins(lengths, length, rungs)


def lay_out(lengths: np.ndarray, length: int, bins: Bins, group: int | None = None) -> np.ndarray:
    """int32 [Q, B, W]: for each place of the bins, the index in [k * G * C] of its token; -1 where there is none.

    lengths int [Q, k * G], in tokens, of `group` answers a prompt, by default of one prompt; length: C. Raises ValueError if the
    bins do not hold the answers of a stream.
    """
    places = np.full((len(lengths), *bins), -1, np.int32)
    for into, row in zip(places, places_needed(lengths, length), strict=True):
        where = pack_row(row, bins, group or len(row))
        if where is None:
            sizes = f"{bins.count} bins of {bins.width}"
            raise ValueError(f"answers of {row.tolist()} places do not fit into {sizes}: take a wider step of the ladder")
        for g, ((at, start), size) in enumerate(zip(where, row.tolist(), strict=True)):
            into[at, start : start + size] = np.arange(g * length, g * length + size)
    return places


class Together(NamedTuple):
    """Rows that run together, in streams of one row each or of several."""

    rows: np.ndarray  # int32 [D * q * k], which of the batch's rows, in the order of the devices that run them, see MicroBatch
    shape: PromptRoom
    bins: Bins
    streams: int  # D * q

    @property
    def places(self) -> int:
        """Tokens, patches and places of answers that are computed."""
        return self.streams * (sum(self.shape) + math.prod(self.bins))


def split_rows(lengths: Lengths, rooms: Rooms, *, devices: int, length: int) -> list[Together]:
    """Every row once. Prompts share streams where that computes clearly less than rows of one size do, see rooms. length: C."""
    alone = _by_size(lengths, rooms.shapes, devices=devices, size=rooms.size, length=length)
    most = _WORTH_SHARING * sum(one.places for one in alone)
    ways = (_sharing(lengths, way, devices=devices, length=length) for way in rooms.shared)
    return next((found for found in ways if found and sum(one.places for one in found) <= most), alone)


def _by_size(
    lengths: Lengths, shapes: Sequence[PromptRoom], *, devices: int, size: int, length: int
) -> list[Together]:
    """`size` rows on each of the D devices at a time; size must divide a device's rows.

    A micro-batch has one shape on all devices, so rows are ordered by what they need over the whole batch, and travel to the
    device that runs them. Micro-batches of one shape have the same bins.
    """
    small = np.array(shapes[:-1], int).reshape(-1, 1, 2)
    rung = (np.stack(lengths[:2], -1) > small).any(-1).sum(0)
    answers = places_needed(lengths.answers, length).sum(1)
    order = np.lexsort((answers, rung)).astype(np.int32)  # by room, then by answers
    parts = np.split(order, len(order) // (devices * size))
    shape = [int(rung[part].max()) for part in parts]
    bins = {}
    for one in set(shape):
        rows = np.concatenate([part for part, at in zip(parts, shape, strict=True) if at == one])
        bins[one] = bins_of(lengths.answers[rows], length, _SHARES_OF_ROOMS)
    return [Together(part, shapes[at], bins[at], len(part)) for part, at in zip(parts, shape, strict=True)]


def _sharing(lengths: Lengths, way: SharedRoom, *, devices: int, length: int) -> list[Together] | None:
    """The rows dealt out to streams of one shape, as many on every device; None where it has no room for them."""
    places, turns = places_needed(lengths.answers, length).sum(1), round(len(lengths.prompt) / devices / way.prompts)
    streams = devices * turns
    dealt = balance(np.stack([lengths.prompt, lengths.patches, places], 1), streams, way.slots)
    if (sums_of(np.stack(lengths[:2], 1), dealt).max(0) > way.shape).any():
        return None
    rungs = bins_ladder(way.places / (length - 1), length, _SHARES_OF_STREAMS)
    answers = of_streams(lengths.answers, dealt).reshape(streams, -1)
    bins = least_bins(answers, length, rungs, lengths.answers.shape[1])
    return bins and [Together(part.ravel(), way.shape, bins, devices) for part in np.split(dealt, turns)]


def place_answers(prompts: PromptBatch, mask: Array, mesh: Mesh, rooms: Rooms | None = None) -> AnswerPlaces:
    """Where the tokens of a batch's answers lie in the stream of training, sharded over the mesh; mask bool [Q, G, C].

    Without `rooms` all rows have the same bins. Each process lays out its own rows alone.
    """
    (_, group, length), rows = mask.shape, batch_sharding(mesh)
    lengths = lengths_of(prompts, mask, mesh)

    def placed(answers: np.ndarray, bins: Bins) -> Array:
        shape = (len(answers), *bins)
        return jax.make_array_from_callback(shape, rows, lambda at: lay_out(answers[at[0]], length, bins, group))

    if rooms is None:
        return placed(lengths.answers, bins_of(lengths.answers, length, BIN_SHARES))
    found, devices = [], math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    for one in split_rows(lengths, rooms, devices=devices, length=length):
        own = jax.make_array_from_callback(one.rows.shape, rows, lambda at, every=one.rows: every[at])
        answers = of_streams(lengths.answers, one.rows.reshape(one.streams, -1)).reshape(one.streams, -1)
        found.append(MicroBatch(own, placed(answers, one.bins), one.shape))
    return tuple(found)


def lengths_of(prompts: PromptBatch, mask: Array, mesh: Mesh) -> Lengths:
    """Of the real tokens of all processes, in the order of the batch. mask: bool [Q, G, C], the answers."""
    return Lengths(*jax.device_get(_counter(mesh)(prompts.valid, prompts.patch_segment > 0, mask)))


@functools.cache
def _counter(mesh: Mesh) -> Callable[..., list[Array]]:
    return jax.jit(lambda *masks: [mask.sum(-1, dtype=jnp.int32) for mask in masks], out_shardings=replicated(mesh))


def cut_prompts(prompts: PromptBatch, shape: PromptRoom) -> PromptBatch:
    """The prompts in the room of `shape`, which must hold them."""
    start, end = prompts.tokens.shape[1] - shape.prompt, shape.patches
    back = {name: getattr(prompts, name)[:, start:] for name in _BY_TOKEN}
    front = {name: getattr(prompts, name)[:, :end] for name in _BY_PATCH}
    if prompts.routing is not None:
        back["routing"] = prompts.routing._replace(prompts=prompts.routing.prompts[:, start:])
    return prompts._replace(**back, **front)


def in_least_room(prompts: PromptBatch, mesh: Mesh, shapes: Sequence[PromptRoom]) -> PromptBatch:
    """The prompts in the first of the shapes that holds them all; as they are where none does."""
    if not shapes:
        return prompts
    sizes = np.stack(jax.device_get(_counter(mesh)(prompts.valid, prompts.patch_segment > 0)), -1).max(0)
    own = PromptRoom(prompts.tokens.shape[1], prompts.patches.shape[1])
    least = next((one for one in shapes if (sizes <= one).all()), own)
    return prompts if least == own else _cutter(mesh, least)(prompts)


@functools.cache
def _cutter(mesh: Mesh, shape: PromptRoom) -> Callable[[PromptBatch], PromptBatch]:
    return jax.jit(functools.partial(cut_prompts, shape=shape), out_shardings=batch_sharding(mesh))


def take_prompts(prompts: PromptBatch, part: MicroBatch, mesh: Mesh) -> PromptBatch:
    """The prompts of a micro-batch in its room, in streams of one or of several; in a jitted function."""
    count = len(part.rows) // len(part.places)
    if count == 1:
        return take_rows(cut_prompts(prompts, part.shape), part.rows, mesh)
    on_device = functools.partial(join_prompts, count=count, shape=part.shape)
    few, spec = take_rows(prompts, part.rows, mesh), P(BATCH_AXES)
    return on_device(few) if mesh.size == 1 else jax.shard_map(on_device, mesh=mesh, in_specs=(spec,), out_specs=spec)(few)


def join_prompts(prompts: PromptBatch, *, count: int, shape: PromptRoom) -> PromptBatch:
    """Each `count` rows one behind the other in one row of `shape`, which must hold them. A row of zeros is no prompt."""
    number = jnp.arange(len(prompts.tokens), dtype=jnp.int32)[:, None] % count
    tokens, images = prompts.valid.sum(1), (prompts.image_index >= 0).sum(1)
    before = _joined_rows(images, count).cumsum(1).reshape(-1) - images  # merged image tokens of the prompts before, of a row
    prompts = prompts._replace(
        image_index=jnp.where(prompts.image_index >= 0, prompts.image_index + before[:, None], -1),
        patch_segment=jnp.where(prompts.patch_segment > 0, prompts.patch_segment + number * prompts.patches.shape[1], 0),
    )
    tokens = _joined_rows(tokens, count)
    last = shape.prompt - tokens.sum(1, keepdims=True) + tokens.cumsum(1) - 1
    pick = functools.partial(_pick, _real_places(prompts.valid, count, shape.prompt, at_end=True))
    picked = {name: pick(getattr(prompts, name), fill=-1 if name == "image_index" else 0) for name in _BY_TOKEN}
    if prompts.routing is not None:
        experts = pick(prompts.routing.prompts, fill=NO_CHOICE)
        picked["routing"] = Routing(experts, _joined_rows(prompts.routing.answers, count))
    numbers = pick(jnp.broadcast_to(number + 1, prompts.tokens.shape), fill=0)
    picked["joined"] = Joined(numbers, jnp.maximum(last, 0).astype(jnp.int32))
    places = _real_places(prompts.patch_segment > 0, count, shape.patches, at_end=False)
    picked |= {name: _pick(places, getattr(prompts, name), fill=0) for name in _BY_PATCH}
    each = {name: _joined_rows(x, count) for name in _BY_PROMPT if (x := getattr(prompts, name)) is not None}
    if prompts.heat is not None:
        each["heat"] = jnp.where(each["heat"] == 0, 1, each["heat"])  # of no prompt
    return prompts._replace(**picked, **each)


def _joined_rows(x: Array, count: int) -> Array:
    return x.reshape(len(x) // count, count, *x.shape[1:])


def _real_places(real: Array, count: int, size: int, *, at_end: bool) -> Array:
    """int32 [Q / count, size]: which places of each `count` rows, end to end, are real, in their order; the place behind the last
    one where there are no more. real bool [Q, T]. The real ones come to the end if `at_end`.
    """
    real = real.reshape(len(real) // count, count * real.shape[1])
    at = real.cumsum(1) - 1 + (size - real.sum(1, keepdims=True) if at_end else 0)
    every = jnp.arange(real.shape[1], dtype=jnp.int32)
    none = jnp.full(size, real.shape[1], jnp.int32)
    return jax.vmap(lambda at: none.at[at].set(every, mode="drop"))(jnp.where(real, at, size))


def _pick(places: Array, x: Array, *, fill: int) -> Array:
    """x [Q, T, ..] at `places` of `_real_places`."""
    x = x.reshape(len(places), len(x) // len(places) * x.shape[1], *x.shape[2:])
    return jax.vmap(lambda x, at: x.at[at].get(mode="fill", fill_value=fill))(x, places)


def cut(batch: Any, part: MicroBatch, mesh: Mesh) -> Any:
    """The rows of a TrainBatch, SftBatch or DpoBatch that a micro-batch runs, with their own places."""
    rest = take_rows(batch._replace(prompts=None, places=None), part.rows, mesh)
    return rest._replace(prompts=take_prompts(batch.prompts, part, mesh), places=part.places)
