"""Rewards of a completion and of a batch against rewards worked by hand."""

import numpy as np
import pytest

from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.answer import parse_strict
from mtjudge_jax.tasks.reward import check_alpha, reward_of, score

YES, NO = "<think>looks sharp</think><answer>yes</answer>", "<think>looks blurry</think><answer>no</answer>"
FIRST = "<think>looks blurry</think><answer>first</answer>"
TEXTS = [[YES, NO, "yes"], [FIRST, FIRST, YES + YES]]
TRUNCATED = np.array([[False, False, False], [True, False, False]])
BATCH = {"tasks": ["technical", "pairwise_safety"], "labels": np.array([1, 0], np.int32)}


def test_batch_by_hand():
    got = score(TEXTS, TRUNCATED, **BATCH, alpha=0.25)
    np.testing.assert_array_equal(got.total, np.float32([[1.0, 0.25, 0.0], [0.0, 1.0, 0.0]]))
    np.testing.assert_array_equal(got.accuracy, np.float32([[1, 0, 0], [0, 1, 0]]))
    np.testing.assert_array_equal(got.format, np.float32([[1, 1, 0], [0, 1, 0]]))
    np.testing.assert_array_equal(got.verdict, [[1, 0, -1], [-1, 0, -1]])
    assert [a.dtype for a in got[:4]] == [np.float32, np.float32, np.float32, np.int32]


def test_equal_answers_earn_bit_equal_rewards():
    got = score([[YES] * 8], np.zeros((1, 8), bool), tasks=["safety"], labels=np.array([0]), alpha=0.1)
    assert got.total.max() == got.total.min() == np.float32(0.1)


def test_hostile_batch_is_finite_and_earns_nothing():
    hostile = ["nan", "inf", "1e400", "-inf", "\0", "", "<answer>nan</answer>", "9" * 5000, "\ud800", "<think>" * 1000]
    group = [f"<think>a</think><answer>{text}</answer>" for text in hostile] + hostile
    got = score([group], np.zeros((1, 20), bool), tasks=["safety"], labels=np.array([1]), alpha=0.5)
    for part in (got.total, got.accuracy, got.format):
        np.testing.assert_array_equal(part, np.zeros((1, 20), np.float32))
    assert (got.verdict == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": float("nan")}, "alpha is nan, must be between 0"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"tasks": ["technical"]}, "2 lists of texts, 1 tasks and 2 labels for 2 prompts"),
        ({"labels": np.array([0, 0, 0])}, "3 labels for 2 prompts"),
        ({"labels": np.array([0, 2])}, r"labels\[1\] is 2, must be 0 to 1 for task 'pairwise_safety'"),
        ({"labels": np.array([-1, 0])}, r"labels\[0\] is -1"),
        ({"tasks": ["technical", "tecnical"]}, "unknown task 'tecnical'.*did you mean 'technical'"),
        ({"texts": [[YES, NO], [NO, NO, NO]]}, r"texts\[0\] has 2 completions, truncated has 3"),
        ({"truncated": np.zeros(6, bool)}, r"truncated has shape \(6,\), must be \[Q, G\]"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"texts": TEXTS, "truncated": TRUNCATED, **BATCH, "alpha": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        score(arguments.pop("texts"), arguments.pop("truncated"), **arguments)


def test_reward_formula():
    good, bad = (parse_strict(text, TASKS["technical"].labels) for text in (NO, "no"))
    for alpha, right, wrong in ((0.0, 1.0, 0.0), (0.1, 1.0, 0.1), (0.25, 1.0, 0.25), (1.0, 1.0, 1.0)):
        assert reward_of(good, label_index=0, truncated=False, alpha=alpha) == pytest.approx((right, 1.0, 1.0))
        assert reward_of(good, label_index=1, truncated=False, alpha=alpha) == pytest.approx((wrong, 0.0, 1.0))
        assert reward_of(good, label_index=0, truncated=True, alpha=alpha) == (0.0, 0.0, 0.0)
        assert reward_of(bad, label_index=0, truncated=False, alpha=alpha) == (0.0, 0.0, 0.0)


def test_reward_refuses_bad_arguments():
    for alpha in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"alpha is .*, must be between 0"):
            check_alpha(alpha)
