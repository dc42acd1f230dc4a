"""Official metrics of choices and orders: MJ-Bench, VL-RewardBench, Multimodal RewardBench, GenAI-Bench, Pick-a-Pic, HPDv2, and
the pairs and lists of MLLM-as-a-Judge. The keys of a prediction are described in __init__.py.
"""

import itertools
from collections import defaultdict

import numpy as np

from mtjudge_jax.eval.official import words
from mtjudge_jax.eval.official.words import Predictions
from mtjudge_jax.metrics.correlation import levenshtein
from mtjudge_jax.records import TIE

_MOST_PARTS = 20  # of MJ-Bench's `info`; in some revisions it is free text, different in each row


def mj_bench(predictions: Predictions) -> dict[str, float]:
    """Accuracy with tie (an answered tie is wrong) and without tie (answered ties are dropped), also for each subcategory.

    Source: the authors' personal/test.py. Gold is always decided. An unreadable answer is wrong in both, it is not a tie.
    """
    found = _with_and_without_tie(predictions)
    parts = words.by_field(predictions, "subcategory", "category", "info")
    for name, rows in parts.items():
        if name and len(parts) <= _MOST_PARTS:
            found |= {f"{key}/{name}": value for key, value in _with_and_without_tie(rows).items()}
    return words.defined(found)


def vl_rewardbench(predictions: Predictions) -> dict[str, float]:
    """Accuracy of general, hallucination and reasoning, of all (overall) and the mean of the groups (macro), by cal.py's rules.

    The K answers to one pair vote, in whatever order they were asked. A pair with an unreadable answer is left out, and so is
    a pair whose vote is a draw; `counted` is the share of the others. `overall_strict` counts those left out as wrong.
    """
    right, counted, total = defaultdict(int), defaultdict(int), 0
    for rows in words.groups_of(predictions, lambda p: p["example_id"]).values():
        total += 1
        if any(p["verdict"] is None for p in rows):
            continue
        agree = sum(words.vote(_is_right(p), p) for p in rows)
        group = words.field_of(rows[0], "group") or "general"
        right[group] += agree > 0
        counted[group] += agree != 0
    by_group = {f"accuracy/{group}": right[group] / count for group, count in sorted(counted.items()) if count}
    every, all_right = sum(counted.values()), sum(right.values())
    found = {
        "overall": all_right / every if every else None,
        "macro": float(np.mean(list(by_group.values()))) if by_group else None,
    }
    return words.defined(found | by_group | {"counted": every / total, "overall_strict": all_right / total})


def multimodal_rewardbench(predictions: Predictions) -> dict[str, float]:
    """Accuracy over all rows and for each category; an unreadable answer is wrong (the official code tosses a coin)."""
    found = {"accuracy": _accuracy(predictions)}
    return found | {f"accuracy/{name}": _accuracy(rows) for name, rows in sorted(words.by_field(predictions, "category").items())}


def genai_bench(predictions: Predictions) -> dict[str, float]:
    """Accuracy over four answers, where a plain tie is right for either kind of tie, and accuracy over decided votes only.

    Sources: TIGER-AI-Lab/GenAI-Bench parse_response; UnifiedReward drops gold ties and both-bad (`accuracy_without_tie`),
    where an answered tie is wrong.
    """
    decided = [p for p in predictions if words.index_of(p["label"], words.WINNER) != TIE]
    found = {"accuracy": float(np.mean([_right_of_four(p) for p in predictions]))}
    return words.defined(found | {"accuracy_without_tie": _accuracy(decided)})


def mllm_pair(predictions: Predictions) -> dict[str, float]:
    """Accuracy with ties (three answers) and without (gold ties dropped), for each source and the mean over sources.

    Several samples add up: A counts -1, B +1, a tie 0, and the sign of the sum is the answer (flex-judge, test/evaluate.py).
    """
    right = defaultdict(list)
    for rows in words.samples_of(predictions):
        signs = [{0: -1, 1: 1, TIE: 0}[words.index_of(p["verdict"], words.WINNER)] for p in rows if p["verdict"] is not None]
        answer = {-1: 0, 1: 1, 0: TIE}[int(np.sign(sum(signs)))] if signs else None
        label = words.index_of(rows[0]["label"], words.WINNER)
        source = words.field_of(rows[0], "original_dataset")
        right["with_tie", source].append(answer == label)
        if label != TIE:
            right["without_tie", source].append(answer == label)
    found = {f"accuracy_{kind}/{source}": float(np.mean(values)) for (kind, source), values in sorted(right.items())}
    means = {
        kind: [found[f"accuracy_{kind}/{source}"] for k, source in right if k == kind] for kind in ("with_tie", "without_tie")
    }
    return {f"accuracy_{kind}": float(np.mean(values)) for kind, values in means.items() if values} | found


