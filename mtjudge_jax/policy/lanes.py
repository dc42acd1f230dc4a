"""The sampler on the devices: it draws G answers per prompt, token by token, with lanes that follow the answers that live.

A device has room for M prompts and B = M * G answers of theirs. A prompt runs once and its cache is stored once; each answer has
a lane with a cache of its own. Answers end at very different lengths, so the work follows the answers that live:

    lanes    a segment of steps computes the first lanes only. When few answers live, they move to the front.
    columns  a segment reads only the columns of the own caches that are filled. All lanes write to the same column, whatever
             their answers' lengths: step s writes column s modulo C - 1, and an answer of n tokens sees the last n - 1 of them.
    prompts  when some prompts have all their answers, the next ones take their places.

The draw of a token depends only on (key, uid of the example, answer, token), so none of this changes an answer.
"""

import operator
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.models.attention import Places
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.rl.logp import EVERY, Filter, cooled, sampling_logits
from mtjudge_jax.sharding import BATCH_AXES
from mtjudge_jax.types import NO_CHOICE, Array, Params, PromptBatch, Rollout, Routing


class Draws(NamedTuple):
    """What decides which tokens are drawn."""

    params: Params
    key: Array  # of this rollout
    temperature: Array  # float32 [G]; 0 takes the likeliest token and gives its log-probability at temperature 1


Ends = Array | int | tuple[Array | int, ...]


class Rules(NamedTuple):
    """What is known when the programs are compiled."""

    cfg: Qwen3VLConfig
    allowed: Array  # bool [V]
    eos: Ends  # the ids that end an answer, which must be allowed
    pad: int
    length: int  # C
    backend: Backend
    only: Filter = EVERY
    keep_routing: bool = False  # whether a rollout has the experts of its tokens


class Lanes(NamedTuple):
    """The answers that are in the making, B on each of D devices."""

    place: Array  # int32 [D, B], the place of its prompt among the device's M
    answer: Array  # int32 [D, B], which of the prompt's G
    count: Array  # int32 [D, B], tokens drawn so far
    token: Array  # int32 [D, B], the last of them
    live: Array  # bool [D, B], False where no answer is or it has ended


class Held(NamedTuple):
    """The prompts that have answers in the making, M on each of D devices."""

    row: Array  # int32 [D, M], which of the device's rows of the batch
    uid: Array  # uint32 [D, M]
    next_position: Array  # int32 [D, M]
    valid: Array  # bool [D, M, P]
    heat: Array | None = None  # float32 [D, M], see PromptBatch
    longest: Array | None = None  # int32 [D, M]


class Drawn(NamedTuple):
    """What was drawn for the whole batch; a device has q rows of it."""

    tokens: Array  # int32 [D, q, G, C]
    logp: Array  # float32 [D, q, G, C]
    mask: Array  # bool [D, q, G, C]
    routing: Routing | None = None  # of arrays that lead with [D, q]


class State(NamedTuple):
    """A rollout between two segments."""

    lanes: Lanes
    held: Held
    drawn: Drawn
    step: Array  # int32 [], columns of the own caches that were written since all lanes were empty
    prompt: vlm.Cache  # k [L, D, M, K, H, P], v [L, D, M, K, P, H]
    own: vlm.Cache  # k [L, D, B, K, H, C - 1], v [L, D, B, K, C - 1, H]


def empty_state(rules: Rules, prompts: PromptBatch, cache: vlm.Cache, group: int) -> State:
    """No answer yet. cache: of the first M prompts of each device."""
    _, devices, held = cache.k.shape[:3]
    zeros = lambda *shape: jnp.zeros((devices, *shape), jnp.int32)  # noqa: E731
    rows, lanes = prompts.tokens.shape[0] // devices, zeros(held * group)
    shape = (devices, rows, group, rules.length)
    drawn = Drawn(jnp.full(shape, rules.pad, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, bool))
    if rules.keep_routing:
        experts = rules.cfg.text.num_layers, rules.cfg.text.moe.experts_per_token
        sizes = (devices, rows, prompts.tokens.shape[1]), shape
        drawn = drawn._replace(routing=Routing(*(jnp.full((*size, *experts), NO_CHOICE, jnp.uint8) for size in sizes)))
    valid = jnp.zeros((devices, held, prompts.tokens.shape[1]), bool)
    own = jax.tree.map(lambda x: jnp.ones((devices, held), x.dtype), (prompts.heat, prompts.longest))
    return State(
        Lanes(lanes, lanes, lanes, lanes, lanes > 0),
        Held(zeros(held), zeros(held).astype(jnp.uint32), zeros(held), valid, *own),
        drawn,
        jnp.int32(0),
        cache,
        vlm.empty_cache(rules.cfg, devices, held * group, rules.length - 1, cache.k.dtype),
    )


