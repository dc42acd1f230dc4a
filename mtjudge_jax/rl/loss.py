"""The loss of an update: GRPO's policy loss with KL, and SFT's negative log-likelihood.

The formulas on plain arrays are in grpo.py; here they are applied to the model, which is passed in as `logp_fn`.
"""

from collections.abc import Callable
from typing import Any

import jax

from mtjudge_jax.config import LossConfig
from mtjudge_jax.rl import grpo
from mtjudge_jax.rl.logp import TokenLogp
from mtjudge_jax.types import Array, Params, SftBatch, TrainBatch

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
    """Load of each expert [L, E] and router entropy [L], weighted by this micro-batch's share; {} for a dense model."""
    if out.router is None:
        return {}
    return {"router_load": out.router.load * weights.sum(), "router_entropy": out.router.entropy * weights.sum()}
