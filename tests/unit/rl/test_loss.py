"""The formulas of GRPO by hand, and that a batch cut into pieces gives the same loss and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import LossConfig
from mtjudge_jax.policy.update import accumulate
from mtjudge_jax.rl import loss as formulas
from mtjudge_jax.rl.logp import TokenLogp
from mtjudge_jax.rl.loss import grpo_loss
from mtjudge_jax.types import TrainBatch

CLIPS = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


def f32(*values) -> jax.Array:
    return jnp.array(values, jnp.float32)


@pytest.mark.parametrize(
    ("std", "want"),
    # Rewards 1 0 0 1: mean 1/2, squares sum to 1: divided by 3 or by 4, the root is 0.57735 or 0.5.
    [("unbiased", 0.5 / 0.5773503), ("population", 1.0), ("none", 0.5)],
)
def test_advantages_by_hand(std, want):
    got = formulas.group_advantages(f32([1, 0, 0, 1], [0, 1, 1, 0]), std=std, eps=0.0)
    assert np.allclose(got, [[want, -want, -want, want], [-want, want, want, -want]], atol=1e-6)


def test_eps_is_added_to_the_standard_deviation():
    got = formulas.group_advantages(f32([1, 0, 0, 1]), std="population", eps=0.5)
    assert np.allclose(got, [[0.5, -0.5, -0.5, 0.5]], atol=1e-7)


def test_one_success_of_twenty():
    got = np.asarray(formulas.group_advantages(jnp.zeros((1, 20)).at[0, 3].set(1), std="unbiased", eps=1e-6))[0]
    assert got[3] == pytest.approx(4.25, abs=0.01)
    assert np.delete(got, 3) == pytest.approx(np.full(19, -0.22), abs=0.01)


@pytest.mark.parametrize("std", ["unbiased", "population", "none"])
def test_equal_rewards_have_exactly_zero_advantage(std):
    """1,000 groups of 2 to 20 equal float32 rewards, among them values whose mean is not themselves."""
    values = np.array([0.1, 0.9, 1 / 3, 0.0, 1.0], np.float32)
    run = jax.jit(partial(formulas.group_advantages, std=std, eps=1e-6))
    rounded = False
    for group in (2, 3, 5, 7, 8, 12, 16, 20):
        rewards = np.repeat(np.resize(values, 125)[:, None], group, 1)
        rounded |= bool(
            (rewards.mean(-1) != rewards[:, 0]).any() or (np.float32(group) * values / np.float32(group) != values).any()
        )
        got = np.asarray(run(rewards))
        assert got.shape == rewards.shape
        assert (got == 0).all()
    assert rounded  # so comparison was needed: subtracting the mean would not have given zero


def test_advantages_of_one_group_do_not_see_another():
    rewards = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    whole = formulas.group_advantages(rewards, std="unbiased", eps=1e-6)
    each = jnp.concatenate([formulas.group_advantages(row[None], std="unbiased", eps=1e-6) for row in rewards])
    assert np.allclose(whole, each, atol=1e-6)
    assert np.allclose(whole.mean(-1), 0, atol=1e-6)
    assert np.allclose(np.std(whole, -1, ddof=1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.25, 2.0, -2.5, False),  # within 1.3
        (1.5, 2.0, -2.6, True),  # 1.3 * 2
        (0.5, 2.0, -1.0, False),  # a fall is not held back where it should rise
        (1.0, -2.0, 2.0, False),
        (0.9, -2.0, 1.8, False),
        (0.5, -2.0, 1.6, True),  # 0.8 * 2
        (2.0, -2.0, 4.0, False),
        (5.0, -2.0, 6.0, True),  # dual clip: 3 * 2
        (5.0, 2.0, -2.6, True),  # the dual clip is for negative advantages
        (5.0, 0.0, 0.0, False),
    ],
)
def test_clips_by_hand(ratio, advantage, loss, clipped):
    old = f32([[-1.0]])
    out = formulas.policy_loss(old + np.log(ratio).astype(np.float32), old, f32([advantage]), **CLIPS)
    assert float(out.loss[0, 0, 0]) == pytest.approx(loss, abs=1e-5)
    assert float(out.ratio[0, 0, 0]) == pytest.approx(ratio, rel=1e-5)
    assert bool(out.clipped[0, 0, 0]) is clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"), [(1.1, 2.0, -2.2), (1.5, 2.0, 0), (0.5, -2.0, 0), (2.0, -2.0, 4.0), (5.0, -2.0, 0)]
)
def test_a_clipped_token_has_no_gradient(ratio, advantage, slope):
    """d(-r A) / d logp = -r A where no clip binds."""
    old = f32([[-1.0]])
    got = jax.grad(lambda logp: formulas.policy_loss(logp, old, f32([advantage]), **CLIPS).loss.sum())(
        old + np.float32(np.log(ratio))
    )
    assert float(got[0, 0, 0]) == pytest.approx(slope, abs=1e-5)


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient():
    logp, a = f32([[-1.0, -2.0], [-0.5, -3.0]]), f32([1.5, -0.5])
    got = jax.grad(lambda logp: formulas.policy_loss(logp, jax.lax.stop_gradient(logp), a, **CLIPS).loss.sum())(logp)
    assert np.array_equal(got, [[[-1.5, -1.5], [0.5, 0.5]]])


def test_divergence_by_hand():
    """logp = ln 0.5 against ln 0.25: d = -ln 2; k1 = 0.6931, k2 = 0.2402, k3 = 0.5 + 0.6931 - 1 = 0.1931."""
    logp, ref = jnp.log(f32(0.5, 0.25, 0.5)), jnp.log(f32(0.25, 0.5, 0.5))
    assert np.allclose(formulas.kl(logp, ref, "k1"), [0.6931472, -0.6931472, 0], atol=1e-6)
    assert np.allclose(formulas.kl(logp, ref, "k2"), [0.2402265, 0.2402265, 0], atol=1e-6)
    assert np.allclose(formulas.kl(logp, ref, "k3"), [0.1931472, 2 - 0.6931472 - 1, 0], atol=1e-6)


def test_k3_is_never_negative_and_bounded():
    d = np.concatenate([np.linspace(-90, 90, 20_001), np.geomspace(1e-8, 1, 2_000), -np.geomspace(1e-8, 1, 2_000)]).astype(
        np.float32
    )
    got = np.asarray(formulas.kl(jnp.zeros_like(d), d, "k3"))
    assert got.min() >= 0
    assert got.max() <= formulas.K3_LIMIT
    assert np.isfinite(jax.grad(lambda logp: formulas.kl(logp, d, "k3").sum())(jnp.zeros_like(d))).all()


def test_estimators_estimate_the_divergence():
    """Mean over the policy's own distribution: k1 and k3 give KL exactly (1e-6); k2 is close for near policies."""
    rng = np.random.default_rng(0)
    p, q = (np.exp(x) / np.exp(x).sum() for x in rng.normal(size=(2, 50)) * 0.3)
    true = (p * np.log(p / q)).sum()
    means = {
        name: float((p * np.asarray(formulas.kl(jnp.log(p), jnp.log(q), name), np.float64)).sum()) for name in ("k1", "k2", "k3")
    }
    assert means["k1"] == pytest.approx(true, abs=1e-6)
    assert means["k3"] == pytest.approx(true, abs=1e-6)
    assert means["k2"] == pytest.approx(true, rel=0.1)


