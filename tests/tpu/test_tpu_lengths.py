"""Random lengths in every layout of tokens, lowered for TPUs on a machine without one: a few here, as many as you like by hand.

`JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python tests/tpu/test_tpu_lengths.py 500 v5p:2x2x1 v6e:2x2` prints a line per crash, then
how many there were; GPUs, e.g. h100:4, where the extra `cuda` is installed. `tests/numbers/test_attention.py` has the arithmetic
of every length.
"""

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.models.attention import attend, attend_decode, attend_grouped
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import moe
from mtjudge_jax.models.qwen3_vl.config import MoeConfig
from mtjudge_jax.plan.run import place_of
from mtjudge_jax.sharding import BATCH_AXES, make_mesh

LONGEST = 8192  # tokens or patches a row
LAYOUTS = ("stream", "prompt", "patches", "decode", "experts")
DECODERS = ((16, 8, 128), (32, 8, 128), (32, 4, 128), (64, 4, 128))  # N, K, H of 2B, of 4B and 8B, of 30B-A3B, of 235B-A22B
TOWERS = ((16, 16, 64), (16, 16, 72))
EXPERTS = MoeConfig(num_experts=32, experts_per_token=4, intermediate_size=256)


class Draw(NamedTuple):
    layout: str
    prompt: int
    group: int
    own: int  # tokens of an answer
    heads: tuple[int, int, int]
    tensor: int  # devices that share the heads of a row

    @property
    def length(self) -> int:
        return self.prompt + self.group * self.own


def draw(rng: np.random.Generator, layout: str) -> Draw:
    """Lengths are spread evenly over their logarithm."""
    upto = lambda most: int(np.exp(rng.uniform(0, np.log(most))))  # noqa: E731
    heads = (TOWERS if layout == "patches" else DECODERS)[rng.integers(2 if layout == "patches" else 4)]
    tensor, group = int(2 ** rng.integers(3)), int(rng.integers(1, 25))
    if layout in ("stream", "decode"):
        prompt = upto(LONGEST // 2)
        return Draw(layout, prompt, group, upto((LONGEST - prompt) // group), heads, tensor)
    return Draw(layout, 4 * upto(LONGEST // 4) if layout == "patches" else upto(LONGEST), 0, 0, heads, tensor)


def lower(it: Draw, devices: list) -> jax.stages.Lowered:
    """The layout's function, forward and backward where training has it, with a row for each group of devices."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=it.tensor), devices)
    rows, (n, k, h) = mesh.size // it.tensor, it.heads

    def of(*sizes: int, dtype=jnp.bfloat16, spec: tuple = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=NamedSharding(mesh, P(BATCH_AXES, *spec)))

    if it.layout == "experts":
        return _lower_experts(it, devices)
    backend = Backend(attention="tokamax" if devices[0].platform == "gpu" else "splash", mesh=mesh)
    if it.layout == "decode":
        new = [of(it.group, heads, h) for heads in (n, k, k)]
        past = of(it.group, k, h, it.own), of(it.group, k, it.own, h)
        prompt = of(1, k, h, it.prompt), of(1, k, it.prompt, h)
        masks = of(it.group, it.own, dtype=jnp.bool_), of(1, it.prompt, dtype=jnp.bool_)
        step = lambda q, k, v, past, prompt, masks: attend_decode(  # noqa: E731
            q, k, v, past=past, prompt=prompt, masks=masks, places=None, scale=h**-0.5
        )
        return jax.jit(step).lower(*new, past, prompt, masks)

    def loss(q, k, v, segments):
        if it.layout == "stream":
            prompts, answers = segments[:, : it.prompt], segments[:, it.prompt :].reshape(rows, it.group, it.own)
            out = attend_grouped(q, k, v, prompts=prompts, answers=answers, group=it.group, scale=h**-0.5, backend=backend)
        else:
            out = attend(q, k, v, segments=segments, causal=it.layout == "prompt", scale=h**-0.5, backend=backend)
        return (out.astype(jnp.float32) ** 2).sum()

    shards = (None, "tensor")
    q, kv = of(it.length, n, h, spec=shards), of(it.length, k, h, spec=shards if k % it.tensor == 0 else ())
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, kv, kv, of(it.length, dtype=jnp.int32))


def _lower_experts(it: Draw, devices: list) -> jax.stages.Lowered:
    """One layer of experts over as many tokens, the experts spread over the devices that `tensor` would take."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, expert=it.tensor), devices)
    d, e, f = 512, EXPERTS.num_experts, EXPERTS.intermediate_size
    sizes = [jax.ShapeDtypeStruct(size, jnp.bfloat16) for size in ((d, e), (e, d, 2, f), (e, f, d))]
    specs = moe.weight_specs(moe.Weights(*sizes), mesh)
    place = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    weights = moe.Weights(*map(place, sizes, specs))
    rows = NamedSharding(mesh, P(BATCH_AXES))
    x = jax.ShapeDtypeStruct((len(devices), it.length, d), jnp.bfloat16, sharding=rows)
    real = jax.ShapeDtypeStruct(x.shape[:2], jnp.bool_, sharding=rows)

    def loss(x, w, real):
        args = {"router_de": w.router_de, "gate_up_ed2f": w.gate_up_ed2f, "down_efd": w.down_efd, "moe": EXPERTS}
        kernels = "tokamax" if devices[0].platform == "gpu" else "ragged"
        out, _ = moe.expert_mlp(x, real, **args, backend=Backend(experts=kernels, mesh=mesh))
        return (out.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss, (0, 1))).lower(x, weights, real)


def run(count: int, topology: str) -> None:
    devices = place_of(topology)[1]
    rng, done, crashes = np.random.default_rng(0), Counter(), 0
    for number in range(count):
        it = draw(rng, LAYOUTS[number % len(LAYOUTS)])
        try:
            with jax.default_device(devices[0] if devices[0].platform == "gpu" else None):
                lower(it, devices)
        except Exception as error:
            crashes += 1
            print(f"{topology} {it}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        done[it.layout] += 1
        jax.clear_caches()
    layouts = ", ".join(f"{n} {name}" for name, n in done.items())
    print(f"{topology}: {count} random lengths ({layouts}): {crashes} crashes", flush=True)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_random_lengths_are_lowered():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": ""}
    command = [sys.executable, __file__, "10", "v5p:2x2x1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("v5p:2x2x1: 10 random lengths") and done.stdout.endswith(": 0 crashes\n"), done.stdout


if __name__ == "__main__":
    for name in sys.argv[2:]:
        run(int(sys.argv[1]), name)
