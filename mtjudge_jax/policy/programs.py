"""The programs that a run executes on its devices, each jitted once for the mesh and the shapes; the sampler among them.

The sampler runs in segments. Between two of them the host decides how many lanes and columns the next one has. A decision needs
four numbers, which all processes read, so that all decide alike. A segment ends where the next may be smaller, so a rollout has a
few tens of them. Programs are compiled for the sizes of two short ladders, each when it is first needed.
"""

import collections
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import Config
from mtjudge_jax.data.rows import DEVICE_KEYS
from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy import lanes
from mtjudge_jax.policy.lanes import Context, Draws, Rules, Segment, State, draw_and_keep
from mtjudge_jax.policy.trainable import cast
from mtjudge_jax.rl.logp import EVERY, Filter, TokenLogp, completion_logp, cooled, sampling_logits
from mtjudge_jax.rl.streams import take_prompts
from mtjudge_jax.sharding import (
    BATCH_AXES,
    batch_sharding,
    gathered,
    local_rows,
    put_rows,
    replicated,
    shard_batch,
    take_rows,
)
from mtjudge_jax.types import AnswerPlaces, Array, MicroBatch, Params, PromptBatch, Rollout

# Shares of the lanes: each is two thirds or three quarters of the one before, so that most lanes of a segment are live.
_LANE_SHARES = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 3 / 16, 1 / 8, 3 / 32, 1 / 16, 1 / 32)
# Of a device; with fewer, a step costs hardly less. A rung has at least so many fewer than the one before.
_LEAST_LANES = 16
_COLUMNS = (64, 256, 1024, 4096)
_SHORT_ANSWER = 16  # tokens; answers so short are drawn in one program, because compiling others would cost more than it saves


class Logp(NamedTuple):
    """(params, prompts, tokens [Q, G, C], places) -> log-probabilities [Q, G, C], by jitted functions."""

    whole: Callable[..., Array]  # with places [Q, B, W]
    part: Callable[..., Array]  # with one micro-batch, and the result so far, which is donated

    def __call__(self, params: Params, prompts: PromptBatch, tokens: Array, places: AnswerPlaces) -> Array:
        if not isinstance(places, tuple):
            return self.whole(params, prompts, tokens, places)
        out = jnp.zeros(tokens.shape, jnp.float32, device=tokens.sharding)
        for part in places:
            out = self.part(params, prompts, tokens, part, out)
        return out


class Programs(NamedTuple):
    """Jitted functions. `traces` counts how often each was traced, by shapes: it should be once."""

    sample: Callable[..., Rollout]  # (params, prompts, key, temperature [G], length, filter = EVERY); in segments
    sample_at_once: Callable[..., Rollout]  # the same answers as one program, all lanes to the last end; before the filter a 0
    sample_and_keep: Callable[..., tuple[Rollout, Context]]  # that with how many answers' caches in place of the 0
    branch_logp: Callable[..., Array]  # (params, prompts, context, tokens [Q, G, T, W], at [Q, G]) -> [Q, G, T, W - 1]
    logp: Logp
    reference_logp: Logp  # the same for the reference policy, which has no adapters
    logp_fn: Callable  # the same with entropy, not jitted, for a loss to call
    traces: collections.Counter
    work: collections.Counter  # of the sampler so far: "lane steps", and "prefill", places of prompts
    mesh: Mesh
    tokenizer: Tokenizer


