"""The digest of an array: a number that changes when any bit changes, and that is the same on every mesh."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mtjudge_jax.sharding import path_name

_Parts = list[tuple[list[str], Any]]  # by device, the leaves of which it holds a part, and an array of a uint32 for each


def digests(tree: Any) -> dict[str, int]:
    """A uint32 per leaf: the sum over its elements of mix(bits xor mix(position)), modulo 2^32, computed on device.

    mix is a bijection (murmur3's 32-bit finalizer), so a change of one element always changes the sum; any other change goes
    undetected once in 2^32. The order of an integer sum does not matter, so every sharding and every number of devices gives
    the same value. Every process calls.
    """
    own = finish_digests(start_digests(tree))
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(np.array(list(own.values()), np.uint32))
        own = dict(zip(own, (int(total) % 2**32 for total in rows.astype(np.uint64).sum(0)), strict=True))
    return own


def start_digests(tree: Any) -> _Parts:
    """Starts the digests of what this process holds and returns at once. Over all processes, each part is counted once.

    The caller may donate the arrays afterwards, because devices work in the order of requests. No device waits for another.
    One program a device: a program a leaf takes longer to compile than a step to run.
    """
    held: dict[jax.Device, list[tuple[str, jax.Array, np.uint32, tuple[int, ...]]]] = {}
    every: list[str] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf, name = jnp.asarray(leaf), path_name(path)
        every.append(name)
        strides = tuple(math.prod(leaf.shape[axis + 1 :]) % 2**32 for axis in range(leaf.ndim))
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                held.setdefault(shard.device, []).append((name, shard.data, _first(shard.index, strides), strides))
    parts: _Parts = [(every, np.zeros(len(every), np.uint32))]  # a leaf of which this process holds nothing, too
    for of_device in held.values():
        names, data, first, strides = (list(column) for column in zip(*of_device, strict=True))
        parts.append((names, _digest_all(data, np.stack(first), tuple(strides))))
    return parts


def finish_digests(parts: _Parts) -> dict[str, int]:
    """This process's share of each digest. The shares of all processes add up to the digest, modulo 2^32."""
    sums: dict[str, int] = {}
    for names, digested in parts:
        for name, part in zip(names, np.asarray(digested), strict=True):
            sums[name] = (sums.get(name, 0) + int(part)) % 2**32
    return sums


def host_digest(x: np.ndarray) -> int:
    """The digest of a whole array on the host, which no device computes."""
    x = np.ascontiguousarray(x).reshape(-1)
    word = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[x.dtype.itemsize]
    bits = x.view(word).astype(np.uint32)  # 8 bytes become two words, as on a device
    positions = np.arange(bits.size, dtype=np.uint32)
    return int(_mix(bits ^ _mix(positions + np.uint32(1))).sum(dtype=np.uint32))


def _first(index: tuple[slice, ...], strides: tuple[int, ...]) -> np.uint32:
    """The position of a part's first element in the whole leaf."""
    return np.uint32(sum((part.start or 0) * stride for part, stride in zip(index, strides, strict=True)) % 2**32)


@functools.partial(jax.jit, static_argnums=2)
def _digest_all(parts: list[jax.Array], first: jax.Array, strides: tuple[tuple[int, ...], ...]) -> jax.Array:
    return jnp.stack([_digest(*part) for part in zip(parts, first, strides, strict=True)])


@functools.partial(jax.jit, static_argnums=2)  # traced once for all leaves of a shape
def _digest(x: jax.Array, first: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """first: the position of x's first element in the leaf. strides: what a step along each axis adds to the position."""
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # 8 bytes become a last axis of two words
    if bits.ndim > x.ndim:
        first, strides = first * jnp.uint32(2), (*(stride * 2 % 2**32 for stride in strides), 1)
    position = jnp.full(bits.shape, first)
    for axis, stride in enumerate(strides):
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(bits ^ _mix(position + jnp.uint32(1))), dtype=jnp.uint32)


def _mix(h: Any) -> Any:
    """The 32-bit finalizer of MurmurHash3 (A. Appleby, public domain)."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
