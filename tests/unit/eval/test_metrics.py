"""Every number against one worked by hand; intervals by what an interval must do."""

import json
import time

import numpy as np
import pytest

from mtjudge_jax.eval.scores import mean_score, pairwise_score, task_score
from mtjudge_jax.metrics.bootstrap import bootstrap_interval
from mtjudge_jax.metrics.confusion import accuracy, constant_macro_f1, group_confusion, macro_f1
from mtjudge_jax.report.intervals import mean_interval
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.reward import score
from mtjudge_jax.train.monitor.batch_metrics import Answers, task_numbers, train_metrics

TASK_SCORE_KEYS = {
    "count", "macro_f1", "macro_f1_ci", "accuracy", "accuracy_ci", "sampled_accuracy", "sampled_accuracy_ci",
    "invalid_rate", "constant_macro_f1", "label_share", "verdict_share",
    "kappa", "kappa_ci", "auroc", "auroc_ci", "calibrated_share", "ece", "ece_ci", "brier", "brier_ci", "confidence_auroc",
    "confidence_auroc_ci", "risk_coverage", "majority_k", "majority_accuracy", "majority_accuracy_ci", "self_agreement",
    "self_agreement_ci", "mean_tokens",
}  # fmt: skip
PAIRWISE_KEYS = {
    "accuracy_ab", "accuracy_ba", "consistency", "consistent_accuracy", "first_share", "probability_accuracy",
    "single_accuracy", "consistency_ci", "consistent_accuracy_ci",
} | {
    f"{name}{end}" for end in ("", "_ci")
    for name in ("flip_rate", "accuracy_with_ties", "accuracy_without_ties", "tie_rate", "position_bias", "both_orders_accuracy")
}  # fmt: skip


def prediction(example_id, label, verdict, *, task="technical", group_id=None, order="", yes=0.5, sampled=None):
    return {
        "example_id": example_id, "task": task, "group_id": group_id or example_id, "split": "test", "label": label,
        "label_index": int(label == "yes"), "verdict": verdict, "correct": label == verdict, "text": "", "reasoning": "",
        "error": "", "reward": 0.0, "sampled_accuracy": sampled, "probabilities": {"no": 1 - yes, "yes": yes},
        "order": order,
    }  # fmt: skip


def rows(table, **kwargs):
    """table: (label, verdict, how many)"""
    flat = [(label, verdict) for label, verdict, count in table for _ in range(count)]
    return [prediction(f"e{i}", label, verdict, **kwargs) for i, (label, verdict) in enumerate(flat)]


# The worked example of the docstring of macro_f1.
HAND = [("no", "no", 4), ("no", "yes", 1), ("no", None, 1), ("yes", "no", 2), ("yes", "yes", 2)]


def test_confusion_and_macro_f1_by_hand():
    label = np.array([0] * 6 + [1] * 4)
    verdict = np.array([0, 0, 0, 0, 1, -1, 0, 0, 1, 1])
    counts = group_confusion(label, verdict, np.zeros(10, int), num_labels=2)[0]
    np.testing.assert_array_equal(counts, [[4, 1, 1], [2, 2, 0]])
    assert macro_f1(counts) == pytest.approx((2 / 3 + 4 / 7) / 2, abs=1e-15)
    assert accuracy(counts) == pytest.approx(0.6)
    assert constant_macro_f1(counts) == pytest.approx((2 * 6 / 16) / 2)  # always "no": F1 3/4 and 0
    three = np.array([[2, 1, 0, 0], [0, 3, 0, 1], [1, 0, 0, 2]])  # F1 = 4/6, 6/8, 0/3
    assert macro_f1(three) == pytest.approx((2 / 3 + 3 / 4 + 0) / 3)
    np.testing.assert_allclose(macro_f1(np.stack([three, 2 * three])), [17 / 36, 17 / 36])


def test_macro_f1_at_the_ends():
    assert macro_f1(np.array([[5, 0, 0], [0, 7, 0]])) == 1.0
    assert macro_f1(np.array([[0, 5, 0], [7, 0, 0]])) == 0.0
    assert macro_f1(np.array([[0, 0, 5], [0, 0, 7]])) == 0.0  # all invalid
    assert macro_f1(np.array([[5, 0, 0], [0, 0, 0]])) == 0.5  # the absent label stays in the mean
    assert macro_f1(np.zeros((2, 3), int)) == 0.0


