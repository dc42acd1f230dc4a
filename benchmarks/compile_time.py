"""Seconds to trace and to compile the update of a training step, by layers: the layers are scanned, so 48 cost what 2 do.

    python benchmarks/compile_time.py
"""

import argparse
import dataclasses
import os
import time
from functools import partial

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from mtjudge_jax.config import Config, ModelConfig, RolloutConfig, UpdateConfig
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import MoeConfig, Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.presets import preset
from mtjudge_jax.policy.programs import make_programs
from mtjudge_jax.policy.update import abstract_state, make_update
from mtjudge_jax.rl.loss import grpo_loss
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.rl.streams import bins_ladder
from mtjudge_jax.sharding import batch_sharding, make_mesh
from mtjudge_jax.types import PromptBatch, TrainBatch

PROMPTS, GROUP, P, C, M = 4, 4, 64, 16, 64


class Ids:
    """Stands in for a tokenizer."""

    pad, ends = 0, 1

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        return np.arange(vocab_size) > 0


def tiny_widths(layers: int, *, moe: bool) -> Qwen3VLConfig:
    """The published 30B-A3B (or 8B) with its layers and its tower of 27 blocks, at tiny widths."""
    cfg = preset("30b-a3b" if moe else "8b")
    text = dataclasses.replace(
        cfg.text, num_layers=layers, hidden_size=64, intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16,
        mrope_section=(4, 2, 2), vocab_size=512, moe=MoeConfig(16, 4, 24) if moe else None,
    )  # fmt: skip
    vision = dataclasses.replace(cfg.vision, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64)
    return dataclasses.replace(cfg, text=text, vision=vision)


def measure(cfg: Config, model_cfg: Qwen3VLConfig) -> tuple[float, float]:
    """(seconds to trace, seconds to compile)."""
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    optimizer = make_optimizer(cfg.optim, 10)
    programs = make_programs(cfg, model_cfg, Ids(), mesh)
    state = abstract_state(vlm.abstract_params(model_cfg), optimizer, mesh)
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=True)

    def array(dtype, *axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((PROMPTS, *axes), dtype, sharding=batch_sharding(mesh))

    prompts = PromptBatch(
        array(jnp.int32, P), array(bool, P), array(jnp.int32, P, 3), array(jnp.int32), array(jnp.int32, P),
        array(jnp.uint8, M, 768), array(jnp.int32, M, 2), array(jnp.int32, M, 2), array(jnp.int32, M), array(jnp.uint32),
    )  # fmt: skip
    logp, ids = array(jnp.float32, GROUP, C), array(jnp.int32, GROUP, C)
    places = array(jnp.int32, *bins_ladder(GROUP, C)[-1])
    batch = TrainBatch(prompts, ids, array(bool, GROUP, C), array(jnp.float32, GROUP), logp, logp, places)
    began = time.perf_counter()
    lowered = make_update(state, loss, optimizer, mesh, cfg).whole.lower(state, {}, batch)
    traced = time.perf_counter()
    lowered.compile()
    return traced - began, time.perf_counter() - traced


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--layers", default="2,48,94")
    p.add_argument("--remat", default="full")
    p.add_argument("--experts", default="dense")
    args = p.parse_args()
    cfg = Config(
        model=ModelConfig(remat=args.remat, experts=args.experts),
        rollout=RolloutConfig(prompts=PROMPTS, group_size=GROUP, completion_tokens=C),
        update=UpdateConfig(prompts=PROMPTS, micro_prompts=PROMPTS),
    )
    measure(cfg, tiny_widths(1, moe=False))  # what every first compilation pays once
    print(f"jax {jax.__version__}, {os.cpu_count()} cores; seconds to trace + to compile the update")
    for moe in (False, True):
        for layers in map(int, args.layers.split(",")):
            traced, compiled = measure(cfg, tiny_widths(layers, moe=moe))
            kind, total = "MoE  " if moe else "dense", traced + compiled
            print(f"  {kind} {layers:3d} layers  {traced:5.1f} + {compiled:5.1f} = {total:5.1f} s")


if __name__ == "__main__":
    main()
