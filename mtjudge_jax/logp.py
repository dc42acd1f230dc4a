"""The only token log-probability: training, old policy, reference, evaluation and the tests of parity all call it."""

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
    logp: Array  # float32 [Q, G, C]
    entropy: Array  # float32 [Q, G, C], of the distribution the token was drawn from; no gradient
    router: RouterStats | None  # of a mixture of experts, stacked on layers: load [L, E], entropy [L]; no gradient


def sampling_logits(hidden: Array, head: Array, allowed: Array, temperature: Array | float) -> Array:
    """hidden [..., D], head [V, D] -> float32 [..., V], what is sampled from: ids not allowed can never come up.

    The same function makes the sampler's distribution and the one that is trained, so their log-probabilities agree.
    """
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    return jnp.where(allowed, logits / temperature, BANNED)


def completion_logp(
    params: Params,
    cfg: Qwen3VLConfig,
    prompts: PromptBatch,
    tokens: Array,
    mask: Array,
    *,
    allowed: Array,
    temperature: float,
    chunk: int,
    backend: Backend = vlm.REFERENCE,
) -> TokenLogp:
    """Log-probability of each completion token given its prompt and its past. tokens int32 [Q, G, C].

    mask bool [Q, G, C] says which tokens count in the routers' statistics, and changes nothing else. The head is applied to
    `chunk` tokens at a time and again in the backward pass: no [.., V] array over all tokens exists.
    """
    hidden, router = vlm.completion_hidden(params, cfg, prompts, tokens, mask, backend=backend)
    head = vlm.output_head(params, cfg)

    def chunk_logp(head: Array, hidden: Array, targets: Array) -> tuple[Array, Array]:
        logits = sampling_logits(hidden, head, allowed, temperature)
        # Shifted by the largest, so that one exponential serves normaliser and entropy. The target is picked by comparison:
        # unlike an index, that has an elementwise gradient and needs no gathering of a sharded vocabulary.
        shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        weights = jnp.exp(shifted)
        total = weights.sum(-1)
        target = jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], shifted, 0).sum(-1)
        fixed_weights, fixed_total = jax.lax.stop_gradient((weights, total))
        mean = (fixed_weights * jax.lax.stop_gradient(shifted)).sum(-1) / fixed_total
        return target - jnp.log(total), jnp.log(fixed_total) - mean

    rows, count = tokens.shape[0], tokens.shape[1] * tokens.shape[2]
    columns = max(1, chunk // rows)  # chunked along the completions, so that rows keep their shard
    out = _with_whole_head(
        lambda head, *flat: _in_chunks(functools.partial(chunk_logp, head), flat, columns),
        head,
        (hidden.reshape(rows, count, -1), tokens.reshape(rows, count)),
        backend.mesh,
    )
    return TokenLogp(*(x.reshape(tokens.shape) for x in out), jax.lax.stop_gradient(router))


def _with_whole_head(fn: Callable, head: Array, rows: tuple[Array, ...], mesh: Mesh | None) -> tuple[Array, Array]:
    """fn(head, *rows), on a mesh with every device's rows apart: the head is gathered over fsdp once, before the chunks, and
    its gradient is summed over the devices once, behind them. Left to itself XLA does both for every chunk.
    """
    if mesh is None or rows[0].shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return fn(head, *rows)
    fsdp = param_spec("text/head_vd", head.shape, mesh)[1]

    def on_device(head: Array, *rows: Array) -> tuple[Array, Array]:
        whole = jax.lax.all_gather(head, fsdp, axis=1, tiled=True) if fsdp else head
        same = tuple(axis for axis in BATCH_AXES if axis != fsdp)
        return fn(jax.lax.pcast(whole, same, to="varying"), *rows)

    split = P(BATCH_AXES)
    call = jax.shard_map(
        on_device, mesh=mesh, in_specs=(P(None, fsdp), split, split), out_specs=split, axis_names=set(BATCH_AXES)
    )  # `tensor`, over which the vocabulary lies, stays XLA's own
    return call(head, *rows)


def _in_chunks(fn: Callable, flat: tuple[Array, ...], columns: int) -> tuple[Array, Array]:
    """fn over pieces of `columns` tokens a row, one after the other, again in the backward pass."""
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
