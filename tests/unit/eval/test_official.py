"""Each data set's own metric against an example worked by hand; statistics against scipy."""

import sys

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from mtjudge_jax.eval.official import OFFICIAL, official
from mtjudge_jax.eval.official.logistic import fit_logistic
from mtjudge_jax.eval.official.words import BINARY, WINNER, index_of, places_of, rank_list
from mtjudge_jax.metrics.correlation import average_ranks, f1, kendall_tau_b, levenshtein, pearson, roc_auc, spearman


def row(example_id, label, verdict, *, group="", order="", score=None, true=None, **raw):
    return {
        "example_id": str(example_id), "task": "", "group_id": group, "order": order, "label": label, "verdict": verdict,
        "score_expected": score, "score_true": true, "raw": raw,
    }  # fmt: skip


def rows(table, **raw):
    """table: (label, verdict), ids in order"""
    return [row(n, label, verdict, **raw) for n, (label, verdict) in enumerate(table)]


def exactly(found, **expected):
    assert found == {name.replace("__", "/"): pytest.approx(value, abs=1e-12) for name, value in expected.items()}


# Statistics


@pytest.mark.parametrize("seed", range(20))
def test_correlations_equal_scipy(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40).round(seed % 3)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    assert kendall_tau_b(x, y) == pytest.approx(scipy.stats.kendalltau(x, y)[0], abs=1e-12)
    np.testing.assert_allclose(average_ranks(x), scipy.stats.rankdata(x))
    u = scipy.stats.mannwhitneyu(y[x > 2], y[x <= 2]).statistic
    assert roc_auc(x > 2, y) == pytest.approx(u / ((x > 2).sum() * (x <= 2).sum()), abs=1e-12)


def test_kendall_over_more_than_one_block():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, 1300), rng.integers(0, 50, 1300)
    assert kendall_tau_b(x, y) == pytest.approx(scipy.stats.kendalltau(x, y)[0], abs=1e-12)


def test_what_is_not_defined_is_none():
    for statistic in (pearson, spearman, kendall_tau_b):
        assert statistic([], []) is None and statistic([1], [2]) is None
        assert statistic([0.1, 0.1, 0.1], [1, 2, 3]) is None and statistic([1, 2, 3], [0.7] * 3) is None
    assert roc_auc([True, True], [0.1, 0.2]) is None and roc_auc([False], [0.1]) is None


def test_f1_and_levenshtein_by_hand():
    assert f1([1, 1, 1, 0, 0], [1, 0, 1, 1, 0]) == pytest.approx(4 / 6)  # TP 2, FN 1, FP 1
    assert f1([0, 0], [0, 0]) == 0.0
    assert levenshtein("kitten", "sitting") == 3 and levenshtein("", "abc") == 3 and levenshtein("CDAB", "CDAB") == 0
    assert levenshtein("ABCD", "BACD") == 2 and levenshtein("ABCD", "DCBA") == 4 and levenshtein("ABCD", "DABC") == 2


# The words


def test_words_and_numbers():
    assert [index_of(v, BINARY) for v in ("No", " yes ", "Unsafe", "safe", 0, 1, True, None)] == [0, 1, 0, 1, 0, 1, 1, None]
    assert [index_of(v, WINNER) for v in ("A", "b", "C", "TIE", "both_bad", "yes", 0, 1, -1)] == [0, 1, -1, -1, -1, 1, 0, 1, -1]
    assert places_of("CDAB") == places_of("C > D > A > B") == places_of((3, 4, 1, 2)) == [2, 3, 0, 1]
    assert rank_list("B > A = C") == rank_list([2, 1, 2]) == [2, 1, 2]
    assert rank_list("CDAB") == rank_list("C, D, A, B") == [3, 4, 1, 2] and rank_list("A = B") == [1, 1]
    for value in ("maybe", 2, -1):
        with pytest.raises(ValueError, match="is not a label: known are"):
            index_of(value, BINARY)


# AGIN


