"""The objectives by name: against TRL's own loss on random arrays, and the identities between them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import LossConfig
from mtjudge_jax.rl import loss as formulas
from mtjudge_jax.rl.logp import TokenLogp
from mtjudge_jax.rl.loss import grpo_loss
from mtjudge_jax.types import TrainBatch

GOLDENS = Path(tiny.__file__).parent / "goldens" / "objectives.npz"  # by make_objectives.py
NAMES = {
    "clip token_mean": {},
    "clip sequence_mean": {"aggregation": "sequence_mean"},
    "clip constant": {"aggregation": "constant"},
    "gspo sequence_mean": {"policy": "gspo", "aggregation": "sequence_mean"},
    "cispo token_mean": {"policy": "cispo", "cispo_cap": 1.5},
    "sapo sequence_mean": {"policy": "sapo", "aggregation": "sequence_mean"},
    "clip token_mean entropy": {"entropy_coef": 0.02},
    "clip token_mean sampler": {"sampler_weight": "token"},
}


def loss_of(logp, arrays: dict, *, on_policy: bool = False, **fields):
    """The loss of an update with these log-probabilities in the model's place; and its metrics."""
    cfg = LossConfig(kl_coef=0.1, **fields)
    given = TokenLogp(logp, jnp.asarray(arrays["entropy"]), None)
    batch = TrainBatch(None, None, arrays["mask"], arrays["advantages"], arrays["old"], arrays["ref"], None, arrays["sampler"])
    weights = formulas.token_weights(jnp.asarray(arrays["mask"]), cfg.aggregation)
    return grpo_loss({}, batch, weights, cfg=cfg, logp_fn=lambda *_: given, on_policy=on_policy)


@pytest.fixture(scope="module")
def arrays() -> dict:
    return dict(np.load(GOLDENS))


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_trls(arrays, name):
    loss, gradient = jax.value_and_grad(lambda logp: loss_of(logp, arrays, **NAMES[name])[0])(jnp.asarray(arrays["logp"]))
    assert float(loss) == pytest.approx(float(arrays[f"{name} loss"]), abs=1e-6)
    assert np.abs(gradient - arrays[f"{name} gradient"]).max() < 1e-6
    assert np.abs(arrays[f"{name} gradient"]).max() > 1e-2


def test_a_token_of_gspo_token_has_the_value_of_gspo_and_its_own_gradient(arrays):
    logp, old, mask = (jnp.asarray(arrays[name]) for name in ("logp", "old", "mask"))
    whole = formulas.sequence_ratio(logp, old, mask, by_token=False)
    token = formulas.sequence_ratio(logp, old, mask, by_token=True)
    assert np.abs(whole - token).max() < 1e-6 and np.ptp(whole) > 0.1
    lengths = arrays["mask"].sum(-1)
    mean = (np.where(arrays["mask"], arrays["logp"] - arrays["old"], 0)).sum(-1) / lengths
    assert np.abs(whole[..., 0] - np.exp(mean)).max() < 1e-6
    slope = jax.grad(lambda logp: formulas.sequence_ratio(logp, old, mask, by_token=True)[0, 0, 0])(logp)
    assert [float(slope[0, 0, 0]), float(jnp.abs(slope).sum())] == pytest.approx([float(whole[0, 0, 0])] * 2, rel=1e-5)
    slope = jax.grad(lambda logp: formulas.sequence_ratio(logp, old, mask, by_token=False)[0, 0, 0])(logp)
    want = np.where(arrays["mask"][0, 0], float(whole[0, 0, 0]) / lengths[0, 0], 0)
    assert np.abs(slope[0, 0] - want).max() < 1e-6


def test_on_policy_gspo_is_grpo_where_the_answers_are_equally_long(arrays):
    full = arrays | {"mask": np.ones_like(arrays["mask"])}
    plain, gspo = (
        jax.value_and_grad(lambda logp, f=fields: loss_of(logp, full, on_policy=True, aggregation="sequence_mean", **f)[0])(
            jnp.asarray(arrays["logp"])
        )
        for fields in ({}, {"policy": "gspo"})
    )
    assert float(plain[0]) == pytest.approx(float(gspo[0]), abs=1e-6)
    assert np.abs(plain[1] - gspo[1]).max() < 1e-6 and np.abs(gspo[1]).max() > 1e-3


def test_cispo_stops_at_the_ratio_and_goes_on_teaching():
    old, a = jnp.full((1, 1, 1), -1.0), jnp.full((1, 1), 2.0)
    for ratio, slope in ((1.0, -2.0), (3.0, -6.0), (9.0, -10.0)):  # the cap is 5; a clip would have no gradient at 9
        got = jax.grad(lambda logp: formulas.cispo_loss(logp, old, a, cap=5.0).loss.sum())(old + np.float32(np.log(ratio)))
        assert float(got[0, 0, 0]) == pytest.approx(slope, rel=1e-5)


def test_sapo_has_the_slope_of_the_policy_gradient_at_ratio_one():
    old = jnp.full((1, 2, 1), -1.0)
    loss = lambda logp: formulas.sapo_loss(logp, old, jnp.array([[2.0, -3.0]]), positive=1.0, negative=1.05).loss.sum()  # noqa: E731
    got = jax.grad(loss)(old)
    assert got[0, :, 0].tolist() == pytest.approx([-2.0, 3.0], rel=1e-6)


