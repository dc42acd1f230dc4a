"""Agreement, ranks, calibration, votes, both orders and lists against numbers worked by hand."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from scipy import stats
from test_metrics import HAND, pair, prediction, rows

from mtjudge_jax import tasks
from mtjudge_jax.eval.console import progress_bar, table
from mtjudge_jax.eval.details import list_score
from mtjudge_jax.eval.pairs import pair_details
from mtjudge_jax.eval.scores import in_short, mean_score, pairwise_score, task_score
from mtjudge_jax.metrics import agreement, calibration, correlation
from mtjudge_jax.metrics.bootstrap import rows_interval


def test_kappa_by_hand():
    counts = np.array([[20, 5, 0], [10, 15, 0]])  # observed 35/50, by chance (25 * 30 + 25 * 20) / 2500 = 1/2
    assert agreement.kappa(counts) == pytest.approx(0.4, abs=1e-15)
    # Two invalid: observed 6/10, by chance (5 * 4 + 5 * 4) / 100 = 0.4
    assert agreement.kappa(np.array([[3, 1, 1], [1, 3, 1]])) == pytest.approx(1 / 3, abs=1e-15)
    assert agreement.kappa(np.array([[5, 0, 0], [0, 0, 0]])) == 0.0  # nothing to disagree about
    np.testing.assert_allclose(agreement.kappa(np.stack([counts, 3 * counts])), [0.4, 0.4])


def test_quadratic_kappa_by_hand():
    # labels 1 2 3, answers 1 3 3: observed cost 1/4 of 3; by chance: sum over 9 pairs / 3 = (0 + 1 + 1 + 1/4 * 3 + 1) / 3
    counts = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    got = agreement.kappa(counts, grades=np.array([1.0, 2.0, 3.0]))
    assert got == pytest.approx(1 - 0.25 / ((0 + 1 + 1 + 0.25 * 3 + 1 + 0 + 0) / 3), abs=1e-15)
    # An invalid answer costs 1, whatever was asked: labels 1 3, answers 1 and none: 1 of (0 + 1 + 1 + 1) / 2
    assert agreement.kappa(np.array([[1, 0, 0], [0, 0, 1]]), grades=np.array([1.0, 3.0])) == pytest.approx(1 - 1 / 1.5)


def test_auroc_with_ties_by_hand():
    positive, value = np.array([False, False, True, True]), np.array([1.0, 2.0, 2.0, 3.0])
    assert correlation.roc_auc(positive, value) == 3.5 / 4
    # The second drawn twice, the first not: 1/2 and 1 of two.
    assert correlation.weighted_roc_auc(positive, value, np.array([0, 2, 1, 1])) == (0.5 + 0.5 + 1 + 1) / 4
    assert np.isnan(correlation.weighted_roc_auc(np.array([True, True]), np.array([0.1, 0.2]), np.ones(2)))
    assert correlation.roc_auc(positive, np.zeros(4)) == 0.5


def test_correlations_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 2.0])
    assert correlation.kendall_tau_b(x, y) == pytest.approx(1 / np.sqrt(30), abs=1e-15)  # 3 concordant, 2 discordant, a tie in y
    # ranks of y: 1, 4, 2.5, 2.5; sum of products of deviations 1.5; squares 5 and 4.5
    assert correlation.spearman(x, y) == pytest.approx(1.5 / np.sqrt(5 * 4.5), abs=1e-15)
    assert correlation.pearson(x, y) == pytest.approx(1 / np.sqrt(5 * 2), abs=1e-15)
    assert correlation.pearson(x, np.ones(4)) is None and correlation.kendall_tau_b(x, np.ones(4)) is None
    weight = np.array([[2.0, 0, 0, 1], [3, 0, 0, 0]])  # of the second resample one value is left
    np.testing.assert_array_equal(correlation.weighted_pearson(x, y, weight), [1, np.nan])
    assert correlation.pearson(x * 1e-9, y * 1e-9) == pytest.approx(1 / np.sqrt(5 * 2), abs=1e-15)  # whatever the unit


def test_correlations_agree_with_scipy_also_on_drawn_rows():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 60).astype(float), rng.integers(0, 5, 60).astype(float)
    assert correlation.kendall_tau_b(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    weight = rng.multinomial(60, np.full(60, 1 / 60), size=3).astype(float)
    for statistic, other in (
        (correlation.weighted_spearman, stats.spearmanr),
        (correlation.weighted_pearson, stats.pearsonr),
    ):
        drawn = [other(*(np.repeat(v, w.astype(int)) for v in (x, y))).statistic for w in weight]
        np.testing.assert_allclose(statistic(x, y, weight), drawn, atol=1e-12)


def test_interval_of_ranks_resamples_groups():
    rng = np.random.default_rng(1)
    positive = rng.random(200) < 0.5
    value = positive + rng.normal(size=200)
    low, high = rows_interval(lambda w: correlation.weighted_roc_auc(positive, value, w), np.arange(200))
    assert low < correlation.roc_auc(positive, value) < high and 0.05 < high - low < 0.2
    whole = rows_interval(lambda w: correlation.weighted_roc_auc(positive, value, w), np.zeros(200, int))
    assert whole == pytest.approx([correlation.roc_auc(positive, value)] * 2)
    assert rows_interval(lambda w: correlation.weighted_roc_auc(np.ones(3, bool), np.arange(3.0), w), np.arange(3)) is None


def test_calibration_by_hand():
    # Bins of 1/15: 0.9 and 0.92 share (0.8667, 0.9333], 0.6 is the edge of (0.5333, 0.6], 1.0 in the last.
    confidence, right = np.array([0.9, 0.92, 0.6, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    sums = calibration.bin_sums(confidence, right)
    assert sums.shape == (4, 15, 3) and np.flatnonzero(sums[..., 0]).tolist() == [13, 15 + 13, 30 + 8, 45 + 14]
    assert calibration.calibration_error(sums.sum(0)) == pytest.approx((abs(1.82 - 1) + 0.4 + 0) / 4, abs=1e-15)
    shares = np.array([[0.1, 0.9], [0.92, 0.08]])
    np.testing.assert_allclose(calibration.brier(shares, np.array([1, 1])), [0.01, 0.92**2])
    assert calibration.brier(np.array([[0.5, 0.3, 0.2]]), np.array([0])) == pytest.approx((0.25 + 0.09 + 0.04) / 2)
    assert calibration.risk_coverage(np.array([0.7, 0.9, 0.8]), np.array([1.0, 1, 0])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    # Two of the same confidence, one of them wrong: half a mistake each.
    assert calibration.risk_coverage(np.array([0.9, 0.9]), np.array([1.0, 0])) == pytest.approx(0.5)


def test_votes_by_hand():
    assert calibration.majority([1, 0, 0, 1, -1]) == 1  # two each, 1 came first
    assert calibration.majority([-1, 0, -1]) == 0 and calibration.majority([-1, -1]) == -1
    assert calibration.self_agreement([0, 0, 1, -1]) == 1 / 6
    assert calibration.self_agreement([-1, -1]) == 0


def test_details_of_a_binary_task_by_hand():
    given = [
        prediction("a", "yes", "yes", yes=0.9),
        prediction("b", "yes", "no", yes=0.4),
        prediction("c", "no", "no", yes=0.4),
        prediction("d", "no", None, yes=0.1),
    ]
    votes = [["yes", "yes", "no"], ["no", "no", None], ["no", "no", "no"], ["yes", None, None]]
    for p, said, true, tokens in zip(given, votes, (4.5, 3.0, 2.0, 1.0), (10, 20, 30, 40), strict=True):
        share = p["probabilities"]["yes"]
        p |= {"sampled_verdicts": said, "score_true": true, "score_expected": share, "tokens": tokens}
    got = task_score(given)
    assert got["auroc"] == 3.5 / 4  # 0.9 beats both, 0.4 ties with 0.4 and beats 0.1
    assert got["kappa"] == pytest.approx(1 - 0.5 / (1 - (2 * 2 + 2 * 1) / 16))
    assert got["calibrated_share"] == 0.75  # d has no verdict
    assert got["ece"] == pytest.approx((0.1 + abs(1.2 - 1)) / 3)  # 0.9 right; 0.6 twice, one right
    assert got["brier"] == pytest.approx((0.01 + 0.36 + 0.16) / 3)
    assert got["confidence_auroc"] == 0.75 and got["risk_coverage"] == pytest.approx((0 + 0.25 + 1 / 3) / 3)
    assert (got["majority_k"], got["majority_accuracy"]) == (3, 0.5)
    assert got["self_agreement"] == pytest.approx((1 / 3 + 1 / 3 + 1 + 0) / 4)
    assert got["mean_tokens"] == 25 and got["score_count"] == 4
    assert got["kendall"] == pytest.approx(5 / np.sqrt(6 * 5)) and got["spearman"] == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    for name in ("auroc", "kappa", "ece", "brier", "majority_accuracy", "self_agreement", "spearman", "pearson"):
        low, high = got[f"{name}_ci"]
        assert low <= got[name] + 1e-12 and got[name] <= high + 1e-12, name
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_what_cannot_be_known_is_none():
    bare = [p | {"probabilities": None} for p in rows(HAND)]
    got = task_score(bare)
    for name in ("auroc", "ece", "brier", "risk_coverage", "majority_accuracy", "self_agreement", "mean_tokens"):
        assert got[name] is None, name
    assert got["calibrated_share"] == 0 and "spearman" not in got
    assert task_score([prediction("a", "yes", "yes", yes=0.9)])["auroc"] is None  # one class


VOTES = [(["yes"], None), ([None, None], None), (["yes", None], 0.0), (["no", "no"], 1.0)]


@pytest.mark.parametrize(("votes", "agreement"), VOTES)
def test_self_agreement_needs_two_samples_and_a_valid_one(votes, agreement):
    got = task_score([p | {"sampled_verdicts": votes} for p in rows(HAND)])
    assert got["self_agreement"] == agreement and (got["self_agreement_ci"] is None) == (agreement is None)
    assert got["majority_k"] == len(votes) and got["majority_accuracy"] is not None


def test_the_terminal_leaves_out_what_has_no_value():
    """A task of pairs of the user's own has no question about one picture alone."""
    got = pairwise_score([p for i in range(4) for p in pair(f"p{i}", i % 2, "first", "first")])
    told = table({"tasks": {"mine": got}, "mean": None, "unusable": {}})
    line = next(line for line in told.splitlines() if "both orders" in line)
    assert line.strip() == (
        "both orders: accuracy 0.500, same winner 0.000, both right 0.000, first wins 1.000, by probability 0.500"
    )
    assert "position bias 0.500" in told
    alone = table({"tasks": {"mine": got | {"single_accuracy": 0.75}}, "mean": None, "unusable": {}})
    assert "by probability 0.500, each picture alone 0.750" in alone