def test_agin_by_hand():
    """x = .1 .4 .4 .9, y = 1 2 3 4: ranks 1 2.5 2.5 4, so SRCC = 4.5 / sqrt(4.5 * 5); PLCC = 1.2 / sqrt(.33 * 5);
    5 of 6 pairs agree and one is tied in x, so KRCC = 5 / sqrt(5 * 6).
    """
    given = [row(n, "yes", "yes", score=s, true=n + 1.0) for n, s in enumerate((0.1, 0.4, 0.4, 0.9))]
    expected = {"srcc": 4.5 / 22.5**0.5, "plcc": 1.2 / 1.65**0.5, "krcc": 5 / 30**0.5}
    exactly(official("agin_tech", given), **expected, scored=1.0)
    exactly(official("agin_nat", [*given, row(9, "no", None, true=0.5)]), **expected, scored=0.8)
    exactly(official("agin_rat", [row(n, "yes", "yes", score=0.5, true=float(n)) for n in range(3)]), scored=1.0)


def logistic(x, b1, b2, b3, b4):
    return b2 + (b1 - b2) / (1 + np.exp(-(np.asarray(x) - b3) / abs(b4)))


def test_points_on_a_curve_are_fitted_exactly():
    """P(good) from 0 to 1 and opinion scores on 1.2 + 3.4 / (1 + exp(-(x - .7) / .08)): fitted 1, raw less."""
    x = np.linspace(0, 1, 21)
    for b in ((4.6, 1.2, 0.7, 0.08), (4.6, 1.2, 0.3, 0.5), (1.0, 5.0, 0.5, 0.1)):  # the last one falls
        y = logistic(x, *b)
        np.testing.assert_allclose(fit_logistic(x, y), y, atol=1e-6)
        found = official("agin_tech", [row(n, "yes", "yes", score=s, true=t) for n, (s, t) in enumerate(zip(x, y, strict=True))])
        assert found["plcc_fitted"] == pytest.approx(1, abs=1e-9) and found["plcc"] == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert found["plcc"] < 0.999 and list(found) == ["srcc", "plcc", "plcc_fitted", "krcc", "scored"]


@pytest.mark.parametrize("seed", range(20))
def test_the_fit_is_as_good_as_scipys(seed):
    rng = np.random.default_rng(seed)
    x = rng.beta(0.5, 0.5, 200) if seed % 2 else rng.uniform(1, 5, 200)  # probabilities, most near 0 or 1; grades
    y = logistic(x, 4.5, 1.5, np.median(x), 0.2 + 0.3 * rng.random()) + rng.normal(size=200) * 0.4
    start = [y.max(), y.min(), x.mean(), 0.5]
    best, _ = scipy.optimize.curve_fit(logistic, x, y, p0=start, maxfev=100_000)
    theirs, mine = np.sum((logistic(x, *best) - y) ** 2), np.sum((fit_logistic(x, y) - y) ** 2)
    assert mine <= theirs * (1 + 1e-6)
    assert pearson(fit_logistic(x, y), y) == pytest.approx(np.corrcoef(logistic(x, *best), y)[0, 1], abs=1e-4)


def test_a_fit_that_cannot_be_or_that_is_hard():
    assert fit_logistic([0, 1, 2, 3], [0, 1, 2, 3]) is None and fit_logistic([0.5] * 9, range(9)) is None
    rng = np.random.default_rng(0)
    for y in (np.ones(30), rng.normal(size=30), np.arange(30) > 14, 1e6 * np.arange(30), np.arange(30) == 7):
        for x in (np.arange(30) / 30, np.arange(30) > 10, np.r_[np.zeros(29), 1.0]):
            fitted = fit_logistic(x, y.astype(float))
            assert np.isfinite(fitted).all() and np.sum((fitted - y) ** 2) <= np.sum((y - y.mean()) ** 2) * (1 + 1e-3) + 1e-9


# SeeTRUE


def test_seetrue_by_hand():
    """Source a: (.9, .5) over (.5, .1) = 3.5 of 4. Source b: (.3, invalid = 0) over (.2, invalid = 1) = 1 of 4.
    Together (.9, .5, .3, 0) over (.5, .1, .2, 1): 3 + 2.5 + 2 + 0 of 16.
    """
    given = [row(n, "yes", "yes", score=s, dataset_source="a") for n, s in enumerate((0.9, 0.5))]
    given += [row(n, 0, "no", score=s, dataset_source="a") for n, s in enumerate((0.5, 0.1))]
    given += [row(n, 1, None, score=s, dataset_source="b") for n, s in enumerate((0.3, None))]
    given += [row(n, "no", None, score=s, dataset_source="b") for n, s in enumerate((0.2, None))]
    found = official("seetrue", given)
    exactly(found, roc_auc__a=3.5 / 4, roc_auc__b=1 / 4, roc_auc=7.5 / 16, roc_auc_mean=4.5 / 8)


