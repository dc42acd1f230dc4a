"""DPO: loss, rewards and gradient against TRL's on the same model, and what one stream of two answers must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from parity import HERE, golden_model, golden_rows, goldens, in_hub_layout

from mtjudge_jax.config import DpoConfig
from mtjudge_jax.policy.update import accumulate
from mtjudge_jax.rl.logp import completion_logp
from mtjudge_jax.rl.loss import dpo_loss, token_weights
from mtjudge_jax.types import DpoBatch

TOLERANCE = 1e-5  # relative; float32 on both sides


def logp_of(cfg, params, rows, tokens, places):
    every = np.ones(cfg.text.vocab_size, bool)
    return completion_logp(params, cfg, rows, tokens, places, allowed=every, temperature=1.0, chunk=4096)


@functools.cache
def golden_batch() -> DpoBatch:
    """The golden prompts with their two completions; the reference is the golden model with a quiet tower."""
    params, cfg = golden_model("quiet")
    tokens, mask = goldens()["completions"], goldens()["completion_mask"]
    places = tiny.packed(mask)
    ref_logp = tiny.jit(functools.partial(logp_of, cfg))(params, golden_rows(), tokens, places).logp
    return DpoBatch(golden_rows(), tokens, mask, places, ref_logp)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_rewards_and_gradient_are_trls(beta, record_testsuite_property):
    want = np.load(HERE / "dpo.npz")  # by make_dpo.py
    params, cfg = golden_model("untied")
    batch = golden_batch()
    weights = token_weights(jnp.asarray(batch.mask), "sequence_mean")
    loss = functools.partial(dpo_loss, cfg=DpoConfig(beta), logp_fn=functools.partial(logp_of, cfg))
    (value, metrics), gradient = tiny.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, weights)
    names = ("reward_chosen", "reward_rejected", "margin", "pair_accuracy")
    assert float(value) == pytest.approx(float(want[f"{beta} loss"]), rel=TOLERANCE)
    assert [float(metrics[name]) for name in names] == pytest.approx(want[f"{beta} metrics"].tolist(), rel=TOLERANCE)
    by_name = in_hub_layout(gradient, cfg)
    assert sorted(by_name) == want["names"].tolist()
    ends = np.cumsum(want["counts"])
    places = [want["at"][end - count : end] for end, count in zip(ends, want["counts"], strict=True)]
    got = np.concatenate([by_name[name].reshape(-1)[at] for name, at in zip(want["names"].tolist(), places, strict=True)])
    sampled = want[f"{beta} gradient"]
    gap = float(np.linalg.norm(got - sampled) / np.linalg.norm(sampled))
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in by_name.values()))
    record_testsuite_property(f"dpo gradient, beta {beta}", gap)
    assert gap < TOLERANCE and norm == pytest.approx(float(want[f"{beta} norm"]), rel=TOLERANCE)
    assert abs(want[f"{beta} metrics"][2]) > 0.01  # so policy and reference differ


def test_two_answers_in_one_stream_are_each_alone():
    cfg = tiny.config()
    params, rows = tiny.params(cfg), tiny.prompts()
    tokens, mask = tiny.answers(4, 2, 7)
    run = tiny.jit(functools.partial(logp_of, cfg))
    both = run(params, rows, tokens, tiny.packed(mask)).logp
    for place in (0, 1):
        one = (tokens[:, place : place + 1], mask[:, place : place + 1])
        alone = run(params, rows, one[0], tiny.packed(one[1])).logp
        assert tiny.relative(np.where(one[1], both[:, place : place + 1], 0), np.where(one[1], alone, 0)) < TOLERANCE


def plain(chosen, rejected, ref_chosen, ref_rejected, beta: float) -> float:
    """The paper's formula, in float64, of summed log-probabilities [Q]."""
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return float(np.log1p(np.exp(-margin)).mean())


def test_the_loss_is_the_papers_and_pieces_add_up_to_it():
    """With the term of SFT. A pair counts once whatever its lengths; a row that is not learned from counts nothing, and its NaN
    reaches nothing."""
    cfg = tiny.config()
    params, rows = tiny.params(cfg), jax.tree.map(jnp.asarray, tiny.prompts())
    tokens, mask = tiny.answers(4, 2, 7)
    full = tiny.full(tokens)
    logp = np.asarray(logp_of(cfg, params, rows, tokens, full).logp, np.float64)
    ref = logp + np.random.default_rng(0).normal(0, 0.3, logp.shape)
    mask[3] = False
    sums = lambda x: np.moveaxis(np.where(mask, x, 0).sum(-1), 1, 0)[:, :3]  # noqa: E731
    chosen = np.where(mask, logp, 0)[:3, 0].sum(-1) / mask[:3, 0].sum(-1)  # a token, then the mean over answers
    want = plain(*sums(logp), *sums(ref), 0.7) - 0.3 * chosen.mean()
    ref = np.where(mask, ref, np.nan)
    batch = DpoBatch(rows, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(full), jnp.asarray(ref, jnp.float32))
    loss = functools.partial(dpo_loss, cfg=DpoConfig(0.7, 0.3), logp_fn=functools.partial(logp_of, cfg))
    weights = token_weights(batch.mask, "sequence_mean")
    gradients = {}
    for pieces in (1, 2):
        run = tiny.jit(functools.partial(accumulate, loss, pieces=pieces))
        gradients[pieces], metrics = run(params, {}, batch, weights)
        assert float(metrics["loss"]) == pytest.approx(want, rel=TOLERANCE)
        assert float(metrics["chosen_nll"]) == pytest.approx(-chosen.mean(), rel=TOLERANCE)
        assert float(metrics["margin"]) == pytest.approx(float(metrics["reward_chosen"] - metrics["reward_rejected"]), abs=1e-6)
    assert tiny.relative(gradients[2], gradients[1]) < TOLERANCE


def test_equal_policies_have_the_loss_of_a_coin():
    """The gradient there is -beta / 2 times that of the chosen log-probability less the rejected one."""
    cfg = tiny.config()
    params, rows = tiny.params(cfg), jax.tree.map(jnp.asarray, tiny.prompts())
    tokens, mask = tiny.answers(4, 2, 7)
    places, weights = tiny.packed(mask), token_weights(jnp.asarray(mask), "sequence_mean")

    def both(params):
        logp = logp_of(cfg, params, rows, tokens, places).logp
        batch = DpoBatch(rows, tokens, mask, places, jax.lax.stop_gradient(logp))
        return dpo_loss(params, batch, weights, cfg=DpoConfig(0.4), logp_fn=functools.partial(logp_of, cfg))[0]

    def lead(params):
        sums = jnp.where(mask, logp_of(cfg, params, rows, tokens, places).logp, 0).sum(-1)
        return (sums[:, 0] - sums[:, 1]).mean()

    value, gradient = tiny.jit(jax.value_and_grad(both))(params)
    assert float(value) == pytest.approx(np.log(2), rel=1e-6)
    assert tiny.relative(gradient, jax.tree.map(lambda x: -0.2 * x, tiny.jit(jax.grad(lead))(params))) < TOLERANCE
