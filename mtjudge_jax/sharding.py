"""The mesh, the one table that shards the parameters, and the sharding of a batch.

Axes: `data` replicates parameters, `fsdp` shards them, `expert` distributes the experts, `tensor` shards heads and mlp. Prompts
are sharded over data, fsdp and expert together, so the answers of a group stay on one device.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.config_check import mesh_shape
from mtjudge_jax.types import Params

BATCH_AXES = ("data", "fsdp", "expert")

# Every parameter matches exactly one line, by the end of its path. Names end in their axes (see types.py).
RULES: tuple[tuple[str, P], ...] = (
    (r"text/(embed|head)_vd$", P("tensor", "fsdp")),
    (r"text/layers/[qkv]_ld[nk]h$", P(None, "fsdp", "tensor", None)),
    (r"text/layers/o_lnhd$", P(None, "tensor", None, "fsdp")),
    (r"text/layers/(gate|up)_ldf$", P(None, "fsdp", "tensor")),
    (r"text/layers/down_lfd$", P(None, "tensor", "fsdp")),
    (r"text/layers/router_lde$", P()),
    (r"text/layers/experts_gate_up_led2f$", P(None, "expert", "fsdp", None, "tensor")),
    (r"text/layers/experts_down_lefd$", P(None, "expert", "tensor", "fsdp")),
    # Adapters are small: only what meets a sharded activation is sharded.
    (r"text/layers/[qkv]_lora_b_lr[nk]h$", P(None, None, "tensor", None)),
    (r"text/layers/o_lora_a_lnhr$", P(None, "tensor", None, None)),
    (r"text/layers/(gate|up)_lora_b_lrf$", P(None, None, "tensor")),
    (r"text/layers/down_lora_a_lfr$", P(None, "tensor", None)),
    (r"text/layers/([qkv]|gate|up)_lora_a_ldr$", P()),
    (r"text/layers/(o|down)_lora_b_lrd$", P()),
    (r"text/layers/(input|post)_norm_ld$", P()),
    (r"text/layers/[qk]_norm_lh$", P()),
    (r"text/norm_d$", P()),
    (r"vision/patch_pc$", P("fsdp", None)),
    (r"vision/(patch_bias_c|pos_sc)$", P()),
    (r"vision/blocks/qkv_lc3nh$", P(None, "fsdp", None, "tensor", None)),
    (r"vision/blocks/qkv_bias_l3nh$", P(None, None, "tensor", None)),
    (r"vision/blocks/proj_lnhc$", P(None, "tensor", None, "fsdp")),
    (r"vision/blocks/fc1_lcf$", P(None, "fsdp", "tensor")),
    (r"vision/blocks/fc1_bias_lf$", P(None, "tensor")),
    (r"vision/blocks/fc2_lfc$", P(None, "tensor", "fsdp")),
    (r"vision/blocks/(proj_bias|fc2_bias|norm1|norm1_bias|norm2|norm2_bias)_lc$", P()),
    (r"vision/merger/fc1_mm$", P("fsdp", "tensor")),
    (r"vision/merger/fc1_bias_m$", P("tensor")),
    (r"vision/merger/fc2_mo$", P("tensor", "fsdp")),
    (r"vision/merger/(norm|norm_bias)_c$", P()),
    (r"vision/merger/fc2_bias_o$", P()),
    (r"vision/deepstack/fc1_tmm$", P(None, "fsdp", "tensor")),
    (r"vision/deepstack/fc1_bias_tm$", P(None, "tensor")),
    (r"vision/deepstack/fc2_tmo$", P(None, "tensor", "fsdp")),
    (r"vision/deepstack/(norm|norm_bias)_tm$", P()),
    (r"vision/deepstack/fc2_bias_to$", P()),
)


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all by default) with automatic axes, so that XLA places the collectives."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(cfg, len(devices))
    return Mesh(np.asarray(devices).reshape(*shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The table's line for a parameter; an axis is not sharded if the mesh axis does not divide it."""
    lines = [spec for pattern, spec in RULES if re.search(pattern, path)]
    if len(lines) != 1:
        raise ValueError(f"parameter {path!r} matches {len(lines)} lines of sharding.RULES, not exactly one: fix the table")
    spec = (*lines[0], *[None] * (len(shape) - len(lines[0])))
    return P(*[axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=True)])