def test_seetrue_without_probabilities_or_with_one_class():
    assert official("seetrue", rows([("yes", "yes"), ("no", None)])) == {}
    given = [row(0, 1, 1, score=0.9, dataset_source="a"), row(1, 1, 1, score=0.1, dataset_source="a")]
    assert official("seetrue", given) == {}


# ImageReward


def test_imagereward_by_hand():
    """p: ranks 1 2 2 3, given .9 .5 .7 .5: of 5 untied pairs the equal one is wrong, tau-b = 4 / sqrt(5 * 5).
    q: ranks 1 2 3, given .2 none .1: 1 of 3 pairs, tau-b of the other two 1. r: equal predictions, 0 of 1, tau-b 0.
    s: all tied in gold: nothing.
    """
    table = {"p": ((1, 0.9), (2, 0.5), (2, 0.7), (3, 0.5)), "q": ((1, 0.2), (2, None), (3, 0.1)), "r": ((1, 0.4), (2, 0.4)),
             "s": ((1, 0.1), (1, 0.2))}  # fmt: skip
    given = [row(f"{g}{n}", 1, 1, group=g, score=s, rank=r) for g, held in table.items() for n, (r, s) in enumerate(held)]
    expected = {"pairwise_accuracy": 5 / 9, "pairs": 9.0, "kendall_tau_b": (0.8 + 1 + 0) / 3}
    exactly(official("imagereward", given), **expected)
    # The same by ratings (7 = best), where no rank is given.
    for p in given:
        p["score_true"] = 8.0 - p["raw"].pop("rank")
    exactly(official("imagereward", given), **expected)


# UnsafeBench


def test_unsafebench_by_hand():
    """Hate/Lexica: TP 1, FN 1 (invalid), FP 1 (invalid on a safe one), TN 1 -> 2/4. Spam/Laion5B: TP 2, FP 1 -> 4/5.
    Together TP 3, FN 1, FP 2 -> 6/9; 2 of 3 safe ones are called unsafe.
    """
    hate = rows([("unsafe", "unsafe"), ("unsafe", None), ("safe", None), ("safe", "safe")], category="Hate", source="Lexica")
    spam = rows([("unsafe", "unsafe"), ("unsafe", "unsafe"), ("safe", "unsafe")], category="Spam", source="Laion5B")
    for p in spam:
        p["example_id"] = f"spam{p['example_id']}"
    found = official("unsafebench", hate + spam)
    exactly(found, f1_unsafe=6 / 9, false_positive_rate=2 / 3, f1_unsafe__Hate__Lexica=2 / 4, f1_unsafe__Spam__Laion5B=4 / 5)


def test_unsafebench_majority_over_prompts():
    """Three prompts: 2 to 1 decides; one of each and one invalid is a draw, so wrong."""
    votes = {"a": ("unsafe", ["unsafe", "safe", "unsafe"]), "b": ("unsafe", ["unsafe", "safe", None]),
             "c": ("safe", ["safe", "safe", "unsafe"]), "d": ("safe", [None, None, "safe"])}  # fmt: skip
    given = [row(name, label, verdict) for name, (label, answers) in votes.items() for verdict in answers]
    found = official("unsafebench", given)
    assert found["f1_unsafe"] == pytest.approx(2 / 3) and found["false_positive_rate"] == 0.0  # TP 1, FN 1


def test_unsafebench_is_about_unsafe_whatever_class_the_words_ask_for():
    """TP 2, FN 1, FP 1, TN 1: "no" says unsafe, or the native label tells where it is "yes" that does."""
    table = (
        ("yes", "yes", "Safe"),
        ("no", "no", "Unsafe"),
        ("no", "yes", "Unsafe"),
        ("yes", None, "Safe"),
        ("no", "no", "Unsafe"),
    )
    expected = {"f1_unsafe": 4 / 6, "false_positive_rate": 1 / 2, "f1_unsafe__/": 4 / 6}
    exactly(official("unsafebench", rows([(label, verdict) for label, verdict, _ in table])), **expected)
    turned = {"yes": "no", "no": "yes", None: None}
    given = [row(n, turned[label], turned[verdict], safety_label=native) for n, (label, verdict, native) in enumerate(table)]
    exactly(official("unsafebench", given), **expected)


