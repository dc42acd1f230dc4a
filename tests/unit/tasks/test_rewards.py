"""Named parts of a reward against values worked by hand, their weights in a config, and a user's own."""

import itertools

import numpy as np
import pytest
from scipy import stats
from task_records import record, say

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.metrics.correlation import kendall_tau_b
from mtjudge_jax.records import TIE, Label
from mtjudge_jax.rl.reward_rule import rule_of
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.answer import Truth, truth_of, write_truth
from mtjudge_jax.tasks.reward import (
    Rule,
    consistency,
    graded,
    over_both_orders,
    overlong,
    ranking,
    score,
    soft,
    ties,
    weights_of,
)
from mtjudge_jax.train.monitor.batch_metrics import Answers, task_numbers, train_metrics
from mtjudge_jax.train.monitor.nonfinite import suspects


def scored(examples, texts, rule, truncated=None, tokens=None):
    truths = [truth_of(TASKS[e.task], e) for e in examples]
    cut = np.zeros((len(texts), len(texts[0])), bool) if truncated is None else truncated
    known = {"labels": np.array([t.label for t in truths]), "truths": [write_truth(t) for t in truths]}
    return score(texts, cut, tasks=[e.task for e in examples], alpha=rule, tokens=tokens, **known)


def test_graded_by_distance():
    truth = Truth("pointwise_score", ("1", "2", "3", "4", "5"), 2, score=2.5, low=1.0, high=5.0)
    assert [graded(v, truth) for v in range(5)] == [0.625, 0.875, 0.875, 0.625, 0.375]
    assert graded(1, Truth("pairwise", ("A", "B"), 1)) == 1.0 and graded(0, Truth("pairwise", ("A", "B"), 1)) == 0.0


def test_ties_earn_the_credit():
    for true, expected in ((0, [1.0, 0.0, 0.3]), (1, [0.0, 1.0, 0.3]), (2, [0.3, 0.3, 1.0])):
        truth = Truth("pairwise", ("A", "B", "TIE"), true)
        assert [ties(v, truth, credit=0.3) for v in range(3)] == expected
    assert [ties(v, Truth("pairwise", ("A", "B"), 1), credit=0.3) for v in range(2)] == [0.0, 1.0]


def test_rank_correlation():
    truth = Truth("listwise", ("A", "B", "C", "D"), 0, ranks=(1, 2, 3, 4))
    assert ranking((1, 2, 3, 4), truth) == 1.0 and ranking((4, 3, 2, 1), truth) == 0.0
    assert ranking((2, 1, 3, 4), truth) == (4 / 6 + 1) / 2  # one of six pairs the other way round
    assert ranking((1, 1, 2, 3), truth) == pytest.approx((5 / np.sqrt(5 * 6) + 1) / 2)
    assert ranking((1, 1, 1, 1), truth) == 0.5
    tied = truth._replace(ranks=(1, 1, 1, 1))
    assert ranking((1, 1, 1, 1), tied) == 1.0 and ranking((1, 1, 1, 2), tied) == 0.5


def test_rank_correlation_against_scipy():
    orders = list(itertools.product((1, 2, 3), repeat=4))
    for a, b in itertools.product(orders[::3], orders[::5]):
        theirs = stats.kendalltau(a, b, variant="b").statistic
        if not np.isnan(theirs):
            assert kendall_tau_b(a, b) == pytest.approx(theirs, abs=1e-12)


def test_soft_over_length_penalty():
    """DAPO's own numbers: 16,384 tokens expected, 4,096 of buffer, so 20,480 at most."""
    lengths = (0, 16_384, 17_408, 18_432, 20_480, 30_000)
    assert [overlong(n, most=20_480, buffer=4096) for n in lengths] == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert overlong(50, most=50, buffer=0) == 0.0


def test_consistency_of_both_orders():
    assert consistency([0, 1, None], [1, 1, 0]) == [2 / 3, 1 / 3, 0.0]
    assert consistency([2, 0], [2, None]) == [0.5, 0.0]


def test_weights_of_a_config():
    assert weights_of((), (), 0.1) == {}
    assert weights_of(("graded=0.9", "format=0.1"), (), 0.1) == {"graded": 0.9, "format": 0.1}
    assert weights_of((), ("m:f",), 0.25) == {"m:f": 1.0, "accuracy": 0.75, "format": 0.25}
    assert weights_of(("accuracy=1", "m:f=-2"), ("m:f",), 0.25) == {"m:f": -2.0, "accuracy": 1.0}
    for text, says in (
        ("acuracy=1", "names an unknown part: known are accuracy, format, graded, ties, ranking, soft, consistency, overlong"),
        ("accuracy=x", "must be name=number"),
        ("accuracy=nan", "must be a finite number"),
        ("accuracy", "names an unknown part"),
    ):
        with pytest.raises(ValueError, match=says):
            weights_of((text,), (), 0.1)
    with pytest.raises(ValueError, match="names format twice"):
        weights_of(("format=1", "format=2"), (), 0.1)


