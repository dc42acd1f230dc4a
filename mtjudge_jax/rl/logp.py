"""The log-probability of the answers' tokens, the only one in the package.

Training, old policy, reference, evaluation and the parity tests all call `completion_logp`; the sampler shares its logits. Where
the tokens lie in the stream of training is said in `streams.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.moe import RouterStats
from mtjudge_jax.sharding import BATCH_AXES, param_spec
from mtjudge_jax.types import Array, Params, PromptBatch

BANNED = -1e30


class TokenLogp(NamedTuple):
    logp: Array  # float32 [Q, G, C]; without meaning behind an answer
    entropy: Array  # float32 [Q, G, C], of the distribution the token was drawn from; a gradient only where it is asked for
    router: RouterStats | None  # of a mixture of experts, stacked over layers: load [L, E], entropy [L]; no gradient


class Filter(NamedTuple):
    """Which of a token's candidates may be drawn: the likeliest `top_k`, of these the fewest that have the share `top_p`.

    Equally likely candidates stay or go together. Only evaluation filters: under a filter the new policy gives a token outside
    of its own candidates no probability, so an importance ratio would be 0, or infinite.
    """

    top_k: int = 0  # 0: all
    top_p: float = 1.0


EVERY = Filter()


def cooled(hidden: Array, heat: Array | None) -> Array:
    """Hidden states [Q, .., D] over each prompt's own temperature, heat [Q, ..]; as they are without one. Their logits are then
    those at that temperature. Sampler and training both divide here, so they round alike.
    """
    if heat is None:
        return hidden
    return (hidden / heat.reshape(*heat.shape, *[1] * (hidden.ndim - heat.ndim))).astype(hidden.dtype)


def sampling_logits(
    hidden: Array, head: Array, allowed: Array, temperature: Array | float, only: Filter = EVERY
) -> Array:
    """hidden [..., D], head [V, D] -> float32 [..., V], the logits to sample from. Ids that are not allowed are never sampled.

    Sampler and training use this same function, so their log-probabilities agree. With a filter `head` must be whole.
    """
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    logits = jnp.where(allowed, logits / temperature, BANNED)
    if only.top_k:
        logits = _keep(logits, jnp.ones_like(logits), jnp.float32(only.top_k))
    if only.top_p < 1:
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        logits = _keep(logits, weights, only.top_p * weights.sum(-1, keepdims=True))
    return logits


def _keep(logits: Array, weights: Array, enough: Array) -> Array:
    """Bans all but the largest logits whose weights together are `enough`, float32 [..., 1].

    The threshold is searched bit by bit, 32 sums in all: unlike a sort, that reads a sharded vocabulary where it is.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)  # integers in the order of the floats

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # without an overflow
        holds = jnp.where(order >= middle, weights, 0).sum(-1, keepdims=True) >= enough
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    shape = (*logits.shape[:-1], 1)
    bounds = jnp.full(shape, -(2**31), jnp.int32), jnp.full(shape, 2**31 - 1, jnp.int32)
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(order >= low, logits, BANNED)