BIASED = {"probability_accuracy": 0.98, "first_share": 0.95}
REMARKS = [
    ({"macro_f1": 1 / 3, "auroc": 0.98}, "AUROC asks only for the order"),
    ({"macro_f1": 0.9, "auroc": 0.98}, ""),
    ({"macro_f1": 1 / 3, "auroc": 0.55}, ""),
    ({"probability_accuracy": 0.14}, "the probabilities prefer the worse picture"),
    ({"probability_accuracy": 0.5, "first_share": 0.95}, ""),
    (BIASED, "the place decides the answer"),
    (BIASED | {"first_share": 0.04}, "the place decides the answer"),
    (BIASED | {"first_share": 0.5}, ""),
]


@pytest.mark.parametrize(("score", "remark"), REMARKS)
def test_a_score_that_could_mislead_is_explained_below_it(score, remark):
    score = task_score(rows(HAND)) | {"macro_f1": 0.9, "constant_macro_f1": 1 / 3, "auroc": None} | score
    told = [line for line in table({"tasks": {"mine": score}, "mean": None, "unusable": {}}).splitlines() if "note: " in line]
    assert len(told) == (remark != "") and all(remark in line for line in told)


def test_grades_by_hand(monkeypatch):
    task = dataclasses.replace(tasks.TASKS["technical"], name="stars", labels=("1", "2", "3", "4", "5"))
    object.__setattr__(task, "kind", "pointwise_score")
    monkeypatch.setitem(tasks.TASKS, "stars", task)
    table = [("1", "1"), ("2", "4"), ("4", None), ("5", "5")]
    given = [prediction(f"e{i}", label, said, task="stars") | {"probabilities": None} for i, (label, said) in enumerate(table)]
    got = task_score(given)
    assert got["mae"] == (0 + 2 + 3 + 0) / 4  # 4 could be missed by 3 at most
    assert "auroc" not in got and "kappa" not in got
    # cost / 16: 0 + 4 + 16 + 0; by chance over labels 1 2 4 5 and answers 1 4 5 none: sum / 4
    chance = (0 + 9 + 16 + 16 + 1 + 4 + 9 + 16 + 9 + 0 + 1 + 16 + 16 + 1 + 0 + 16) / 4
    assert got["quadratic_kappa"] == pytest.approx(1 - 20 / chance)
    assert got["accuracy"] == 0.5


