"""Adapters of the decoder: added to what they adapt."""

from typing import Any

import jax
import jax.numpy as jnp

from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.text import LORA_AXES

Params = dict[str, Any]


def merge_lora(params: Params, cfg: Qwen3VLConfig) -> Params:
    """The tree of an ordinary model: every adapted weight is W + alpha / rank * A B, computed in float32, in W's dtype."""
    layers = dict(params["text"]["layers"])
    for target in cfg.lora.targets:
        before, after = LORA_AXES[target]
        a, b = layers.pop(f"{target}_lora_a_l{before}r"), layers.pop(f"{target}_lora_b_lr{after}")
        name = f"{target}_l{before}{after}"

        def merged(w, a, b, spec=f"l{before}r,lr{after}->l{before}{after}"):
            low = jnp.einsum(spec, a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
            return (w.astype(jnp.float32) + cfg.lora.alpha / cfg.lora.rank * low).astype(w.dtype)

        layers[name] = jax.jit(merged)(layers[name], a, b)
    return params | {"text": params["text"] | {"layers": layers}}
