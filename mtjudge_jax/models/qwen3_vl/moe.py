"""The mixture of experts of a decoder layer: a router that chooses k of E mlps a token, and those mlps, dropless.

Source of the order of operations: transformers `models/qwen3_vl_moe/modeling_qwen3_vl_moe.py` (5.23), but the router's
logits are float32 here, so that rollout and training choose alike. Axes: T tokens, D model, E experts, F width of an
expert, k choices a token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl.config import MoeConfig
from mtjudge_jax.types import Array


class RouterStats(NamedTuple):
    """What the router of a layer did with the real tokens; no gradient flows through it."""

    load: Array  # float32 [E], share of all choices, sums to 1
    entropy: Array  # float32 [], mean entropy of the softmax over all experts, in nats


def route(x: Array, router_de: Array, *, k: int) -> tuple[Array, Array, Array]:
    """x [T, D] -> (choice int32 [T, k], weight float32 [T, k] that sums to 1, probability float32 [T, E]), all in float32.

    Softmax over all experts first, then the k largest, then renormalised. (Softmax over the logits of the k largest alone
    is the same number: the common denominator cancels.)
    """
    logits = jnp.einsum("td,de->te", x.astype(jnp.float32), router_de.astype(jnp.float32), precision="highest")
    probability = jax.nn.softmax(logits)
    weight, choice = jax.lax.top_k(probability, k)
    return choice, weight / weight.sum(-1, keepdims=True), probability


def expert_mlp(
    x: Array, real: Array, *, router_de: Array, gate_up_ed2f: Array, down_efd: Array, moe: MoeConfig, backend: Backend
) -> tuple[Array, RouterStats]:
    """x [Q, .., D] -> (y like x, statistics over the tokens where real, bool [Q, ..]). Every token is computed."""
    tokens = x.reshape(-1, x.shape[-1])
    choice, weight, probability = route(tokens, router_de, k=moe.experts_per_token)
    y = all_experts(tokens, choice, weight, gate_up_ed2f, down_efd)
    return y.reshape(x.shape), _stats(choice, probability, real.reshape(-1))


def all_experts(x: Array, choice: Array, weight: Array, gate_up_ed2f: Array, down_efd: Array) -> Array:
    """Every expert on every token, weighed by zero where it was not chosen: two matrix products, [T, E, F] in between."""
    experts = gate_up_ed2f.shape[0]
    share = (jax.nn.one_hot(choice, experts, dtype=jnp.float32) * weight[..., None]).sum(1)
    h = jnp.einsum("td,edxf->texf", x, gate_up_ed2f)
    h = jax.nn.silu(h[:, :, 0]) * h[:, :, 1] * share[..., None].astype(x.dtype)
    return jnp.einsum("tef,efd->td", h, down_efd)


def grouped_matmul(lhs: Array, rhs: Array, group_sizes: Array, *, impl: str) -> Array:
    """lhs [T, D] in E groups of rows, one after the other, times rhs [E, D, F]: [T, F]; zero behind the last group."""
    if impl != "dense":
        raise ValueError(f"grouped_matmul: impl {impl!r} is not there; choose dense")
    end = jnp.cumsum(group_sizes)
    row = jnp.arange(lhs.shape[0])[:, None]
    mine = (row >= end - group_sizes) & (row < end)
    return jnp.einsum("te,td,edf->tf", mine.astype(lhs.dtype), lhs, rhs)


def _stats(choice: Array, probability: Array, real: Array) -> RouterStats:
    choice, probability = jax.lax.stop_gradient((choice, probability))
    real = real.astype(jnp.float32)
    count = jnp.zeros(probability.shape[-1], jnp.float32).at[choice].add(real[:, None])
    entropy = -(jax.scipy.special.xlogy(probability, probability).sum(-1) * real).sum()
    total = jnp.maximum(real.sum(), 1)
    return RouterStats(count / (total * choice.shape[-1]), entropy / total)