def test_pairs_with_ties_by_hand():
    winner = np.array([0, 1, 2, 1, 0])
    ab = np.array([0, 1, 2, 0, 2])
    ba = np.array([0, 0, 2, 0, -1])  # turned back: the candidate as stored
    got = pair_details(winner, ab, ba, np.arange(5))
    assert got["flip_rate"] == 1 / 4  # of four pairs answered in both orders, the second
    assert got["accuracy_with_ties"] == 3 / 8 and got["accuracy_without_ties"] == 3 / 7
    assert got["tie_rate"] == 3 / 10
    assert got["both_orders_accuracy"] == 2 / 5  # the second is a tie by its flip, the last invalid
    assert got["consistency"] == 3 / 5 and got["consistent_accuracy"] == 2 / 5
    # chosen: ab 0 1 . 0 . ; ba 0 0 . 0 . ; first shown: yes no yes | no no no -> 2 of 6; it is the better: yes no no | no yes yes
    assert got["position_bias"] == pytest.approx((2 - 3) / 6)
    none = pair_details(np.array([2]), np.array([-1]), np.array([-1]), np.array([0]))
    assert none["flip_rate"] is None and none["accuracy_with_ties"] is None and none["position_bias"] is None


def test_pair_of_a_tie_task_keeps_its_label_in_both_orders(monkeypatch):
    task = dataclasses.replace(tasks.TASKS["pairwise_safety"], name="ties", labels=("first", "second", "tie"))
    monkeypatch.setitem(tasks.TASKS, "ties", task)

    def line(name, label, said, order):
        return prediction(name, label, said, task="ties", order=order) | {"probabilities": None}

    given = [line("p", "first", "first", "ab"), line("p", "second", "tie", "ba")]
    given += [line("t", "tie", "tie", "ab"), line("t", "tie", "tie", "ba")]
    got = pairwise_score(given)
    assert (got["accuracy"], got["consistency"], got["flip_rate"]) == (3 / 4, 1 / 2, 1 / 2)
    assert (got["accuracy_with_ties"], got["accuracy_without_ties"]) == (1 / 2, 1.0)
    with pytest.raises(ValueError, match="'t' has the same label in both orders"):
        pairwise_score([line("t", "first", "tie", "ab"), line("t", "first", "tie", "ba")])