def first_state(rules: Rules, draws: Draws, prompts: PromptBatch, held: int) -> State:
    """Each device's first `held` prompts, with the first token of each of their answers; the lanes are in order."""
    first = rows_of(rules, prompts, 0, held)
    last, cache, choice = _prefill(rules, draws, first)
    state = empty_state(rules, prompts, cache, draws.temperature.shape[0])
    return _enter(rules, draws, state, first, (last, choice), 0)


def admit(rules: Rules, draws: Draws, state: State, prompts: PromptBatch, row: Array, count: int) -> State:
    """Gives the device's prompts from `row` on, `count` of them, places whose answers have all ended."""
    new = rows_of(rules, prompts, row, count)
    last, cache, choice = _prefill(rules, draws, new)
    place = jnp.argsort(_busy(state.lanes, state.held), axis=1, stable=True)[:, :count]
    put = jax.vmap(lambda whole, new, place: whole.at[:, place].set(new), in_axes=(1, 1, 0), out_axes=1)
    state = state._replace(
        prompt=jax.tree.map(lambda whole, new: put(whole, new, place), state.prompt, cache),
        step=jnp.where(state.lanes.live.any(), state.step, 0),
    )
    return _enter(rules, draws, state, new, (last, choice), row, place)


def rows_of(rules: Rules, prompts: PromptBatch, row: Array | int, count: int) -> PromptBatch:
    """Rows `row` to `row + count` of each device."""
    devices = devices_of(rules.backend, prompts.tokens.shape[0])

    def take(x: Array) -> Array:
        x = x.reshape(devices, len(x) // devices, *x.shape[1:])  # no -1: without pictures the patches have a size of 0
        return jax.lax.dynamic_slice_in_dim(x, row, count, 1).reshape(devices * count, *x.shape[2:])

    return jax.tree.map(take, prompts)


def devices_of(backend: Backend, rows: int) -> int:
    """D: over how many devices the rows are sharded."""
    shards = prod(backend.mesh.shape[axis] for axis in BATCH_AXES) if backend.mesh else 1
    return shards if rows % shards == 0 else 1


def _prefill(rules: Rules, draws: Draws, prompts: PromptBatch) -> tuple[Array, vlm.Cache, Array | None]:
    """Hidden states of the last tokens [D, M, D], the caches and the experts, all with the devices apart."""
    last, *kept = vlm.prefill(draws.params, rules.cfg, prompts, backend=rules.backend, keep_choices=rules.keep_routing)
    devices = devices_of(rules.backend, last.shape[0])
    cache, choice = jax.tree.map(lambda x: x.reshape(x.shape[0], devices, -1, *x.shape[2:]), kept)
    return last.reshape(devices, -1, last.shape[-1]), cache, choice


def _enter(
    rules: Rules, draws: Draws, state: State, new: PromptBatch, run: tuple, row: Array | int, place: Array | None = None
) -> State:
    """Draws the first token of all answers to the prompts `new`, whose caches are in the state, and gives them lanes.
    run: what `_prefill` returned beside the caches.
    """
    last, choice = run
    (devices, count, _), group = last.shape, draws.temperature.shape[0]
    place = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (devices, count)) if place is None else place.astype(jnp.int32)
    rows = jnp.broadcast_to(row + jnp.arange(count, dtype=jnp.int32), (devices, count))
    apart = lambda x: x.reshape(devices, count, *x.shape[1:])  # noqa: E731
    held = Held(rows, *jax.tree.map(apart, (new.uid, new.next_position, new.valid, new.heat, new.longest)))
    held = jax.tree.map(lambda whole, new: _put(whole, place, new), state.held, held)
    answer = jnp.broadcast_to(jnp.tile(jnp.arange(group, dtype=jnp.int32), count), (devices, count * group))
    of_place = jnp.repeat(place, group, 1)
    lane = jnp.argsort(state.lanes.live, axis=1, stable=True)[:, : count * group]
    lanes = Lanes(of_place, answer, jnp.zeros_like(answer), jnp.zeros_like(answer), jnp.ones(answer.shape, bool))
    hidden = jnp.repeat(last, group, 1)
    lanes, drawn = _draw(rules, draws, hidden, _owners(draws, held, lanes, rules.length), lanes, state.drawn)
    lanes = jax.tree.map(lambda whole, new: _put(whole, lane, new), state.lanes, lanes)
    if choice is not None:
        experts, put = jnp.moveaxis(choice, 0, 3).astype(jnp.uint8), jax.lax.dynamic_update_slice_in_dim
        drawn = drawn._replace(routing=drawn.routing._replace(prompts=put(drawn.routing.prompts, experts, row, 1)))
    return state._replace(lanes=lanes, held=held, drawn=drawn)


