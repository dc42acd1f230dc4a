"""The vision tower: packed patches, of several images per row, to image tokens and DeepStack features.

Source of constants and order of operations: transformers `models/qwen3_vl/modeling_qwen3_vl.py` (5.23), rewritten for
static shapes: everything that depends on an image's grid comes from the host with the patches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtjudge_jax.models.attention import attend
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl.config import VisionConfig
from mtjudge_jax.models.qwen3_vl.layers import declare, layer_norm, rotate, scan_layers
from mtjudge_jax.types import Array, PromptBatch

_ROPE_THETA = 10_000.0


class _ImageFeatures(NamedTuple):
    tokens: Array  # [Q, M / merge^2, D]
    deepstack: Array  # [T, Q, M / merge^2, D], one per tap


class VisionBlock(nnx.Module):
    """A pre-LayerNorm block. The first axis l of every weight is the stack of blocks; a scan removes it."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        l, c, f = cfg.depth, cfg.hidden_size, cfg.intermediate_size
        n, h = cfg.num_heads, cfg.hidden_size // cfg.num_heads
        self.scale = h**-0.5
        self.norm1_lc = declare(rngs, (l, c), 1.0)
        self.norm1_bias_lc = declare(rngs, (l, c), 0.0)
        self.norm2_lc = declare(rngs, (l, c), 1.0)
        self.norm2_bias_lc = declare(rngs, (l, c), 0.0)
        self.qkv_lc3nh = declare(rngs, (l, c, 3, n, h), fan_in=c)
        self.qkv_bias_l3nh = declare(rngs, (l, 3, n, h), 0.0)
        self.proj_lnhc = declare(rngs, (l, n, h, c), fan_in=c)
        self.proj_bias_lc = declare(rngs, (l, c), 0.0)
        self.fc1_lcf = declare(rngs, (l, c, f), fan_in=c)
        self.fc1_bias_lf = declare(rngs, (l, f), 0.0)
        self.fc2_lfc = declare(rngs, (l, f, c), fan_in=f)
        self.fc2_bias_lc = declare(rngs, (l, c), 0.0)

    def __call__(self, x: Array, cos: Array, sin: Array, segment: Array, backend: Backend) -> Array:
        """x [Q, M, c]; cos, sin float32 [Q, M, 1, h]; segment int32 [Q, M], the patch's image."""
        y = layer_norm(x, self.norm1_lc[...], self.norm1_bias_lc[...])
        qkv = jnp.einsum("qmc,csnh->qmsnh", y, self.qkv_lc3nh[...]) + self.qkv_bias_l3nh[...]
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        q = rotate(q.astype(jnp.float32), cos, sin).astype(x.dtype)
        k = rotate(k.astype(jnp.float32), cos, sin).astype(x.dtype)
        out = attend(q, k, v, segments=segment, causal=False, scale=self.scale, backend=backend)
        x = x + jnp.einsum("qmnh,nhc->qmc", out, self.proj_lnhc[...]) + self.proj_bias_lc[...]
        y = layer_norm(x, self.norm2_lc[...], self.norm2_bias_lc[...])
        y = jax.nn.gelu(y @ self.fc1_lcf[...] + self.fc1_bias_lf[...], approximate=True)
        return x + y @ self.fc2_lfc[...] + self.fc2_bias_lc[...]


class Merger(nnx.Module):
    """Merges four neighbouring patches into one image token. Each is normalised before the four are joined."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        m, o = cfg.hidden_size * cfg.spatial_merge_size**2, cfg.out_hidden_size
        self.norm_c = declare(rngs, (cfg.hidden_size,), 1.0)
        self.norm_bias_c = declare(rngs, (cfg.hidden_size,), 0.0)
        self.fc1_mm = declare(rngs, (m, m), fan_in=m)
        self.fc1_bias_m = declare(rngs, (m,), 0.0)
        self.fc2_mo = declare(rngs, (m, o), fan_in=m)
        self.fc2_bias_o = declare(rngs, (o,), 0.0)

    def __call__(self, x: Array) -> Array:
        x = layer_norm(x, self.norm_c[...], self.norm_bias_c[...])
        x = x.reshape(x.shape[0], -1, self.fc1_mm.shape[0])
        x = jax.nn.gelu(x @ self.fc1_mm[...] + self.fc1_bias_m[...], approximate=False)
        return x @ self.fc2_mo[...] + self.fc2_bias_o[...]


class DeepStackMergers(nnx.Module):
    """One merger per tap, stacked on t. Here the four patches are joined first and then normalised together."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        t = len(cfg.deepstack_layers)
        m, o = cfg.hidden_size * cfg.spatial_merge_size**2, cfg.out_hidden_size
        self.norm_tm = declare(rngs, (t, m), 1.0)
        self.norm_bias_tm = declare(rngs, (t, m), 0.0)
        self.fc1_tmm = declare(rngs, (t, m, m), fan_in=m)
        self.fc1_bias_tm = declare(rngs, (t, m), 0.0)
        self.fc2_tmo = declare(rngs, (t, m, o), fan_in=m)
        self.fc2_bias_to = declare(rngs, (t, o), 0.0)

    def __call__(self, taps: Array) -> Array:
        """taps [T, Q, M, c] -> [T, Q, M / merge^2, D]."""
        x = taps.reshape(*taps.shape[:2], -1, self.fc1_tmm.shape[1])
        x = layer_norm(x, self.norm_tm[...][:, None, None], self.norm_bias_tm[...][:, None, None])
        x = jnp.einsum("tqim,tmn->tqin", x, self.fc1_tmm[...]) + self.fc1_bias_tm[...][:, None, None]
        x = jax.nn.gelu(x, approximate=False)
        return jnp.einsum("tqim,tmo->tqio", x, self.fc2_tmo[...]) + self.fc2_bias_to[...][:, None, None]


