"""Compiles the update of a training step for a TPU slice that need not be here, and prints what it holds on a device.

    pip install -e ".[tpu]"
    python benchmarks/tpu_update.py --model=30b-a3b --topology=v5p:4x4x4

The defaults are the paper's run (MT-RL-Judge: Qwen3-VL-30B-A3B, all parameters trained, 20 answers a prompt, 256 prompts an
update). Nothing is computed and no weights are needed; the bytes are XLA's own, of the program as it would run.
"""

import argparse
import os
import time
from functools import partial

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is opened

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from mtjudge_jax.config import Config, LoraConfig, MeshConfig, ModelConfig, RolloutConfig, UpdateConfig
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.presets import PRESETS, preset
from mtjudge_jax.optim import make_optimizer
from mtjudge_jax.policy import with_adapters
from mtjudge_jax.sharding import batch_sharding, make_mesh, param_sharding, path_name
from mtjudge_jax.stages import make_stages
from mtjudge_jax.trainable import split
from mtjudge_jax.types import PromptBatch, TrainBatch
from mtjudge_jax.update import abstract_state, grpo_loss, make_update

REAL_IDS = 151_669  # of the tokenizer; the embedding has 151,936


class Ids:
    """Stands in for a tokenizer."""

    pad, eos = 151_643, 151_645

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        return np.arange(vocab_size) < REAL_IDS


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", default="30b-a3b", choices=sorted(PRESETS))
    p.add_argument("--topology", default="v5p:4x4x4", help="as jax.experimental.topologies names it")
    p.add_argument("--mesh", default="1,-1,1,1", help="data,fsdp,expert,tensor; -1 takes what is left")
    p.add_argument("--prompts", type=int, default=256, help="an update")
    p.add_argument("--micro", type=int, default=64, help="prompts whose activations exist at a time, on all devices")
    p.add_argument("--group", type=int, default=20)
    p.add_argument("--prompt-tokens", type=int, default=2048)
    p.add_argument("--answer-tokens", type=int, default=1024)
    p.add_argument("--patches", type=int, default=4096, help="of all images of a prompt; four make one token")
    p.add_argument("--lora", type=int, default=0, help="rank of adapters; 0 trains everything")
    p.add_argument("--param-dtype", default="float32")
    p.add_argument("--remat", default="full")
    p.add_argument("--attention", default="splash")
    p.add_argument("--experts", default="ragged")
    return p.parse_args()


def run_config(args: argparse.Namespace) -> Config:
    return Config(
        mesh=MeshConfig(*map(int, args.mesh.split(","))),
        model=ModelConfig(
            dtype="bfloat16", param_dtype=args.param_dtype, remat=args.remat, attention=args.attention, experts=args.experts
        ),
        lora=LoraConfig(rank=args.lora),
        rollout=RolloutConfig(prompts=args.prompts, group_size=args.group, completion_tokens=args.answer_tokens),
        update=UpdateConfig(prompts=args.prompts, micro_prompts=args.micro),
    )


def abstract_batch(args: argparse.Namespace, sharding) -> TrainBatch:
    def array(dtype, *axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((args.prompts, *axes), dtype, sharding=sharding)

    p, m, answers = args.prompt_tokens, args.patches, (args.group, args.answer_tokens)
    prompts = PromptBatch(
        array(jnp.int32, p), array(bool, p), array(jnp.int32, p, 3), array(jnp.int32), array(jnp.int32, p),
        array(jnp.uint8, m, 768), array(jnp.int32, m, 2), array(jnp.int32, m, 2), array(jnp.int32, m), array(jnp.uint32),
    )  # fmt: skip
    logp = array(jnp.float32, *answers)
    return TrainBatch(prompts, array(jnp.int32, *answers), array(bool, *answers), array(jnp.float32, args.group), logp, logp)


def bytes_a_device(tree) -> int:
    """Of abstract arrays with shardings."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def main() -> None:
    args = arguments()
    cfg = run_config(args)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = make_mesh(cfg.mesh, devices)
    model_cfg = with_adapters(preset(args.model), cfg)
    stages = make_stages(cfg, model_cfg, Ids(), mesh)

    def placed(path, leaf, dtype):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=param_sharding(path_name(path), leaf.shape, mesh))

    apart = split(vlm.abstract_params(model_cfg), cfg)
    trained = jax.tree_util.tree_map_with_path(partial(placed, dtype=jnp.dtype(cfg.model.param_dtype)), apart.trained)
    frozen = jax.tree_util.tree_map_with_path(partial(placed, dtype=jnp.bfloat16), apart.frozen)
    optimizer = make_optimizer(cfg.optim, 1000)
    state = abstract_state(trained, optimizer, mesh)
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=stages.logp_fn, on_policy=True)
    batch = abstract_batch(args, batch_sharding(mesh))
    began = time.perf_counter()
    lowered = make_update(state, loss, optimizer, mesh, cfg).lower(state, frozen, batch)
    traced = time.perf_counter() - began
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    casts = cfg.model.param_dtype != cfg.model.dtype
    parts = {
        "trained parameters": bytes_a_device(state.params),
        "optimizer": bytes_a_device(state.opt_state),
        "frozen parameters": bytes_a_device(frozen),
        "batch": bytes_a_device(batch),
        "arguments, as XLA counts them": memory.argument_size_in_bytes,
        "results in memory of their own": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries (activations, gradients, gathered weights)": memory.temp_size_in_bytes,
        "  of these, gradients": bytes_a_device(state.params),
        "  of these, weights cast to bfloat16": bytes_a_device(state.params) // 2 * casts,
        "program": memory.generated_code_size_in_bytes,
    }
    own = ("results", "temporaries", "program")
    parts["peak"] = memory.argument_size_in_bytes + sum(n for name, n in parts.items() if name.startswith(own))
    stream = args.prompt_tokens + args.group * (args.answer_tokens - 1)
    print(f"{args.model} on {args.topology}: {len(devices)} devices, mesh {dict(mesh.shape)}")
    print(f"{args.micro} prompts at a time, each a stream of {stream:,} tokens and {args.patches:,} patches")
    print(f"traced in {traced:.0f} s, compiled in {time.perf_counter() - began - traced:.0f} s; bytes a device:")
    for name, size in parts.items():
        print(f"  {size / 1e9:8.2f} GB  {name}")


if __name__ == "__main__":
    main()