def test_the_interval_of_a_judge_that_is_always_right_is_not_lowered_by_resamples_that_lack_a_label():
    # Of three groups one holds the only "yes". A resample lacks it with probability (2/3)^3 = 0.30, and drew no answer to it.
    table = [("no", "no", "a"), ("no", "no", "b"), ("yes", "yes", "c")]
    right = [prediction(f"e{i}", label, verdict, group_id=group) for i, (label, verdict, group) in enumerate(table)]
    assert task_score(right)["macro_f1_ci"] == [1.0, 1.0]
    assert mean_interval(right, ["technical"], score="macro_f1") == [1.0, 1.0]
    # A label that the whole lacks counts 0 in the whole and in every resample.
    only = [p for p in right if p["label"] == "no"]
    assert task_score(only)["macro_f1"] == 0.5 and task_score(only)["macro_f1_ci"] == [0.5, 0.5]
    # A wrong answer of the label counts wherever it was drawn: F1 of "no" 4/5, of "yes" 0, or "no" alone 1.
    wrong = [p | {"verdict": "no", "correct": False} if p["label"] == "yes" else p for p in right]
    assert task_score(wrong)["macro_f1"] == pytest.approx(0.4)
    assert task_score(wrong)["macro_f1_ci"] == [0.0, 1.0]


def test_an_invalid_answer_never_beats_a_wrong_one_of_its_own_label():
    # It is a false negative of the true label and, unlike a wrong answer, no false positive of the other.
    assert macro_f1(np.array([[4, 0, 2], [0, 4, 0]])) == pytest.approx((8 / 10 + 1) / 2)
    assert macro_f1(np.array([[4, 2, 0], [0, 4, 0]])) == pytest.approx((8 / 10 + 8 / 10) / 2)


def test_task_score_by_hand():
    got = task_score(rows(HAND))
    assert set(got) == TASK_SCORE_KEYS
    assert got["count"] == 10
    assert got["macro_f1"] == pytest.approx(13 / 21)
    assert got["accuracy"] == pytest.approx(0.6)
    assert got["invalid_rate"] == pytest.approx(0.1)
    assert got["constant_macro_f1"] == pytest.approx(0.375)
    assert got["label_share"] == pytest.approx({"no": 0.6, "yes": 0.4})
    assert got["verdict_share"] == pytest.approx({"no": 0.6, "yes": 0.3})
    assert got["sampled_accuracy"] is None and got["sampled_accuracy_ci"] is None
    for name in ("macro_f1", "accuracy"):
        low, high = got[f"{name}_ci"]
        assert 0 <= low < got[name] < high <= 1
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert {task.metric for task in TASKS.values()} <= TASK_SCORE_KEYS


def test_sampled_accuracy_is_the_mean_over_rows():
    given = [prediction(f"e{i}", "yes", "yes", sampled=value) for i, value in enumerate([0.25, 0.5, 0.75, 1.0])]
    got = task_score(given)
    assert got["sampled_accuracy"] == 0.625
    low, high = got["sampled_accuracy_ci"]
    assert 0.25 <= low < 0.625 < high <= 1.0
    given[0]["sampled_accuracy"] = None
    with pytest.raises(ValueError, match="sampled_accuracy is given for 3 of 4 rows"):
        task_score(given)
    given[0]["sampled_accuracy"] = float("nan")
    with pytest.raises(ValueError, match="sampled_accuracy must be between 0 and 1"):
        task_score(given)


def test_bad_predictions_are_named():
    with pytest.raises(ValueError, match="score one task at a time"):
        task_score([])
    with pytest.raises(ValueError, match=r"2 predictions of the tasks \['safety', 'technical'\]"):
        task_score([prediction("a", "no", "no"), prediction("b", "no", "no", task="safety")])
    with pytest.raises(ValueError, match=r"prediction 'a' has label 'no' and verdict 'maybe', task 'technical' has"):
        task_score([prediction("a", "no", "maybe")])


def test_interval_brackets_the_point_and_shrinks_with_n():
    widths = []
    for copies in (1, 4, 16, 64):
        got = task_score(rows([(label, verdict, 2 * n * copies) for label, verdict, n in HAND]))
        low, high = got["macro_f1_ci"]
        assert low < 13 / 21 < high
        widths.append(high - low)
    ratios = np.array(widths[:-1]) / widths[1:]
    np.testing.assert_allclose(ratios, 2.0, rtol=0.2)  # four times the rows: half the width


def test_interval_of_a_mean_has_the_normal_width():
    right = np.repeat([1, 0], [700, 300])
    low, high = bootstrap_interval(np.stack([right, np.ones(1000)], axis=1), lambda s: s[:, 0] / s[:, 1])
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(0.7 - half, abs=0.003)
    assert high == pytest.approx(0.7 + half, abs=0.003)


