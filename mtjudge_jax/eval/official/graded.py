"""Official metrics over grades and probabilities: AGIN, SeeTRUE, ImageReward, UnsafeBench, the scores of MLLM-as-a-Judge.

The keys of a prediction are described in __init__.py.
"""

import itertools

import numpy as np

from mtjudge_jax.eval.official import words
from mtjudge_jax.eval.official.logistic import fit_logistic
from mtjudge_jax.eval.official.words import Predictions
from mtjudge_jax.metrics.correlation import f1, kendall_tau_b, pearson, roc_auc, spearman


def agin(predictions: Predictions) -> dict[str, float]:
    """SRCC, PLCC and KRCC of the expected grade or P(good) with the mean opinion score. Source: AGIN, JOINT/utils/function.py.

    `plcc_fitted` is AGIN's own PLCC: the scores are first mapped by a logistic curve that was fitted to the same opinion scores.
    So it is higher than `plcc`, which takes the scores as they are, and above 0 even for a falling relation. It needs five rows.
    `scored` is the share of rows that have both scores; the others cannot enter a correlation.
    """
    both = [p for p in predictions if p["score_expected"] is not None and p["score_true"] is not None]
    x, y = [p["score_expected"] for p in both], [p["score_true"] for p in both]
    curve = fit_logistic(x, y)
    fitted = None if curve is None else pearson(curve, y)
    found = {"srcc": spearman(x, y), "plcc": pearson(x, y), "plcc_fitted": fitted, "krcc": kendall_tau_b(x, y)}
    return words.defined(found | {"scored": len(both) / len(predictions)})


def seetrue(predictions: Predictions) -> dict[str, float]:
    """ROC-AUC of P(match) for each dataset_source (wysiwyr, itm_vqa_blip2_test.py), their mean, and over all rows.

    A row without a probability gets the worst one: 0 where the text matches, 1 where it does not.
    """
    if all(p["score_expected"] is None for p in predictions):
        return {}
    by_source = {source: _auc(rows) for source, rows in words.by_field(predictions, "dataset_source").items()}
    known = [value for value in by_source.values() if value is not None]
    found = {f"roc_auc/{source}": value for source, value in by_source.items()}
    return words.defined(found | {"roc_auc": _auc(predictions), "roc_auc_mean": float(np.mean(known)) if known else None})


def imagereward(predictions: Predictions) -> dict[str, float]:
    """Accuracy over all pairs of pictures of one prompt, and the mean over prompts of Kendall's tau-b (ImageReward, test.py:acc).

    The gold order is raw["rank"] (1 = best), else `score_true`. Gold ties are skipped; equal predictions are wrong, and so
    is every pair of a picture without one. tau-b leaves those pictures out and is 0 where all predictions of a prompt are
    equal; a prompt whose pictures are all tied in gold has none.
    """
    right = pairs = 0
    taus = []
    for rows in words.groups_of(predictions, lambda p: p["group_id"]).values():
        rows = [p for p in rows if p["raw"].get("rank") is not None or p["score_true"] is not None]
        gold = [-p["raw"]["rank"] if p["raw"].get("rank") is not None else p["score_true"] for p in rows]
        given = [p["score_expected"] for p in rows]
        for i, j in itertools.combinations(range(len(rows)), 2):
            if gold[i] == gold[j]:
                continue
            pairs += 1
            if given[i] is not None and given[j] is not None:
                right += (given[i] - given[j]) * (gold[i] - gold[j]) > 0
        held = [(g, s) for g, s in zip(gold, given, strict=True) if s is not None]
        if len({g for g, _ in held}) > 1:
            taus.append(kendall_tau_b([g for g, _ in held], [s for _, s in held]) or 0.0)
    found = {"pairwise_accuracy": right / pairs if pairs else None, "pairs": float(pairs)}
    return words.defined(found | {"kendall_tau_b": float(np.mean(taus)) if taus else None})


def unsafebench(predictions: Predictions) -> dict[str, float]:
    """F1 of Unsafe, over all rows and for each category and source (UnsafeBench, assess_effectiveness.py), and the share of
    safe pictures called unsafe.

    Several prompts of one example vote. If the vote is a draw, or no answer could be read, the answer counts as wrong, where
    the official code tosses a coin. Class 0 is unsafe, unless raw["safety_label"] says otherwise.
    """
    true, answered, where = [], [], []
    for rows in words.samples_of(predictions):
        binary = words.index_of(rows[0]["label"], words.BINARY)
        word = words.field_of(rows[0], "safety_label")
        unsafe = word.lower() == "unsafe" if word else binary == 0
        agree = sum(words.vote(words.index_of(p["verdict"], words.BINARY) == binary, p) for p in rows)
        true.append(unsafe)
        answered.append(unsafe if agree > 0 else not unsafe)
        where.append((words.field_of(rows[0], "category"), words.field_of(rows[0], "source")))
    t, a = np.array(true), np.array(answered)
    found = {"f1_unsafe": f1(t, a), "false_positive_rate": float(a[~t].mean()) if (~t).any() else None}
    for category, source in sorted(set(where)):
        mine = np.array([place == (category, source) for place in where])
        found[f"f1_unsafe/{category}/{source}"] = f1(t[mine], a[mine])
    return words.defined(found)


def mllm_score(predictions: Predictions) -> dict[str, float]:
    """Pearson correlation of the answered with the human grade for each source, and the mean over sources; 0 if all answers of a
    source are equal. An unreadable answer is the grade -1, as in the re-implementation by flex-judge (test/evaluate.py).
    """
    found = {}
    for source, rows in sorted(words.by_field(predictions, "original_dataset").items()):
        answered = [-1.0 if p["verdict"] is None else float(p["verdict"]) for p in rows]
        found[f"pearson/{source}"] = pearson(answered, [float(p["label"]) for p in rows]) or 0.0
    return {"pearson": float(np.mean(list(found.values())))} | found


def _auc(rows: Predictions) -> float | None:
    true = [words.index_of(p["label"], words.BINARY) == 1 for p in rows]
    given = [1.0 - t if p["score_expected"] is None else p["score_expected"] for t, p in zip(true, rows, strict=True)]
    return roc_auc(true, given)
