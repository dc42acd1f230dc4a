"""The sampler of a run: between segments of decoding the host decides how many lanes and columns the next one has.

A decision needs three numbers, which all processes read, so that all decide alike. A segment ends where the next may be smaller,
so a rollout has a few tens of them. Programs are compiled for the sizes of two short ladders, each when it is first needed.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import Config
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy import lanes
from mtjudge_jax.policy.lanes import Draws, Rules, Segment, State
from mtjudge_jax.policy.trainable import cast
from mtjudge_jax.rl.logp import EVERY, Filter
from mtjudge_jax.sharding import BATCH_AXES, batch_sharding, replicated
from mtjudge_jax.types import Array, Params, PromptBatch, Rollout

# Shares of the lanes: each is two thirds or three quarters of the one before, so that most lanes of a segment are live.
_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
_LEAST = 16  # lanes of a device; with fewer, a step costs hardly less. A rung has at least so many fewer than the one before.
_COLUMNS = (64, 256, 1024, 4096)
_SHORT = 16  # tokens of an answer; so short ones are drawn in one program, because compiling others would cost more than it saves


def lane_ladder(count: int) -> tuple[int, ...]:
    """How many lanes a segment may have, of `count`, most first. 512: 512, 384, 256, 192, 128, 96, 64, 48, 32, 16."""
    out = [count]
    for share in _SHARES:
        rung = -(-int(count * share) // 8) * 8
        if _LEAST <= rung <= out[-1] - _LEAST:
            out.append(rung)
    return tuple(out)


def column_ladder(count: int) -> tuple[int, ...]:
    """How many columns a segment may read, of `count`, fewest first. 511: 64, 256, 511."""
    return (*(rung for rung in _COLUMNS if 3 * rung <= 2 * count), count)


class Notes(NamedTuple):
    """What the sampler has done so far."""

    traces: collections.Counter  # how often each program was traced
    work: collections.Counter  # "lane steps": of all devices together, whether an answer lived in the lane or not


class _Now(NamedTuple):
    """What the host must know between two segments; the same on all processes."""

    live: int  # most live answers of a device
    step: int  # columns of the own caches that were written
    free: int  # places for prompts that every device has free
    ordered: int  # whether the lanes are the prompts' answers in order


class _Programs(NamedTuple):
    """Jitted functions. rules: a function of the length. `below` and `wait` are those of lanes.draw_segment."""

    begin: Callable  # (draws, prompts, below, wait, length, filter, held, segment) -> (state, now)
    admit: Callable  # (draws, state, prompts, row, length, filter, count) -> (state, now)
    decode: Callable  # (draws, state, below, wait, length, filter, segment) -> (state, now)
    finish: Callable  # (drawn, length) -> Rollout


def make_sampler(
    cfg: Config, model_cfg: Qwen3VLConfig, drawing: dict[str, Any], mesh: Mesh, at_once: Callable[..., Rollout], notes: Notes
) -> Callable[..., Rollout]:
    """`(params, prompts, key, temperature [G], length, filter = EVERY) -> Rollout`: the answers of `at_once`, one program.

    drawing: allowed, eos, pad and backend of lanes.Rules. Where there is nothing to gain, it is `at_once`.
    """
    programs = _jit_programs(cfg, model_cfg, drawing, mesh, notes.traces)

    def sample(
        params: Params, prompts: PromptBatch, key: Array, temperature: Array, length: int, only: Filter = EVERY
    ) -> Rollout:
        rows, group = prompts.tokens.shape[0], temperature.shape[0]
        devices = lanes.devices_of(drawing["backend"], rows)
        pieces = max(1, rows // (cfg.rollout.micro_prompts or rows))
        held, left = rows // pieces // devices, rows // devices
        ladders = lane_ladder(held * group), column_ladder(length - 1)
        if length <= _SHORT or held * pieces != left or (pieces, *map(len, ladders)) == (1, 1, 1):
            return at_once(params, prompts, key, temperature, length, 0, only)
        refill = _refill(held) if pieces > 1 else 0
        draws, row, now = Draws(params, key, temperature), held, _Now(held * group, 0, 0, 1)
        state = None
        while now.live or row < left:
            if state is not None and row < left and now.free >= refill:
                state, report = programs.admit(draws, state, prompts, np.int32(row), length, only, refill)
                now, row = _read(report), row + refill
                continue
            segment, below = next_segment(now, *ladders, refill)
            limits = np.int32(below), np.int32(left - row)
            if state is None:
                state, report = programs.begin(draws, prompts, *limits, length, only, held, segment)
            else:
                state, report = programs.decode(draws, state, *limits, length, only, segment)
            before, now = now.step, _read(report)
            notes.work["lane steps"] += (now.step - before) * segment.lanes * devices
        return programs.finish(state.drawn, length)

    return sample


def next_segment(now: _Now, rungs: Sequence[int], columns: Sequence[int], refill: int) -> tuple[Segment, int]:
    """The smallest segment that holds what lives, and with how many live answers the one after it may be smaller."""
    count = min(rung for rung in rungs if rung >= now.live)
    filled = min((rung for rung in columns if rung > now.step), default=columns[-1])
    below = max((rung for rung in rungs if rung < count), default=0)
    return Segment(count, filled, bool(now.ordered) and count == rungs[0], refill), below


def _refill(held: int) -> int:
    """How many prompts of a device enter at a time: a quarter of its places, or the least that divides them evenly."""
    return held // next(parts for parts in (4, 3, 2, 1) if held % parts == 0)


def _read(report: Array) -> _Now:
    return _Now(*np.asarray(report).tolist())


def _report(state: State) -> Array:
    live, (held, group) = state.lanes.live, (state.held.row.shape[1], state.drawn.tokens.shape[2])
    answer = state.lanes.place * group + state.lanes.answer
    moved = live & (answer != jnp.arange(held * group))
    return jnp.stack([live.sum(1).max(), state.step, lanes.free_places(state.lanes, state.held), ~moved.any()])


def _jit_programs(
    cfg: Config, model_cfg: Qwen3VLConfig, drawing: dict[str, Any], mesh: Mesh, traces: collections.Counter
) -> _Programs:
    rules = lambda length, only=EVERY: Rules(model_cfg, length=length, only=only, **drawing)  # noqa: E731
    in_dtype = lambda draws: draws._replace(params=cast(draws.params, cfg.model.dtype))  # noqa: E731

    def begin(
        draws: Draws, prompts: PromptBatch, below: Array, wait: Array, length: int, only: Filter, held: int, segment: Segment
    ):
        traces[_name("sample", (held, *prompts.tokens.shape), draws, length, only, segment)] += 1
        draws = in_dtype(draws)
        state = lanes.first_state(rules(length, only), draws, prompts, held)
        state = lanes.draw_segment(rules(length, only), draws, state, segment, below=below, wait=wait)
        return state, _report(state)

    def admit(draws: Draws, state: State, prompts: PromptBatch, row: Array, length: int, only: Filter, count: int):
        traces[_name("sample: enter", (count, *prompts.tokens.shape), draws, length, only)] += 1
        state = lanes.admit(rules(length, only), in_dtype(draws), state, prompts, row, count)
        return state, _report(state)

    def decode(draws: Draws, state: State, below: Array, wait: Array, length: int, only: Filter, segment: Segment):
        traces[_name("sample: go on", state.held.valid.shape, draws, length, only, segment)] += 1
        state = lanes.draw_segment(rules(length, only), in_dtype(draws), state, segment, below=below, wait=wait)
        return state, _report(state)

    def finish(drawn: lanes.Drawn, length: int) -> Rollout:
        return lanes.result(rules(length), drawn)

    out = (_state_sharding(mesh, model_cfg), replicated(mesh))
    return _Programs(
        jax.jit(begin, static_argnums=(4, 5, 6, 7), out_shardings=out),
        jax.jit(admit, static_argnums=(4, 5, 6), donate_argnums=1, out_shardings=out),
        jax.jit(decode, static_argnums=(4, 5, 6), donate_argnums=1, out_shardings=out),
        jax.jit(finish, static_argnums=1, out_shardings=batch_sharding(mesh)),
    )


def _name(what: str, shape: tuple[int, ...], draws: Draws, length: int, only: Filter, segment: Segment | None = None) -> str:
    where = f", {segment.lanes} lanes of {segment.columns}{' in order' * segment.ordered}" if segment else ""
    where += "" if only == EVERY else f", {only}"
    return f"{what} {shape} x {draws.temperature.shape[0]} x {length}{where}"


def _state_sharding(mesh: Mesh, model_cfg: Qwen3VLConfig) -> State:
    """A device keeps its own lanes; where it has all rows of the mesh's axis `tensor`, its part of the heads."""
    rows = batch_sharding(mesh)
    tensor = "tensor" if model_cfg.text.num_kv_heads % mesh.shape["tensor"] == 0 else None
    caches = vlm.Cache(*[NamedSharding(mesh, P(None, BATCH_AXES, None, tensor))] * 2)
    each = lambda kind: kind(*[rows] * len(kind._fields))  # noqa: E731
    return State(each(lanes.Lanes), each(lanes.Held), each(lanes.Drawn), replicated(mesh), caches, caches)