def test_parts_of_a_mixed_batch_by_hand():
    """A grade, a pair with a tie and a list; the third answer of each was cut off."""
    examples = [
        record("mllm_score", label=Label(score=4.0)),
        record("genai_image", label=Label(winner=TIE)),
        record("mllm_batch", label=Label(ranks=(1, 2, 3, 4))),
    ]
    texts = [
        [say("4"), say("2"), say("4")],
        [say("TIE"), say("A"), say("TIE")],
        [say("A > B > C > D"), say("B > A > C > D"), say("A > B > C > D")],
    ]
    cut = np.array([[False, False, True]] * 3)
    tokens = np.array([[10, 19, 20]] * 3)
    weights = {"accuracy": 0.5, "format": 0.1, "graded": 0.2, "ties": 0.2, "ranking": 0.4, "overlong": 1.0}
    got = scored(examples, texts, Rule(0.1, weights, 0.5, 20, 4), cut, tokens)
    np.testing.assert_allclose(got.parts["graded"], [[1, 0.5, 0], [1, 0, 0], [1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(got.parts["ties"], [[1, 0, 0], [1, 0.5, 0], [1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(got.parts["ranking"], [[1, 0, 0], [1, 0, 0], [1, 5 / 6, 0]], rtol=1e-6)
    np.testing.assert_allclose(got.parts["overlong"], [[0, -0.75, -1]] * 3, rtol=1e-6)
    np.testing.assert_array_equal(got.accuracy, [[1, 0, 0]] * 3)
    np.testing.assert_array_equal(got.format, [[1, 1, 0]] * 3)
    np.testing.assert_array_equal(got.verdict, [[3, 1, -1], [2, 0, -1], [0, 0, -1]])
    expected = [[1.4, 0.1 + 0.1 - 0.75, -1], [1.4, 0.1 + 0.1 - 0.75, -1], [1.4, 0.1 + 0.4 * 5 / 6 - 0.75, -1]]
    np.testing.assert_allclose(got.total, expected, rtol=1e-5)


def test_each_part_is_logged_a_task():
    rule = Rule(0.1, {"accuracy": 0.5, "format": 0.1, "graded": 0.4})
    examples = [record("mllm_score", label=Label(score=5.0)), record("agin_nat", 1)]
    got = scored(examples, [[say("4"), say("1")], [say("yes"), "x"]], rule)
    ones = np.ones((2, 2), np.int32)
    numbers = task_numbers(["mllm_score", "agin_nat"])
    answers = Answers(got, numbers, np.ones(2, np.float32), ones, ones.astype(np.float32), ones < 1)
    line = train_metrics(answers)
    assert line["tasks"]["mllm_score"]["graded"] == pytest.approx((0.75 + 0) / 2)
    assert line["tasks"]["agin_nat"]["graded"] == line["tasks"]["agin_nat"]["accuracy"] == 0.5
    assert line["graded"] == pytest.approx(0.4375) and line["format"] == 0.75
    plain = scored([record("agin_nat", 1)], [[say("yes"), "x"]], 0.1)
    assert plain.parts == {} and plain.total.tolist() == [[1.0, 0.0]]


def with_reward(**fields) -> Config:
    cfg = Config()
    cfg.model.path, cfg.data.tasks = "demo", ("agin_tech",)
    for name, value in fields.items():
        setattr(cfg.reward, name, value)
    check(cfg)
    return cfg


def test_a_reward_of_the_users_own():
    rule = rule_of(with_reward(custom=("own_rewards:short",), weights=("accuracy=1", "own_rewards:short=2")))
    got = scored([record("imagereward", 1)], [[say("yes"), say("yes", "a" * 60), say("no")]], rule)
    np.testing.assert_allclose(got.parts["own_rewards:short"], [[0.6, 0.1, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(got.total, [[2.2, 1.2, 1.2]], rtol=1e-6)


def test_what_a_users_own_may_read():
    e = record("mj_safety", 1)
    assert truth_of(TASKS["mj_safety"], e).facts == {
        "example_id": "mj_safety/1", "dataset": "set", "group_id": "g1", "task": "mj_safety", "criterion": "mj_safety",
        "kind": "pairwise", "instruction": "a red cup", "raw": "", "rationale": "", "candidates": ["", ""],
        "label": {"winner": 1},
    }  # fmt: skip


def test_errors_of_a_users_own_are_named():
    for name, says in (
        ("own_rewards", "'own_rewards' is not of the form module:function"),
        ("no_such_module:f", "importing no_such_module fails, ModuleNotFoundError"),
        ("own_rewards:absent", "module own_rewards has no function 'absent'"),
        ("own_rewards:NOT_A_FUNCTION", "has no function 'NOT_A_FUNCTION'"),
    ):
        with pytest.raises(ConfigError, match=says):
            rule_of(with_reward(custom=(name,)))
    rule = rule_of(with_reward(custom=("own_rewards:fails",)))
    with pytest.raises(ValueError, match=r"own_rewards:fails fails on imagereward/1, KeyError: 'no such fact'; its answer"):
        scored([record("imagereward", 1)], [[say("yes")]], rule)


def test_a_reward_that_is_not_finite_is_told_by_the_guard():
    got = scored([record("imagereward", 1)], [[say("yes")] * 2], rule_of(with_reward(custom=("own_rewards:nothing",))))
    assert np.isnan(got.total).all()
    rows = {"example_id": np.array(["imagereward/1"]), "task": np.array(["imagereward"])}
    assert suspects(rows, got, {}, np.ones((1, 2, 3), bool)) == ["imagereward/1 (imagereward)"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weights": ("acuracy=1",)}, "names an unknown part"),
        ({"weights": (3,)}, "hold str, not 3"),
        ({"weights": ("overlong=1",)}, "reward.overlong_buffer = 0"),
        ({"overlong_buffer": 4000}, "more than rollout.completion_tokens = 2048"),
        ({"tie_credit": 1.5}, "reward.tie_credit = 1.5 must be between 0 and 1"),
    ],
)
def test_bad_settings_are_one_line(fields, says):
    with pytest.raises(UserError, match=says) as error:
        with_reward(**fields)
    assert "\n" not in str(error.value)


# soft


@pytest.mark.parametrize("label", [0, 1])
def test_soft_pays_the_probability_of_the_truth(label):
    truth = Truth("pointwise_binary", ("no", "yes"), label)
    assert soft([0.5, 0.5], truth) == 0.75
    assert soft([0.9, 0.1], truth) == pytest.approx(0.99 if label == 0 else 0.19)
    three = Truth("pairwise", ("A", "B", "TIE"), 2)
    assert soft([0.2, 0.3, 0.5], three) == pytest.approx(1 - (0.04 + 0.09 + 0.25) / 2)


def test_soft_is_a_proper_score():
    """Where "yes" is true in 70 of 100 cases, saying 0.7 earns most."""
    no, yes = (Truth("pointwise_binary", ("no", "yes"), label) for label in (0, 1))
    said = [[1 - p / 100, p / 100] for p in range(101)]
    earned = {shares[1]: 0.3 * soft(shares, no) + 0.7 * soft(shares, yes) for shares in said}
    assert max(earned, key=earned.get) == 0.7


def test_soft_of_a_grade_is_the_closeness_of_the_expected_one():
    truth = Truth("pointwise_score", ("1", "2", "3", "4", "5"), 3, score=3.5, low=1.0, high=5.0)
    assert soft([0, 0, 0.5, 0.5, 0], truth) == 1.0
    assert soft([0, 0, 0, 0, 1], truth) == pytest.approx(1 - 1.5 / 4)


def test_soft_is_paid_by_score_in_the_strict_form_alone():
    good, bad = "<think>ok</think><answer>no</answer>", "no"
    rule, written = Rule(0.1, {"soft": 1.0}), [write_truth(Truth("pointwise_binary", ("no", "yes"), 1))]
    given = {"tasks": ["technical"], "labels": np.array([1]), "alpha": rule, "truths": written}
    found = score([[good, bad, good]], np.array([[False, False, True]]), **given, shares=[[[0.2, 0.8], [0.1, 0.9], [0.1, 0.9]]])
    assert found.total[0].tolist() == [pytest.approx(0.96), 0.0, 0.0]
    assert score([[good]], np.zeros((1, 1), bool), **given).total[0, 0] == 0.0  # without probabilities: the accuracy


def test_soft_of_a_pair_takes_the_mean_of_both_orders():
    """A judge that says "first" to both orders knows nothing of the pair, and is paid so in each."""
    words = ("first", "second", "tie")
    shown, turned = (write_truth(Truth("pairwise", words, label, facts={"example_id": "p"})) for label in (0, 1))
    good = "<think>ok</think><answer>first</answer>"
    shares = [[[0.8, 0.2, 0.0], None], [[0.7, 0.1, 0.2], [0.5, 0.3, 0.2]]]
    assert over_both_orders(*shares)[1] is None
    assert over_both_orders(*shares)[0] == pytest.approx([0.5, 0.4, 0.1])  # the other order: (0.2, 0.6, 0.2)
    assert over_both_orders(shares[1], shares[0])[1] == pytest.approx([0.35, 0.55, 0.1])
    assert over_both_orders(shares[0], [None, None]) == shares[0]
    given = {"tasks": ["genai_image"] * 2, "labels": np.array([0, 1]), "truths": [shown, turned], "shares": shares}
    texts, cut = [[good, "no"], [good, good]], np.zeros((2, 2), bool)
    alone = score(texts, cut, alpha=Rule(0.1, {"soft": 1.0}), **given)
    both = score(texts, cut, alpha=Rule(0.1, {"soft": 1.0, "consistency": 0.0}), **given)
    brier = lambda shares, label: 1 - sum((s - (i == label)) ** 2 for i, s in enumerate(shares)) / 2  # noqa: E731
    assert alone.total[1].tolist() == pytest.approx([brier([0.7, 0.1, 0.2], 1), brier([0.5, 0.3, 0.2], 1)])
    assert both.total[0].tolist() == pytest.approx([brier([0.5, 0.4, 0.1], 0), 0.0])
    assert both.total[1].tolist() == pytest.approx([brier([0.45, 0.45, 0.1], 1), brier([0.35, 0.55, 0.1], 1)])