# MJ-Bench


def test_mj_bench_by_hand():
    """5 answers, 2 right, one tie, one invalid: with tie 2/5, without 2/4."""
    given = rows([("A", "A"), ("B", "A"), ("A", "TIE"), ("B", None), (1, 1)])
    exactly(official("mj_alignment", given), accuracy_with_tie=2 / 5, accuracy_without_tie=2 / 4)
    for p, name in zip(given, ("object", "object", "counting", "counting", "counting"), strict=True):
        p["raw"] = {"subcategory": name}
    exactly(
        official("mj_safety", given),
        accuracy_with_tie=2 / 5, accuracy_without_tie=2 / 4, accuracy_with_tie__object=1 / 2, accuracy_without_tie__object=1 / 2,
        accuracy_with_tie__counting=1 / 3, accuracy_without_tie__counting=1 / 2,
    )  # fmt: skip
    exactly(official("mj_bias", rows([("A", "TIE")])), accuracy_with_tie=0.0)


def test_mj_bench_by_a_text_of_its_own_in_each_row_is_not_split():
    given = [row(n, "A", "A", info=f"made from prompt {n}") for n in range(21)]
    exactly(official("mj_quality", given), accuracy_with_tie=1.0, accuracy_without_tie=1.0)
    assert len(official("mj_quality", given[:20])) == 42


def test_native_fields_that_are_null_or_numbers():
    given = [row(0, 0, 0, category=None, source=3), row(1, 0, 0, source="Lexica")]
    assert set(official("unsafebench", given)) == {"f1_unsafe", "f1_unsafe//3", "f1_unsafe//Lexica"}


# VL-RewardBench


def test_vl_rewardbench_by_hand():
    """general: 1 of 2 (and one invalid, left out); hallucination 2 of 2 (and a draw, left out); reasoning 0 of 1.
    overall 3/5, macro (1/2 + 1 + 0) / 3, 5 of 7 counted, 3 of 7 strictly.
    """
    given = [row("g1", "A", "A", group="x"), row("g2", "A", "B"), row("g3", "B", None)]
    for p in given:
        p["raw"]["group"] = "general"
    given += [{**row(n, "A", "A"), "raw": {"group": "hallucination"}} for n in ("h1", "h2")]
    # The draw: right in one order, wrong in the other (whose label is the other one).
    given += [{**row("h3", a, "A", order=o), "raw": {"group": "hallucination"}} for a, o in (("A", "ab"), ("B", "ba"))]
    given += [{**row("r1", "B", "A"), "raw": {"group": "reasoning"}}]
    exactly(
        official("vl_rewardbench", given),
        overall=3 / 5, macro=1.5 / 3, accuracy__general=1 / 2, accuracy__hallucination=1.0, accuracy__reasoning=0.0,
        counted=5 / 7, overall_strict=3 / 7,
    )  # fmt: skip


def test_vl_rewardbench_majority_of_samples():
    """2 of 3 samples right: right. One sample of three invalid: left out, as in cal.py."""
    given = [row("a", 0, verdict) for verdict in (0, 1, 0)] + [row("b", 0, verdict) for verdict in (0, 0, None)]
    found = official("vl_rewardbench", given)
    exactly(found, overall=1.0, macro=1.0, accuracy__general=1.0, counted=0.5, overall_strict=0.5)


def test_sampled_answers_of_an_evaluation_vote_where_the_rules_say_so():
    """a: greedy wrong, 2 of 3 samples right in one order and 1 of 3 in the other, a draw. b: greedy right, samples 4 of 6."""
    votes = {("a", "ab"): ("B", "AAB"), ("a", "ba"): ("A", "BAA"), ("b", "ab"): ("A", "AAB"), ("b", "ba"): ("B", "ABB")}
    given = [
        row(name, "A" if order == "ab" else "B", greedy, order=order) | {"sampled_verdicts": list(sampled)}
        for (name, order), (greedy, sampled) in votes.items()
    ]
    found = official("vl_rewardbench", given)
    assert (found["overall"], found["counted"]) == (0.5, 1.0)
    assert (found["voted/overall"], found["voted/counted"], found["voted/overall_strict"]) == (1.0, 0.5, 0.5)
    found = official("mllm_pair", given)  # each order is a decision: greedy 0 0 1 1, votes A, A, A, B
    assert (found["accuracy_with_tie"], found["voted/accuracy_with_tie"]) == (0.5, 0.75)
    given[0]["sampled_verdicts"] = ["A"]
    assert not any(name.startswith("voted") for name in official("mllm_pair", given))
    assert not any(name.startswith("voted") for name in official("pickapic", given))


