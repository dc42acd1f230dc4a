"""The text decoder: Qwen3 with interleaved M-RoPE and DeepStack.

Source of constants and order of operations: transformers `models/qwen3_vl/modeling_qwen3_vl.py` (5.23).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtjudge_jax.models.qwen3_vl.config import TextConfig
from mtjudge_jax.models.qwen3_vl.layers import Remat, declare, rms_norm, rotate, scan_layers
from mtjudge_jax.types import Array

# (q [.., N, H], k [.., K, H], v [.., K, H], layer state) -> (attention output [.., N, H], what to keep of the layer)
Attention = Callable


class Rope(NamedTuple):
    cos: Array  # [..., 1, H]
    sin: Array


class DecoderLayer(nnx.Module):
    """Leading axis l of every weight is the stack of layers, gone inside the scan."""

    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
        l, d, f, h = cfg.num_layers, cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
        n, k = cfg.num_heads, cfg.num_kv_heads
        self.eps = cfg.rms_norm_eps
        self.input_norm_ld = declare(rngs, (l, d), 1.0)
        self.post_norm_ld = declare(rngs, (l, d), 1.0)
        self.q_ldnh = declare(rngs, (l, d, n, h), fan_in=d)
        self.k_ldkh = declare(rngs, (l, d, k, h), fan_in=d)
        self.v_ldkh = declare(rngs, (l, d, k, h), fan_in=d)
        self.o_lnhd = declare(rngs, (l, n, h, d), fan_in=n * h)
        self.q_norm_lh = declare(rngs, (l, h), 1.0)
        self.k_norm_lh = declare(rngs, (l, h), 1.0)
        self.gate_ldf = declare(rngs, (l, d, f), fan_in=d)
        self.up_ldf = declare(rngs, (l, d, f), fan_in=d)
        self.down_lfd = declare(rngs, (l, f, d), fan_in=f)

    def __call__(self, x: Array, rope: Rope, attention: Attention, state):
        """x [..., D] -> (x, kept). `attention` decides who sees whom; the layer itself treats all tokens alike."""
        y = rms_norm(x, self.input_norm_ld[...], self.eps)
        q = jnp.einsum("...d,dnh->...nh", y, self.q_ldnh[...])
        k = jnp.einsum("...d,dkh->...kh", y, self.k_ldkh[...])
        v = jnp.einsum("...d,dkh->...kh", y, self.v_ldkh[...])
        q = rotate(rms_norm(q, self.q_norm_lh[...], self.eps), *rope)
        k = rotate(rms_norm(k, self.k_norm_lh[...], self.eps), *rope)
        out, kept = attention(q, k, v, state)
        x = x + jnp.einsum("...nh,nhd->...d", out, self.o_lnhd[...])
        y = rms_norm(x, self.post_norm_ld[...], self.eps)
        y = jax.nn.silu(y @ self.gate_ldf[...]) * (y @ self.up_ldf[...])
        return x + y @ self.down_lfd[...], kept


class TextDecoder(nnx.Module):
    def __init__(self, cfg: TextConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embed_vd = declare(rngs, (cfg.vocab_size, cfg.hidden_size), fan_in=cfg.hidden_size)
        self.layers = DecoderLayer(cfg, rngs=rngs)
        self.norm_d = declare(rngs, (cfg.hidden_size,), 1.0)
        if not cfg.tie_word_embeddings:
            self.head_vd = declare(rngs, (cfg.vocab_size, cfg.hidden_size), fan_in=cfg.hidden_size)

    @property
    def output_vd(self) -> Array:
        """The output head [V, D]: the embedding itself where the two are tied."""
        return (self.embed_vd if self.cfg.tie_word_embeddings else self.head_vd)[...]

    def rope(self, positions: Array) -> Rope:
        """positions int32 [..., 3] -> cosine and sine [..., 1, H], computed in float32, in the weights' dtype."""
        cfg = self.cfg
        frequency = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
        angle = positions.astype(jnp.float32)[..., mrope_axes(cfg)] * frequency
        angle = jnp.concatenate([angle, angle], -1)[..., None, :]
        dtype = self.embed_vd.dtype
        return Rope(jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype))

    def __call__(self, x: Array, rope: Rope, attention: Attention, *, states=None, deepstack: Array | None, remat: Remat):
        """Runs the layers; x [Q, S, D]. Returns the normed hidden states and what `attention` kept, stacked on layers.

        `deepstack` [T, Q, P, D], zero on text, is added to the first P tokens after layers 0..T-1, inside the one scan.
        """

        def body(layer, x, index_and_state):
            index, state = index_and_state
            x, kept = layer(x, rope, attention, state)
            if deepstack is not None:
                taps = deepstack.shape[0]
                feature = jnp.where(index < taps, deepstack[jnp.minimum(index, taps - 1)], 0)
                x = x.at[:, : feature.shape[1]].add(feature)
            return x, kept

        xs = (jnp.arange(self.cfg.num_layers), states)
        x, kept = scan_layers(self.layers, x, body, remat=remat, xs=xs)
        return rms_norm(x, self.norm_d[...], self.cfg.rms_norm_eps), kept


def mrope_axes(cfg: TextConfig) -> np.ndarray:
    """Which of the (t, h, w) positions turns each of the H / 2 frequencies.

    Interleaved: t h w t h w .. as long as the sections last, the rest t. Sections (4, 2, 2): t h w t h w t t.
    """
    axes = np.zeros(cfg.head_dim // 2, np.int32)
    for axis in (1, 2):
        axes[axis : 3 * cfg.mrope_section[axis] : 3] = axis
    return axes
