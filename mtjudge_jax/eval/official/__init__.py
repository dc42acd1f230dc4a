"""Each data set's own metric by its own rules, from predictions: `official(task, predictions)` -> {name: number}.

A prediction is a dict with the keys

    example_id, task, group_id   text; a group is a prompt (imagereward) or a picture
    order      "ab", "ba" (the candidates exchanged, `label` and `verdict` with them) or "" where there is one order
    label      what is true: Label.binary, Label.winner (-1 a tie), Label.score or Label.ranks as a number or a list, or
               its word: no yes unsafe safe bad good / A B tie C left right first second both_good both_bad /
               "CDAB" or "C > D > A > B", the best first
    verdict    the answer, in the same forms; None where none could be read
    score_expected   expected grade, or probability of the class 1 (the good one); None where there is none
    score_true       Label.score: a mean opinion score, a rating; None where there is none
    raw        dict of the record's raw JSON: category, source, dataset_source, rank, group, original_dataset, vote_type
    sampled_verdicts   may be missing: further answers, sampled, in the same forms

A row is one decision, so both orders of a pair are two. Of several samples of one example (rows with equal example_id
and order) a majority is formed where the data set's rules do so, else each counts. The answers in `sampled_verdicts` are
such samples: where the rules let samples of a judge vote (VOTED) their numbers stand beside those of `verdict`, as "voted/..".
UnsafeBench's vote is over three prompts of its own, not over samples. Where official code tosses a coin for
an answer that it cannot read, it is wrong here. A number that is not defined (a correlation with a constant) is left out.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.eval.official.graded import agin, imagereward, mllm_score, seetrue, unsafebench
from mtjudge_jax.eval.official.verdicts import (
    TIE,
    TIE_OF_VOTE,
    WINNER,
    Predictions,
    by_field,
    defined,
    field_of,
    groups_of,
    index_of,
    order_of,
    ranks_of,
    samples_of,
    vote,
)
from mtjudge_jax.metrics.correlation import levenshtein

MOST_PARTS = 20  # of MJ-Bench's `info`, which in some revisions is free text, another one in each row
VOTED = ("vl_rewardbench", "mllm_pair")
KEYS = ("example_id", "task", "group_id", "order", "label", "verdict", "score_expected", "score_true", "raw")


def official(task: str, predictions: Predictions) -> dict[str, float]:
    """The task's own numbers; none where it has no metric of its own or nothing was judged.

    Raises ValueError for a prediction without a key and for a word that is no label.
    """
    if task not in OFFICIAL or not predictions:
        return {}
    for p in predictions:
        if lacking := [key for key in KEYS if key not in p]:
            raise UserError(f"a prediction of {task} lacks {', '.join(lacking)}; it has {', '.join(p)}: judge the data again")
    found = OFFICIAL[task](predictions)
    if task in VOTED and all(len(p.get("sampled_verdicts") or ()) > 1 for p in predictions):
        samples = [p | {"verdict": verdict} for p in predictions for verdict in p["sampled_verdicts"]]
        found |= {f"voted/{name}": value for name, value in OFFICIAL[task](samples).items()}
    return found


def mj_bench(predictions: Predictions) -> dict[str, float]:
    """Accuracy with tie (an answered tie is wrong) and without tie (answered ties are dropped), a subcategory too.

    Source: the authors' personal/test.py. Gold is always decided. An answer that could not be read is no tie: it is wrong
    in both.
    """
    found = _with_and_without_tie(predictions)
    parts = by_field(predictions, "subcategory", "category", "info")
    for name, rows in parts.items():
        if name and len(parts) <= MOST_PARTS:
            found |= {f"{key}/{name}": value for key, value in _with_and_without_tie(rows).items()}
    return defined(found)


def vl_rewardbench(predictions: Predictions) -> dict[str, float]:
    """Accuracy of general, hallucination and reasoning, all together (overall) and the groups' mean (macro); cal.py's rules.

    The K answers to one pair, in whatever orders, vote. A pair with an answer that could not be read is left out, and so is
    one whose votes draw; `counted` is the share of the others. `overall_strict` counts them as wrong.
    """
    right, counted, total = defaultdict(int), defaultdict(int), 0
    for rows in groups_of(predictions, lambda p: p["example_id"]).values():
        total += 1
        if any(p["verdict"] is None for p in rows):
            continue
        agree = sum(vote(index_of(p["verdict"], WINNER) == index_of(p["label"], WINNER), p) for p in rows)
        group = field_of(rows[0], "group") or "general"
        right[group] += agree > 0
        counted[group] += agree != 0
    by_group = {f"accuracy/{group}": right[group] / count for group, count in sorted(counted.items()) if count}
    every, all_right = sum(counted.values()), sum(right.values())
    found = {
        "overall": all_right / every if every else None,
        "macro": float(np.mean(list(by_group.values()))) if by_group else None,
    }
    return defined(found | by_group | {"counted": every / total, "overall_strict": all_right / total})


def multimodal_rewardbench(predictions: Predictions) -> dict[str, float]:
    """Accuracy over all rows and a category; an answer that could not be read is wrong (officially a coin is tossed)."""
    found = {"accuracy": _accuracy(predictions)}
    return found | {f"accuracy/{name}": _accuracy(rows) for name, rows in sorted(by_field(predictions, "category").items())}


def genai_bench(predictions: Predictions) -> dict[str, float]:
    """Accuracy over four answers, where a plain tie is right for either sort of tie; and over decided votes only.

    Sources: TIGER-AI-Lab/GenAI-Bench parse_response; UnifiedReward drops gold ties and both-bad (`accuracy_without_tie`),
    where an answered tie is wrong.
    """
    decided = [p for p in predictions if index_of(p["label"], WINNER) != TIE]
    found = {"accuracy": float(np.mean([_right_of_four(p) for p in predictions]))}
    return defined(found | {"accuracy_without_tie": _accuracy(decided)})


def mllm_pair(predictions: Predictions) -> dict[str, float]:
    """Accuracy with ties (of three answers) and without (gold ties dropped), the mean over sources and a source.

    Several samples add up: A counts -1, B +1, a tie 0, and the sign of the sum is the answer (flex-judge, test/evaluate.py).
    """
    right = defaultdict(list)
    for rows in samples_of(predictions):
        signs = [{0: -1, 1: 1, TIE: 0}[index_of(p["verdict"], WINNER)] for p in rows if p["verdict"] is not None]
        answer = {-1: 0, 1: 1, 0: TIE}[int(np.sign(sum(signs)))] if signs else None
        label = index_of(rows[0]["label"], WINNER)
        source = field_of(rows[0], "original_dataset")
        right["with_tie", source].append(answer == label)
        if label != TIE:
            right["without_tie", source].append(answer == label)
    found = {f"accuracy_{kind}/{source}": float(np.mean(values)) for (kind, source), values in sorted(right.items())}
    means = {
        kind: [found[f"accuracy_{kind}/{source}"] for k, source in right if k == kind] for kind in ("with_tie", "without_tie")
    }
    return {f"accuracy_{kind}": float(np.mean(values)) for kind, values in means.items() if values} | found


def mllm_batch(predictions: Predictions) -> dict[str, float]:
    """Levenshtein distance of the answered order and the human one over their length, 0 = equal; the mean over sources and
    a source. An answer that could not be read has distance 1; among ranks answered equal the first shown is the first.
    """
    found = {}
    for source, rows in sorted(by_field(predictions, "original_dataset").items()):
        distances = [1.0 if p["verdict"] is None else _distance(order_of(p["verdict"]), order_of(p["label"])) for p in rows]
        found[f"levenshtein/{source}"] = float(np.mean(distances))
    return {"levenshtein": float(np.mean(list(found.values())))} | found


def pickapic(predictions: Predictions) -> dict[str, float]:
    """Accuracy with credit 1/2 where either the user or the judge, not both, says tie (eval_preference_predictor.py)."""
    credit = []
    for p in predictions:
        label, verdict = index_of(p["label"], WINNER), index_of(p["verdict"], WINNER)
        credit.append(float(label == verdict) or 0.5 * (verdict is not None and TIE in (label, verdict)))
    return {"accuracy": float(np.mean(credit))}


def hpdv2(predictions: Predictions) -> dict[str, float]:
    """Accuracy over pairs; an answered tie is wrong."""
    return {"pairwise_accuracy": _accuracy(predictions)}


def hpdv2_list(predictions: Predictions) -> dict[str, float]:
    """1 - inversions / pairs, the mean over lists (HPSv2, inversion_score), and the accuracy over all untied gold pairs.

    Gold ties are no inversion. The official ranking of scores has no ties; here two pictures answered equal are inverted.
    An answer that could not be read has all pairs inverted.
    """
    scores, right, pairs = [], 0, 0
    for p in predictions:
        gold, given = ranks_of(p["label"]), None if p["verdict"] is None else ranks_of(p["verdict"])
        every = list(itertools.combinations(range(len(gold)), 2))
        untied = [(i, j) for i, j in every if gold[i] != gold[j]]
        good = 0
        if given is not None and len(given) == len(gold):
            good = sum((gold[i] - gold[j]) * (given[i] - given[j]) > 0 for i, j in untied)
        scores.append(1 - (len(untied) - good) / len(every))
        right, pairs = right + good, pairs + len(untied)
    return defined({"ranking_accuracy": float(np.mean(scores)), "pairwise_accuracy": right / pairs if pairs else None})


OFFICIAL: dict[str, Callable[[Predictions], dict[str, float]]] = {
    "agin_nat": agin,
    "agin_tech": agin,
    "agin_rat": agin,
    "seetrue": seetrue,
    "imagereward": imagereward,
    "unsafebench": unsafebench,
    "mj_alignment": mj_bench,
    "mj_safety": mj_bench,
    "mj_quality": mj_bench,
    "mj_bias": mj_bench,
    "vl_rewardbench": vl_rewardbench,
    "multimodal_rewardbench": multimodal_rewardbench,
    "genai_image": genai_bench,
    "genai_edit": genai_bench,
    "mllm_score": mllm_score,
    "mllm_pair": mllm_pair,
    "mllm_batch": mllm_batch,
    "pickapic": pickapic,
    "hpdv2": hpdv2,
    "hpdv2_list": hpdv2_list,
}


def _accuracy(predictions: Predictions) -> float | None:
    right = [index_of(p["verdict"], WINNER) == index_of(p["label"], WINNER) for p in predictions]
    return float(np.mean(right)) if right else None


def _with_and_without_tie(predictions: Predictions) -> dict[str, float | None]:
    decided = [p for p in predictions if index_of(p["verdict"], WINNER) != TIE]
    return {"accuracy_with_tie": _accuracy(predictions), "accuracy_without_tie": _accuracy(decided)}


def _distance(answered: list[int], true: list[int]) -> float:
    return levenshtein(answered, true) / max(len(answered), len(true), 1)


def _right_of_four(prediction: dict) -> bool:
    label, verdict = prediction["label"], prediction["verdict"]
    if index_of(verdict, WINNER) != index_of(label, WINNER):
        return False
    sorts = ("both_good", "both_bad")
    if index_of(label, WINNER) != TIE or verdict not in sorts:
        return True
    return verdict == (label if label in sorts else TIE_OF_VOTE.get(prediction["raw"].get("vote_type"), verdict))