def test_vl_rewardbench_nothing_readable():
    exactly(official("vl_rewardbench", rows([("A", None)])), counted=0.0, overall_strict=0.0)


# Multimodal RewardBench


def test_multimodal_rewardbench_by_hand():
    given = rows([("A", "A"), ("B", "A"), ("B", None)], category="safety/bias")
    given += rows([("B", "B"), ("A", "A")], category="reasoning/math")
    found = official("multimodal_rewardbench", given)
    assert found == {"accuracy": 3 / 5, "accuracy/reasoning/math": 1.0, "accuracy/safety/bias": pytest.approx(1 / 3)}


# GenAI-Bench


def test_genai_bench_by_hand():
    """Right: A, plain tie for both-bad, both_good for tievote. Wrong: B for A, both_bad for tievote, invalid, tie for B.
    3 of 7; of the 3 decided votes (A/A, A/B, B/tie) 1.
    """
    given = [row(0, "A", "A", vote_type="leftvote"), row(1, "A", "B", vote_type="leftvote"),
             row(2, "TIE", "TIE", vote_type="bothbad_vote"), row(3, "TIE", "both_good", vote_type="tievote"),
             row(4, -1, "both_bad", vote_type="tievote"), row(5, "both_good", None, vote_type="tievote"),
             row(6, "B", "TIE", vote_type="rightvote")]  # fmt: skip
    exactly(official("genai_image", given), accuracy=3 / 7, accuracy_without_tie=1 / 3)
    exactly(official("genai_edit", [row(0, "both_bad", "both_good")]), accuracy=0.0)
    exactly(official("genai_edit", [row(0, "both_bad", "both_bad")]), accuracy=1.0)


# MLLM-as-a-Judge


def test_mllm_score_by_hand():
    """coco: answers 1 2 4, human 1 3 5: deviations -4/3 -1/3 5/3 and -2 0 2, so 6 / sqrt(42/9 * 8).
    chart: constant answers, 0. text: an invalid answer is -1: answers -1 3 2, human 2 4 5: deviations -7/3 5/3 2/3 and
    -5/3 1/3 4/3, so 48 / sqrt(78 * 42). Mean of the three.
    """
    given = rows([(1, 1), ("3", "2"), (5.0, 4)], original_dataset="coco")
    given += rows([(1, 3), (2, 3)], original_dataset="chart") + rows([(2, None), (4, 3), (5, 2)], original_dataset="text")
    coco, text = 6 / (42 / 9 * 8) ** 0.5, 48 / (78 * 42) ** 0.5
    found = official("mllm_score", given)
    exactly(found, pearson=(coco + 0 + text) / 3, pearson__coco=coco, pearson__chart=0.0, pearson__text=text)


def test_mllm_pair_by_hand():
    """coco: A/A, C/C, B/A, C/invalid: with tie 2/4, without (A, B) 1/2. chart: B/B, A/C: 1/2 and 1/2."""
    given = rows([("A", "A"), ("C", "C"), ("B", "A"), ("C", None)], original_dataset="coco")
    given += [row(f"x{n}", *pair, original_dataset="chart") for n, pair in enumerate((("B", "B"), ("A", "C")))]
    exactly(
        official("mllm_pair", given),
        accuracy_with_tie=0.5, accuracy_without_tie=0.5, accuracy_with_tie__coco=2 / 4, accuracy_without_tie__coco=1 / 2,
        accuracy_with_tie__chart=1 / 2, accuracy_without_tie__chart=1 / 2,
    )  # fmt: skip


def test_mllm_pair_samples_add_up():
    """A A B -> A; A B C -> C; invalid B C -> B; three invalid -> none, wrong."""
    table = {"a": ("A", "AAB"), "b": ("C", "ABC"), "c": ("B", [None, "B", "C"]), "d": ("C", [None] * 3), "e": ("B", "AAB")}
    given = [row(name, label, verdict) for name, (label, answers) in table.items() for verdict in answers]
    found = official("mllm_pair", given)
    assert found["accuracy_with_tie"] == 3 / 5 and found["accuracy_without_tie"] == pytest.approx(2 / 3)


