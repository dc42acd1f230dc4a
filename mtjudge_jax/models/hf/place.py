"""Copies tensors from the host into arrays on devices, piece by piece.

A leaf of the parameter tree is filled from tensors in files, one per layer. Each process copies the parts of a tensor that
its own devices hold, a piece at a time. It copies a part once, however many of its devices hold it.

On an accelerator a large leaf is a buffer on the devices from the start. A piece is sent there in the layout of the file;
the device transposes it, casts it and writes it into the donated buffer. Small leaves are assembled on the host, because
each program that writes a leaf costs a compilation. On CPUs all leaves are, because the memory of the host then becomes
the array itself.

A tensor comes with one axis for each axis of the leaf's layer, in its own order: axis j of the leaf is its axis order[j].
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

from mtjudge_jax.models.hf.shards import Ranged, Shape

PIECE_BYTES = 16 << 20  # copied at a time
SMALL_BYTES = 32 << 20  # of all leaves together that are assembled on the host of an accelerator
_ALIGNMENT = 64  # bytes; memory that starts at a multiple becomes an array on a CPU without a copy

_Index = tuple[slice, ...]
_Buffers = dict[Shape, np.ndarray]  # {start of a part: its numbers}


class Leaf(NamedTuple):
    """Where a leaf lives, as this process sees it. Devices whose parts have the same start hold the same part."""

    shape: Shape
    dtype: np.dtype
    sharding: NamedSharding | None
    stacked: bool  # layers are on the first axis, which is never sharded
    local_shape: Shape  # of one device's part, with the layers
    parts: dict[jax.Device | None, Shape]  # {device of this process, None for the default one: start of its part of a layer}
    indices: dict[Shape, _Index]  # {start: the part that begins there}
    most: int  # parts of the process that has the most; the order of work depends on it, so it is the same on all processes

    @property
    def host_bytes(self) -> int:
        """Bytes of the parts that a process holds, each part counted once."""
        return self.most * prod(self.local_shape) * self.dtype.itemsize


def plan_leaf(path: str, shape: Shape, *, dtype: Any, sharding: NamedSharding | None, stacked: bool) -> Leaf:
    """Where the leaf at `path` will live."""
    if sharding is None:
        index = tuple(slice(0, size) for size in shape)[stacked:]
        start = (0,) * len(index)
        return Leaf(shape, np.dtype(dtype), None, stacked, shape, {None: start}, {start: index}, 1)
    if not isinstance(sharding, NamedSharding):
        raise ValueError(f"{path}: sharded by a {type(sharding).__name__}; give a NamedSharding, or None for one device")
    if stacked and sharding.spec and sharding.spec[0] is not None:
        raise ValueError(f"{path}: layer axis sharded over {sharding.spec[0]!r}; layers are scanned, use None")
    parts, indices, of_process = {}, {}, {}
    for device, index in sharding.devices_indices_map(shape).items():
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))[stacked:]
        start = tuple(part.start for part in index)
        of_process.setdefault(device.process_index, set()).add(start)
        if device in sharding.addressable_devices:
            parts[device], indices[start] = start, index
    most = max(len(starts) for starts in of_process.values())
    return Leaf(shape, np.dtype(dtype), sharding, stacked, sharding.shard_shape(shape), parts, indices, most)


def copy_part(tensor: np.ndarray | Ranged, index: _Index) -> np.ndarray:
    """A part of a tensor in a file, in memory of its own. All reading of weights goes through this function.

    It copies unsigned integers, because numpy is slower with dtypes that are not its own.
    """
    bits = tensor.view(f"u{tensor.itemsize}")
    part = bits.read(index) if isinstance(tensor, Ranged) else bits[index].copy()
    return part.view(tensor.dtype)


def pieces(leaf: Leaf, tensor: np.ndarray | Ranged, order: Shape, piece_bytes: int) -> Iterator[tuple[int, _Buffers]]:
    """Cuts every device's part along the tensor's first axis. Yields the start of a cut and the cut of every part.

    All cuts have one length, so that one compilation serves them; the last may repeat some rows. The parts of a cut have at
    most piece_bytes together, or one row each.
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


# leaves that are assembled on the host


def host_buffers(leaf: Leaf) -> _Buffers:
    """Memory on the host for every part of the leaf."""
    return {start: _aligned(leaf.local_shape, leaf.dtype) for start in leaf.indices}


def _aligned(shape: Shape, dtype: np.dtype) -> np.ndarray:
    size = prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    return room[first : first + size].view(dtype).reshape(shape)


def write_on_host(leaf: Leaf, buffers: _Buffers, tensor: np.ndarray, order: Shape, layer: int, piece_bytes: int) -> None:
    """Copies a tensor into its layer of the buffers."""
    bits = f"u{leaf.dtype.itemsize}"
    for at, parts in pieces(leaf, tensor, order, piece_bytes):
        for start, part in parts.items():
            target = buffers[start].view(bits)
            target = (target[layer] if leaf.stacked else target).transpose(np.argsort(order))  # in the tensor's order
            target[at : at + len(part)] = part.astype(leaf.dtype, copy=False).view(bits)


def from_host(leaf: Leaf, buffers: _Buffers) -> jax.Array:
    """The leaf on its devices. The buffers must not be changed afterwards: a CPU uses them as the array."""
    return _put(leaf.sharding, leaf.shape, {device: buffers[start] for device, start in leaf.parts.items()})


def _put(sharding: NamedSharding | None, shape: Shape, of_device: dict[jax.Device | None, np.ndarray]) -> jax.Array:
    if sharding is None:
        return jax.device_put(of_device[None])
    arrays = [jax.device_put(array, device) for device, array in of_device.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


# leaves that are buffers on the devices


def device_buffer(leaf: Leaf) -> jax.Array:
    """Zeros on the devices of the leaf."""
    return _zeros(leaf.shape, leaf.dtype, leaf.sharding)()


@functools.cache
def _zeros(shape: Shape, dtype: np.dtype, sharding: NamedSharding | None) -> Any:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


def write_on_devices(leaf: Leaf, buffer: jax.Array, tensor: np.ndarray, order: Shape, layer: int, piece_bytes: int) -> jax.Array:
    """Copies a tensor into its layer of the buffer, which is donated. Returns the new buffer."""
    write = _writer(leaf.sharding, leaf.stacked, order)
    for at, parts in pieces(leaf, tensor, order, piece_bytes):
        start = [layer] * leaf.stacked + [at if axis == 0 else 0 for axis in order]
        buffer = write(buffer, _piece(leaf, parts, order), np.array(start, np.int32))
        buffer.block_until_ready()  # only one piece is in flight
    return buffer


def _piece(leaf: Leaf, parts: _Buffers, order: Shape) -> jax.Array:
    """The cuts of all devices' parts as one array, in the tensor's order of axes."""
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
