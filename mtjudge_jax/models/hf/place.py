"""Tensors on the host into arrays on devices, piece by piece.

A leaf of the parameter tree is filled from tensors that lie in files, one a layer. Each process copies the parts of a
tensor that its own devices hold, each once however many of them hold it, and a piece at a time.

On an accelerator a large leaf is a buffer on the devices from the start: a piece goes there as it lies in the file, and is
turned, cast and written into the donated buffer there. Small leaves are put together on the host, since a program that
writes a leaf costs a compilation; where the devices are CPUs all are, since what the host holds is then the array itself.

A tensor comes with an axis for each axis of the leaf's layer, in its own order: axis j of the leaf is its axis order[j].
"""

import functools
from collections.abc import Iterator
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.hf.shards import Ranged

PIECE_BYTES = 16 << 20  # what is copied at a time
SMALL_BYTES = 32 << 20  # what is put together on the host, all such leaves together
ALIGNMENT = 64  # bytes; memory that begins like this becomes an array on a CPU without a copy

Index = tuple[slice, ...]
Shape = tuple[int, ...]
Buffers = dict[tuple[int, ...], np.ndarray]


class Leaf(NamedTuple):
    """Where a leaf lives, as this process sees it.

    parts: per device of this process (None: the default device), where its part of a layer begins; indices: that part,
    by where it begins. Devices with the same beginning hold the same part. `most` is how many parts the process with
    the most has: what is done in which order depends on that, since all processes must do the same.
    """

    shape: Shape
    dtype: np.dtype
    sharding: NamedSharding | None
    stacked: bool  # layers on the first axis, never sharded
    local_shape: Shape  # of one device's part, with the layers
    parts: dict[jax.Device | None, tuple[int, ...]]
    indices: dict[tuple[int, ...], Index]
    most: int

    @property
    def host_bytes(self) -> int:
        """Bytes of the parts that a process holds, each once."""
        return self.most * prod(self.local_shape) * self.dtype.itemsize


def plan(path: str, shape: Shape, *, dtype: Any, sharding: NamedSharding | None, stacked: bool) -> Leaf:
    """Raises ValueError for a sharding that is not a NamedSharding or that splits the layers."""
    if sharding is None:
        index = tuple(slice(0, size) for size in shape)[stacked:]
        start = (0,) * len(index)
        return Leaf(shape, np.dtype(dtype), None, stacked, shape, {None: start}, {start: index}, 1)
    if not isinstance(sharding, NamedSharding):
        raise UserError(f"{path}: sharded by a {type(sharding).__name__}; give a NamedSharding, or None for one device")
    if stacked and sharding.spec and sharding.spec[0] is not None:
        raise UserError(f"{path}: layer axis sharded over {sharding.spec[0]!r}; layers are scanned, use None")
    parts, indices, of_process = {}, {}, {}
    for device, index in sharding.devices_indices_map(shape).items():
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))[stacked:]
        start = tuple(part.start for part in index)
        of_process.setdefault(device.process_index, set()).add(start)
        if device in sharding.addressable_devices:
            parts[device], indices[start] = start, index
    most = max(len(starts) for starts in of_process.values())
    return Leaf(shape, np.dtype(dtype), sharding, stacked, sharding.shard_shape(shape), parts, indices, most)


def copy_part(tensor: np.ndarray | Ranged, index: Index) -> np.ndarray:
    """The one place where weights are read: a part of a tensor in a file, copied into memory of its own.

    As bare bits, which numpy copies faster than the numbers of dtypes that it does not know.
    """
    bits = tensor.view(f"u{tensor.itemsize}")
    part = bits.read(index) if isinstance(tensor, Ranged) else bits[index].copy()
    return part.view(tensor.dtype)


def pieces(leaf: Leaf, tensor: np.ndarray | Ranged, order: Shape, piece_bytes: int) -> Iterator[tuple[int, Buffers]]:
    """Cuts the tensor's first axis, within a device's part, and yields where a cut begins and that cut of every part.

    All cuts are equally long, for one compilation; the last may repeat some rows. All parts of a cut together have at
    most piece_bytes, or one row each.
    """
    local = leaf.local_shape[leaf.stacked :]
    rows = local[order.index(0)]
    total = leaf.most * prod(local) * tensor.itemsize
    step = ceil(rows / min(rows, ceil(total / piece_bytes)))
    for at in range(0, rows, step):
        at = min(at, rows - step)
        parts = {}
        for start, index in leaf.indices.items():
            cut = [index[order.index(axis)] for axis in range(len(order))]  # in the tensor's order of axes
            cut[0] = slice(cut[0].start + at, cut[0].start + at + step)
            part = copy_part(tensor, tuple(cut))
            parts[start] = part.astype(np.float32) if part.itemsize > 4 else part  # a device has no float64
        yield at, parts


