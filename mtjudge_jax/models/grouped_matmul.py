"""The product behind dropless experts: rows in groups, each group times its own matrix.

There are three implementations. On a TPU, `jax.lax.ragged_dot` is a kernel for the product and for the gradient of the rows.
XLA (libtpu 0.0.42) computes the gradient of the matrices as E masked dense products, which is 128 times the work at E = 128,
so that one has a kernel here. `jax.experimental.pallas.ops.tpu.megablox.gmm.tgmm` computes the same and was not usable: it raises
where the number of rows is not a multiple of its row tile, and its output does not declare over which mesh axes it varies
(`vma`), so it fails inside `jax.shard_map` with `check_vma`.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mtjudge_jax.models.backend import default_platform, import_tokamax
from mtjudge_jax.types import Array

_Impl = Literal["dense", "ragged", "tokamax"]
IMPLS = ("dense", "ragged", "tokamax")
# Tiles of the TPU kernel in bfloat16; in float32 half as many columns, so that its blocks stay below 16 MiB of fast memory. A
# row tile at the border of two groups is visited twice, so tiles must be small compared with a group (1400 rows for 22,528
# tokens of 30B-A3B).
ROW_TILE, COLUMN_TILE = 256, 1024
# The three products: [T, D] in groups times [E, D, F]; [T, F] in groups times the same, transposed; and, for the gradient of
# the matrices, [T, D] times [T, F] summed over the rows of each group.
_PLAIN = jax.lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0])
_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0])
GRADIENT = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[])


def grouped_matmul(lhs: Array, rhs: Array, group_sizes: Array, *, impl: _Impl, tail: bool = True) -> Array:
    """lhs [T, D] in E consecutive groups of rows, times rhs [E, D, F] -> [T, F] in lhs's dtype.

    group_sizes int32 [E] with a sum of at most T. The rows after the last group, the tail, give zero, and so do their gradients;
    `tail=False` declares that there is no tail and saves the passes that clear it. Groups of 3, 0 and 2 rows:
    out[:3] = lhs[:3] @ rhs[0], out[3:5] = lhs[3:5] @ rhs[2]. Inside `jax.shard_map` all three must vary over the same axes.
    """
    if impl == "dense":
        return _dense(lhs, rhs, group_sizes)
    if impl in IMPLS:
        return _by_kernels(lhs, rhs, group_sizes, impl, tail)
    raise ValueError(f"unknown experts = {impl!r}: choose one of {', '.join(IMPLS)}")


def _dense(lhs: Array, rhs: Array, group_sizes: Array) -> Array:
    """The reference: multiplies every row by the matrix of every group, and masks all but the group's own rows."""
    end = jnp.cumsum(group_sizes)
    row = jnp.arange(lhs.shape[0])[:, None]

    def only(matrix, start, end):
        return jnp.where((row >= start) & (row < end), lhs @ matrix, 0)

    groups = (rhs, end - group_sizes, end)
    first, rest = jax.tree.map(lambda x: x[0], groups), jax.tree.map(lambda x: x[1:], groups)
    return jax.lax.scan(lambda out, group: (out + only(*group), None), only(*first), rest)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _by_kernels(lhs: Array, rhs: Array, group_sizes: Array, impl: _Impl, tail: bool) -> Array:
    return _clear_tail(_product(impl)(lhs, rhs, group_sizes, _PLAIN), group_sizes, tail)


def _by_kernels_forward(lhs: Array, rhs: Array, group_sizes: Array, impl: _Impl, tail: bool):
    return _by_kernels(lhs, rhs, group_sizes, impl, tail), (lhs, rhs, group_sizes)


def _by_kernels_backward(impl: _Impl, tail: bool, saved, out_bar: Array):
    lhs, rhs, group_sizes = saved
    lhs_bar = _clear_tail(_product(impl)(out_bar, rhs, group_sizes, _TRANSPOSED), group_sizes, tail)
    return lhs_bar, _product(impl)(lhs, out_bar, group_sizes, GRADIENT), None


_by_kernels.defvjp(_by_kernels_forward, _by_kernels_backward)


def _clear_tail(x: Array, group_sizes: Array, tail: bool) -> Array:
    """x [T, D] with zeros after the last group, where a kernel may leave anything."""
    return jnp.where((jnp.arange(x.shape[0]) < group_sizes.sum())[:, None], x, 0) if tail else x


def _product(impl: _Impl) -> Callable:
    """A function (lhs, rhs, group_sizes, one of the three products) -> as `jax.lax.ragged_dot_general`, in lhs's dtype."""
    if impl == "ragged":
        return _ragged_dot
    tokamax = import_tokamax("experts = 'tokamax'", "ragged or dense")
    # Kernels by name: by default tokamax silently falls back to masked dense products.
    kernels = {"gpu": ("mosaic", "triton"), "tpu": "mosaic"}.get(default_platform(), "xla")

    def product(lhs: Array, rhs: Array, group_sizes: Array, dimensions: jax.lax.RaggedDotDimensionNumbers) -> Array:
        """On whole tiles of rows: the kernels for Hopper refuse others. The rows added are in no group."""
        fill = ((0, -lhs.shape[0] % ROW_TILE), (0, 0))
        sides = jnp.pad(lhs, fill), jnp.pad(rhs, fill) if dimensions == GRADIENT else rhs
        out = tokamax.ragged_dot_general(
            *sides, group_sizes, dimensions, preferred_element_type=lhs.dtype, implementation=kernels
        )
        return out if dimensions == GRADIENT else out[: lhs.shape[0]]

    return product


