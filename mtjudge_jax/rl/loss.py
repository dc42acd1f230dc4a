"""GRPO's formulas and the losses of an update: group-relative advantages, the clipped policy loss, the KL to the reference.

The first functions are formulas on plain arrays. `grpo_loss`, `sft_loss` and `dpo_loss` apply them to the model, which is
passed in as `logp_fn`. Sources: DeepSeekMath (arXiv 2402.03300) for the objective, Schulman's note on k1, k2 and k3 for the
divergence, DAPO (arXiv 2503.14476) for the separate upper clip, Ye et al. (arXiv 1912.09729) for the dual clip. Conventions of
the paper's trainer are the defaults of `config.LossConfig`; the further choices name their papers below.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.config import DpoConfig, LossConfig
from mtjudge_jax.rl.logp import TokenLogp
from mtjudge_jax.types import Array, DpoBatch, Params, SftBatch, TrainBatch

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


def rloo_advantages(rewards: Array) -> Array:
    """Rewards [Q, G] less the mean of the other G - 1 answers of their group: the leave-one-out baseline of REINFORCE (arXiv
    2402.14740). That is G / (G - 1) times the distance to the mean of all.
    """
    group = rewards.shape[-1]
    return group_advantages(rewards, std="none", eps=0.0) * (group / (group - 1))


def gdpo_advantages(parts: Array, weights: Array, learn: Array, *, std: str, eps: float) -> Array:
    """Every part of the reward, [Q, G, K], normalised within its group, then summed with weights [K] (GDPO, arXiv 2601.05242): so
    a part of small spread, as the form of an answer, is not drowned by another. -> [Q, G].

    With several parts the sum is normalised over the batch, as in the paper; rows where `learn`, bool [Q], is False count
    nothing there. With one part this is `group_advantages`.
    """
    each = group_advantages(jnp.moveaxis(parts, -1, 0), std=std, eps=eps)
    total = jnp.tensordot(weights, each, 1)
    if parts.shape[-1] == 1:
        return total
    count = jnp.maximum(learn.sum() * total.shape[1], 2)
    rows = learn[:, None]
    centred = jnp.where(rows, total - jnp.where(rows, total, 0).sum() / count, 0)
    return centred / (jnp.sqrt((centred**2).sum() / (count - 1)) + eps)


def advantages_of(total: Array, parts: Array, weights: Array, learn: Array, *, cfg: LossConfig) -> Array:
    """The advantages [Q, G] that `loss.advantage` names. total [Q, G]: the rewards. parts [Q, G, K], weights [K]: what they are
    made of, which gdpo alone reads. learn bool [Q]: rows that count.
    """
    if cfg.advantage == "gdpo":
        return gdpo_advantages(parts, weights, learn, std=cfg.advantage_std, eps=cfg.advantage_eps)
    if cfg.advantage == "rloo":
        return rloo_advantages(total)
    return group_advantages(total, std="none" if cfg.advantage == "dr_grpo" else cfg.advantage_std, eps=cfg.advantage_eps)


def learned_mask(mask: Array, learn: Array, parts: Array, truncated: Array, *, cfg: LossConfig) -> Array:
    """The tokens that an update sees, bool [Q, G, C]: those of `mask` on rows that `learn`. Where the config says so, groups that
    earn the same in every part [Q, G, K] are left out, and answers that were cut off, denominators included.
    """
    kept = mask & learn[:, None, None]
    if cfg.flat_groups == "out":
        kept &= (parts.max(1) != parts.min(1)).any(-1)[:, None, None]
    return kept & ~truncated[..., None] if cfg.truncated == "out" else kept


def _ratio(log_ratio: Array) -> Array:
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def policy_loss(
    logp: Array, old_logp: Array, advantages: Array, *, clip_low: float, clip_high: float, dual_clip: float
) -> PolicyTerms:
    """Clipped surrogate per token: -min(r A, clip(r, 1 - low, 1 + high) A), and for A < 0 at most -dual_clip A.

    logp, old_logp [Q, G, C]; advantages [Q, G].
    """
    return _clipped(_ratio(logp - old_logp), advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def _clipped(ratio: Array, advantages: Array, *, clip_low: float, clip_high: float, dual_clip: float) -> PolicyTerms:
    a = advantages[..., None]
    plain, clipped = -ratio * a, -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * a
    loss = jnp.maximum(plain, clipped)
    ceiling = -dual_clip * a
    bound = (a < 0) & (ceiling < loss)
    return PolicyTerms(jnp.where(bound, ceiling, loss), ratio, (clipped > plain) | bound)


def sequence_ratio(logp: Array, old_logp: Array, mask: Array, *, by_token: bool) -> Array:
    """GSPO's ratio of a whole answer, exp of the mean log-ratio of its tokens, at each of them: [Q, G, C] (arXiv 2507.18071).

    by_token: GSPO-token, whose ratio has the same value, and at each token that token's own gradient.
    """
    kept = mask.astype(logp.dtype)
    mean = ((logp - old_logp) * kept).sum(-1, keepdims=True) / jnp.maximum(kept.sum(-1, keepdims=True), 1.0)
    whole = jnp.broadcast_to(_ratio(mean), logp.shape)
    return jax.lax.stop_gradient(whole) * jnp.exp(logp - jax.lax.stop_gradient(logp)) if by_token else whole


def cispo_loss(logp: Array, old_logp: Array, advantages: Array, *, cap: float) -> PolicyTerms:
    """-min(r, cap) A log p, with no gradient through the ratio: a capped token still teaches (CISPO, arXiv 2506.13585)."""
    ratio = _ratio(logp - old_logp)
    capped = jax.lax.stop_gradient(jnp.minimum(ratio, cap))
    return PolicyTerms(-capped * advantages[..., None] * logp, ratio, (ratio > cap) & (advantages[..., None] > 0))


def sapo_loss(logp: Array, old_logp: Array, advantages: Array, *, positive: float, negative: float) -> PolicyTerms:
    """-4 / t sigmoid(t (r - 1)) A, a clip without an edge; t is `positive` where A > 0, else `negative` (SAPO, arXiv
    2511.20347). At r = 1 its gradient is that of the plain ratio. Nothing counts as clipped.
    """
    ratio, a = _ratio(logp - old_logp), advantages[..., None]
    slope = jnp.where(a > 0, positive, negative)
    return PolicyTerms(-4 / slope * jax.nn.sigmoid(slope * (ratio - 1)) * a, ratio, jnp.zeros(ratio.shape, bool))


def policy_terms(logp: Array, old_logp: Array, advantages: Array, mask: Array, *, cfg: LossConfig) -> PolicyTerms:
    """The policy loss that `loss.policy` names. logp, old_logp, mask [Q, G, C]; advantages [Q, G]."""
    clips = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
    if cfg.policy == "cispo":
        return cispo_loss(logp, old_logp, advantages, cap=cfg.cispo_cap)
    if cfg.policy == "sapo":
        return sapo_loss(logp, old_logp, advantages, positive=cfg.sapo_positive, negative=cfg.sapo_negative)
    if cfg.policy in ("gspo", "gspo_token"):
        return _clipped(sequence_ratio(logp, old_logp, mask, by_token=cfg.policy == "gspo_token"), advantages, **clips)
    return policy_loss(logp, old_logp, advantages, **clips)


def sampler_weights(old_logp: Array, sampler_logp: Array, mask: Array, *, per: str, cap: float) -> Array:
    """min(p_old / p_sampler, cap) [Q, G, C], which makes up for a sampler whose numbers differ from the update's: of each token,
    or per `sequence` of the whole answer. Truncated importance sampling; 1 where the two agree. No gradient.
    """
    gap = jax.lax.stop_gradient(old_logp - sampler_logp) * mask
    if per == "sequence":
        gap = jnp.broadcast_to(gap.sum(-1, keepdims=True), gap.shape)
    return jnp.minimum(_ratio(gap), cap)


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


def in_loss(cfg: LossConfig) -> float:
    """The weight of the divergence in the loss: none where it is taken off the reward."""
    return cfg.kl_coef if cfg.kl_in == "loss" else 0.0


def row_objective(
    logp: Array, old_logp: Array, ref_logp: Array, advantages: Array, mask: Array, *, cfg: LossConfig
) -> tuple[Array, Array]:
    """The objective that the update maximises, as (sums, weights), both [Q]: of any prompts it is sum(sums) / sum(weights).

    logp, old_logp, ref_logp, mask [Q, G, C]; advantages [Q, G]. A prompt's weight is its number of tokens, or with
    `sequence_mean` and `constant` its number of answers.
    """
    gain = -policy_terms(logp, old_logp, advantages, mask, cfg=cfg).loss - in_loss(cfg) * kl(logp, ref_logp, cfg.kl_estimator)
    weights = mask.astype(jnp.float32)
    if cfg.aggregation == "sequence_mean":
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
    if cfg.aggregation == "constant":
        return (gain * weights).sum((1, 2)) / weights.shape[-1], mask.any(-1).sum(-1).astype(jnp.float32)
    return (gain * weights).sum((1, 2)), weights.sum((1, 2))


def token_weights(mask: Array, aggregation: str, length: int | None = None) -> Array:
    """Weights [Q, G, C] over the whole batch, so that micro-batches and shards add up to the same loss.

    `token_mean`: every token has the same weight, and they sum to 1. `sequence_mean`: every answer has the same weight, which its
    tokens share. `constant`: every token has 1 / (answers x length), whatever the answers' lengths (Dr.GRPO, arXiv 2503.20783);
    length: the longest an answer can be, by default C. In a batch without any token all weights are 0.
    """
    answers, mask = mask.any(-1).sum(), mask.astype(jnp.float32)
    if aggregation == "constant":
        return mask / jnp.maximum(answers * (length or mask.shape[-1]), 1)
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
    terms = policy_terms(out.logp, old, batch.advantages, batch.mask, cfg=cfg)
    divergence = kl(out.logp, batch.ref_logp, cfg.kl_estimator)
    sampler_logp = batch.old_logp if batch.sampler_logp is None else batch.sampler_logp
    per_token = terms.loss
    if cfg.sampler_weight != "none":
        per_token *= sampler_weights(old, sampler_logp, batch.mask, per=cfg.sampler_weight, cap=cfg.sampler_cap)
    policy = (per_token * weights).sum()
    mean_kl = (divergence * weights).sum()
    loss = policy + in_loss(cfg) * mean_kl - cfg.entropy_coef * (out.entropy * weights).sum()
    metrics = {
        "loss": loss,
        "policy_loss": policy,
        "kl": mean_kl,
        "entropy": (out.entropy * weights).sum(),
        "clipped": (terms.clipped * weights).sum(),
        "ratio": (terms.ratio * weights).sum(),
        "sampler_gap": (jnp.abs(old - sampler_logp) * weights).sum(),
    }
    return loss, metrics | router_metrics(out, weights)


def sft_loss(params: Params, batch: SftBatch, weights: Array, *, logp_fn: Callable) -> tuple[Array, Metrics]:
    """Negative log-likelihood of the targets, one answer a prompt, summed with the token weights."""
    out = logp_fn(params, batch.prompts, batch.tokens, batch.places)
    loss = -(out.logp * weights).sum()
    return loss, {"loss": loss, "entropy": (out.entropy * weights).sum()} | router_metrics(out, weights)


def implicit_rewards(logp: Array, ref_logp: Array, mask: Array, beta: float) -> Array:
    """beta times the log-ratio of a whole answer to the reference policy, [Q, G]: DPO's reward (arXiv 2305.18290).

    logp, ref_logp, mask [Q, G, C].
    """
    return beta * jnp.where(mask, logp - ref_logp, 0.0).sum(-1)


def dpo_loss(params: Params, batch: DpoBatch, weights: Array, *, cfg: DpoConfig, logp_fn: Callable) -> tuple[Array, Metrics]:
    """-log sigmoid of the chosen answer's implicit reward less the rejected one's, the mean over pairs (DPO, arXiv 2305.18290).
    With cfg.sft_coef plus that times the chosen answer's negative log-likelihood a token (RPO, arXiv 2404.19733).

    Both answers share one stream, so prompt and pictures run once. weights [Q, 2, C] of `token_weights` with `sequence_mean`:
    those of a pair add up to its share of the batch. `pair_accuracy` is the share of pairs whose chosen answer has the larger
    reward.
    """
    out = logp_fn(params, batch.prompts, batch.tokens, batch.places)
    chosen, rejected = jnp.moveaxis(implicit_rewards(out.logp, batch.ref_logp, batch.mask, cfg.beta), 1, 0)
    pairs = weights.sum((1, 2))
    chosen_nll = -2 * (jnp.where(batch.mask, out.logp, 0.0) * weights)[:, 0].sum()  # its weights are half of the pair's
    loss = cfg.sft_coef * chosen_nll - (jax.nn.log_sigmoid(chosen - rejected) * pairs).sum()
    metrics = {
        "loss": loss,
        "chosen_nll": chosen_nll,
        "reward_chosen": (chosen * pairs).sum(),
        "reward_rejected": (rejected * pairs).sum(),
        "margin": ((chosen - rejected) * pairs).sum(),
        "pair_accuracy": ((chosen > rejected) * pairs).sum(),
        "entropy": (out.entropy * weights).sum(),
    }
    return loss, metrics | router_metrics(out, weights)


def router_metrics(out: TokenLogp, weights: Array) -> Metrics:
    """Load of each expert [L, E] and router entropy [L], weighted by this micro-batch's share; {} for a dense model."""
    if out.router is None:
        return {}
    return {"router_load": out.router.load * weights.sum(), "router_entropy": out.router.entropy * weights.sum()}