def test_interval_resamples_groups_not_rows():
    table = [("yes", "yes", 200), ("yes", "no", 200)]
    alone = rows(table)
    grouped = [{**p, "group_id": f"g{i // 20}"} for i, p in enumerate(alone)]  # 20 groups of 20 equal rows
    width = [np.ptp(task_score(p)["accuracy_ci"]) for p in (alone, grouped)]
    assert width[1] / width[0] == pytest.approx(np.sqrt(20), rel=0.15)
    together = [{**p, "group_id": "one"} for p in alone]
    assert task_score(together)["accuracy_ci"] == [0.5, 0.5]


def test_interval_repeats_and_depends_on_the_seed():
    sums = np.eye(50)[:, :2]
    share = lambda s: s[:, 0] / 50  # noqa: E731
    assert bootstrap_interval(sums, share) == bootstrap_interval(sums, share)
    values = np.random.default_rng(0).random((50, 1))
    mean = lambda s: s[:, 0] / 50  # noqa: E731
    assert bootstrap_interval(values, mean, seed=1) != bootstrap_interval(values, mean, seed=2)
    with pytest.raises(ValueError, match="no groups to resample"):
        bootstrap_interval(np.zeros((0, 2)), share)


def test_interval_of_2000_groups_takes_less_than_200_ms():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1, [1 / 6] * 6, size=2000).reshape(2000, 2, 3)
    seconds = []
    for _ in range(3):
        start = time.process_time()  # of this process: others may use the cores
        bootstrap_interval(counts, macro_f1)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2


def pair(name, winner, ab, ba, yes_ab=0.5, yes_ba=0.5):
    """Both orders of a pair whose stored picture `winner` is better. ab, ba: what is said; yes_ab, yes_ba: p(second)."""
    label = ("first", "second")[winner], ("second", "first")[winner]
    shared = {"task": "pairwise_safety", "group_id": name}

    def line(order, truth, said, second):
        shares = {"label_index": int(truth == "second"), "probabilities": {"first": 1 - second, "second": second}}
        return prediction(name, truth, said, order=order, **shared) | shares

    return [line("ab", label[0], ab, yes_ab), line("ba", label[1], ba, yes_ba)]