def completion_logp(
    params: Params,
    cfg: Qwen3VLConfig,
    prompts: PromptBatch,
    tokens: Array,
    places: Array,
    *,
    allowed: Array,
    temperature: float,
    chunk: int,
    entropy_gradient: bool = False,
    backend: Backend = vlm.REFERENCE,
) -> TokenLogp:
    """Log-probability of each answer's tokens given its prompt and the tokens before it. tokens int32 [Q, G, C].

    places int32 [Q / k, B, W] of `streams.lay_out` says which tokens there are: the others are neither computed nor counted in
    the routers' statistics. k prompts share a stream where `prompts.joined` tells them apart, else k is 1. The head is applied to
    `chunk` tokens at a time, and again in the backward pass, so no [.., V] array over all tokens exists. entropy_gradient: a loss
    may raise or lower the entropy.
    """
    shape, rows = tokens.shape, places.shape[0]
    tokens = tokens.reshape(rows, -1, shape[2])
    last, hidden, router = vlm.completion_hidden(params, cfg, prompts, tokens, places, backend=backend)
    head = vlm.output_head(params, cfg)
    _, group, length = tokens.shape  # of all prompts of a stream together
    # What is predicted, by its index in [G * C]: the first token of each answer from the prompt's last, then the one after each.
    hidden = jnp.concatenate([jnp.repeat(last, shape[1], axis=1), hidden], 1)
    firsts = jnp.broadcast_to(jnp.arange(group, dtype=jnp.int32) * length, (rows, group))
    predicted = jnp.concatenate([firsts, places.reshape(rows, -1) + 1], 1)
    if prompts.heat is not None:
        hidden = cooled(hidden, jnp.take_along_axis(prompts.heat.reshape(rows, -1), predicted // (shape[1] * length), 1))
    targets = jnp.take_along_axis(tokens.reshape(rows, -1), predicted, 1)
    columns = max(1, chunk // rows)  # chunked along the completions, so that rows keep their shard

    def all_logp(head: Array, allowed: Array, hidden: Array, tokens: Array, axis: str | None) -> tuple[Array, Array]:
        one = functools.partial(_chunk_logp, head, allowed, temperature, axis, entropy_gradient)
        return _in_chunks(one, (hidden, tokens), columns)

    out = _with_whole_head(all_logp, head, allowed, (hidden, targets), backend.mesh)
    empty = jnp.pad(places.reshape(rows, -1) < 0, ((0, 0), (group, 0)))
    index = jnp.where(empty, group * length, predicted)  # behind the end, where nothing is written
    scattered = (jax.vmap(lambda at, x: jnp.zeros(group * length, x.dtype).at[at].add(x, mode="drop"))(index, x) for x in out)
    return TokenLogp(*(x.reshape(shape) for x in scattered), jax.lax.stop_gradient(router))


def _chunk_logp(
    head: Array, allowed: Array, temperature: float, axis: str | None, entropy_gradient: bool, hidden: Array, targets: Array
):
    """Log-probability and entropy of targets, int32 [..]; with `axis` the head is this device's part of the vocabulary."""
    total_of = (lambda x: jax.lax.psum(x, axis)) if axis else (lambda x: x)
    logits = sampling_logits(hidden, head, allowed, temperature)
    first = jax.lax.axis_index(axis) * logits.shape[-1] if axis else 0
    # Shifted by the largest, so that one exponential serves normaliser and entropy. The target is picked by comparison: unlike
    # an index, that has an elementwise gradient, and serves a part of the vocabulary too.
    top = jax.lax.stop_gradient(logits).max(-1, keepdims=True)
    shifted = logits - (jax.lax.pmax(top, axis) if axis else top)
    weights = jnp.exp(shifted)
    total = total_of(weights.sum(-1))
    target = total_of(jnp.where(first + jnp.arange(logits.shape[-1]) == targets[..., None], shifted, 0).sum(-1))
    fixed = (lambda x: x) if entropy_gradient else jax.lax.stop_gradient
    mean = total_of((fixed(weights) * fixed(shifted)).sum(-1)) / fixed(total)
    return target - jnp.log(total), jnp.log(fixed(total)) - mean


def _with_whole_head(fn: Callable, head: Array, allowed: Array, rows: tuple[Array, ...], mesh: Mesh | None):
    """fn(head, allowed, *rows, axis). On a mesh each device works on its own rows: the head is gathered over fsdp once before the
    chunks, and its gradient is summed over the devices once after them. XLA alone would do both for every chunk. Over `tensor`,
    which is then `axis`, the vocabulary stays sharded.
    """
    if mesh is None or rows[0].shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return fn(head, allowed, *rows, None)
    vocabulary, fsdp = (axis if axis and mesh.shape[axis] > 1 else None for axis in param_spec("text/head_vd", head.shape, mesh))

    def on_device(head: Array, allowed: Array, *rows: Array) -> tuple[Array, Array]:
        whole = jax.lax.all_gather(head, fsdp, axis=1, tiled=True) if fsdp else head
        same = tuple(axis for axis in BATCH_AXES if axis != fsdp)
        return fn(jax.lax.pcast(whole, same, to="varying"), allowed, *rows, vocabulary)

    split = P(BATCH_AXES)
    specs = (P(vocabulary, fsdp), P(vocabulary), split, split)
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=split)(head, jnp.asarray(allowed), *rows)


def _in_chunks(fn: Callable, flat: tuple[Array, ...], columns: int) -> tuple[Array, Array]:
    """Runs fn on `columns` tokens per row at a time, and again in the backward pass."""
    rows, count = flat[1].shape
    if columns >= count:
        return fn(*flat)
    pieces = -(-count // columns)
    padding = pieces * columns - count

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, pieces, columns, *x.shape[2:]), 1, 0)

    out = jax.lax.map(jax.checkpoint(lambda piece: fn(*piece)), tuple(split(x) for x in flat))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :count] for x in out)
