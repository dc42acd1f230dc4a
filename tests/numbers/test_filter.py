"""Which tokens a filter lets through, and that the sampler draws among these alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.policy.lanes import sample
from mtjudge_jax.rl.logp import BANNED, EVERY, Filter, sampling_logits

TEMPERATURE = 0.7


def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Hidden states [200, 32] and a head [64, 32]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 32)).astype(np.float32), 0.3 * rng.normal(size=(tiny.VOCABULARY, 32)).astype(np.float32)


def by_sorting(logits: np.ndarray, only: Filter) -> np.ndarray:
    """bool [V] of one row: the likeliest top_k, and of these the fewest whose share is top_p."""
    order = np.argsort(-logits, kind="stable")[: only.top_k or len(logits)]
    share = np.exp(logits[order].astype(np.float64) - logits.max())
    share = np.cumsum(share) / share.sum()
    keep = np.zeros(len(logits), bool)
    keep[order[: int(np.searchsorted(share, only.top_p)) + 1]] = True
    return keep


FILTERS = (Filter(1), Filter(7), Filter(100), Filter(0, 0.3), Filter(0, 0.95), Filter(5, 0.8), Filter(0, 1e-6))


@pytest.mark.parametrize("only", FILTERS)
def test_a_filter_keeps_what_sorting_keeps(only):
    hidden, head = arrays()
    logits = np.asarray(sampling_logits(hidden, head, tiny.ALLOWED, TEMPERATURE))
    got = np.asarray(sampling_logits(hidden, head, tiny.ALLOWED, TEMPERATURE, only))
    want = np.stack([by_sorting(row, only) for row in logits]) & tiny.ALLOWED
    np.testing.assert_array_equal(got > BANNED, want)
    np.testing.assert_array_equal(got[want], logits[want])
    assert (want.sum(-1) >= 1).all() and (want.sum(-1) < tiny.ALLOWED.sum()).any() == (only.top_k < tiny.ALLOWED.sum())


def test_equally_likely_tokens_stay_together():
    head = np.zeros((4, 1), np.float32)
    head[0] = 1
    got = sampling_logits(np.ones((1, 1), np.float32), head, np.ones(4, bool), 1.0, Filter(2))
    assert (np.asarray(got) > BANNED).all()


def test_without_a_filter_the_program_is_the_same():
    hidden, head = arrays()
    plain = jax.make_jaxpr(lambda h, w: sampling_logits(h, w, tiny.ALLOWED, TEMPERATURE))(hidden, head)
    assert str(plain) == str(jax.make_jaxpr(lambda h, w: sampling_logits(h, w, tiny.ALLOWED, TEMPERATURE, EVERY))(hidden, head))


def test_the_sampler_draws_among_the_filtered_by_their_shares():
    """3,000 first tokens a prompt among the 3 likeliest; their log-probabilities are those of the three alone."""
    cfg, rows, only = tiny.config(blocks=1), tiny.prompts(2), Filter(3)
    params, settings = tiny.params(cfg), {"allowed": tiny.ALLOWED, "length": 2, "pad": tiny.PAD, "eos": tiny.EOS}
    settings |= {"temperature": jnp.full(3000, TEMPERATURE), "only": only}
    draw = tiny.jit(lambda params, rows: sample(params, cfg, rows, jax.random.key(0), **settings))
    out = draw(params, rows)
    for tokens, logp in zip(np.asarray(out.tokens[..., 0]), np.asarray(out.logp[..., 0]), strict=True):
        found, first, counts = np.unique(tokens, return_index=True, return_counts=True)
        share = np.exp(logp[first].astype(np.float64))
        assert len(found) == 3 and share.sum() == pytest.approx(1, abs=1e-5)
        assert (np.abs(counts / 3000 - share) < 4 * np.sqrt(share * (1 - share) / 3000)).all()
