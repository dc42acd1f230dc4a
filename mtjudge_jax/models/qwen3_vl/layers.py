"""Functions that the vision tower and the text decoder share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mtjudge_jax.models.backend import Remat
from mtjudge_jax.types import Array

LN_EPS = 1e-6
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], value: float | None = None, *, fan_in: int | None = None) -> nnx.Param:
    """A float32 weight: constant `value`, or normal with standard deviation fan_in^-1/2."""
    if fan_in is None:
        return nnx.Param(jnp.full(shape, value, jnp.float32))
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5)


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + LN_EPS)
    return (y * weight + bias).astype(x.dtype)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Computed in float32 and cast back before the weight is applied, as in Qwen3."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
    return y.astype(x.dtype) * weight


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding in the split-half layout; cos and sin span the whole head."""
    a, b = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-b, a], -1) * sin


def scan_layers(stack: nnx.Module, carry, body: Callable, *, remat: Remat, xs=None):
    """Runs `body(layer, carry, x) -> (carry, y)` over the layers of a module whose weights have the layers on the first axis.

    The body is traced once, so 48 layers compile as fast as one.
    """
    graph, weights = nnx.split(stack)

    def step(carry, slice_and_x):
        weights, x = slice_and_x
        return body(nnx.merge(graph, weights), carry, x)

    if remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (weights, xs))