def make_programs(cfg: Config, model_cfg: Qwen3VLConfig, tokenizer: Tokenizer, mesh: Mesh) -> Programs:
    allowed = np.asarray(tokenizer.allowed_mask(model_cfg.text.vocab_size))
    backend = backend_of(cfg, mesh)
    logp_fn = bound_logp(model_cfg, cfg, allowed, backend)
    reference_fn = bound_logp(dataclasses.replace(model_cfg, lora=None), cfg, allowed, backend) if model_cfg.lora else logp_fn
    drawing = {"allowed": allowed, "eos": tokenizer.ends, "pad": tokenizer.pad, "keep_routing": cfg.loss.replay_routing}
    drawing["backend"] = backend._replace(gathered=_gathers(cfg, mesh))
    traces, work = collections.Counter(), collections.Counter()

    def sample_pieces(
        params: Params, prompts: PromptBatch, key: Array, temperature: Array, length: int, keep: int = 0, only: Filter = EVERY
    ):
        kept = f", the caches of {keep} kept" * bool(keep) + f", {only}" * (only != EVERY)
        kept += ", own temperatures" * (prompts.heat is not None)
        traces[f"sample {prompts.tokens.shape} x {temperature.shape[0]} x {length}{kept}"] += 1
        weights = _sampling_weights(params, cfg, mesh)

        def draw(prompts: PromptBatch) -> Rollout | tuple[Rollout, Context]:
            settings = drawing | {"temperature": temperature, "length": length, "only": only}
            drawn, context = draw_and_keep(weights, model_cfg, prompts, key, **settings)
            return (drawn, context._replace(answers=jax.tree.map(lambda x: x[:, :, :keep], context.answers))) if keep else drawn

        return in_pieces(draw, (prompts,), cfg.rollout.micro_prompts or prompts.tokens.shape[0])

    def branch_logp(params: Params, prompts: PromptBatch, context: Context, tokens: Array, at: Array) -> Array:
        traces[f"branches {prompts.tokens.shape} of {tokens.shape} after {context.answers.v.shape[-2]}"] += 1
        weights = cast(params, cfg.model.dtype)
        prompt, past = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), context)
        where = {"tokens": tokens[..., :-1], "at": at, "prompt": prompt, "past": past}
        hidden = vlm.branch_hidden(weights, model_cfg, prompts, **where, backend=backend)
        hidden, head = cooled(hidden, prompts.heat), vlm.output_head(weights, model_cfg)
        logits = sampling_logits(hidden, head, allowed, cfg.rollout.temperature)
        picked = jnp.take_along_axis(logits, tokens[..., 1:, None], -1)[..., 0]
        return picked - jax.nn.logsumexp(logits, -1)

    def jitted_logp(name: str, fn: Callable) -> Logp:
        def whole(params: Params, prompts: PromptBatch, tokens: Array, places: Array) -> Array:
            traces[f"{name} {prompts.tokens.shape} of {tokens.shape} in {places.shape}"] += 1
            return in_pieces(lambda *piece: fn(params, *piece).logp, (prompts, tokens, places), cfg.update.micro_prompts)

        def part(params: Params, prompts: PromptBatch, tokens: Array, micro: MicroBatch, out: Array) -> Array:
            traces[f"{name} {micro.rows.shape} x {tuple(micro.shape)} of {tokens.shape} in {micro.places.shape}"] += 1
            few = take_prompts(prompts, micro, mesh), take_rows(tokens, micro.rows, mesh)
            return put_rows(out, micro.rows, fn(params, *few, micro.places).logp, mesh)

        return Logp(jax.jit(whole, out_shardings=rows), jax.jit(part, donate_argnums=4, out_shardings=rows))

    rows = batch_sharding(mesh)
    logp = jitted_logp("logp", logp_fn)
    reference_logp = jitted_logp("logp of the reference", reference_fn) if model_cfg.lora else logp
    at_once = jax.jit(sample_pieces, static_argnums=(4, 5, 6), out_shardings=rows)
    sample = _make_sampler(cfg, model_cfg, drawing, mesh, at_once, _Notes(traces, work))
    sample_and_keep = jax.jit(sample_pieces, static_argnums=(4, 5, 6), out_shardings=(rows, None))
    branches = jax.jit(branch_logp, out_shardings=rows)
    sampling = (sample, at_once, sample_and_keep)
    return Programs(*sampling, branches, logp, reference_logp, logp_fn, traces, work, mesh, tokenizer)


def _sampling_weights(params: Params, cfg: Config, mesh: Mesh) -> Params:
    """The weights in the dtype and on the devices where the sampler reads them for every token."""
    weights = cast(params, cfg.model.dtype)
    return gathered(weights, mesh) if _gathers(cfg, mesh) else weights


def _gathers(cfg: Config, mesh: Mesh) -> bool:
    return cfg.rollout.gather_weights and mesh.shape["fsdp"] > 1


def bound_logp(model_cfg: Qwen3VLConfig, cfg: Config, allowed: Array, backend: Backend) -> Callable:
    """`(params, prompts, tokens, places) -> TokenLogp` with the run's settings. All programs and losses of a run use it."""

    settings = {"temperature": cfg.rollout.temperature, "chunk": cfg.model.head_chunk, "backend": backend}
    settings["entropy_gradient"] = cfg.stage == "grpo" and cfg.loss.entropy_coef > 0

    def logp_fn(params: Params, prompts, tokens: Array, places: Array) -> TokenLogp:
        return completion_logp(cast(params, cfg.model.dtype), model_cfg, prompts, tokens, places, allowed=allowed, **settings)

    return logp_fn


