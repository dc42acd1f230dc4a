"""Experts compiled for TPUs on a machine without one: the work and the memory grow with the choices, not with the experts.

By hand, for any topology, mesh (data, fsdp, expert, tensor) and tokens a device, at the sizes of 30B-A3B:
`JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python tests/tpu/test_moe_tpu.py v5p:4x4x4 1,8,8,1 22528`.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import moe
from mtjudge_jax.models.qwen3_vl.config import MoeConfig
from mtjudge_jax.sharding import BATCH_AXES, make_mesh

SMALL = (512, MoeConfig(num_experts=32, experts_per_token=4, intermediate_size=256))  # width of the model, experts
REAL = (2048, MoeConfig(num_experts=128, experts_per_token=8, intermediate_size=768))
COLLECTIVES = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute"


def compile_for(topology: str, shape: tuple[int, ...], tokens: int, d: int, cfg: MoeConfig) -> dict:
    """Work and memory of one layer on one device, forward and backward in bfloat16, `tokens` a device of a batch row."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[: math.prod(shape)]
    mesh = make_mesh(MeshConfig(*shape), devices)
    e, f, k = cfg.num_experts, cfg.intermediate_size, cfg.experts_per_token

    def of(spec: P, *sizes: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    sizes = moe.Weights((d, e), (e, d, 2, f), (e, f, d))
    specs = moe.weight_specs(moe.Weights(*[jax.ShapeDtypeStruct(size, jnp.bfloat16) for size in sizes]), mesh)
    weights = moe.Weights(*[of(spec, *size) for spec, size in zip(specs, sizes, strict=True)])
    rows = (P(BATCH_AXES), math.prod(shape[:3]), tokens)
    x, real = of(*rows, d), of(*rows, dtype=jnp.bool_)

    def step(x, weights, real, bar):
        def layer(x, w):
            args = {"router_de": w.router_de, "gate_up_ed2f": w.gate_up_ed2f, "down_efd": w.down_efd, "moe": cfg}
            return moe.expert_mlp(x, real, **args, backend=Backend(experts="ragged", mesh=mesh))

        y, pullback, stats = jax.vjp(layer, x, weights, has_aux=True)
        return y, stats, pullback(bar)

    program = jax.jit(step).lower(x, weights, real, x).compile()
    memory, text = program.memory_analysis(), program.as_text()
    return {
        "flops": program.cost_analysis()["flops"],
        "ideal": 9 * 2 * tokens * k * d * f // shape[3],  # three products, and two more of each backwards
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes,
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "collectives": Counter(re.findall(rf" ({COLLECTIVES})(?:-start)?\(", text)),
    }


def compile_decoding(topology: str, shape: tuple[int, ...], tokens: int, d: int, cfg: MoeConfig, *, layers: int = 8) -> dict:
    """Memory of one token through the experts of some layers, `tokens` lanes a device, in bfloat16."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[: math.prod(shape)]
    mesh = make_mesh(MeshConfig(*shape), devices)
    e, f = cfg.num_experts, cfg.intermediate_size
    backend = Backend(experts="ragged", mesh=mesh, gathered=True)
    every = jax.eval_shape(lambda: moe.stack_experts(jnp.zeros((layers, e, d, 2, f)), jnp.zeros((layers, e, f, d)), backend))
    expert, tensor = (axis if mesh.shape[axis] > 1 else None for axis in ("expert", "tensor"))
    specs = moe.ExpertStack(P(None, expert, None, tensor), P(None, expert, tensor, None))

    def of(spec: P, *sizes: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    stack = moe.ExpertStack(*(of(spec, *x.shape) for spec, x in zip(specs, every, strict=True)))
    x, router = of(P(BATCH_AXES), math.prod(shape[:3]), tokens, d), of(P(), layers, d, e)

    def token(x, stack, router):
        def layer(x, at):
            gate_up, down = stack.at(at[1])
            args = {"router_de": at[0], "gate_up_ed2f": gate_up, "down_efd": down, "moe": cfg, "backend": backend}
            return moe.expert_mlp(x, jnp.ones(x.shape[:2], bool), **args)[0], None

        return jax.lax.scan(layer, x, (router, jnp.arange(layers)))[0]

    program = jax.jit(token).lower(x, stack, router).compile()
    of_layer = 2 * 3 * e * d * f // shape[2] // shape[3]
    return {"temporary": program.memory_analysis().temp_size_in_bytes, "layer": of_layer}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'")
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2"])
def test_experts_compile_for_a_tpu(topology):
    alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""}
    command = [sys.executable, __file__, topology]
    done = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, apart, *decoding = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert whole["kernels"] == 7, whole  # two products, each once forwards and twice backwards, and their tiles
    assert whole["flops"] < 1.1 * whole["ideal"], whole  # masked dense products, by XLA or by us, are 8 times that
    (d, cfg), choices = SMALL, whole["tokens"] * SMALL[1].experts_per_token
    row = 2 * (2 * d + 3 * cfg.intermediate_size)  # bytes of a choice: in, gate and up, their product, out
    weights = 2 * 3 * cfg.num_experts * d * cfg.intermediate_size
    assert whole["temporary"] < weights + 2 * choices * row, whole  # a row for each expert and choice is 268 MB
    assert apart["kernels"] > 7, apart  # each in its loop over chunks
    assert {"all-gather", "all-reduce", "reduce-scatter"} == set(apart["collectives"]), apart
    assert [one["temporary"] < one["layer"] / 2 for one in decoding] == [True, True], decoding  # no layer's experts are copied


if __name__ == "__main__":
    topology, *rest = sys.argv[1:]
    plans = [(tuple(map(int, rest[0].split(","))), int(rest[1]), *REAL)] if rest else []
    small = [((1, 1, 1, 1), 2048, *SMALL), ((1, 1, 2, 2), 1024, *SMALL)]
    for shape, tokens, *size in plans or small:
        found = {"topology": topology, "mesh": shape, "tokens": tokens} | compile_for(topology, shape, tokens, *size)
        print(json.dumps(found), flush=True)
    for shape, tokens, *size in plans or small:
        print(json.dumps(compile_decoding(topology, shape, tokens // 16, *size)), flush=True)