def test_rloo_is_the_distance_to_the_mean_of_the_others():
    rewards = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    others = (rewards.sum(-1, keepdims=True) - rewards) / 6
    got = formulas.rloo_advantages(jnp.asarray(rewards))
    assert np.abs(got - (rewards - others)).max() < 1e-6
    assert np.abs(got - 7 / 6 * (rewards - rewards.mean(-1, keepdims=True))).max() < 1e-6
    assert (formulas.rloo_advantages(jnp.full((3, 4), 0.1)) == 0).all()


def test_gdpo_with_one_part_is_grpo():
    rewards = jnp.asarray(np.random.default_rng(0).random((5, 7)), jnp.float32)
    cfg, learn = LossConfig(advantage="gdpo"), jnp.ones(5, bool)
    one = formulas.advantages_of(rewards, rewards[..., None], jnp.ones(1), learn, cfg=cfg)
    assert np.array_equal(one, formulas.group_advantages(rewards, std="unbiased", eps=1e-6))


def test_gdpo_is_that_of_trl():
    """Whose eps is 1e-4, in the groups and in the batch."""
    parts, weights, theirs = (jnp.asarray(np.load(GOLDENS)[f"gdpo {name}"]) for name in ("parts", "weights", "advantages"))
    got = formulas.gdpo_advantages(parts, weights, jnp.ones(len(parts), bool), std="unbiased", eps=1e-4)
    np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(theirs).max() > 1


def test_gdpo_normalises_each_part_then_the_batch():
    """By numpy in float64; a row that does not count changes nothing, and a group flat in one part learns from the other."""
    rng = np.random.default_rng(0)
    parts = np.stack([rng.integers(0, 2, (4, 6)), 0.01 * rng.random((4, 6))], -1).astype(np.float32)
    parts[1, :, 0] = 1.0
    parts[3] = 50.0 * rng.random((6, 2))
    learn = np.array([True, True, True, False])
    each = parts.astype(np.float64) - parts.mean(1, keepdims=True, dtype=np.float64)
    deviation = parts.std(1, ddof=1, keepdims=True, dtype=np.float64)
    each = np.where(deviation > 0, each / np.where(deviation > 0, deviation, 1), 0)
    total = each @ np.array([0.9, 0.1])
    want = (total - total[:3].mean()) / total[:3].std(ddof=1)
    got = formulas.gdpo_advantages(jnp.asarray(parts), jnp.array([0.9, 0.1]), jnp.asarray(learn), std="unbiased", eps=0.0)
    assert np.abs(got[:3] - want[:3]).max() < 1e-5 and np.abs(got[1]).max() > 0.05 and (got[3] == 0).all()


def test_equal_policies_need_no_correction_and_a_cap_holds(arrays):
    old, sampler, mask = (jnp.asarray(arrays[name]) for name in ("old", "sampler", "mask"))
    for per in ("token", "sequence"):
        assert (formulas.sampler_weights(old, old, mask, per=per, cap=2.0) == 1).all()
        got = np.asarray(formulas.sampler_weights(old, sampler, mask, per=per, cap=2.0))
        assert got.max() == 2.0 and got.min() < 0.8
    token = np.minimum(np.exp(arrays["old"] - arrays["sampler"]), 2.0)
    assert np.abs(formulas.sampler_weights(old, sampler, mask, per="token", cap=2.0) - token)[arrays["mask"]].max() < 1e-6
    _, metrics = loss_of(jnp.asarray(arrays["logp"]), arrays)
    gap = np.abs(arrays["old"] - arrays["sampler"])[arrays["mask"]].mean()
    assert float(metrics["sampler_gap"]) == pytest.approx(gap, rel=1e-5)


def test_what_is_left_out_is_left_out_of_the_denominators():
    mask, learn = jnp.ones((3, 2, 4), bool), jnp.array([True, True, False])
    parts = jnp.array([[[0.5], [0.5]], [[0.0], [1.0]], [[0.0], [1.0]]])
    truncated = jnp.array([[False, False], [True, False], [False, False]])
    seen = lambda **fields: formulas.learned_mask(mask, learn, parts, truncated, cfg=LossConfig(**fields)).any(-1).tolist()  # noqa: E731
    assert seen() == [[True, True], [True, True], [False, False]]
    assert seen(flat_groups="out") == [[False, False], [True, True], [False, False]]
    assert seen(truncated="out") == [[True, True], [False, True], [False, False]]
    left = formulas.learned_mask(mask, learn, parts, truncated, cfg=LossConfig(flat_groups="out", truncated="out"))
    assert float(formulas.token_weights(left, "token_mean")[1, 1].sum()) == pytest.approx(1.0)


def test_constant_weights_do_not_see_the_lengths():
    mask = np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 0, 0]]], bool)
    assert np.allclose(formulas.token_weights(mask, "constant"), mask / 12, atol=1e-7)
    assert np.allclose(formulas.token_weights(mask, "constant", 10), mask / 30, atol=1e-7)


def test_the_divergence_can_be_in_the_reward_alone(arrays):
    logp = jnp.asarray(arrays["logp"])
    loss, metrics = loss_of(logp, arrays, kl_in="reward")
    assert float(loss) == pytest.approx(float(metrics["policy_loss"]), abs=1e-7) and float(metrics["kl"]) > 0.01
    assert float(loss_of(logp, arrays)[0]) == pytest.approx(float(loss) + 0.1 * float(metrics["kl"]), abs=1e-6)
