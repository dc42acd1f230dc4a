"""The product behind dropless experts: rows in groups, each group times its own matrix.

There are three implementations. On a TPU, `jax.lax.ragged_dot` is a kernel for the product and for the gradient of the rows.
XLA (libtpu 0.0.42) computes the gradient of the matrices as E masked dense products, which is 128 times the work at E = 128,
so that one has a kernel here. `jax.experimental.pallas.ops.tpu.megablox.gmm.tgmm` computes the same and was not usable: it raises
where the number of rows is not a multiple of its row tile, and its output does not declare over which mesh axes it varies
(`vma`), so it fails inside `jax.shard_map` with `check_vma`.

A second kernel is for decoding: it reads the matrices of one layer out of the stack of all layers. For `ragged_dot` XLA copies
them out first, for every token.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

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
_FEW_ROWS = 128  # row tile of the kernel for decoding, whose groups are small
PRODUCT_OF_LAYER = "product_of_layer"  # the name of that kernel
_BLOCK = 2**22  # bytes at most of its block of a matrix, of which there are two in fast memory
# The three products: [T, D] in groups times [E, D, F]; [T, F] in groups times the same, transposed; and, for the gradient of
# the matrices, [T, D] times [T, F] summed over the rows of each group.
_PLAIN = jax.lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0])
_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0])
GRADIENT = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[])


class OfLayer(NamedTuple):
    """The matrices [E, D, F] of one layer, where they lie among those of all. They get no gradient."""

    stack: Array  # [L, E, D, F]
    layer: Array  # int32 []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]


def grouped_matmul(lhs: Array, rhs: Array | OfLayer, group_sizes: Array, *, impl: _Impl, tail: bool = True) -> Array:
    """lhs [T, D] in E consecutive groups of rows, times rhs [E, D, F] -> [T, F] in lhs's dtype.

    group_sizes int32 [E] with a sum of at most T. The rows after the last group, the tail, give zero, and so do their gradients;
    `tail=False` declares that there is no tail and saves the passes that clear it. Groups of 3, 0 and 2 rows:
    out[:3] = lhs[:3] @ rhs[0], out[3:5] = lhs[3:5] @ rhs[2]. Inside `jax.shard_map` all three must vary over the same axes.
    """
    if isinstance(rhs, OfLayer):
        return _clear_tail(_of_layer(lhs, rhs, group_sizes, impl), group_sizes, tail)
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


def _of_layer(lhs: Array, rhs: OfLayer, group_sizes: Array, impl: _Impl) -> Array:
    def plain(lhs: Array, stack: Array, layer: Array, group_sizes: Array) -> Array:
        return grouped_matmul(lhs, stack[layer], group_sizes, impl=impl)

    if impl != "ragged":
        return plain(lhs, *rhs, group_sizes)
    return jax.lax.platform_dependent(lhs, *rhs, group_sizes, tpu=product_of_layer_tpu, default=plain)


def product_of_layer_tpu(lhs: Array, stack: Array, layer: Array, group_sizes: Array, *, interpret: bool = False) -> Array:
    """lhs [T, D] in groups times stack[layer], of stack [L, E, D, F] -> [T, F] in lhs's dtype. Rows after the last group get
    anything.

    A Pallas kernel for few rows: it reads each matrix that has rows once. Its grid has the columns' tiles and, inside, the visits
    of (group, row tile) pairs, as in `matrix_gradient_tpu`, but an empty group has none.
    """
    (rows, d), (_, groups, _, f) = lhs.shape, stack.shape
    tile = min(_FEW_ROWS, -(-rows // 16) * 16)
    tile_f = _column_tile(f, _BLOCK // (d * stack.dtype.itemsize))
    group, row_tile, start, end, visits = _visits(group_sizes, rows, tile, empty=0)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=6,
        grid=(pl.cdiv(f, tile_f), len(group)),
        in_specs=[
            pl.BlockSpec((tile, d), lambda j, v, layer, group, row_tile, *_: (row_tile[v], 0)),
            pl.BlockSpec((None, None, d, tile_f), lambda j, v, layer, group, *_: (layer[0], group[v], 0, j)),
        ],
        out_specs=pl.BlockSpec((tile, tile_f), lambda j, v, layer, group, row_tile, *_: (row_tile[v], j)),
    )
    plain = functools.partial(jax.lax.ragged_dot_general, ragged_dot_dimension_numbers=_PLAIN)
    shape = jax.eval_shape(lambda stack: plain(lhs, stack[0], group_sizes), stack)
    return pl.pallas_call(
        _product_of_layer_kernel,
        out_shape=shape,
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * d * f,
            bytes_accessed=lhs.dtype.itemsize * (rows * d * pl.cdiv(f, tile_f) + groups * d * f + rows * f),
            transcendentals=0,
        ),
        interpret=interpret,
        name=PRODUCT_OF_LAYER,
    )(layer.reshape(1).astype(jnp.int32), group, row_tile, start, end, visits, lhs, stack)


def _product_of_layer_kernel(layer, group, row_tile, start, end, visits, lhs, matrix, out):
    """One visit: the rows of a group in a tile. The first visit of a tile writes zeros to its other rows, later ones add."""
    v = pl.program_id(1)
    first = (v == 0) | (row_tile[jnp.maximum(v - 1, 0)] != row_tile[v])

    @pl.when(v < visits[0])
    def _():
        (a,) = _own_rows(row_tile[v], start[group[v]], end[group[v]], lhs)
        product = jnp.dot(a, matrix[...], preferred_element_type=jnp.float32).astype(out.dtype)
        out[...] = product + jnp.where(first, 0, out[...].astype(jnp.float32)).astype(out.dtype)


def _own_rows(row_tile, start, end, *sides) -> list[Array]:
    """The row tiles of some arrays, with zeros outside of a group's rows, start to end: the others may be infinite."""
    tile = sides[0].shape[0]
    row = row_tile * tile + jax.lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
    inside = (row >= start) & (row < end)
    return [jnp.where(inside, x[...].astype(jnp.float32), 0).astype(x.dtype) for x in sides]


