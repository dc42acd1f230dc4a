"""Splash attention compiled for TPUs on a machine without one: the real head sizes, forward and backward.

By hand, for any topology: `JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python tests/tpu/test_tpu_compile.py v5p:4x4x4 v6e:8x8`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.models.attention import attend, attend_grouped
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.sharding import BATCH_AXES, make_mesh


class Shape(NamedTuple):
    """One row a device group; N, K, H heads; `group` completions behind a prompt of `prompt` tokens, or one image of all."""

    length: int
    heads: tuple[int, int, int]
    prompt: int = 0
    group: int = 0


SHAPES = {
    "tower of 2B and 4B": Shape(2048, (16, 16, 64)),
    "tower of 8B and above": Shape(2048, (16, 16, 72)),
    "decoder of 4B and 8B": Shape(1024 + 4 * 255, (32, 8, 128), 1024, 4),
    "decoder of 30B-A3B": Shape(1024 + 4 * 255, (32, 4, 128), 1024, 4),
}


def compile_for(topology: str, shape: Shape, tensor: int) -> dict:
    """Kernels in the compiled program, its temporary memory a device, and what the scores of one device would take, in bytes."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh(MeshConfig(fsdp=-1, data=1, tensor=tensor), devices)
    backend = Backend(attention="splash", mesh=mesh)
    n, k, h = shape.heads

    def loss(q, k, v, segments):
        if shape.group:
            prompts = segments[:, : shape.prompt]
            answers = segments[:, shape.prompt :].reshape(len(segments), shape.group, -1)
            stream = {"prompts": prompts, "answers": answers, "group": shape.group // 2}  # of two prompts
            out = attend_grouped(q, k, v, **stream, scale=h**-0.5, backend=backend)
        else:
            out = attend(q, k, v, segments=segments, causal=False, scale=h**-0.5, backend=backend)
        return (out.astype(jnp.float32) ** 2).sum()

    def of(dtype, *sizes: int, spec: tuple = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((mesh.size // tensor, *sizes), dtype, sharding=NamedSharding(mesh, P(BATCH_AXES, *spec)))

    q, k = (of(jnp.bfloat16, shape.length, heads, h, spec=(None, "tensor")) for heads in (n, k))
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, of(jnp.int32, shape.length)).compile()
    return {
        "kernels": program.as_text().count('custom_call_target="tpu_custom_call"'),
        "temporary": program.memory_analysis().temp_size_in_bytes,
        "scores": n // tensor * shape.length**2 * 4,
    }


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'")
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2"])
def test_splash_compiles_for_a_tpu(topology):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": "",
    }  # fmt: skip
    env |= {"JAX_OPTIMIZATION_LEVEL": "O1"}  # of what stands around the kernels: less than half the time
    done = subprocess.run([sys.executable, __file__, topology], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [x["name"] for x in found] == list(SHAPES)
    for x in found:
        assert x["kernels"] == 3, x  # forward, gradient of queries, gradient of keys and values
        assert x["temporary"] < 0.5 * x["scores"], x


if __name__ == "__main__":
    for topology in sys.argv[1:]:
        for name, shape in SHAPES.items():
            tensor = 2 if shape.group else 1
            print(json.dumps({"topology": topology, "name": name} | compile_for(topology, shape, tensor)), flush=True)
