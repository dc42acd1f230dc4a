"""Attention: one function for each layout of tokens, whichever backend computes it. Backends differ only by rounding.

    xla      any device; keeps the whole score matrix. The executable reference of the other three.
    chunked  any device; never keeps the score matrix. For long sequences where no kernel runs: on CPUs, on a GPU without
             tokamax, and on a TPU with more tokens than splash can count.
    splash   a TPU; JAX's kernel, which skips the blocks that a mask leaves empty.
    tokamax  a GPU; flash kernels. They give no log-sum-exp with a gradient, so tokamax cannot compute the two halves of a
             grouped stream (see `_two_halves`) and copies the prompt's keys for every bin.

A token sees the tokens of its own segment; in a causal layout it does not see later ones. With segments 0 0 1 1 1 (left
padding 0), and with two bins of three places, the last of them empty:

    prompt, causal           two images, both ways       grouped: prompt 3 (one padding), answers of 2, 1, 2
        0 0 1 1 1                1 1 2 2 0                   - p p | a a b | c c -
      0 x . . . .              1 x x . . .                 - x . . | . . . | . . .
      0 x x . . .              1 x x . . .                 p . x . | . . . | . . .
      1 . . x . .              2 . . x x .                 p . x x | . . . | . . .
      1 . . x x .              2 . . x x .                 a . x x | x . . | . . .
      1 . . x x x              0 . . . . x                 a . x x | x x . | . . .
                                                           b . x x | . . x | . . .
                                                           c . x x | . . . | x . .
                                                           c . x x | . . . | x x .

Several prompts may share a stream: each token of them, and each of their answers', sees its own prompt alone.
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
    q: Array, k: Array, v: Array, *, prompts: Array, answers: Array, group: int | None, scale: float, backend: Backend
) -> Array:
    """The stream of training, S = P + B * W: `[prompts | bin 1 | .. | bin B]`, where a bin holds answers end to end.

    q [Q, S, N, H]; k, v [Q, S, K, H]; prompts int32 [Q, P], the number of the prompt at each place, from 1, and 0 on padding;
    answers int32 [Q, B, W], the number of the answer at each place, from 1, and 0 where there is none. The first `group` answers
    are the first prompt's, and so on; None: there is one prompt. A prompt is causal; an answer sees its prompt and its own past.
    Returns [Q, S, N, H]; what is at a place without an answer is finite and means nothing.
    """
    rows, count, width = answers.shape
    prompt = prompts.shape[1]
    if q.shape[1] != prompt + count * width:
        raise ValueError(f"a stream of {q.shape[1]} tokens, which must be a prompt of {prompt} + {count} bins of {width}")
    if backend.attention in _HALVES:
        return _two_halves(_HALVES[backend.attention], q, k, v, prompts=prompts, answers=answers, group=group, scale=scale)
    segments = jnp.concatenate([prompts, answers.reshape(rows, -1)], 1)
    layout = ("grouped", prompt, width, group)
    return _kernel(backend.attention)(q, k, v, segments=segments, layout=layout, scale=scale, mesh=backend.mesh)


def _two_halves(
    half: Callable, q: Array, k: Array, v: Array, *, prompts: Array, answers: Array, group: int | None, scale: float
) -> Array:
    """The grouped stream without copies of the prompts: the queries of all bins, end to end, attend to the prompts."""
    rows, _, n, h = q.shape
    p = prompts.shape[1]
    prompt, _ = half(q[:, :p], k[:, :p], v[:, :p], (prompts, prompts), causal=True, scale=scale)
    asked = reference.prompt_of(answers, group).reshape(rows, -1)
    a, lse_a = half(q[:, p:], k[:, :p], v[:, :p], (asked, prompts), causal=False, scale=scale)
    own = [x[:, p:].reshape(*answers.shape, *x.shape[2:]) for x in (q, k, v)]
    b, lse_b = half(*own, (answers, answers), causal=True, scale=scale)
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
