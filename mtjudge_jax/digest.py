"""A number that changes when any bit of an array does, the same on every mesh."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mtjudge_jax.sharding import path_name


def digests(tree: Any) -> dict[str, int]:
    """A uint32 a leaf: sum over its elements of mix(bits xor mix(position)), modulo 2^32, computed on device.

    mix is a bijection (murmur3's 32-bit finalizer), so a change of one element always changes the sum, and any other change
    goes unseen once in 2^32. An integer sum has no order: every sharding and every device count gives the same value.
    """
    # One after the other: on fake CPU devices, more programs in flight than there are threads wait for each other for ever.
    return {path_name(path): int(_digest(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)  # 8 bytes become a last axis of two words
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(bits ^ _mix(position + jnp.uint32(1))), dtype=jnp.uint32)


def _mix(h: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (A. Appleby, public domain)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
