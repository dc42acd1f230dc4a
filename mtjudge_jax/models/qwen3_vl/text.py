"""The text decoder: Qwen3, dense or mixture of experts, with interleaved M-RoPE, DeepStack and optional adapters.

Source of constants and order of operations: transformers `models/qwen3_vl/modeling_qwen3_vl.py` (5.23).
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.grouped_matmul import OfLayer
from mtjudge_jax.models.qwen3_vl.config import AdapterConfig, TextConfig
from mtjudge_jax.models.qwen3_vl.layers import declare, rms_norm, rotate, scan_layers
from mtjudge_jax.models.qwen3_vl.moe import ExpertStack, Routed, expert_mlp
from mtjudge_jax.types import Array

# (q [.., N, H], k [.., K, H], v [.., K, H], layer state) -> (attention output [.., N, H], what the layer returns to keep)
_Attention = Callable
# Input and output axes of the projections that can have an adapter. Its weights are `q_lora_a_ldr` and `q_lora_b_lrnh`.
LORA_AXES = {
    "q": ("d", "nh"), "k": ("d", "kh"), "v": ("d", "kh"), "o": ("nh", "d"),
    "gate": ("d", "f"), "up": ("d", "f"), "down": ("f", "d"),
}  # fmt: skip


class _Rope(NamedTuple):
    cos: Array  # [..., 1, H]
    sin: Array


class DecoderLayer(nnx.Module):
    """The first axis l of every weight is the stack of layers; a scan removes it."""

    def __init__(self, cfg: TextConfig, lora: AdapterConfig | None, *, rngs: nnx.Rngs):
        l, d, h = cfg.num_layers, cfg.hidden_size, cfg.head_dim
        n, k = cfg.num_heads, cfg.num_kv_heads
        self.eps, self.moe, self.lora = cfg.rms_norm_eps, cfg.moe, lora
        self.input_norm_ld = declare(rngs, (l, d), 1.0)
        self.post_norm_ld = declare(rngs, (l, d), 1.0)
        self.q_ldnh = declare(rngs, (l, d, n, h), fan_in=d)
        self.k_ldkh = declare(rngs, (l, d, k, h), fan_in=d)
        self.v_ldkh = declare(rngs, (l, d, k, h), fan_in=d)
        self.o_lnhd = declare(rngs, (l, n, h, d), fan_in=n * h)
        self.q_norm_lh = declare(rngs, (l, h), 1.0)
        self.k_norm_lh = declare(rngs, (l, h), 1.0)
        if cfg.moe is None:
            f = cfg.intermediate_size
            self.gate_ldf = declare(rngs, (l, d, f), fan_in=d)
            self.up_ldf = declare(rngs, (l, d, f), fan_in=d)
            self.down_lfd = declare(rngs, (l, f, d), fan_in=f)
        else:
            e, f = cfg.moe.num_experts, cfg.moe.intermediate_size
            self.router_lde = declare(rngs, (l, d, e), fan_in=d)
            self.experts_gate_up_led2f = declare(rngs, (l, e, d, 2, f), fan_in=d)
            self.experts_down_lefd = declare(rngs, (l, e, f, d), fan_in=f)
        for name, shape in lora_shapes(cfg, lora).items():
            weight = declare(rngs, shape, fan_in=prod(shape[1:-1])) if "_lora_a_" in name else declare(rngs, shape, 0.0)
            setattr(self, name, weight)

    def __call__(
        self,
        x: Array,
        rope: _Rope,
        attention: _Attention,
        state,
        *,
        real: Array,
        backend: Backend,
        choice: Array | None = None,
        experts: tuple[OfLayer, OfLayer] | None = None,
    ):
        """x [..., D] -> (x, kept, what the router did, None without experts). Only `attention` knows which tokens see which.

        real bool [...]: the tokens that count in the router's statistics. choice [..., k]: the experts to take. experts: the
        matrices of this layer, where they are not its own.
        """
        y = rms_norm(x, self.input_norm_ld[...], self.eps)
        q = self.adapt("q", y, jnp.einsum("...d,dnh->...nh", y, self.q_ldnh[...]))
        k = self.adapt("k", y, jnp.einsum("...d,dkh->...kh", y, self.k_ldkh[...]))
        v = self.adapt("v", y, jnp.einsum("...d,dkh->...kh", y, self.v_ldkh[...]))
        q = rotate(rms_norm(q, self.q_norm_lh[...], self.eps), *rope)
        k = rotate(rms_norm(k, self.k_norm_lh[...], self.eps), *rope)
        out, kept = attention(q, k, v, state)
        x = x + self.adapt("o", out, jnp.einsum("...nh,nhd->...d", out, self.o_lnhd[...]))
        y = rms_norm(x, self.post_norm_ld[...], self.eps)
        if self.moe is None:
            gate, up = self.adapt("gate", y, y @ self.gate_ldf[...]), self.adapt("up", y, y @ self.up_ldf[...])
            y = jax.nn.silu(gate) * up
            return x + self.adapt("down", y, y @ self.down_lfd[...]), kept, None
        gate_up, down = experts or (self.experts_gate_up_led2f[...], self.experts_down_lefd[...])
        y, routed = expert_mlp(
            y,
            real,
            router_de=self.router_lde[...],
            gate_up_ed2f=gate_up,
            down_efd=down,
            moe=self.moe,
            backend=backend,
            choice=choice,
        )
        return x + y, kept, routed

    def adapt(self, target: str, x: Array, y: Array) -> Array:
        """y = x W plus alpha / rank * (x A) B where `target` has an adapter."""
        if self.lora is None or target not in self.lora.targets:
            return y
        before, after = LORA_AXES[target]
        a, b = (vars(self)[f"{target}_lora_{part}"][...] for part in (f"a_l{before}r", f"b_lr{after}"))
        low = jnp.einsum(f"...{before},{before}r->...r", x, a)
        return y + self.lora.alpha / self.lora.rank * jnp.einsum(f"...r,r{after}->...{after}", low, b)


def lora_shapes(cfg: TextConfig, lora: AdapterConfig | None) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the adapters' weights, layers first; empty without `lora`."""
    if lora is None:
        return {}
    size = {"d": cfg.hidden_size, "n": cfg.num_heads, "k": cfg.num_kv_heads, "h": cfg.head_dim, "f": cfg.intermediate_size}
    size |= {"l": cfg.num_layers, "r": lora.rank}
    names = [f"{t}_lora_{part}" for t in lora.targets for part in (f"a_l{LORA_AXES[t][0]}r", f"b_lr{LORA_AXES[t][1]}")]
    return {name: tuple(size[axis] for axis in name.rsplit("_", 1)[1]) for name in names}