def backend_of(cfg: Config, mesh: Mesh) -> Backend:
    """Resolves model.attention and model.experts for the mesh's devices. Raises ConfigError for what they cannot run."""
    platform = mesh.devices.flat[0].platform
    attention, experts = cfg.model.attention, cfg.model.experts
    if attention == "auto":
        attention = {"cpu": "xla", "tpu": "splash"}.get(platform, "tokamax")
    if experts == "auto":
        experts = {"cpu": "dense", "tpu": "ragged"}.get(platform, "tokamax")
    for name, value in (("model.attention", attention), ("model.experts", experts)):
        if value == "splash" and platform == "gpu":
            raise ConfigError(f"{name} = 'splash' runs on a TPU, these devices are {platform}: use tokamax or chunked")
        if value == "tokamax" and importlib.util.find_spec("tokamax") is None:
            other = "chunked" if name == "model.attention" else "dense"
            raise ConfigError(f"{name} = 'tokamax' is not installed: pip install -e '.[tokamax]', or set {name}={other}")
    return Backend(attention, experts, cfg.model.remat, mesh if mesh.size > 1 else None)


def in_pieces(fn: Callable, args: tuple, size: int):
    """Runs fn on `size` prompts at a time, so that only their activations or caches exist at once."""
    pieces = max(1, args[0].tokens.shape[0] // size)
    if pieces == 1:
        return fn(*args)
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1), args)
    out = jax.lax.map(lambda piece: fn(*piece), split)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), out)


