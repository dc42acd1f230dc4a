"""Calls a kernel, which knows a single device, on every device of a mesh."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.backend import default_platform
from mtjudge_jax.sharding import BATCH_AXES
from mtjudge_jax.types import Array


def call_sharded(kernel: Callable, q: Array, k: Array, v: Array, segments: Array, mesh: Mesh | None) -> Array:
    """`kernel(q, k, v, segments)` on each device's rows and heads: q [Q, T, N, H]; k, v [Q, T, K, H]; segments [Q, T'].

    Rows are sharded over data, fsdp and expert together, heads over tensor. Where tensor does not divide the key heads, each is
    repeated as often as needed; a device then holds the copies that its query heads read.
    """
    if mesh is None:
        return kernel(q, k, v, segments)
    rows, shards, heads = q.shape[0], math.prod(mesh.shape[axis] for axis in BATCH_AXES), mesh.shape["tensor"]
    if rows % shards:
        raise UserError(
            f"{rows} rows cannot be spread over {' * '.join(BATCH_AXES)} = {shards} shards of the mesh: "
            f"make the rows of a batch a multiple of {shards}, or the mesh smaller"
        )
    if q.shape[2] % heads:
        raise UserError(
            f"{q.shape[2]} attention heads cannot be spread over mesh.tensor = {heads}: "
            f"set mesh.tensor to a divisor of {q.shape[2]}"
        )
    if k.shape[2] % heads:
        k, v = (jnp.repeat(x, heads // math.gcd(heads, k.shape[2]), axis=2) for x in (k, v))
    split = P(BATCH_AXES, None, "tensor", None)
    # check_vma: kernels do not declare over which mesh axes a value varies.
    call = jax.shard_map(kernel, mesh=mesh, in_specs=(split, split, split, P(BATCH_AXES, None)), out_specs=split, check_vma=False)
    return call(q, k, v, segments)


def platform_of(mesh: Mesh | None) -> str:
    """cpu, gpu or tpu. The devices of the mesh decide: in ahead-of-time compilation they are not those of this machine."""
    return default_platform() if mesh is None else mesh.devices.flat[0].platform