# leaves that are put together on the host


def host_buffers(leaf: Leaf) -> Buffers:
    """Room for every part of the leaf on the host."""
    return {start: _aligned(leaf.local_shape, leaf.dtype) for start in leaf.indices}


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    size = prod(shape) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first : first + size].view(dtype).reshape(shape)


def write_on_host(leaf: Leaf, buffers: Buffers, tensor: np.ndarray, order: Shape, layer: int, piece_bytes: int) -> None:
    """Copies a tensor into its layer of the buffers."""
    bits = f"u{leaf.dtype.itemsize}"
    for at, parts in pieces(leaf, tensor, order, piece_bytes):
        for start, part in parts.items():
            target = buffers[start].view(bits)
            target = (target[layer] if leaf.stacked else target).transpose(np.argsort(order))  # as the tensor lies
            target[at : at + len(part)] = part.astype(leaf.dtype, copy=False).view(bits)


def from_host(leaf: Leaf, buffers: Buffers) -> jax.Array:
    """The leaf on its devices; the buffers must not be touched any more."""
    return _put(leaf.sharding, leaf.shape, {device: buffers[start] for device, start in leaf.parts.items()})


def _put(sharding: NamedSharding | None, shape: Shape, of_device: dict[jax.Device | None, np.ndarray]) -> jax.Array:
    if sharding is None:
        return jax.device_put(of_device[None])
    arrays = [jax.device_put(array, device) for device, array in of_device.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


# leaves that are buffers on the devices


def device_buffer(leaf: Leaf) -> jax.Array:
    """Zeros where the leaf will live."""
    return _zeros(leaf.shape, leaf.dtype, leaf.sharding)()


@functools.cache
def _zeros(shape: Shape, dtype: np.dtype, sharding: NamedSharding | None) -> Any:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


def write_on_devices(leaf: Leaf, buffer: jax.Array, tensor: np.ndarray, order: Shape, layer: int, piece_bytes: int) -> jax.Array:
    """Copies a tensor into its layer of the buffer, which is gone afterwards; returns the new one."""
    write = _writer(leaf.sharding, leaf.stacked, order)
    for at, parts in pieces(leaf, tensor, order, piece_bytes):
        start = [layer] * leaf.stacked + [at if axis == 0 else 0 for axis in order]
        buffer = write(buffer, _piece(leaf, parts, order), np.array(start, np.int32))
        buffer.block_until_ready()  # the next piece must not come before this one is gone
    return buffer


def _piece(leaf: Leaf, parts: Buffers, order: Shape) -> jax.Array:
    """The same cut of every device's part as one array, in the tensor's order of axes."""
    of_device = {device: parts[start] for device, start in leaf.parts.items()}
    if leaf.sharding is None:
        return _put(None, (), of_device)
    whole, local = leaf.shape[leaf.stacked :], leaf.local_shape[leaf.stacked :]
    ours = [order.index(axis) for axis in range(len(order))]
    cut = next(iter(parts.values())).shape
    shape = tuple(size * whole[j] // local[j] for size, j in zip(cut, ours, strict=True))
    sharding = NamedSharding(leaf.sharding.mesh, _piece_spec(leaf.sharding, leaf.stacked, order))
    return _put(sharding, shape, of_device)


def _piece_spec(sharding: NamedSharding, stacked: bool, order: Shape) -> P:
    """The sharding of a leaf's layer, in the tensor's order of axes."""
    spec = (*sharding.spec, *[None] * (stacked + len(order) - len(sharding.spec)))[stacked:]
    return P(*[spec[order.index(axis)] for axis in range(len(order))])


@functools.cache
def _writer(sharding: NamedSharding | None, stacked: bool, order: Shape) -> Any:
    """(buffer, piece, start int32 [axes of the leaf]) -> buffer with the piece at `start` of every device's part."""

    def write(buffer: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
        piece = piece.transpose(order).astype(buffer.dtype)
        return jax.lax.dynamic_update_slice(buffer, piece[None] if stacked else piece, list(start))

    if sharding is not None:
        specs = (sharding.spec, _piece_spec(sharding, stacked, order), P())
        write = jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec)
    return jax.jit(write, donate_argnums=0)