def test_position_bias_of_a_judge_that_takes_the_first():
    given = [p for i in range(4) for p in pair(f"p{i}", i % 2, "first", "first")]
    got = pairwise_score(given)
    assert (got["position_bias"], got["flip_rate"], got["first_share"]) == (0.5, 1.0, 1.0)
    assert got["accuracy"] == got["accuracy_with_ties"] == 0.5 and got["both_orders_accuracy"] == 0.0


def test_orders_by_hand():
    assert agreement.rank_by_name("B > A = C > D") == {"B": 1, "A": 2, "C": 2, "D": 4}
    assert agreement.order_tau("A > B > C", "B > A > C") == pytest.approx(1 / 3)
    assert agreement.order_tau("A > B > C", "C > B > A") == -1 == agreement.order_tau("A > B", None)
    assert agreement.order_tau("A = B > C", "A > B > C") == pytest.approx(2 / np.sqrt(2 * 3))
    assert agreement.order_tau("A > B", "A = B") == 0 and agreement.order_tau("A > B", "A > C") == -1
    assert agreement.order_distance("A > B > C > D", "A > B > D > C") == 2 / 4
    assert agreement.order_distance("A > B > C", "B > C > A") == 2 / 3  # one deletion, one insertion
    assert agreement.order_distance("A > B", None) == 1 and agreement.order_distance("B > A", "B > A") == 0


def test_list_score_by_hand():
    table = [("A > B > C", "A > B > C"), ("A > B > C", "B > A > C"), ("C > A > B", None)]
    given = [prediction(f"l{i}", *both) for i, both in enumerate(table)]
    got = list_score(given)
    assert got["accuracy"] == pytest.approx(1 / 3) and got["invalid_rate"] == pytest.approx(1 / 3)
    assert got["tau_b"] == pytest.approx((1 + 1 / 3 - 1) / 3)
    assert got["levenshtein"] == pytest.approx((0 + 2 / 3 + 1) / 3)
    assert got["macro_f1"] is None and got["sampled_accuracy"] is None
    scores = {"technical": {"macro_f1": 0.5, "sampled_accuracy": None}, "safety": got}
    assert mean_score(scores)["macro_f1"] == pytest.approx((0.5 + 1 / 3) / 2)
    assert in_short(scores) == "technical 0.500 safety 0.333"  # the line of a validation, which a list once broke


@pytest.mark.parametrize(("terminal", "process", "shown"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_the_bar_is_shown_by_process_0_on_a_terminal(monkeypatch, terminal, process, shown):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    with progress_bar({}) as progress:
        progress(1)
    assert bool(screen.getvalue()) is shown