def param_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, param_spec(path, shape, mesh))


def gathered(params: Params, mesh: Mesh) -> Params:
    """Within a jitted function: the parameters whole along `fsdp`, sharded along the other axes as ever."""

    def one(path, leaf: jax.Array) -> jax.Array:
        spec = param_spec(path_name(path), leaf.shape, mesh)
        whole = P(*[None if axis == "fsdp" else axis for axis in spec])
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, whole))

    return jax.tree_util.tree_map_with_path(one, params)


def tree_shardings(tree: Params, mesh: Mesh):
    """NamedSharding for every leaf of a tree that holds parameters anywhere inside (the optimizer's state does).

    A leaf of fewer than two axes that is no parameter, such as a count, is replicated. A matrix without a line in the table
    raises, so that none is replicated by accident.
    """

    def one(path, leaf) -> NamedSharding:
        name = path_name(path)
        known = any(re.search(pattern, name) for pattern, _ in RULES)
        return param_sharding(name, leaf.shape, mesh) if (known and leaf.ndim) or leaf.ndim > 1 else replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)


def path_name(path: tuple) -> str:
    """`text/layers/q_ldnh` of a key path; attributes and indices become parts too."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def shard_batch(batch, mesh: Mesh):
    """Puts host arrays, each leading with this process's share of Q, onto the mesh as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def take_rows(tree, rows: jax.Array, mesh: Mesh):
    """The rows, int32 [N], of arrays that lead with Q, as arrays that lead with N, in a jitted function. Q and N are sharded as
    every batch is; a row travels to the device that asks for it. Meanwhile a device holds N rows. The row Q is of zeros.
    """

    def one(x: jax.Array, asked: jax.Array) -> jax.Array:
        own = x.astype(jnp.uint8) if x.dtype == bool else x
        sent = own.at[asked].get(mode="fill", fill_value=0)
        return jax.lax.psum_scatter(sent, BATCH_AXES, tiled=True).astype(x.dtype)

    def on_device(tree, rows: jax.Array):
        return jax.tree.map(lambda x: one(x, _asked(rows, len(x))), tree)

    if mesh.size == 1:
        return jax.tree.map(lambda x: x.at[rows].get(mode="fill", fill_value=0), tree)
    spec = P(BATCH_AXES)
    return jax.shard_map(on_device, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(tree, rows)


def put_rows(whole: jax.Array, rows: jax.Array, new: jax.Array, mesh: Mesh) -> jax.Array:
    """whole [Q, ..] with new [N, ..] in the rows, int32 [N]: the way back of `take_rows`. What is in the row Q is left out."""

    def on_device(whole: jax.Array, rows: jax.Array, new: jax.Array) -> jax.Array:
        every = jax.lax.all_gather(new, BATCH_AXES, tiled=True)
        return whole.at[_asked(rows, len(whole))].set(every, mode="drop")

    if mesh.size == 1:
        return whole.at[rows].set(new, mode="drop")
    spec = P(BATCH_AXES)
    return jax.shard_map(on_device, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)(whole, rows, new)


def _asked(rows: jax.Array, count: int) -> jax.Array:
    """Within `jax.shard_map`: all N rows, counted from this device's first of `count`; `count` for those of other devices."""
    at = jax.lax.all_gather(rows, BATCH_AXES, tiled=True) - jax.lax.axis_index(BATCH_AXES) * count
    return jnp.where((at >= 0) & (at < count), at, count)


def local_rows(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """This process's rows of an array that leads with Q, on the host."""
    return np.asarray(multihost_utils.global_array_to_host_local_array(x, mesh, P(BATCH_AXES)))


def local_row(x: jax.Array, number: int) -> np.ndarray:
    """Row `number` of this process's rows of an array that leads with Q, on the host; the others stay on their devices."""
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    for start in sorted(parts):
        if number < len(parts[start]):
            return np.asarray(jax.lax.dynamic_index_in_dim(parts[start], np.int32(number), keepdims=False))
        number -= len(parts[start])
    raise IndexError(f"row {number} past this process's rows of an array of shape {x.shape}")
