"""The jitted update: loss, gradient accumulated over micro-batches, optimizer; the old state's memory is donated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mtjudge_jax import grpo
from mtjudge_jax.config import Config, LossConfig
from mtjudge_jax.logp import completion_logp
from mtjudge_jax.sharding import batch_sharding, replicated, tree_shardings
from mtjudge_jax.types import Array, Params, SftBatch, TrainBatch, TrainState

Metrics = dict[str, Array]
# (params, slice of the batch, token weights of the slice [Q, G, C]) -> (loss, metrics), both sums over the weights
LossFn = Callable[[Params, Any, Array], tuple[Array, Metrics]]


def grpo_loss(
    params: Params, batch: TrainBatch, weights: Array, *, cfg: LossConfig, logp_fn: Callable, on_policy: bool
) -> tuple[Array, Metrics]:
    """Policy loss plus kl_coef times the divergence from the reference, both summed with the token weights.

    `on_policy`: the batch was sampled by these very parameters, so the old log-probabilities are this forward's own and the
    ratio is exactly 1.
    """
    out = logp_fn(params, batch.prompts, batch.tokens)
    old = jax.lax.stop_gradient(out.logp) if on_policy else batch.old_logp
    terms = grpo.policy_loss(
        out.logp, old, batch.advantages, clip_low=cfg.clip_low, clip_high=cfg.clip_high, dual_clip=cfg.dual_clip
    )
    divergence = grpo.kl(out.logp, batch.ref_logp, cfg.kl_estimator)
    policy = (terms.loss * weights).sum()
    mean_kl = (divergence * weights).sum()
    loss = policy + cfg.kl_coef * mean_kl
    metrics = {
        "loss": loss,
        "policy_loss": policy,
        "kl": mean_kl,
        "entropy": (out.entropy * weights).sum(),
        "clipped": (terms.clipped * weights).sum(),
        "ratio": (terms.ratio * weights).sum(),
    }
    return loss, metrics


def sft_loss(params: Params, batch: SftBatch, weights: Array, *, logp_fn: Callable) -> tuple[Array, Metrics]:
    """Negative log-likelihood of the targets, one answer a prompt, summed with the token weights."""
    out = logp_fn(params, batch.prompts, batch.tokens)
    loss = -(out.logp * weights).sum()
    return loss, {"loss": loss, "entropy": (out.entropy * weights).sum()}


def accumulate(loss_fn: LossFn, params: Params, batch: Any, weights: Array, pieces: int) -> tuple[Params, Metrics]:
    """Gradient and metrics summed over `pieces` micro-batches.

    Piece i takes rows i, i + pieces, ..: with rows sharded in blocks, every device then has its share of every piece.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if pieces == 1:
        return grad_fn(params, batch, weights)

    def split(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, grad_fn(params, *piece)), None

    split_batch = jax.tree.map(split, (batch, weights))
    shapes = jax.eval_shape(grad_fn, params, *jax.tree.map(lambda x: x[0], split_batch))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, split_batch)[0]


def apply(
    state: TrainState, batch: Any, *, loss_fn: LossFn, optimizer: optax.GradientTransformation, pieces: int, aggregation: str
) -> tuple[TrainState, Metrics]:
    """One update. A loss or gradient that is not finite leaves the state as it was and says so in `finite`."""
    weights = grpo.token_weights(batch.mask, aggregation)
    grads, metrics = accumulate(loss_fn, state.params, batch, weights, pieces)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return state, metrics | {"grad_norm": norm, "finite": finite}


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state over placed parameters. The optimizer's moments take their parameter's sharding, by the same table."""

    def build(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params), jnp.int32(0))

    shardings = tree_shardings(jax.eval_shape(build, params), mesh)
    # Copies, so that donating the state can never free the parameters it was made from (the reference policy keeps them).
    return jax.jit(lambda p: jax.tree.map(jnp.copy, build(p)), out_shardings=shardings)(params)


def make_update(state: TrainState, loss_fn: LossFn, optimizer: optax.GradientTransformation, mesh: Mesh, cfg: Config):
    """The jitted `(state, batch) -> (state, metrics)`, the state donated and its sharding kept."""
    step = partial(
        apply,
        loss_fn=loss_fn,
        optimizer=optimizer,
        pieces=cfg.update.prompts // cfg.update.micro_prompts,
        aggregation=cfg.loss.aggregation,
    )
    shardings = tree_shardings(state, mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=(shardings, replicated(mesh))
    )


def bound_logp(model_cfg, cfg: Config, allowed: Array) -> Callable:
    """`(params, prompts, tokens) -> TokenLogp` with the run's settings: the one that all stages of a run share."""

    def logp_fn(params: Params, prompts, tokens: Array):
        return completion_logp(
            params,
            model_cfg,
            prompts,
            tokens,
            allowed=allowed,
            temperature=cfg.rollout.temperature,
            remat=cfg.model.remat,
            chunk=cfg.model.head_chunk,
        )

    return logp_fn