class VisionTower(nnx.Module):
    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs):
        p = 3 * cfg.temporal_patch_size * cfg.patch_size**2
        self.cfg = cfg
        self.patch_pc = declare(rngs, (p, cfg.hidden_size), fan_in=p)
        self.patch_bias_c = declare(rngs, (cfg.hidden_size,), 0.0)
        self.pos_sc = declare(rngs, (cfg.num_position_embeddings, cfg.hidden_size), fan_in=cfg.hidden_size)
        self.blocks = VisionBlock(cfg, rngs=rngs)
        self.merger = Merger(cfg, rngs=rngs)
        self.deepstack = DeepStackMergers(cfg, rngs=rngs)

    def __call__(self, batch: PromptBatch, *, backend: Backend) -> _ImageFeatures:
        cfg = self.cfg
        x = self.embed_patches(batch.patches) + self.positions(batch.patch_hw, batch.patch_grid)
        cos, sin = _rope_2d(batch.patch_hw, cfg.hidden_size // cfg.num_heads)

        after = jnp.array(cfg.deepstack_layers)
        count = len(cfg.deepstack_layers)

        def step(block, carry, index):
            x, taps = carry
            x = block(x, cos, sin, batch.patch_segment, backend)
            # Every block writes to the slot of the next tap; the tapped block is the last to do so. The final slot is not used.
            slot = (index > after).sum()
            return (x, jax.lax.dynamic_update_index_in_dim(taps, x, slot, 0)), None

        # One scan with the taps in its carry takes less memory, and half the compile time, of a scan from each tap to the next.
        start = (x, jnp.zeros((count + 1, *x.shape), x.dtype))
        (x, taps), _ = scan_layers(self.blocks, start, step, remat=backend.remat, xs=jnp.arange(cfg.depth))
        return _ImageFeatures(self.merger(x), self.deepstack(taps[:count]))

    def embed_patches(self, patches: Array) -> Array:
        """uint8 [Q, M, 3 * patch^2] -> [Q, M, c]. A still image fills both frames, so the kernel's frames are summed."""
        cfg, kernel = self.cfg, self.patch_pc[...]
        kernel = kernel.reshape(3, cfg.temporal_patch_size, cfg.patch_size**2, -1).sum(1).reshape(-1, cfg.hidden_size)
        colour = lambda values: np.repeat(np.float32(values), cfg.patch_size**2)  # noqa: E731
        mean, std = colour(cfg.image_mean), colour(cfg.image_std)
        pixels = (patches.astype(jnp.float32) / (255 * std) - mean / std).astype(kernel.dtype)
        return pixels @ kernel + self.patch_bias_c[...]

    def positions(self, patch_hw: Array, patch_grid: Array) -> Array:
        """Learned position table, interpolated bilinearly to each image's grid with aligned corners. [Q, M, c]."""
        table = self.pos_sc[...]
        side = round(self.cfg.num_position_embeddings**0.5)
        at = patch_hw * (side - 1) / jnp.maximum(patch_grid - 1, 1).astype(jnp.float32)
        low = jnp.floor(at).astype(jnp.int32)
        high = jnp.minimum(low + 1, side - 1)
        part = at - low
        out = jnp.zeros((*patch_hw.shape[:2], table.shape[1]), jnp.float32)
        for row, row_weight in ((low[..., 0], 1 - part[..., 0]), (high[..., 0], part[..., 0])):
            for col, col_weight in ((low[..., 1], 1 - part[..., 1]), (high[..., 1], part[..., 1])):
                out += table[row * side + col].astype(jnp.float32) * (row_weight * col_weight)[..., None]
        return out.astype(table.dtype)


def _rope_2d(patch_hw: Array, head_dim: int) -> tuple[Array, Array]:
    """Cosine and sine, float32 [Q, M, 1, H]. The row gives the first quarter of the angles, the column the next."""
    frequency = _ROPE_THETA ** (-jnp.arange(0, head_dim // 2, 2, dtype=jnp.float32) / (head_dim // 2))
    angle = (patch_hw[..., None].astype(jnp.float32) * frequency).reshape(*patch_hw.shape[:2], -1)
    angle = jnp.concatenate([angle, angle], -1)[:, :, None, :]
    return jnp.cos(angle), jnp.sin(angle)
