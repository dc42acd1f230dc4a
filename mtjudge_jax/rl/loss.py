"""GRPO's formulas and the losses of an update: group-relative advantages, the clipped policy loss, the KL to the reference.

The first functions are formulas on plain arrays. `grpo_loss` and `sft_loss` apply them to the model, which is passed in as
`logp_fn`. Sources: DeepSeekMath (arXiv 2402.03300) for the objective, Schulman's note on k1, k2 and k3 for the divergence, DAPO
(arXiv 2503.14476) for the separate upper clip, Ye et al. (arXiv 1912.09729) for the dual clip. Conventions of the paper's
trainer are the defaults of `config.LossConfig`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.config import LossConfig
from mtjudge_jax.rl.logp import TokenLogp
from mtjudge_jax.types import Array, Params, SftBatch, TrainBatch

LOG_RATIO_LIMIT = 20.0  # EasyR1's: beyond it exp() carries no information, and float32 overflows at 88
K3_LIMIT = 10.0


class PolicyTerms(NamedTuple):
    """Per-token terms, [Q, G, C]."""

    loss: Array
    ratio: Array
    clipped: Array  # bool, True where a clip binds


def group_advantages(rewards: Array, *, std: str, eps: float) -> Array:
    """Rewards [Q, G] less the mean of their group, over its standard deviation.

    std: `unbiased` (n - 1), `population` (n) or `none` (Dr.GRPO). A group whose rewards are all equal has exactly zero
    advantage, by comparison and not by arithmetic: the mean of eight float32 0.1 is not 0.1.
    """
    centred = rewards - rewards.mean(-1, keepdims=True)
    if std != "none":
        centred = centred / (rewards.std(-1, keepdims=True, ddof=1 if std == "unbiased" else 0) + eps)
    equal = rewards.max(-1, keepdims=True) == rewards.min(-1, keepdims=True)
    return jnp.where(equal, 0.0, centred)


def policy_loss(
    logp: Array, old_logp: Array, advantages: Array, *, clip_low: float, clip_high: float, dual_clip: float
) -> PolicyTerms:
    """Clipped surrogate per token: -min(r A, clip(r, 1 - low, 1 + high) A), and for A < 0 at most -dual_clip A.

    logp, old_logp [Q, G, C]; advantages [Q, G].
    """
    ratio = jnp.exp(jnp.clip(logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    a = advantages[..., None]
    plain, clipped = -ratio * a, -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * a
    loss = jnp.maximum(plain, clipped)
    ceiling = -dual_clip * a
    bound = (a < 0) & (ceiling < loss)
    return PolicyTerms(jnp.where(bound, ceiling, loss), ratio, (clipped > plain) | bound)


def kl(logp: Array, ref_logp: Array, estimator: str) -> Array:
    """Estimate per token of KL(policy || reference) from one sample. With d = ref - policy: k1 = -d, k2 = d^2 / 2,
    k3 = e^d - d - 1.
    """
    d = jnp.clip(ref_logp - logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return jnp.minimum(jnp.expm1(d) - d, K3_LIMIT)  # exp(d) - d - 1 is below zero by rounding for small d


def row_objective(
    logp: Array, old_logp: Array, ref_logp: Array, advantages: Array, mask: Array, *, cfg: LossConfig
) -> tuple[Array, Array]:
    """The objective that the update maximises, as (sums, weights), both [Q]: of any prompts it is sum(sums) / sum(weights).

    logp, old_logp, ref_logp, mask [Q, G, C]; advantages [Q, G]. A prompt's weight is its number of tokens, or with
    `sequence_mean` its number of answers.
    """
    clips = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
    gain = -policy_loss(logp, old_logp, advantages, **clips).loss - cfg.kl_coef * kl(logp, ref_logp, cfg.kl_estimator)
    weights = mask.astype(jnp.float32)
    if cfg.aggregation == "sequence_mean":
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
    return (gain * weights).sum((1, 2)), weights.sum((1, 2))


def token_weights(mask: Array, aggregation: str) -> Array:
    """Weights [Q, G, C] that sum to 1 over the whole batch, so that micro-batches and shards add up to the same loss.

    `token_mean`: every token has the same weight. `sequence_mean`: every answer has the same weight, which its tokens share.
    In a batch without any token all weights are 0.
    """
    mask = mask.astype(jnp.float32)
    if aggregation == "sequence_mean":
        lengths = mask.sum(-1, keepdims=True)
        mask = mask / jnp.maximum(lengths, 1.0)
    return mask / jnp.maximum(mask.sum(), 1e-9)


Metrics = dict[str, Array]
# (params, slice of the batch, token weights of the slice [Q, G, C]) -> (loss, metrics), both sums over the weights
LossFn = Callable[[Params, Any, Array], tuple[Array, Metrics]]


def grpo_loss(
    params: Params, batch: TrainBatch, weights: Array, *, cfg: LossConfig, logp_fn: Callable, on_policy: bool
) -> tuple[Array, Metrics]:
    """Policy loss plus kl_coef times the KL to the reference, both summed with the token weights.

    `on_policy`: the batch was sampled by these very parameters, so this forward pass's own log-probabilities are the old ones
    and the ratio is exactly 1.
    """
    out = logp_fn(params, batch.prompts, batch.tokens, batch.places)
    old = jax.lax.stop_gradient(out.logp) if on_policy else batch.old_logp
    terms = policy_loss(
        out.logp, old, batch.advantages, clip_low=cfg.clip_low, clip_high=cfg.clip_high, dual_clip=cfg.dual_clip
    )
    divergence = kl(out.logp, batch.ref_logp, cfg.kl_estimator)
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
    out = logp_fn(params, batch.prompts, batch.tokens, batch.places)
    loss = -(out.logp * weights).sum()
    return loss, {"loss": loss, "entropy": (out.entropy * weights).sum()} | router_metrics(out, weights)


def router_metrics(out: TokenLogp, weights: Array) -> Metrics:
    """Load of each expert [L, E] and router entropy [L], weighted by this micro-batch's share; {} for a dense model."""
    if out.router is None:
        return {}
    return {"router_load": out.router.load * weights.sum(), "router_entropy": out.router.entropy * weights.sum()}