def _visits(group_sizes: Array, rows: int, tile: int, *, empty: int) -> tuple[Array, ...]:
    """Of the visits of (group, row tile) pairs: group and row tile of each; start and end of each group; their number, [1].

    Visits after the last pair repeat it. empty: how many visits an empty group has.
    """
    end = jnp.cumsum(group_sizes)
    start = end - group_sizes
    tiles = jnp.where(group_sizes == 0, empty, (end + tile - 1) // tile - start // tile)
    visits_end = jnp.cumsum(tiles)
    every = pl.cdiv(rows, tile) + group_sizes.shape[0] - (1 - empty)
    visit = jnp.clip(jnp.arange(every), 0, jnp.maximum(visits_end[-1] - 1, 0))
    group = jnp.searchsorted(visits_end, visit, side="right", method="compare_all").astype(jnp.int32)
    group = jnp.minimum(group, group_sizes.shape[0] - 1)  # where all are empty
    row_tile = start[group] // tile + visit - (visits_end - tiles)[group]
    row_tile = jnp.clip(row_tile, 0, pl.cdiv(rows, tile) - 1)  # for an empty group after the last row
    return group, row_tile.astype(jnp.int32), start, end, visits_end[-1:]


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
    most = COLUMN_TILE if lhs.dtype.itemsize <= 2 else COLUMN_TILE // 2
    tile_d, tile_f = _column_tile(d, most), _column_tile(f, most)
    visits = _visits(group_sizes, rows, tile, empty=1)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=5,
        grid=(pl.cdiv(d, tile_d), pl.cdiv(f, tile_f), len(visits[0])),
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
        _matrix_gradient_kernel,
        out_shape=shape,
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * rows * d * f,
            bytes_accessed=lhs.dtype.itemsize * (rows * d * pl.cdiv(f, tile_f) + rows * f * pl.cdiv(d, tile_d) + groups * d * f),
            transcendentals=0,
        ),
        interpret=interpret,
    )(*visits, lhs, out_bar)


def _matrix_gradient_kernel(group, row_tile, start, end, visits, lhs, out_bar, out, total):
    """One visit: total [D', F'] float32 sums over a group's rows, and is written when the next group begins."""
    v, last = pl.program_id(2), pl.num_programs(2) - 1
    mine = group[v]

    @pl.when((v == 0) | (group[jnp.maximum(v - 1, 0)] != mine))
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when((v < visits[0]) & (start[mine] < end[mine]))
    def _():
        a, b = _own_rows(row_tile[v], start[mine], end[mine], lhs, out_bar)
        total[...] += jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    @pl.when((v == last) | (group[jnp.minimum(v + 1, last)] != mine))
    def _():
        out[...] = total[...].astype(out.dtype)


def _column_tile(size: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `size`; `size` itself where there is none."""
    return next((tile for tile in range(most // 128 * 128, 0, -128) if size % tile == 0), size)