def _ragged_dot(lhs: Array, rhs: Array, group_sizes: Array, dimensions: jax.lax.RaggedDotDimensionNumbers) -> Array:
    product = functools.partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=dimensions)
    if dimensions != GRADIENT:
        return product(lhs, rhs, group_sizes)
    return jax.lax.platform_dependent(lhs, rhs, group_sizes, tpu=matrix_gradient_tpu, default=product)


def matrix_gradient_tpu(lhs: Array, out_bar: Array, group_sizes: Array, *, interpret: bool = False) -> Array:
    """lhs [T, D], out_bar [T, F] -> [E, D, F] in lhs's dtype: lhs^T out_bar over the rows of each group, zero for an empty one.

    A Pallas kernel that does the work of each row once. The innermost axis of its grid visits (group, row tile) pairs, groups in
    order. A tile that two groups share is visited for both; an empty group is visited once, to write its zeros. Visits after the
    last pair repeat it and do nothing. With row tiles of 4 and groups of 3, 0 and 2 rows:

        visit       0  1  2  3  4
        group       0  1  2  2  2
        row tile    0  0  0  1  1   (the last visit does nothing)
    """
    (rows, d), f, groups = lhs.shape, out_bar.shape[1], group_sizes.shape[0]
    tile = min(ROW_TILE, -(-rows // 16) * 16)
    tile_d, tile_f = _column_tile(d, lhs.dtype), _column_tile(f, lhs.dtype)
    end = jnp.cumsum(group_sizes)
    start = end - group_sizes
    tiles = jnp.where(group_sizes == 0, 1, (end + tile - 1) // tile - start // tile)
    visits_end = jnp.cumsum(tiles)
    visits = pl.cdiv(rows, tile) + groups
    visit = jnp.minimum(jnp.arange(visits), visits_end[-1] - 1)
    group = jnp.searchsorted(visits_end, visit, side="right", method="compare_all").astype(jnp.int32)
    row_tile = start[group] // tile + visit - (visits_end - tiles)[group]
    row_tile = jnp.minimum(row_tile, pl.cdiv(rows, tile) - 1)  # for an empty group after the last row
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=5,
        grid=(pl.cdiv(d, tile_d), pl.cdiv(f, tile_f), visits),
        in_specs=[
            pl.BlockSpec((tile, tile_d), lambda i, j, v, group, row_tile, *_: (row_tile[v], i)),
            pl.BlockSpec((tile, tile_f), lambda i, j, v, group, row_tile, *_: (row_tile[v], j)),
        ],
        out_specs=pl.BlockSpec((None, tile_d, tile_f), lambda i, j, v, group, *_: (group[v], i, j)),
        scratch_shapes=[pltpu.VMEM((tile_d, tile_f), jnp.float32)],
    )
    plain = functools.partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=GRADIENT)
    shape = jax.eval_shape(plain, lhs, out_bar, group_sizes)  # with the mesh axes over which the result varies
    return pl.pallas_call(
        functools.partial(_matrix_gradient_kernel, tile=tile),
        out_shape=shape,
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * d * f,
            bytes_accessed=lhs.dtype.itemsize * (rows * d * pl.cdiv(f, tile_f) + rows * f * pl.cdiv(d, tile_d) + groups * d * f),
            transcendentals=0,
        ),
        interpret=interpret,
    )(group, row_tile.astype(jnp.int32), start, end, visits_end[-1:], lhs, out_bar)


def _matrix_gradient_kernel(group, row_tile, start, end, visits, lhs, out_bar, out, total, *, tile: int):
    """One visit: total [D', F'] float32 sums over a group's rows, and is written when the next group begins."""
    v, last = pl.program_id(2), pl.num_programs(2) - 1
    mine = group[v]

    @pl.when((v == 0) | (group[jnp.maximum(v - 1, 0)] != mine))
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when((v < visits[0]) & (start[mine] < end[mine]))
    def _():
        row = row_tile[v] * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
        inside = (row >= start[mine]) & (row < end[mine])
        # Both sides are masked, because the other rows may be infinite.
        a = jnp.where(inside, lhs[...].astype(jnp.float32), 0).astype(lhs.dtype)
        b = jnp.where(inside, out_bar[...].astype(jnp.float32), 0).astype(out_bar.dtype)
        total[...] += jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    @pl.when((v == last) | (group[jnp.minimum(v + 1, last)] != mine))
    def _():
        out[...] = total[...].astype(out.dtype)


def _column_tile(size: int, dtype: jnp.dtype) -> int:
    """The largest multiple of 128 up to COLUMN_TILE that divides `size`; `size` itself where there is none."""
    most = COLUMN_TILE if dtype.itemsize <= 2 else COLUMN_TILE // 2
    return next((tile for tile in range(most, 0, -128) if size % tile == 0), size)
