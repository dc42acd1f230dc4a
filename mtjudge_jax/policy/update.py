"""The jitted update: loss, gradient accumulated over micro-batches, optimizer; the old state's memory is donated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mtjudge_jax.config import Config, LossConfig
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy.trainable import cast, join
from mtjudge_jax.rl import grpo
from mtjudge_jax.rl.logp import TokenLogp, completion_logp
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
    out = logp_fn(params, batch.prompts, batch.tokens, batch.mask)
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
    return loss, metrics | router_metrics(out, weights)


def sft_loss(params: Params, batch: SftBatch, weights: Array, *, logp_fn: Callable) -> tuple[Array, Metrics]:
    """Negative log-likelihood of the targets, one answer a prompt, summed with the token weights."""
    out = logp_fn(params, batch.prompts, batch.tokens, batch.mask)
    loss = -(out.logp * weights).sum()
    return loss, {"loss": loss, "entropy": (out.entropy * weights).sum()} | router_metrics(out, weights)


def router_metrics(out: TokenLogp, weights: Array) -> Metrics:
    """Load of each expert [L, E] and entropy [L] of a mixture of experts, this piece's share of them; else nothing."""
    if out.router is None:
        return {}
    return {"router_load": out.router.load * weights.sum(), "router_entropy": out.router.entropy * weights.sum()}


def summarise_router(metrics: Metrics) -> Metrics:
    """router_entropy: mean over layers, in nats; router_peak: the busiest expert's load over an even one, mean over layers;
    router_idle: share of the experts that no token chose."""
    if "router_load" not in metrics:
        return metrics
    metrics = dict(metrics)
    load = metrics.pop("router_load")
    metrics["router_entropy"] = metrics["router_entropy"].mean()
    metrics["router_peak"] = (load.max(-1) * load.shape[-1]).mean()
    metrics["router_idle"] = (load == 0).mean()
    return metrics


def accumulate(
    loss_fn: LossFn, params: Params, frozen: Params, batch: Any, weights: Array, pieces: int
) -> tuple[Params, Metrics]:
    """Gradient with respect to `params`, the trained part, and metrics, summed over `pieces` micro-batches.

    Piece i takes rows i, i + pieces, ..: with rows sharded in blocks, every device then has its share of every piece.
    """
    grad_fn = jax.grad(lambda params, *piece: loss_fn(join(frozen, params), *piece), has_aux=True)
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
    state: TrainState,
    frozen: Params,
    batch: Any,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    pieces: int,
    aggregation: str,
) -> tuple[TrainState, Metrics]:
    """One update. A loss, gradient or advantage that is not finite leaves the state as it was, bit for bit, and says so in
    `finite`.
    """
    weights = grpo.token_weights(batch.mask, aggregation)
    grads, metrics = accumulate(loss_fn, state.params, frozen, batch, weights, pieces)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    if isinstance(batch, TrainBatch):  # of a masked answer it would reach neither of the two
        finite &= jnp.isfinite(batch.advantages).all()
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return state, summarise_router(metrics) | {"grad_norm": norm, "finite": finite}


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, keep: bool = True) -> TrainState:
    """A fresh state over the placed parameters that are trained. The optimizer's moments take their parameter's sharding, by
    the same table. With `keep` the state holds copies, so that donating it never frees `params`, which the reference policy
    may be; else `params` are used up.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer, mesh))
    copy = partial(jax.tree.map, jnp.copy)
    return jax.jit(lambda p: copy(_fresh(p, optimizer)), out_shardings=shardings, donate_argnums=() if keep else 0)(params)


def abstract_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of that state; nothing is allocated."""
    shapes = jax.eval_shape(partial(_fresh, optimizer=optimizer), params)
    shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _fresh(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.int32(0))


def make_update(state: TrainState, loss_fn: LossFn, optimizer: optax.GradientTransformation, mesh: Mesh, cfg: Config):
    """The jitted `(state, frozen, batch) -> (state, metrics)`, the state donated and its sharding kept."""
    step = partial(
        apply,
        loss_fn=loss_fn,
        optimizer=optimizer,
        pieces=cfg.update.prompts // cfg.update.micro_prompts,
        aggregation=cfg.loss.aggregation,
    )
    shardings = tree_shardings(state, mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def bound_logp(model_cfg: Qwen3VLConfig, cfg: Config, allowed: Array, backend: Backend) -> Callable:
    """`(params, prompts, tokens, mask) -> TokenLogp` with the run's settings: the one that all stages of a run share."""

    def logp_fn(params: Params, prompts, tokens: Array, mask: Array) -> TokenLogp:
        return completion_logp(
            cast(params, cfg.model.dtype),
            model_cfg,
            prompts,
            tokens,
            mask,
            allowed=allowed,
            temperature=cfg.rollout.temperature,
            chunk=cfg.model.head_chunk,
            backend=backend,
        )

    return logp_fn
