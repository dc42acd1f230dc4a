"""Attention in halves: each half gives its output and log-sum-exp, and halves over different keys are merged exactly.

This is the executable reference. A kernel for an accelerator stands behind the same functions and the same tests.
"""

import jax
import jax.numpy as jnp

from mtjudge_jax.types import Array

MASKED = -1e30  # finite: a query with no key at all gets a uniform average instead of NaN, and is never read


def attend(q: Array, k: Array, v: Array, mask: Array, *, scale: float) -> tuple[Array, Array]:
    """Grouped-query attention over one set of keys.

    q [..., T, N, H]; k, v [..., S, K, H] with N a multiple of K; mask bool, broadcastable to [..., T, S], True where a query
    may look. Returns the output [..., T, N, H] in q's dtype and the log-sum-exp of the scores, float32 [..., T, N].
    """
    *lead, t, n, h = q.shape
    kv_heads = k.shape[-2]
    q = q.reshape(*lead, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("...tkgh,...skh->...kgts", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask[..., None, None, :, :], scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("...kgts,...skh->...tkgh", (weights / total).astype(v.dtype), v)
    lse = jnp.moveaxis((top + jnp.log(total))[..., 0], -1, -3)
    return out.reshape(*lead, t, n, h), lse.reshape(*lead, t, n)


def merge(a: Array, lse_a: Array, b: Array, lse_b: Array) -> Array:
    """Output over the union of two disjoint sets of keys, from the outputs [..., H] and log-sum-exps [...] over each."""
    share = jax.nn.sigmoid(lse_a - lse_b)[..., None].astype(a.dtype)
    return a * share + b * (1 - share)


def attend_group(q: Array, k: Array, v: Array, *, prompt_k: Array, prompt_v: Array, prompt_valid: Array, scale: float):
    """Completions attend to their prompt, stored once a group, and to their own past.

    q [Q, G, C, N, H]; k, v [Q, G, C, K, H]; prompt_k, prompt_v [Q, P, K, H]; prompt_valid bool [Q, P]. Returns
    [Q, G, C, N, H]. No array of the size of G prompts is made: the queries of a group are laid end to end instead.
    """
    rows, group, length, n, h = q.shape
    out_p, lse_p = attend(
        q.reshape(rows, group * length, n, h), prompt_k, prompt_v, prompt_valid[:, None, :], scale=scale
    )
    causal = jnp.tril(jnp.ones((length, length), bool))
    out_c, lse_c = attend(q, k, v, causal, scale=scale)
    return merge(out_p.reshape(q.shape), lse_p.reshape(q.shape[:-1]), out_c, lse_c)


def attend_decode(q: Array, k: Array, v: Array, past: Array, prompt_k: Array, prompt_v: Array, prompt_valid: Array, scale: float):
    """One new token a completion: q [Q, G, N, H] against its own cache k, v [Q, G, C, K, H] and the group's prompt.

    past bool [1, C], True up to the new token; prompt_k, prompt_v [Q, P, K, H]; prompt_valid bool [Q, 1, P].
    """
    out_p, lse_p = attend(q, prompt_k, prompt_v, prompt_valid, scale=scale)
    out_c, lse_c = attend(q[:, :, None], k, v, past, scale=scale)
    return merge(out_p, lse_p, out_c[:, :, 0], lse_c[:, :, 0])