def test_mllm_batch_by_hand():
    """coco: equal 0; ABCD to BACD is 2/4; invalid 1: mean 1/2. chart: by ranks, CDAB to CDBA 2/4."""
    given = rows([("CDAB", "CDAB"), ("ABCD", "B > A > C > D"), ("ABCD", None)], original_dataset="coco")
    given += rows([((3, 4, 1, 2), (4, 3, 1, 2))], original_dataset="chart")
    exactly(official("mllm_batch", given), levenshtein=0.5, levenshtein__coco=0.5, levenshtein__chart=0.5)
    exactly(official("mllm_batch", rows([("ABCD", "DABC"), ("ABCD", "ABC")])), levenshtein=0.375, levenshtein__=0.375)
    exactly(official("mllm_batch", rows([("AB", "ABCD")])), levenshtein=0.5, levenshtein__=0.5)


# Pick-a-Pic and HPD v2


def test_pickapic_by_hand():
    """Equal (also both ties) 1, one side tie 1/2, other 0, invalid 0: (1 + 0 + 1 + .5 + .5 + 0 + 0) / 7."""
    table = [("A", "A"), ("A", "B"), ("TIE", "TIE"), ("TIE", "A"), (1, -1), ("TIE", None), ("A", None)]
    exactly(official("pickapic", rows(table)), accuracy=3 / 7)


def test_hpdv2_by_hand():
    exactly(official("hpdv2", rows([("A", "A"), ("B", "B"), ("A", "TIE"), ("B", None), ("B", "A")])), pairwise_accuracy=2 / 5)


def test_hpdv2_list_by_hand():
    """gold 1 2 3, given 2 1 3: one of three pairs inverted, 2/3. gold 1 2 2 (two untied pairs), given 1 1 2: 1-2 answered
    equal is inverted, 2/3. invalid: 0. Untied pairs: (2 + 1 + 0) of (3 + 2 + 3).
    """
    given = rows([((1, 2, 3), (2, 1, 3)), ((1, 2, 2), "A = B > C"), ((3, 2, 1), None)])
    exactly(official("hpdv2_list", given), ranking_accuracy=(2 / 3 + 2 / 3 + 0) / 3, pairwise_accuracy=3 / 8)
    exactly(official("hpdv2_list", rows([((1, 2, 3), (1, 2))])), ranking_accuracy=0.0, pairwise_accuracy=0.0)
    exactly(official("hpdv2_list", rows([((1, 2, 3), (1, 1, 1))])), ranking_accuracy=0.0, pairwise_accuracy=0.0)


# All of them


TASKS = [
    "agin_nat", "agin_tech", "agin_rat", "seetrue", "imagereward", "unsafebench", "mj_alignment", "mj_safety", "mj_quality",
    "mj_bias", "vl_rewardbench", "multimodal_rewardbench", "genai_image", "genai_edit", "mllm_score", "mllm_pair", "mllm_batch",
    "pickapic", "hpdv2", "hpdv2_list",
]  # fmt: skip


def test_every_task_has_its_metric():
    assert list(OFFICIAL) == TASKS
    assert official("my_own_task", []) == {}


@pytest.mark.parametrize("task", TASKS)
def test_all_invalid_is_as_wrong_as_can_be_and_no_error(task):
    label = {"mllm_batch": "AB", "hpdv2_list": (1, 2), "mllm_score": 3, "unsafebench": 0}.get(task, 1)
    found = official(task, [row(n, label, None, group="p", true=float(n), rank=n) for n in range(3)])
    for name, value in found.items():
        assert isinstance(value, float) and np.isfinite(value)
        if name.startswith("levenshtein"):
            assert value == 1.0
        elif name != "pairs":
            assert value == 0.0, name


@pytest.mark.parametrize("task", TASKS)
def test_no_predictions_and_lacking_keys_are_one_line(task):
    assert official(task, []) == {}
    short = {key: value for key, value in row(0, 1, 1).items() if key not in ("raw", "order")}
    with pytest.raises(ValueError, match=f"a prediction of {task} lacks order, raw; it has example_id"):
        official(task, [short])


def test_no_jax_is_imported():
    import subprocess

    code = "import sys, mtjudge_jax.eval.official; print([m for m in ('jax', 'scipy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