def lane_ladder(count: int) -> tuple[int, ...]:
    """How many lanes a segment may have, of `count`, most first. 512: 512, 384, 256, 192, 128, 96, 64, 48, 32, 16."""
    out = [count]
    for share in _LANE_SHARES:
        rung = -(-int(count * share) // 8) * 8
        if _LEAST_LANES <= rung <= out[-1] - _LEAST_LANES:
            out.append(rung)
    return tuple(out)


def column_ladder(count: int) -> tuple[int, ...]:
    """How many columns a segment may read, of `count`, fewest first. 511: 64, 256, 511."""
    return (*(rung for rung in _COLUMNS if 3 * rung <= 2 * count), count)


def decodes_at_once(held: int, rows: int, group: int, length: int) -> bool:
    """Whether segments would gain nothing: one program draws all answers to the prompts that a device holds at a time.

    held: prompts of a device whose caches exist at a time, of its `rows`. length: C.
    """
    one = (rows // held, len(lane_ladder(held * group)), len(column_ladder(length - 1))) == (1, 1, 1)
    return length <= _SHORT_ANSWER or rows % held > 0 or one


class _Notes(NamedTuple):
    """What the sampler has done so far."""

    traces: collections.Counter  # how often each program was traced
    work: collections.Counter  # "lane steps": of all devices together, whether an answer lived in the lane or not


class Now(NamedTuple):
    """What the host must know between two segments of a rollout; the same on all processes."""

    live: int  # most live answers of a device
    step: int  # columns of the own caches that were written
    free: int  # places for prompts that every device has free
    ordered: int  # whether the lanes are the prompts' answers in order


class _Segments(NamedTuple):
    """Jitted functions. rules: a function of the length. `below` and `wait` are those of lanes.draw_segment."""

    begin: Callable  # (draws, prompts, below, wait, length, filter, held, segment) -> (state, now)
    admit: Callable  # (draws, state, prompts, row, length, filter, count) -> (state, now)
    decode: Callable  # (draws, state, below, wait, length, filter, segment) -> (state, now)
    finish: Callable  # (drawn, length) -> Rollout


def _make_sampler(
    cfg: Config, model_cfg: Qwen3VLConfig, drawing: dict[str, Any], mesh: Mesh, at_once: Callable[..., Rollout], notes: _Notes
) -> Callable[..., Rollout]:
    """`(params, prompts, key, temperature [G], length, filter = EVERY) -> Rollout`: the answers of `at_once`, one program.

    drawing: allowed, eos, pad, backend and keep_routing of lanes.Rules. Where there is nothing to gain, it is `at_once`.
    """
    programs = _jit_segments(cfg, model_cfg, drawing, mesh, notes.traces)

    def sample(
        params: Params, prompts: PromptBatch, key: Array, temperature: Array, length: int, only: Filter = EVERY
    ) -> Rollout:
        rows, group = prompts.tokens.shape[0], temperature.shape[0]
        devices = lanes.devices_of(drawing["backend"], rows)
        pieces = max(1, rows // (cfg.rollout.micro_prompts or rows))
        held, left = rows // pieces // devices, rows // devices
        if decodes_at_once(held, left, group, length):
            return at_once(params, prompts, key, temperature, length, 0, only)
        ladders = lane_ladder(held * group), column_ladder(length - 1)
        refill = refill_of(held) if pieces > 1 else 0
        draws, row, now = Draws(params, key, temperature), held, Now(held * group, 0, 0, 1)
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


def next_segment(now: Now, rungs: Sequence[int], columns: Sequence[int], refill: int) -> tuple[Segment, int]:
    """The smallest segment that holds what lives, and with how many live answers the one after it may be smaller."""
    count = min(rung for rung in rungs if rung >= now.live)
    filled = min((rung for rung in columns if rung > now.step), default=columns[-1])
    below = max((rung for rung in rungs if rung < count), default=0)
    return Segment(count, filled, bool(now.ordered) and count == rungs[0], refill), below


def refill_of(held: int) -> int:
    """How many prompts of a device enter at a time: a quarter of its places, or the least that divides them evenly."""
    return held // next(parts for parts in (4, 3, 2, 1) if held % parts == 0)


def _read(report: Array) -> Now:
    return Now(*np.asarray(report).tolist())


def _report(state: State) -> Array:
    live, (held, group) = state.lanes.live, (state.held.row.shape[1], state.drawn.tokens.shape[2])
    answer = state.lanes.place * group + state.lanes.answer
    moved = live & (answer != jnp.arange(held * group))
    return jnp.stack([live.sum(1).max(), state.step, lanes.free_places(state.lanes, state.held), ~moved.any()])


def _jit_segments(
    cfg: Config, model_cfg: Qwen3VLConfig, drawing: dict[str, Any], mesh: Mesh, traces: collections.Counter
) -> _Segments:
    rules = lambda length, only=EVERY: Rules(model_cfg, length=length, only=only, **drawing)  # noqa: E731
    in_dtype = lambda draws: draws._replace(params=_sampling_weights(draws.params, cfg, mesh))  # noqa: E731

    def begin(
        draws: Draws, prompts: PromptBatch, below: Array, wait: Array, length: int, only: Filter, held: int, segment: Segment
    ):
        traces[_traced_as("sample", (held, *prompts.tokens.shape), draws, length, only, segment)] += 1
        draws = in_dtype(draws)
        state = lanes.first_state(rules(length, only), draws, prompts, held)
        state = lanes.draw_segment(rules(length, only), draws, state, segment, below=below, wait=wait)
        return state, _report(state)

    def admit(draws: Draws, state: State, prompts: PromptBatch, row: Array, length: int, only: Filter, count: int):
        traces[_traced_as("sample: enter", (count, *prompts.tokens.shape), draws, length, only)] += 1
        state = lanes.admit(rules(length, only), in_dtype(draws), state, prompts, row, count)
        return state, _report(state)

    def decode(draws: Draws, state: State, below: Array, wait: Array, length: int, only: Filter, segment: Segment):
        traces[_traced_as("sample: go on", state.held.valid.shape, draws, length, only, segment)] += 1
        state = lanes.draw_segment(rules(length, only), in_dtype(draws), state, segment, below=below, wait=wait)
        return state, _report(state)

    def finish(drawn: lanes.Drawn, length: int) -> Rollout:
        return lanes.result(rules(length), drawn)

    out = (_state_sharding(mesh, model_cfg), replicated(mesh))
    return _Segments(
        jax.jit(begin, static_argnums=(4, 5, 6, 7), out_shardings=out),
        jax.jit(admit, static_argnums=(4, 5, 6), donate_argnums=1, out_shardings=out),
        jax.jit(decode, static_argnums=(4, 5, 6), donate_argnums=1, out_shardings=out),
        jax.jit(finish, static_argnums=1, out_shardings=batch_sharding(mesh)),
    )


def _traced_as(what: str, shape: tuple[int, ...], draws: Draws, length: int, only: Filter, segment: Segment | None = None) -> str:
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


def place_prompts(batch: Mapping[str, np.ndarray], mesh: Mesh, own: Mapping[str, np.ndarray] = {}) -> PromptBatch:
    """The device part of a batch of rows, sharded over the mesh. own: the result of `own_draws`, of the same rows."""
    return shard_batch(PromptBatch(**{key: batch[key] for key in DEVICE_KEYS}, **own), mesh)


def decode_texts(programs: Programs, out: Rollout) -> list[list[str]]:
    """This process's answers as text, Q lists of G."""
    tokenizer = programs.tokenizer
    tokens, mask = local_rows(out.tokens, programs.mesh), local_rows(out.mask, programs.mesh)
    return [[tokenizer.decode_answer(t[m]) for t, m in zip(*group, strict=True)] for group in zip(tokens, mask, strict=True)]


def stage_key(seed: int, step: int, stage: str, again: int = 0) -> Array:
    """The random key of a stage of a step. It is derived, never stored, so a resumed run draws the same. `again`: how often the
    stage has already run in this step, because an example may be drawn twice."""
    number = ("sample", "evaluate").index(stage)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)
    return jax.random.fold_in(key, again) if again else key