def test_extreme_log_ratios_stay_finite():
    logp, old = f32([[-1e30, 0.0, -200.0]]), f32([[0.0, -200.0, -200.0]])
    out = formulas.policy_loss(logp, old, f32([1.0]), **CLIPS)
    assert np.isfinite(out.loss).all() and np.isfinite(out.ratio).all()


def test_weights_by_hand():
    mask = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 0, 0]]], bool)
    assert np.allclose(formulas.token_weights(mask, "token_mean"), mask / 6, atol=1e-7)
    by_answer = [[[1 / 9] * 3 + [0], [1 / 3, 0, 0, 0]], [[0] * 4, [1 / 6, 1 / 6, 0, 0]]]  # three answers have tokens
    assert np.allclose(formulas.token_weights(mask, "sequence_mean"), by_answer, atol=1e-7)
    for aggregation in ("token_mean", "sequence_mean"):
        assert float(formulas.token_weights(mask, aggregation).sum()) == pytest.approx(1, abs=1e-6)
        assert (formulas.token_weights(np.zeros_like(mask), aggregation) == 0).all()


def linear_logp(params, prompts, tokens, places) -> TokenLogp:
    """A policy of 64 numbers in the model's place."""
    scores = jax.nn.log_softmax(params["scores"] * (1 + prompts.uid[:, None].astype(jnp.float32) / 2.0**33))
    return TokenLogp(jax.vmap(lambda row, ids: row[ids])(scores, tokens), jnp.zeros(tokens.shape), None)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_the_loss_does_not_depend_on_the_split(aggregation, on_policy):
    """Answers of unequal lengths, so a mean over each piece's own tokens would differ."""
    rng = np.random.default_rng(0)
    tokens, mask = tiny.answers(8, 4, 6)
    params = {"scores": jnp.asarray(rng.normal(size=64), jnp.float32)}
    noise = rng.normal(size=(2, *tokens.shape)).astype(np.float32)
    advantages = rng.normal(size=(8, 4)).astype(np.float32)
    prompts = tiny.prompts(8)
    logp = linear_logp(params, prompts, tokens, mask).logp
    batch = TrainBatch(prompts, tokens, mask, advantages, logp + 0.3 * noise[0], logp + 0.5 * noise[1], tiny.packed(mask))
    loss = partial(grpo_loss, cfg=LossConfig(kl_coef=0.1), logp_fn=linear_logp, on_policy=on_policy)
    weights = formulas.token_weights(mask, aggregation)
    run = tiny.jit(lambda params, pieces: accumulate(loss, params, {}, batch, weights, pieces), static_argnums=1)
    whole_gradient, whole = run(params, 1)
    assert float(jnp.abs(whole_gradient["scores"]).max()) > 1e-3
    for pieces in (2, 4, 8):
        gradient, metrics = run(params, pieces)
        assert tiny.relative(gradient, whole_gradient) < 2e-6
        assert metrics.keys() == whole.keys()
        for name in whole:
            assert float(metrics[name]) == pytest.approx(float(whole[name]), abs=2e-6), name
    by_hand = formulas.policy_loss(logp, logp if on_policy else batch.old_logp, advantages, **CLIPS).loss + 0.1 * formulas.kl(
        logp, batch.ref_logp, "k3"
    )
    each = [by_hand[q, g][mask[q, g]] for q in range(8) for g in range(4)]
    want = np.concatenate(each).mean() if aggregation == "token_mean" else np.mean([x.mean() for x in each])
    assert float(whole["loss"]) == pytest.approx(float(want), abs=2e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_row_objective_is_what_the_loss_minimises(aggregation):
    rng = np.random.default_rng(0)
    logp, old, ref = (-rng.uniform(0.1, 3, (3, 4, 5)).astype(np.float32) for _ in range(3))
    advantages, mask = rng.normal(size=(3, 4)).astype(np.float32), np.arange(5) < rng.integers(1, 6, (3, 4))[..., None]
    cfg = LossConfig(aggregation=aggregation)
    sums, weights = formulas.row_objective(logp, old, ref, advantages, mask, cfg=cfg)
    terms = formulas.policy_loss(logp, old, advantages, clip_low=cfg.clip_low, clip_high=cfg.clip_high, dual_clip=cfg.dual_clip)
    loss = terms.loss + cfg.kl_coef * formulas.kl(logp, ref, cfg.kl_estimator)
    whole = float((loss * formulas.token_weights(mask, aggregation)).sum())
    assert float(sums.sum() / weights.sum()) == pytest.approx(-whole, rel=1e-5)
    one = float((loss[1] * formulas.token_weights(mask[1], aggregation)).sum())
    assert float(sums[1] / weights[1]) == pytest.approx(-one, rel=1e-5)
    # one answer of two tokens, advantage 1, ratios 1 and 1.1, no divergence: mean 1.05
    new = np.log(np.array([[[1.0, 1.1]]], np.float32))
    zero, full = np.zeros((1, 1, 2), np.float32), np.ones((1, 1, 2), bool)
    sums, weights = formulas.row_objective(new, zero, new, np.ones((1, 1), np.float32), full, cfg=cfg)
    assert float(sums[0] / weights[0]) == pytest.approx(1.05, rel=1e-5)
