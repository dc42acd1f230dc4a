"""The jitted update: gradient accumulated over micro-batches, then the optimizer. The old state's memory is donated."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mtjudge_jax.config import Config
from mtjudge_jax.policy.trainable import join
from mtjudge_jax.rl.loss import LossFn, Metrics, token_weights
from mtjudge_jax.rl.streams import cut
from mtjudge_jax.sharding import batch_sharding, replicated, take_rows, tree_shardings
from mtjudge_jax.types import Array, MicroBatch, Params, TrainBatch, TrainState

_ROUNDING = 1e-5  # norm of the whole gradient; of equal policies the demo's is 2e-6, of a batch that teaches above 1e-3

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

    Piece i takes rows i, i + pieces, ..: rows are sharded in blocks, so every device has its share of every piece. Gradients of
    bfloat16 weights are summed in float32.
    """
    grad_fn = jax.grad(lambda params, *piece: loss_fn(join(frozen, params), *piece), has_aux=True)
    if pieces == 1:
        return grad_fn(params, batch, weights)

    def split(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1)

    def add(total, piece):
        return jax.tree.map(_add, total, grad_fn(params, *piece)), None

    split_batch = jax.tree.map(split, (batch, weights))
    zeros = _zeros(jax.eval_shape(grad_fn, params, *jax.tree.map(lambda x: x[0], split_batch)))
    return jax.lax.scan(add, zeros, split_batch)[0]


def _add(total: Array, new: Array) -> Array:
    return total + new.astype(total.dtype)


def _zeros(shapes: Any) -> Any:
    """Zeros in float32, or in the dtype of the shapes if that is wider."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)


def _advantages(batch: Any) -> Array:
    return batch.advantages if isinstance(batch, TrainBatch) else jnp.zeros(())


def apply(
    state: TrainState,
    frozen: Params,
    batch: Any,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    pieces: int,
    aggregation: str,
    length: int | None = None,
) -> tuple[TrainState, Metrics]:
    """One update. If the loss, the gradient or an advantage is not finite, the state stays bit for bit as it was and the metric
    `finite` is False. The metric `moved` is the share of the trained numbers that the update changed.

    A gradient whose norm is below _ROUNDING counts as 0: where all rewards of a group are equal, only the divergence is left, and
    at the start that of equal policies is rounding alone, which Muon and Adam would scale up to a whole step.

    The update of bfloat16 weights and moments is computed in float32 and rounded stochastically: most steps are far smaller than
    the distance between two bfloat16 numbers, so rounding to the nearest would lose them.
    """
    weights = token_weights(batch.mask, aggregation, length)
    grads, metrics = accumulate(loss_fn, state.params, frozen, batch, weights, pieces)
    return step_of(state, grads, metrics, _advantages(batch), optimizer=optimizer)


def step_of(
    state: TrainState, grads: Params, metrics: Metrics, advantages: Array, *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """The step of the optimizer by the gradient of the whole batch, see `apply`."""
    grads = _in_float32(grads)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    finite &= jnp.isfinite(advantages).all()  # a masked answer's NaN advantage shows in neither the norm nor the loss
    grads = jax.tree.map(lambda grad: jnp.where(norm < _ROUNDING, jnp.zeros_like(grad), grad), grads)
    params, opt_state = _in_float32((state.params, state.opt_state))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    rounded = round_like((optax.apply_updates(params, updates), opt_state), (state.params, state.opt_state), state.step)
    new = TrainState(*rounded, state.step + 1)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return new, summarise_router(metrics) | {"grad_norm": norm, "finite": finite, "moved": _share_moved(state.params, new.params)}


def _in_float32(tree: Any) -> Any:
    """The tree with its bfloat16 arrays in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, tree)


def round_like(tree: Any, like: Any, step: Array) -> Any:
    """The tree in the dtypes of `like`. An array that becomes bfloat16 is rounded up or down at random, with the probability that
    makes its expectation exact: a random 16-bit number is added below the kept bits, which are then cut off. The draws depend on
    (step, place in the tree, index) only, so a resumed run and any mesh round alike.

    Source: Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551.
    """
    key, numbers = jax.random.fold_in(jax.random.key(0), step), itertools.count()

    def one(x: Array, like: Array) -> Array:
        number = next(numbers)
        if x.dtype == like.dtype:
            return x
        noise = jax.random.bits(jax.random.fold_in(key, number), x.shape, jnp.uint16).astype(jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise & jnp.uint32(0xFFFF0000)
        return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(bits, jnp.float32), x).astype(like.dtype)

    return jax.tree.map(one, tree, like)


def _share_moved(old: Params, new: Params) -> Array:
    pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    total = sum(a.size for a, _ in pairs)
    return sum((a != b).mean(dtype=jnp.float32) * (a.size / total) for a, b in pairs)


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


class Update(NamedTuple):
    """(state, frozen, batch) -> (state, metrics), by jitted functions. The state is donated and keeps its sharding."""

    whole: Callable  # (state, frozen, batch) -> (state, metrics); see `apply`
    zeros: Callable  # (params, frozen, batch) -> a sum of no micro-batches
    part: Callable  # (params, frozen, batch, micro-batch, sum so far, donated) -> the sum with the micro-batch's share
    finish: Callable  # (state, sum, batch) -> (state, metrics)

    def __call__(self, state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, Metrics]:
        if not isinstance(batch.places, tuple):
            return self.whole(state, frozen, batch)
        parts, batch = batch.places, batch._replace(places=None)
        total = self.zeros(state.params, frozen, batch, parts[0])
        for one in parts:
            total = self.part(state.params, frozen, batch, one, total)
        return self.finish(state, total, batch)


def make_update(
    state: TrainState, loss_fn: LossFn, optimizer: optax.GradientTransformation, mesh: Mesh, cfg: Config
) -> Update:
    """The update of a run. state: the shapes and dtypes that it will have."""
    aggregation = "sequence_mean" if cfg.stage == "dpo" else cfg.loss.aggregation  # a pair of DPO counts once, however long
    whole = partial(apply, pieces=cfg.update.prompts // cfg.update.micro_prompts, loss_fn=loss_fn, optimizer=optimizer)
    whole = partial(whole, aggregation=aggregation, length=cfg.rollout.completion_tokens)

    def share(params: Params, frozen: Params, batch: Any, micro: MicroBatch) -> tuple[Params, Metrics]:
        weights = token_weights(batch.mask, aggregation, cfg.rollout.completion_tokens)
        one = cut(batch, micro, mesh), take_rows(weights, micro.rows, mesh)
        return jax.grad(lambda params: loss_fn(join(frozen, params), *one), has_aux=True)(params)

    def part(params: Params, frozen: Params, batch: Any, micro: MicroBatch, total: Any) -> Any:
        return jax.tree.map(_add, total, share(params, frozen, batch, micro))

    def finish(state: TrainState, total: Any, batch: Any) -> tuple[TrainState, Metrics]:
        return step_of(state, *total, _advantages(batch), optimizer=optimizer)

    rows, kept, same = batch_sharding(mesh), tree_shardings(state, mesh), replicated(mesh)
    summed, done = (kept.params, same), (kept, same)
    return Update(
        jax.jit(whole, donate_argnums=0, in_shardings=(kept, None, rows), out_shardings=done),
        jax.jit(lambda *batch: _zeros(jax.eval_shape(share, *batch)), out_shardings=summed),
        jax.jit(part, donate_argnums=4, in_shardings=(kept.params, None, rows, rows, summed), out_shardings=summed),
        jax.jit(finish, donate_argnums=0, in_shardings=(kept, summed, rows), out_shardings=done),
    )