def mllm_batch(predictions: Predictions) -> dict[str, float]:
    """Levenshtein distance between the answered and the human order, divided by the length (0 = equal), for each source and the
    mean over sources. An unreadable answer has distance 1; of candidates answered equal, the one shown first comes first.
    """
    found = {}
    for source, rows in sorted(words.by_field(predictions, "original_dataset").items()):
        distances = []
        for p in rows:
            answered, true = words.places_of(p["verdict"] or ""), words.places_of(p["label"])
            distances.append(1.0 if p["verdict"] is None else levenshtein(answered, true) / max(len(answered), len(true), 1))
        found[f"levenshtein/{source}"] = float(np.mean(distances))
    return {"levenshtein": float(np.mean(list(found.values())))} | found


def pickapic(predictions: Predictions) -> dict[str, float]:
    """Accuracy, with credit 1/2 if either the user or the judge, not both, says tie (eval_preference_predictor.py)."""
    credit = []
    for p in predictions:
        label, verdict = words.index_of(p["label"], words.WINNER), words.index_of(p["verdict"], words.WINNER)
        credit.append(float(label == verdict) or 0.5 * (verdict is not None and TIE in (label, verdict)))
    return {"accuracy": float(np.mean(credit))}


def hpdv2(predictions: Predictions) -> dict[str, float]:
    """Accuracy over pairs; an answered tie is wrong."""
    return {"pairwise_accuracy": _accuracy(predictions)}


def hpdv2_list(predictions: Predictions) -> dict[str, float]:
    """The mean over lists of 1 - inversions / pairs (HPSv2, inversion_score), and the accuracy over all untied gold pairs.

    Gold ties are never inversions. The official ranking of scores has no ties; here two pictures answered equal are inverted.
    An unreadable answer inverts all pairs.
    """
    scores, right, pairs = [], 0, 0
    for p in predictions:
        gold, given = words.rank_list(p["label"]), None if p["verdict"] is None else words.rank_list(p["verdict"])
        every = list(itertools.combinations(range(len(gold)), 2))
        untied = [(i, j) for i, j in every if gold[i] != gold[j]]
        good = 0
        if given is not None and len(given) == len(gold):
            good = sum((gold[i] - gold[j]) * (given[i] - given[j]) > 0 for i, j in untied)
        scores.append(1 - (len(untied) - good) / len(every))
        right, pairs = right + good, pairs + len(untied)
    return words.defined({"ranking_accuracy": float(np.mean(scores)), "pairwise_accuracy": right / pairs if pairs else None})


def _is_right(prediction: dict) -> bool:
    return words.index_of(prediction["verdict"], words.WINNER) == words.index_of(prediction["label"], words.WINNER)


def _accuracy(predictions: Predictions) -> float | None:
    right = [_is_right(p) for p in predictions]
    return float(np.mean(right)) if right else None


def _with_and_without_tie(predictions: Predictions) -> dict[str, float | None]:
    decided = [p for p in predictions if words.index_of(p["verdict"], words.WINNER) != TIE]
    return {"accuracy_with_tie": _accuracy(predictions), "accuracy_without_tie": _accuracy(decided)}


def _right_of_four(prediction: dict) -> bool:
    label, verdict = prediction["label"], prediction["verdict"]
    if not _is_right(prediction):
        return False
    sorts = ("both_good", "both_bad")
    if words.index_of(label, words.WINNER) != TIE or verdict not in sorts:
        return True
    return verdict == (label if label in sorts else words.TIE_OF_VOTE.get(prediction["raw"].get("vote_type"), verdict))
