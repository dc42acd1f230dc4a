"""The jitted update: gradient accumulated over micro-batches, then the optimizer. The old state's memory is donated."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mtjudge_jax.config import Config
from mtjudge_jax.policy.trainable import join
from mtjudge_jax.rl.loss import LossFn, Metrics, token_weights
from mtjudge_jax.sharding import batch_sharding, replicated, tree_shardings
from mtjudge_jax.types import Array, Params, TrainBatch, TrainState


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
    """Gradient with respect to `params`, the trained part, and metrics, both summed over `pieces` micro-batches.

    Piece i takes rows i, i + pieces, ..: rows are sharded in blocks, so every device has its share of every piece.
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
    """One update. If the loss, the gradient or an advantage is not finite, the state stays bit for bit as it was and the metric
    `finite` is False.
    """
    weights = token_weights(batch.mask, aggregation)
    grads, metrics = accumulate(loss_fn, state.params, frozen, batch, weights, pieces)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    if isinstance(batch, TrainBatch):  # a masked answer's NaN advantage shows in neither the norm nor the loss, so check it here
        finite &= jnp.isfinite(batch.advantages).all()
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
    state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return state, summarise_router(metrics) | {"grad_norm": norm, "finite": finite}


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh, *, keep: bool = True) -> TrainState:
    """A fresh state over the trained parameters, which are on the mesh already. The optimizer's moments are sharded like their
    parameters. With `keep` the state holds copies, because donating it must not free `params` if the reference policy uses
    them too; without it `params` are donated.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer, mesh))
    copy = partial(jax.tree.map, jnp.copy)
    return jax.jit(lambda p: copy(_fresh(p, optimizer)), out_shardings=shardings, donate_argnums=() if keep else 0)(params)


def abstract_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of `init_state`'s result; nothing is allocated."""
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
        step, donate_argnums=0, in_shardings=(shardings, None, batch_sharding(mesh)), out_shardings=(shardings, replicated(mesh))
    )