def test_pairwise_by_hand():
    predictions = [
        *pair("p0", 1, "second", "first", 0.9, 0.2),  # right in both; margin 0.8 + 0.6 for the second
        *pair("p1", 0, "second", "second", 0.6, 0.7),  # always the second shown; margin 0.2 - 0.4: the first, right
        *pair("p2", 0, "second", "first", 0.8, 0.1),  # the same picture twice, the wrong one
        *pair("p3", 1, None, "first", 0.4, 0.4),  # one invalid; margins cancel: a tie
    ]
    alone = {"p0": (0.1, 0.8), "p1": (0.3, 0.4), "p2": (0.6, 0.6), "p3": (0.2, 0.9)}
    got = pairwise_score(predictions[::-1], single_yes=alone)
    assert set(got) == TASK_SCORE_KEYS | PAIRWISE_KEYS
    assert got["count"] == 8
    assert got["accuracy"] == 4 / 8
    assert got["accuracy_ab"] == 1 / 4
    assert got["accuracy_ba"] == 3 / 4
    assert got["consistency"] == 2 / 4
    assert got["consistent_accuracy"] == 1 / 4
    assert got["first_share"] == pytest.approx(3 / 7)
    assert got["probability_accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert got["single_accuracy"] == (1 + 0 + 0.5 + 1) / 4
    assert got["label_share"] == {"first": 0.5, "second": 0.5}
    assert got["constant_macro_f1"] == pytest.approx(1 / 3)
    assert pairwise_score(predictions)["single_accuracy"] is None
    assert json.loads(json.dumps(got, allow_nan=False)) == got


@pytest.mark.parametrize(("answer", "first_share"), [("second", 0.0), ("first", 1.0)])
def test_a_judge_that_goes_by_position_scores_exactly_one_half(answer, first_share):
    yes = 0.93 if answer == "second" else 0.07
    winners = [0] * 70 + [1] * 30  # labels skewed as in some public sets: still exactly one half
    got = pairwise_score([p for i, w in enumerate(winners) for p in pair(f"p{i}", w, answer, answer, yes, yes)])
    assert got["accuracy"] == 0.5
    assert got["accuracy_ci"] == [0.5, 0.5]
    assert got["accuracy_ab"] + got["accuracy_ba"] == 1.0
    assert got["consistency"] == got["consistent_accuracy"] == 0.0
    assert got["first_share"] == first_share
    assert got["probability_accuracy"] == 0.5


def test_a_judge_without_valid_answers():
    got = pairwise_score(pair("p", 1, None, None))
    assert got["first_share"] is None
    assert got["consistency"] == got["accuracy"] == got["macro_f1"] == 0.0
    assert got["invalid_rate"] == 1.0


def test_incomplete_pairs_are_named():
    both = pair("p0", 1, "second", "first")
    with pytest.raises(ValueError, match=r"1 pair.*of 'pairwise_safety' have one order only: judge 'p0' in both"):
        pairwise_score(both[:1])
    with pytest.raises(ValueError, match="'p0' of 'pairwise_safety' has order 'ab': give each pair once"):
        pairwise_score([*both, both[0]])
    with pytest.raises(ValueError, match="has order ''"):
        pairwise_score([{**both[0], "order": ""}, both[1]])
    with pytest.raises(ValueError, match="'p0' has the same label in both orders"):
        pairwise_score([both[0], {**both[1], "label": "second"}])
    with pytest.raises(ValueError, match="probabilities must be between 0 and 1"):
        pairwise_score([{**both[0], "probabilities": {"first": 0.0, "second": float("nan")}}, both[1]])


YES, NO = "<think>a</think><answer>yes</answer>", "<think>a</think><answer>no</answer>"


def test_train_metrics_by_hand():
    texts = [[YES, YES, NO, "?"], [NO] * 4, ["?"] * 4, [YES] * 4]
    tasks = ["technical", "safety", "technical", "alignment"]
    scores = score(texts, np.zeros((4, 4), bool), tasks=tasks, labels=np.array([1, 1, 1, 1]), alpha=0.5)
    tokens, surprise = np.arange(16, dtype=np.int32).reshape(4, 4), np.float32([[1] * 4, [2] * 4, [3] * 4, [0] * 4])
    answers = Answers(scores, task_numbers(tasks), np.ones(4, np.float32), tokens, surprise, tokens > 3)
    got = train_metrics(answers)
    # rewards: technical 1, 1, 1/2, 0 and 0 x 4; safety 1/2 x 4; alignment 1 x 4
    technical = {"reward": 2.5 / 8, "accuracy": 2 / 8, "format": 3 / 8, "zero_variance": 0.5, "truncated": 0.5, "invalid": 5 / 8}
    technical["labels"] = {"no": 1 / 3, "yes": 2 / 3}
    safety = {"reward": 0.5, "accuracy": 0.0, "format": 1.0, "zero_variance": 1.0, "truncated": 1.0, "invalid": 0.0}
    safety["labels"] = {"no": 1.0, "yes": 0.0}
    # tokens: technical 0..3 and 8..11, safety 4..7; entropy is surprise a token
    assert got["tasks"]["technical"] == technical | {"completion_tokens": 44 / 8, "entropy": 16 / 44}
    assert got["tasks"]["safety"] == safety | {"completion_tokens": 22 / 4, "entropy": 8 / 22}
    assert list(got["tasks"]) == ["technical", "safety", "alignment"]
    assert {k: got[k] for k in got if k != "tasks"} == {
        "reward": 8.5 / 16, "accuracy": 6 / 16, "format": 11 / 16, "zero_variance": 0.75, "truncated": 0.75,
        "invalid": 5 / 16,
    }  # fmt: skip
    left_out = train_metrics(answers._replace(weight=np.float32([1, 0, 0, 1])))
    assert list(left_out["tasks"]) == ["technical", "alignment"]
    assert left_out["reward"] == 6.5 / 8 and left_out["zero_variance"] == 0.5
    with pytest.raises(ValueError, match="all 4 prompts of the batch have weight 0"):
        train_metrics(answers._replace(weight=np.zeros(4, np.float32)))


def test_mean_score_leaves_out_of_distribution_tasks_out():
    scores = {
        "technical": {"macro_f1": 0.5, "sampled_accuracy": 0.25},
        "safety": {"macro_f1": 1.0, "sampled_accuracy": 0.75},
        "pairwise_safety": {"macro_f1": 0.0, "sampled_accuracy": None},
    }
    assert mean_score(scores) == {"macro_f1": 0.75, "sampled_accuracy": 0.5}
    scores["safety"]["sampled_accuracy"] = None
    assert mean_score(scores) == {"macro_f1": 0.75, "sampled_accuracy": None}
    with pytest.raises(ValueError, match=r"no task to average over: \['pairwise_safety'\]"):
        mean_score({"pairwise_safety": scores["pairwise_safety"]})
