"""Attention behind one function for each layout of tokens; `backend.attention` names who computes it, never what.

A token sees the tokens of its segment, and where it is causal not the later ones. With segments 0 0 1 1 1 (left padding 0):

    prompt, causal           two images, both ways       grouped: prompt 3 (one padding), group 2, completions of 2
        0 0 1 1 1                1 1 2 2 0                   - p p | a a | b b
      0 x . . . .              1 x x . . .                 - x . . | . . | . .
      0 x x . . .              1 x x . . .                 p . x . | . . | . .
      1 . . x . .              2 . . x x .                 p . x x | . . | . .
      1 . . x x .              2 . . x x .                 a . x x | x . | . .
      1 . . x x x              0 . . . . x                 a . x x | x x | . .
                                                           b . x x | . . | x .
                                                           b . x x | . . | x x

Padding looks at padding only, so no query is without a key; its output is finite and never read.
"""

import jax.numpy as jnp

from mtjudge_jax.models.attention import halves
from mtjudge_jax.models.attention.halves import attend_decode
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.types import Array

__all__ = ["attend", "attend_decode", "attend_grouped"]


def attend(q: Array, k: Array, v: Array, *, segments: Array, causal: bool, scale: float, backend: Backend) -> Array:
    """Self-attention within segments. q [Q, T, N, H]; k, v [Q, T, K, H]; segments int32 [Q, T]. Returns [Q, T, N, H]."""
    mask = halves.segment_mask(segments, causal=causal)
    return halves.attend_masked(q, k, v, mask, scale=scale)[0]


def attend_grouped(
    q: Array, k: Array, v: Array, *, prompt: int, group: int, valid: Array, scale: float, backend: Backend
) -> Array:
    """The stream of training, S = prompt + group * c: `[prompt | completion 1 | .. | completion G]`.

    q [Q, S, N, H]; k, v [Q, S, K, H]; valid bool [Q, prompt], True on real prompt tokens. The prompt is causal, a completion
    sees the valid prompt and its own past. Returns [Q, S, N, H]. No array of the size of G prompts is made: the queries of a
    group are laid end to end over the one prompt.
    """
    rows, length, n, h = q.shape
    if length <= prompt or (length - prompt) % group:
        raise ValueError(
            f"a stream of {length} tokens is no prompt of {prompt} and {group} completions of one length: "
            f"its length must be {prompt} + a multiple of {group}"
        )
    parts = [(x[:, :prompt], x[:, prompt:].reshape(rows, group, -1, *x.shape[2:])) for x in (q, k, v)]
    (q_p, q_c), (k_p, k_c), (v_p, v_c) = parts
    out = attend(q_p, k_p, v_p, segments=valid.astype(jnp.int32), causal=True, scale=scale, backend=backend)
    a, lse_a = halves.attend_masked(q[:, prompt:], k_p, v_p, valid[:, None, :], scale=scale)
    causal = jnp.tril(jnp.ones((q_c.shape[2],) * 2, bool))
    b, lse_b = halves.attend_masked(q_c, k_c, v_c, causal, scale=scale)
    own = halves.merge(a.reshape(b.shape), lse_a.reshape(lse_b.shape), b, lse_b)
    return jnp.concatenate([out, own.reshape(rows, -1, n, h)], 1)
