"""Attention over blocks of queries and keys: no array as large as the scores exists, forward or backward.

This is the online softmax of FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2) in plain JAX, for any device. It exists
because no kernel covers every case: splash runs only on TPUs and counts at most 65,536 tokens, tokamax is an optional package
for GPUs and gives no log-sum-exp with a gradient, and `reference` needs memory for all scores.

Beside its inputs the backward pass needs the output and the log-sum-exp. It computes the scores again, a block at a time.
Blocks above the diagonal of a causal half are not computed.
"""

import functools
import math

import jax
import jax.numpy as jnp

from mtjudge_jax.models.attention.reference import MASKED, Segments
from mtjudge_jax.types import Array

BLOCK = 512  # tokens at most; the blocks of a sequence have one length, so 513 tokens make two blocks of 257


def attend_blocks(q: Array, k: Array, v: Array, segments: Segments | None, *, causal: bool, scale: float) -> tuple[Array, Array]:
    """The same as `reference.attend_half`, in memory that grows with T + S instead of T * S."""
    *lead, t, n, h = q.shape
    s, heads = k.shape[-3:-1]
    rows = math.prod(lead)
    seen_q, seen_k = (jnp.ones((rows, t), jnp.int32), jnp.ones((rows, s), jnp.int32)) if segments is None else segments
    out, lse = _flash(
        _blocks(q.reshape(rows, t, heads, n // heads, h)).transpose(1, 0, 3, 4, 2, 5),
        _blocks(k.reshape(rows, s, heads, h)).transpose(1, 0, 3, 2, 4),
        _blocks(v.reshape(rows, s, heads, h)).transpose(1, 0, 3, 2, 4),
        _blocks(seen_q.reshape(rows, t), fill=-1).swapaxes(0, 1),
        _blocks(seen_k.reshape(rows, s), fill=-2).swapaxes(0, 1),
        causal,
        scale,
    )
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, n, h)[:, :t]
    lse = lse.transpose(1, 0, 4, 2, 3).reshape(rows, -1, n)[:, :t]
    return out.reshape(*lead, t, n, h), lse.reshape(*lead, t, n)


def _blocks(x: Array, *, fill: int = 0) -> Array:
    """[B, T, ..] -> [B, T / b, b, ..], padded at the end."""
    rows, t, *rest = x.shape
    count = -(-t // BLOCK)
    size = -(-t // count)
    x = jnp.pad(x, ((0, 0), (0, count * size - t), *[(0, 0)] * len(rest)), constant_values=fill)
    return x.reshape(rows, count, size, *rest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _flash(q, k, v, seen_q, seen_k, causal, scale):
    """q [I, B, K, N/K, t, H]; k, v [J, B, K, s, H]; segments seen_q [I, B, t], seen_k [J, B, s].

    Returns the output in the shape of q and the log-sum-exp, float32 [I, B, K, N/K, t].
    """

    def one(i: Array, q: Array, seen_q: Array) -> tuple[Array, Array]:
        def body(j: Array, carry):
            top, total, out = carry
            scores, mask = _scores(q, k[j], seen_q, seen_k[j], at=(i, j) if causal else None, scale=scale)
            scores = jnp.where(mask, scores, MASKED)
            new = jnp.maximum(top, scores.max(-1))
            weights, decay = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
            part = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v[j], preferred_element_type=jnp.float32)
            return new, total * decay + weights.sum(-1), out * decay[..., None] + part

        empty = jnp.zeros(q.shape, jnp.float32)
        start = (jnp.full(q.shape[:-1], MASKED, jnp.float32), empty[..., 0], empty)
        top, total, out = jax.lax.fori_loop(0, i + 1 if causal else k.shape[0], body, start)
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    return jax.lax.map(lambda x: one(*x), (jnp.arange(q.shape[0]), q, seen_q))


def _scores(q: Array, k: Array, seen_q: Array, seen_k: Array, *, at: tuple[Array, Array] | None, scale: float):
    """Scores float32 [B, K, N/K, t, s] of one block, and its mask [B, 1, 1, t, s]. at: the block's indices in a causal half."""
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32) * scale
    mask = seen_q[:, :, None] == seen_k[:, None, :]
    if at is not None:
        i, j = (block * q.shape[-2] + jnp.arange(q.shape[-2]) for block in at)
        mask &= i[:, None] >= j[None, :]
    return scores, mask[:, None, None]


def _flash_fwd(q, k, v, seen_q, seen_k, causal, scale):
    out, lse = _flash(q, k, v, seen_q, seen_k, causal, scale)
    return (out, lse), (q, k, v, seen_q, seen_k, out, lse)


def _flash_bwd(causal, scale, saved, cotangents):
    q, k, v, seen_q, seen_k, out, lse = saved
    d_out, d_lse = cotangents
    # d score = p (d p - sum over keys of p d p); the sum is d_out . out, and a cotangent of the log-sum-exp adds p times itself.
    shift = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1) - d_lse

    def one(d_q: Array, x):
        j, k, v, seen_k = x

        def body(i: Array, carry):
            d_q, d_k, d_v = carry
            scores, mask = _scores(q[i], k, seen_q[i], seen_k, at=(i, j) if causal else None, scale=scale)
            p = jnp.where(mask, jnp.exp(scores - lse[i][..., None]), 0)
            d_v += jnp.einsum("bkgts,bkgth->bksh", p.astype(v.dtype), d_out[i], preferred_element_type=jnp.float32)
            d_p = jnp.einsum("bkgth,bksh->bkgts", d_out[i], v, preferred_element_type=jnp.float32)
            d_s = (p * (d_p - shift[i][..., None]) * scale).astype(q.dtype)
            d_k += jnp.einsum("bkgts,bkgth->bksh", d_s, q[i], preferred_element_type=jnp.float32)
            part = jnp.einsum("bkgts,bksh->bkgth", d_s, k, preferred_element_type=jnp.float32)
            return d_q.at[i].add(part), d_k, d_v

        zero = jnp.zeros(k.shape, jnp.float32)
        d_q, d_k, d_v = jax.lax.fori_loop(j if causal else 0, q.shape[0], body, (d_q, zero, zero))
        return d_q, (d_k.astype(k.dtype), d_v.astype(v.dtype))

    d_q, (d_k, d_v) = jax.lax.scan(one, jnp.zeros(q.shape, jnp.float32), (jnp.arange(k.shape[0]), k, v, seen_k))
    return d_q.astype(q.dtype), d_k, d_v, None, None


_flash.defvjp(_flash_fwd, _flash_bwd)