def _put(whole: Array, index: Array, new: Array) -> Array:
    """whole [D, B, ..] with new [D, J, ..] at index [D, J] of each device; an index of B or more is left out."""
    return jax.vmap(lambda whole, index, new: whole.at[index].set(new, mode="drop"))(whole, index, new)


def _take(x: Array, index: Array) -> Array:
    """x [D, B, ..] at index [D, J] of each device, [D, J, ..]."""
    return jax.vmap(lambda x, index: x[index])(x, index)


class _Owners(NamedTuple):
    """What each lane's answer is, looked up once a segment. All are [D, B]."""

    key: Array
    temperature: Array
    row: Array  # of the device's rows of the batch
    answer: Array
    heat: Array | None
    longest: Array | int


def _owners(draws: Draws, held: Held, lanes: Lanes, length: int) -> _Owners:
    both = lambda uid, answer: jax.random.fold_in(jax.random.fold_in(draws.key, uid), answer)  # noqa: E731
    keys = jax.vmap(jax.vmap(both))(_take(held.uid, lanes.place), lanes.answer)
    temperature, row = jnp.asarray(draws.temperature)[lanes.answer], _take(held.row, lanes.place)
    heat, longest = (None if x is None else _take(x, lanes.place) for x in (held.heat, held.longest))
    return _Owners(keys, temperature, row, lanes.answer, heat, length if longest is None else longest)