class TextDecoder(nnx.Module):
    def __init__(self, cfg: TextConfig, lora: AdapterConfig | None, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embed_vd = declare(rngs, (cfg.vocab_size, cfg.hidden_size), fan_in=cfg.hidden_size)
        self.layers = DecoderLayer(cfg, lora, rngs=rngs)
        self.norm_d = declare(rngs, (cfg.hidden_size,), 1.0)
        if not cfg.tie_word_embeddings:
            self.head_vd = declare(rngs, (cfg.vocab_size, cfg.hidden_size), fan_in=cfg.hidden_size)

    @property
    def output_vd(self) -> Array:
        """The output head [V, D]: the embedding itself where the two are tied."""
        return (self.embed_vd if self.cfg.tie_word_embeddings else self.head_vd)[...]

    def rope(self, positions: Array) -> _Rope:
        """positions int32 [..., 3] -> cosine and sine [..., 1, H], computed in float32 and cast to the weights' dtype."""
        cfg = self.cfg
        frequency = cfg.rope_theta ** (-jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
        angle = positions.astype(jnp.float32)[..., mrope_axes(cfg)] * frequency
        angle = jnp.concatenate([angle, angle], -1)[..., None, :]
        dtype = self.embed_vd.dtype
        return _Rope(jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype))

    def __call__(
        self,
        x: Array,
        rope: _Rope,
        attention: _Attention,
        *,
        states=None,
        deepstack: Array | None,
        real: Array,
        backend: Backend,
        choices: Array | None = None,
        keep_choices: bool = False,
        experts: ExpertStack | None = None,
    ) -> tuple[Array, Any, Routed | None]:
        """Runs the layers on x [Q, S, D] with real bool [Q, S]. Returns the normalised hidden states and, stacked over layers,
        what `attention` kept and what the routers did, with their choices only where `keep_choices` asks for them.

        choices [L, Q, S, k]: the experts to take. experts: where to read their weights, if not in the layers.
        `deepstack` [T, Q, P, D], zero on text, is added to the first P tokens after layers 0..T-1, inside the one scan.
        """

        def body(layer, x, of_layer):
            index, state, choice = of_layer
            where = experts.at(index) if experts else None
            x, kept, routed = layer(x, rope, attention, state, real=real, backend=backend, choice=choice, experts=where)
            if routed is not None and not keep_choices:
                routed = routed._replace(choice=None)
            if deepstack is not None:
                taps = deepstack.shape[0]
                feature = jnp.where(index < taps, deepstack[jnp.minimum(index, taps - 1)], 0)
                x = x.at[:, : feature.shape[1]].add(feature)
            return x, (kept, routed)

        xs = (jnp.arange(self.cfg.num_layers), states, choices)
        x, (kept, routed) = scan_layers(self.layers, x, body, remat=backend.remat, xs=xs)
        return rms_norm(x, self.norm_d[...], self.cfg.rms_norm_eps), kept, routed


def mrope_axes(cfg: TextConfig) -> np.ndarray:
    """For each of the H / 2 frequencies, the index of the (t, h, w) position that rotates it.

    Interleaved: t h w t h w .. as long as the sections last, then t. Sections (4, 2, 2) give t h w t h w t t.
    """
    axes = np.zeros(cfg.head_dim // 2, np.int32)
    for axis in (1, 2):
        axes[axis : 3 * cfg.mrope_section[axis] : 3] = axis
    return axes
