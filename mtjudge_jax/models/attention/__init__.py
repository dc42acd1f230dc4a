"""Attention: one function for each layout of tokens, whichever backend computes it. Backends differ only by rounding.

    xla      any device; keeps the whole score matrix. The executable reference of the other three.
    chunked  any device; never keeps the score matrix. For long sequences where no kernel runs: on CPUs, on a GPU without
             tokamax, and on a TPU with more tokens than splash can count.
    splash   a TPU; JAX's kernel, which skips the blocks that a mask leaves empty.
    tokamax  a GPU; flash kernels. They give no log-sum-exp with a gradient, so tokamax cannot compute the two halves of a
             grouped stream (see `_two_halves`) and copies the prompt's keys for every completion.

A token sees the tokens of its own segment; in a causal layout it does not see later ones. With segments 0 0 1 1 1 (left
padding 0):

    prompt, causal           two images, both ways       grouped: prompt 3 (one padding), group 2, completions of 2
        0 0 1 1 1                1 1 2 2 0                   - p p | a a | b b
      0 x . . . .              1 x x . . .                 - x . . | . . | . .
      0 x x . . .              1 x x . . .                 p . x . | . . | . .
      1 . . x . .              2 . . x x .                 p . x x | . . | . .
      1 . . x x .              2 . . x x .                 a . x x | x . | . .
      1 . . x x x              0 . . . . x                 a . x x | x x | . .
                                                           b . x x | . . | x .
                                                           b . x x | . . | x x

Padding sees only padding, so every query has a key. The output of padding is finite and is never read.
"""

from collections.abc import Callable

import jax.numpy as jnp

from mtjudge_jax.models.attention import chunked, reference
from mtjudge_jax.models.attention.reference import Places, attend_branches, attend_decode
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.types import Array

__all__ = ["Places", "attend", "attend_branches", "attend_decode", "attend_grouped"]

_HALVES = {"xla": reference.attend_half, "chunked": chunked.attend_blocks}


def attend(q: Array, k: Array, v: Array, *, segments: Array, causal: bool, scale: float, backend: Backend) -> Array:
    """Self-attention within segments. q [Q, T, N, H]; k, v [Q, T, K, H]; segments int32 [Q, T]. Returns [Q, T, N, H]."""
    if backend.attention in _HALVES:
        half = _HALVES[backend.attention]
        return half(q, k, v, (segments, segments), causal=causal, scale=scale)[0]
    layout = ("causal",) if causal else ("full",)
    return _kernel(backend.attention)(q, k, v, segments=segments, layout=layout, scale=scale, mesh=backend.mesh)


def attend_grouped(
    q: Array, k: Array, v: Array, *, prompt: int, group: int, valid: Array, scale: float, backend: Backend
) -> Array:
    """The stream of training, S = prompt + group * c: `[prompt | completion 1 | .. | completion G]`.

    q [Q, S, N, H]; k, v [Q, S, K, H]; valid bool [Q, prompt], True on real prompt tokens. The prompt is causal; a
    completion sees the valid prompt and its own past. Returns [Q, S, N, H].
    """
    own = q.shape[1] - prompt
    if own <= 0 or own % group:
        raise ValueError(f"a stream of {q.shape[1]} tokens, which must be {prompt} + a multiple of {group} (equal completions)")
    if backend.attention in _HALVES:
        return _two_halves(_HALVES[backend.attention], q, k, v, group=group, valid=valid, scale=scale)
    segments = jnp.pad(valid.astype(jnp.int32), ((0, 0), (0, own)), constant_values=1)
    layout = ("grouped", prompt, own // group)
    return _kernel(backend.attention)(q, k, v, segments=segments, layout=layout, scale=scale, mesh=backend.mesh)


def _two_halves(half: Callable, q: Array, k: Array, v: Array, *, group: int, valid: Array, scale: float) -> Array:
    """The grouped stream without G copies of the prompt: all queries of a group, end to end, attend to the one prompt."""
    rows, _, n, h = q.shape
    p = valid.shape[1]
    segment = valid.astype(jnp.int32)
    prompt, _ = half(q[:, :p], k[:, :p], v[:, :p], (segment, segment), causal=True, scale=scale)
    ones = jnp.ones((rows, q.shape[1] - p), jnp.int32)
    a, lse_a = half(q[:, p:], k[:, :p], v[:, :p], (ones, segment), causal=False, scale=scale)
    own = [x[:, p:].reshape(rows, group, -1, *x.shape[2:]) for x in (q, k, v)]
    b, lse_b = half(*own, None, causal=True, scale=scale)
    completions = reference.merge(a.reshape(b.shape), lse_a.reshape(lse_b.shape), b, lse_b)
    return jnp.concatenate([prompt, completions.reshape(rows, -1, n, h)], 1)


def _kernel(name: str) -> Callable:
    """The function of a kernel. It is imported only here, because its library works on one kind of device."""
    match name:
        case "splash":
            from mtjudge_jax.models.attention import splash as module
        case "tokamax":
            from mtjudge_jax.models.attention import tokamax as module
        case _:
            raise ValueError(f"unknown attention {name!r}: known are {', '.join(_HALVES)}, splash, tokamax")
    return module.attend
