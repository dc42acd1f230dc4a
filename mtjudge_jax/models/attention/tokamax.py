"""Attention on an NVIDIA GPU by the optional package tokamax: flash kernels in Mosaic (Hopper and later) or Triton.

Only its public function `tokamax.dot_product_attention` is called; on a CPU it runs tokamax's own reference, for tests. It has
no segments, so the mask is passed as booleans that all heads share: one byte for each query and key, 16 MiB for a row of 4096
patches. Ranges of keys would cost nothing, but only tokamax's internals accept them, and those change between versions. It
gives no log-sum-exp with a gradient. So the keys of a bin are the prompt's and its own, end to end: each call makes a copy of the
prompt's keys and values for every bin, and frees them afterwards. The kernel for Hopper refuses a mask whose length is no
multiple of 8, so prompts, bins and rows of patches are each padded to whole tiles.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import Mesh

from mtjudge_jax.models.attention.reference import prompt_of
from mtjudge_jax.models.attention.sharded import call_sharded, platform_of
from mtjudge_jax.models.backend import import_tokamax
from mtjudge_jax.types import Array

_TILE = 64  # queries or keys of a kernel's block
_KERNELS = ("mosaic", "triton")  # the first that works; never the reference, which makes the whole score matrix


def attend(q: Array, k: Array, v: Array, *, segments: Array, layout: tuple, scale: float, mesh: Mesh | None) -> Array:
    """q [Q, T, N, H]; k, v [Q, T, K, H]; segments int32 [Q, T], 0 = padding; layout as in `splash`. Returns [Q, T, N, H]."""
    product = import_tokamax("attention = 'tokamax'", "chunked").dot_product_attention
    implementation = _KERNELS if platform_of(mesh) == "gpu" else "xla"

    def call(q: Array, k: Array, v: Array, mask: Array, *, is_causal: bool) -> Array:
        return product(q, k, v, mask=mask, is_causal=is_causal, scale=scale, implementation=implementation)

    def on_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
        match layout:
            case ("grouped", prompt, width, group):
                answers = segments[:, prompt:].reshape(q.shape[0], -1, width)
                return _grouped(call, q, k, v, segments[:, :prompt], answers, group)
            case (order,):
                length = q.shape[1]
                q, k, v, segments = (_fill_tiles(x, 1) for x in (q, k, v, segments))
                mask = (segments[:, :, None] == segments[:, None, :])[:, None]
                return call(q, k, v, mask, is_causal=order == "causal")[:, :length]

    return call_sharded(on_device, q, k, v, segments, mesh)


def _fill_tiles(x: Array, axis: int) -> Array:
    """Zeros behind, up to whole tiles. As segments they are padding, which sees only padding."""
    return jnp.pad(x, [(0, -size % _TILE if at == axis else 0) for at, size in enumerate(x.shape)])


def _grouped(call: Callable, q: Array, k: Array, v: Array, segments: Array, answers: Array, group: int | None) -> Array:
    """`[prompts | bin 1 | ..]`; segments int32 [Q, P] of the prompts, 0 on padding; answers int32 [Q, B, W]."""
    (rows, p), shape, width = segments.shape, q.shape, answers.shape[2]
    own = [_fill_tiles(x[:, p:].reshape(*answers.shape, *x.shape[2:]), 2) for x in (q, k, v)]
    q, k, v, segments = (_fill_tiles(x[:, :p], 1) for x in (q, k, v, segments))
    mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    out = call(q, k, v, mask, is_causal=True)[:, :p]
    answers = _fill_tiles(answers, 2)
    bins = answers.shape[1]
    copies = [jnp.broadcast_to(x[:, None], (rows, bins, *x.shape[1:])) for x in (k, v)]
    keys, values = (jnp.concatenate(pair, 2) for pair in zip(copies, own[1:], strict=True))
    past = jnp.tril(answers[..., :, None] == answers[..., None, :])
    seen = segments[:, None, None, :] == prompt_of(answers, group)[..., None]
    mask = jnp.concatenate([seen, past], 3)
    after = call(own[0], keys, values, mask[:, :, None], is_causal=False)[:, :, :width]
    return jnp.concatenate([out, after.reshape(rows, -1, *shape[2:])], 1)
