"""MT-GRPO by hand-computed numbers, the fixed mixtures' shares, and the adaptive one: told the same, it draws the same."""

import collections
import json

import numpy as np
import pytest
from data_fixtures import data_config, row_format
from feeding import COUNTS, NAMES, iterator, sources, write_data

from mtjudge_jax.data.pipeline import Shard, fixed_mixture
from mtjudge_jax.rl import mt_grpo
from mtjudge_jax.tasks import TASKS


@pytest.fixture(scope="module")
def fmt(tmp_path_factory):
    return row_format(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_logits_move_as_the_paper_says():
    """Two even tasks, s = I + 0.5 J = (0.3, 0.3) + (-0.1, 0.3): mean 0.4, g = 0.5 (-0.2, 0.2)."""
    moved = mt_grpo.next_logits(np.zeros(2), improvement=np.array([-0.1, 0.3]), reward=np.array([0.6, 0.6]), lam=0.5, beta=2.0)
    assert np.allclose(moved, [0.2, -0.2], atol=1e-12)
    uneven = mt_grpo.next_logits(
        np.log([3.0, 1.0]), improvement=np.zeros(2), reward=np.array([0.2, 0.6]), lam=1.0, beta=1.0
    )  # z = (3/4, 1/4), mean 0.3, g = (3/4 * -0.1, 1/4 * 0.3)
    assert np.allclose(uneven, [np.log(3) + 0.075, -0.075], atol=1e-12)
    assert np.allclose(mt_grpo.task_weights(np.log([3.0, 1.0]) + 900), [0.75, 0.25], atol=1e-12)


def test_a_large_lambda_turns_to_the_worst_task_and_a_small_one_to_the_one_that_stands_still():
    improvement, reward = np.array([0.0, 0.1, 0.1]), np.array([0.9, 0.1, 0.5])
    for lam, most in ((1.2, 1), (0.05, 0)):
        logits = np.zeros(3)
        for _ in range(5):
            logits = mt_grpo.next_logits(logits, improvement=improvement, reward=reward, lam=lam, beta=1.0)
        assert np.argmax(mt_grpo.task_weights(logits)) == most


def test_wanted_counts_follow_the_weights_and_the_step_alone():
    weights = np.array([0.5, 0.3, 0.2])
    counts = np.array([mt_grpo.wanted_counts(weights, 100, seed=3, step=step) for step in range(400)])
    assert (counts.sum(1) == 100).all() and len({tuple(c) for c in counts.tolist()}) > 100
    assert np.allclose(counts.mean(0), [50, 30, 20], atol=1)  # five standard errors of 5 / sqrt(400)
    assert np.allclose(counts.var(0), [25, 21, 16], rtol=0.4)
    again = mt_grpo.wanted_counts(weights, 100, seed=3, step=7)
    assert again.tolist() == counts[7].tolist() != mt_grpo.wanted_counts(weights, 100, seed=4, step=7).tolist()


def test_oversampling_and_allocation():
    assert np.allclose(mt_grpo.oversampling(np.array([0.0, 0.5, 0.75, 0.9, 1.0]), 4.0), [1, 2, 4, 4, 4])
    assert np.allclose(mt_grpo.oversampling(np.array([0.9, 1.0]), 1.0), [1, 1])
    assert mt_grpo.allocate(np.array([6, 6]), np.array([1.0, 2.0]), 12).tolist() == [4, 8]
    assert mt_grpo.allocate(np.array([4, 4, 4]), np.ones(3), 10).tolist() == [4, 3, 3]  # a tie: the first
    assert mt_grpo.allocate(np.array([0, 7, 5]), np.array([4.0, 1.0, 1.0]), 12).tolist() == [0, 7, 5]
    # 12 wanted with a gradient at rates (0, 1/2): of (4, 8) drawn 4 and 4 have one, the ratio 6 : 6 that was wanted
    drawn = mt_grpo.allocate(np.array([6, 6]), mt_grpo.oversampling(np.array([0, 0.5]), 4.0), 12)
    assert (drawn * [1, 0.5]).tolist() == [4, 4]
    assert mt_grpo.running_rate(0.5, 1.0, 0.9) == pytest.approx(0.55)


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize(
    "how,shares",
    [
        ({"mixture": "temperature", "mixture_temperature": 2.0}, np.sqrt([31, 20, 41])),
        ({"mixture": "temperature", "mixture_temperature": 1.0}, [31, 20, 41]),
        ({"mixture": "weights", "mixture_weights": (3, 1, 0.5)}, [3, 1, 0.5]),
    ],
)
def test_shares_of_the_fixed_mixtures(data, how, shares, balance):
    drawn = fixed_mixture(sources(data), TASKS, data_config(NAMES, seed=1, balance_labels=balance, **how))
    counts = collections.Counter(drawn[i].task for i in range(900))
    assert list(sources(data)) == list(NAMES) == list(COUNTS)
    for name, share in zip(NAMES, np.array(shares) / np.sum(shares), strict=True):
        assert abs(counts[name] - 900 * share) <= 3


def told(step: int) -> dict:
    """What a step is pretended to have measured: safety is bad, technical gives no gradient, alignment is there now and then."""
    out = {"technical": {"reward": 0.9, "zero_variance": 0.8}, "safety": {"reward": 0.1 + 0.01 * step, "zero_variance": 0.1}}
    return out | ({"alignment": {"reward": 0.5, "zero_variance": 0.25}} if step % 2 else {})


def adaptive(data, fmt, **changes):
    settings = {"mixture": "mt_grpo", "mt_grpo_lambda": 1.0, "mt_grpo_beta": 2.0}
    return iterator(data, fmt, **{**settings, **changes})


@pytest.mark.parametrize("mode", ["objective", "reward"])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_adaptive_mixture_is_the_same_on_any_shards_and_after_a_restore(data, fmt, shards, mode):
    gains = {"technical": 0.0, "safety": 0.02, "alignment": -0.01} if mode == "objective" else None
    whole, expected, states = adaptive(data, fmt), [], []
    for step in range(10):
        states.append(json.dumps(whole.get_state(), sort_keys=True))
        expected.append(next(whole))
        whole.learn(told(step), gains)
    end = whole.get_state()
    whole.close()
    parts = [adaptive(data, fmt, shard=Shard(i, shards), threads=i % 3) for i in range(shards)]
    next(parts[0])  # one that is under way is put back as well
    for part in parts:
        part.set_state(json.loads(states[4]))  # names sorted, as a checkpoint writes it
    for step in range(4, 10):
        assert {json.dumps(part.get_state(), sort_keys=True) for part in parts} == {states[step]}
        batches = [next(part) for part in parts]
        for key in ("example_id", "tokens", "patches", "label", "uid", "task"):
            assert np.array_equal(np.concatenate([batch[key] for batch in batches]), expected[step][key])
        for part in parts:
            part.learn(told(step), gains)
    assert all(part.get_state() == end for part in parts)
    assert len({tuple(batch["task"].tolist()) for batch in expected}) == 10
    for part in parts:
        part.close()


def test_the_adaptive_mixture_turns_to_the_worst_task_and_draws_labels_in_turn(data, fmt):
    batches, labels, ids, last = adaptive(data, fmt), collections.defaultdict(list), collections.defaultdict(list), {}
    for step in range(40):
        got = next(batches)
        for name in NAMES:
            of = got["task"] == name
            counts = np.bincount(got["label"][of], minlength=2)
            assert abs(counts[0] - counts[1]) <= 1  # of an even number exactly
            labels[name] += got["label"][of].tolist()
            ids[name] += got["example_id"][of].tolist()
        last = batches.learn(told(step))
    batches.close()
    assert last["safety"]["weight"] > 0.8 > 0.1 > last["technical"]["weight"] > 0
    assert sum(line["weight"] for line in last.values()) == pytest.approx(1)
    assert last["technical"]["no_gradient"] > 0.75 and last["safety"]["no_gradient"] < 0.11
    assert len(labels["safety"]) > len(labels["technical"])
    assert len(set(ids["safety"])) == 20  # every record
    state = batches.get_state()
    assert state["step"] == 40 and {name: len(ids[name]) for name in NAMES} == {
        name: state["tasks"][name]["position"] for name in NAMES
    }


def test_one_step_of_the_adaptive_mixture_by_hand(data, fmt):
    batches = adaptive(data, fmt, mt_grpo_beta=3.0, mt_grpo_rho_decay=0.5)
    next(batches)
    measured = {name: {"reward": r, "zero_variance": v} for name, r, v in zip(NAMES, (0.0, 0.3, 0.6), (1, 0.5, 0), strict=True)}
    batches.learn(measured, dict.fromkeys(NAMES, 0.0))
    tasks = batches.get_state()["tasks"]  # z = 1/3, mean 0.3: -3 / 3 * (-0.3, 0, 0.3)
    assert np.allclose([tasks[name]["logit"] for name in NAMES], [0.3, 0, -0.3], atol=1e-12)
    assert [tasks[name]["rho"] for name in NAMES] == [0.5, 0.25, 0.0]
    before = batches.get_state()
    next(batches)
    broken = {**measured, "safety": {"reward": float("nan"), "zero_variance": 0.0}}
    batches.learn(broken, dict.fromkeys(NAMES, 0.0))
    assert batches.get_state()["step"] == 2
    for name in NAMES:  # the step counts, what it measured does not
        assert batches.get_state()["tasks"][name] | {"position": 0} == before["tasks"][name] | {"position": 0}
    next(batches)
    moved = batches.learn({**measured, "technical": {"reward": 0.4, "zero_variance": 0}})
    assert moved["technical"]["improvement"] == pytest.approx(0.4) and moved["safety"]["improvement"] == 0
    batches.close()


def test_no_batch_before_the_last_was_learned_from(data, fmt):
    batches = adaptive(data, fmt)
    next(batches)
    with pytest.raises(RuntimeError, match="batch 1 was not learned from"):
        next(batches)
    state = batches.get_state()
    with pytest.raises(ValueError, match="saved mixture is of technical, safety, this one of technical, safety, alignment"):
        batches.set_state({**state, "tasks": {name: state["tasks"][name] for name in NAMES[:2]}})
    batches.close()


def test_over_sampling_keeps_the_ratio_of_prompts_with_a_gradient(data, fmt):
    """Even weights (beta so small) and three prompts of four of technical without a gradient: it comes four times as often."""
    batches = adaptive(data, fmt, prompts=60, mt_grpo_lambda=0.6, mt_grpo_beta=1e-9, mt_grpo_rho_decay=0.0)
    measured = {name: {"reward": 0.5, "zero_variance": 0.75 if name == "technical" else 0.0} for name in NAMES}
    counts = collections.Counter()
    for step in range(21):
        got = next(batches)
        counts.update(got["task"].tolist() if step else [])
        batches.learn(measured)
    batches.close()
    assert abs(counts["technical"] / 1200 - 4 / 6) < 0.04 and abs(counts["safety"] - counts["alignment"]) < 60