def _draw(rules: Rules, draws: Draws, hidden: Array, owners: _Owners, lanes: Lanes, drawn: Drawn) -> tuple[Lanes, Drawn]:
    """Draws the next token of each lane from hidden states [D, B, D], and writes it where the lane is live."""
    temperature, hidden = owners.temperature[..., None], cooled(hidden, owners.heat)
    divisor = jnp.where(temperature > 0, temperature, 1.0)
    logits = sampling_logits(hidden, vlm.output_head(draws.params, rules.cfg), rules.allowed, divisor, rules.only)
    gumbel = lambda key, at: jax.random.gumbel(jax.random.fold_in(key, at), logits.shape[-1:])  # noqa: E731
    noise = jax.vmap(jax.vmap(gumbel))(owners.key, lanes.count)
    token = jnp.argmax(logits + jnp.where(temperature > 0, 1.0, 0.0) * noise, -1).astype(jnp.int32)
    logp = jnp.take_along_axis(logits, token[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)

    where = (owners.row, owners.answer, jnp.where(lanes.live, lanes.count, rules.length))
    tokens, logps, mask = (_write(x, where, value) for x, value in zip(drawn[:3], (token, logp, lanes.live), strict=True))
    drawn = Drawn(tokens, logps, mask, drawn.routing)
    count = lanes.count + 1
    live = lanes.live & ~_is_end(token, rules.eos) & (count < owners.longest)
    return lanes._replace(count=count, token=token, live=live), drawn


@jax.vmap
def _write(whole: Array, where: tuple[Array, Array, Array], value: Array) -> Array:
    """whole [D, q, G, C, ..] with value [D, B, ..] at (row, answer, token), each [D, B]; a token of C or more is left out."""
    return whole.at[where].set(value, mode="drop")


def _note_answers(drawn: Drawn, owners: _Owners, lanes: Lanes, choice: Array | None, length: int) -> Drawn:
    """Writes the experts of the lanes' last tokens, [L, D, B, k]."""
    if choice is None:
        return drawn
    where = (owners.row, owners.answer, jnp.where(lanes.live, lanes.count - 1, length))
    answers = _write(drawn.routing.answers, where, jnp.moveaxis(choice, 0, 2).astype(jnp.uint8))
    return drawn._replace(routing=drawn.routing._replace(answers=answers))


def _is_end(token: Array, eos: Ends) -> Array:
    return reduce(operator.or_, [token == end for end in (eos if isinstance(eos, tuple) else (eos,))])


class Segment(NamedTuple):
    """What a program of decoding is compiled for."""

    lanes: int  # of a device, at most B
    columns: int  # at most C - 1; fewer only while no more were written
    ordered: bool  # whether the lanes are the prompts' answers in order
    refill: int = 0  # it ends early when each device has so many free places for prompts that wait; 0: none will wait


def draw_segment(
    rules: Rules, draws: Draws, state: State, segment: Segment, *, below: Array | int = 0, wait: Array | int = 0
) -> State:
    """Draws tokens until no device has more than `below` live answers, the columns are full, or waiting prompts find places.

    wait: how many prompts of each device wait. The live answers must be no more than the segment's lanes.
    """
    state = _pack(state, segment)
    size, held = rules.length - 1, state.held
    front = jax.tree.map(lambda x: x[:, : segment.lanes], state.lanes)
    owners, first = _owners(draws, held, front, rules.length), _take(held.next_position, front.place)
    places = None if segment.ordered else _places(front, held.row.shape[1], draws.temperature.shape[0])
    experts = vlm.resident_experts(draws.params, rules.cfg, rules.backend)  # once a segment
    settings = {"backend": rules.backend, "keep_choices": rules.keep_routing, "experts": experts}

    def goes_on(lanes: Lanes, step: Array) -> Array:
        room = step < segment.columns if segment.columns < size else True
        more = room & (lanes.live.sum(1).max() > below)
        if not segment.refill:
            return more
        return more & ~((wait > 0) & (free_places(lanes, held) >= segment.refill))

    def turn(loop: tuple) -> tuple:
        _, lanes, drawn, step, own = loop
        cached = lanes.count - 1
        age = (step - 1 - jnp.arange(segment.columns)) % size  # how many tokens ago a column was written
        where = vlm.DecodedAt(first + cached, age < cached[..., None], step % size, places)
        caches = {"valid": held.valid, "prompt": state.prompt, "own": own}
        hidden, own, choice = vlm.decode(draws.params, rules.cfg, where, tokens=lanes.token, **caches, **settings)
        drawn = _note_answers(drawn, owners, lanes, choice, rules.length)
        lanes, drawn = _draw(rules, draws, hidden, owners, lanes, drawn)
        return goes_on(lanes, step + 1), lanes, drawn, step + 1, own

    loop = (goes_on(front, state.step), front, state.drawn, state.step, state.own)
    _, front, drawn, step, own = jax.lax.while_loop(lambda loop: loop[0], turn, loop)
    put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, 0, 1)  # noqa: E731
    return state._replace(lanes=jax.tree.map(put, state.lanes, front), drawn=drawn, step=step, own=own)


def free_places(lanes: Lanes, held: Held) -> Array:
    """How many places are free on every device."""
    return (~_busy(lanes, held)).sum(1).min()


def _busy(lanes: Lanes, held: Held) -> Array:
    """bool [D, M]: the places with a live answer."""
    return (lanes.live[..., None] & (lanes.place[..., None] == jnp.arange(held.row.shape[1]))).any(1)


def _places(lanes: Lanes, held: int, group: int) -> Places:
    devices, count = lanes.live.shape
    answer = lanes.place * group + lanes.answer
    none = jnp.zeros((devices, held * group), jnp.int32)
    numbers = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), answer.shape)
    return Places(_put(none, jnp.where(lanes.live, answer, held * group), numbers), answer)


def _pack(state: State, segment: Segment) -> State:
    """Moves live answers from behind the segment's lanes into lanes of ended ones. Each device moves its own."""
    lanes, front = state.lanes, segment.lanes
    every = lanes.live.shape[1]
    if front == every:
        return state
    index, most = jnp.arange(every), min(front, every - front)
    behind, ended = lanes.live & (index >= front), ~lanes.live & (index < front)
    source = jnp.argsort(~behind, axis=1, stable=True)[:, :most]
    target = jnp.argsort(~ended, axis=1, stable=True)[:, :most]
    count = behind.sum(1)
    moving = jnp.arange(most) < count[:, None]
    target, left = jnp.where(moving, target, every), jnp.where(moving, source, every)
    moved = jax.tree.map(lambda x: _put(x, target, _take(x, source)), lanes)
    moved = moved._replace(live=_put(moved.live, left, jnp.zeros_like(moving)))

    columns = slice(segment.columns)
    filled = vlm.Cache((..., columns), (..., columns, slice(None)))

    def move(i: Array, own: vlm.Cache) -> vlm.Cache:
        def one(cache: Array, part: tuple) -> Array:
            row = jax.vmap(lambda x, lane: x[:, lane, *part], (1, 0), 1)(cache, source[:, i])
            return jax.vmap(lambda x, lane, row: x.at[:, lane, *part].set(row, mode="drop"), (1, 0, 1), 1)(
                cache, target[:, i], row
            )

        return vlm.Cache(*(one(cache, part) for cache, part in zip(own, filled, strict=True)))

    return state._replace(lanes=moved, own=jax.lax.fori_loop(0, count.max(), move, state.own))


def result(rules: Rules, drawn: Drawn) -> Rollout:
    """The answers of the whole batch, which have all ended."""
    tokens, logp, mask, routing = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn)
    last = jnp.take_along_axis(tokens, jnp.maximum(mask.sum(-1, keepdims=True) - 1, 0), -1)[..., 0]
    return Rollout(tokens, mask, logp, ~_is_end(last, rules.eos), routing)


class Context(NamedTuple):
    """What the sampler has left of each prompt and its first answers, for continuations of these. Q leads."""

    prompt: vlm.Cache  # k [Q, L, K, H, P], v [Q, L, K, P, H]
    answers: vlm.Cache  # k [Q, L, G, K, H, C - 1], v [Q, L, G, K, C - 1, H]


def sample(*arguments: Any, **settings: Any) -> Rollout:
    """`draw_and_keep` without the caches."""
    return draw_and_keep(*arguments, **settings)[0]


def draw_and_keep(
    params: Params,
    cfg: Qwen3VLConfig,
    prompts: PromptBatch,
    key: Array,
    *,
    temperature: Array,
    allowed: Array,
    length: int,
    eos: Ends,
    pad: int,
    backend: Backend = vlm.REFERENCE,
    only: Filter = EVERY,
    keep_routing: bool = False,
) -> tuple[Rollout, Context]:
    """Draws answers of at most `length` tokens side by side until the last has ended, each in its own lane.

    The caches stay in order. They cost nothing where the caller drops them inside the same program. key, temperature: see Draws;
    the others: see Rules.
    """
    rules, draws = Rules(cfg, allowed, eos, pad, length, backend, only, keep_routing), Draws(params, key, temperature)
    rows, group = prompts.tokens.shape[0], temperature.shape[0]
    held = rows // devices_of(backend, rows)
    state = first_state(rules, draws, prompts, held)
    state = draw_segment(rules, draws, state, Segment(held * group, length - 1, ordered=True))
    first = lambda x, *shape: jnp.moveaxis(x.reshape(x.shape[0], rows, *shape, *x.shape[3:]), 1, 0)  # noqa: E731
    context = Context(jax.tree.map(first, state.prompt), jax.tree.map(lambda x: first(x, group), state.own))
    return result(rules, state.drawn), context
