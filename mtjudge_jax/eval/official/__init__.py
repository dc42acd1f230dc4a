"""Each data set's own metric, by its own rules: `official(task, predictions)` -> {name: number}.

A prediction is a dict with the keys

    example_id, task, group_id   text; a group is a prompt (imagereward) or a picture
    order      "ab", "ba" (the candidates exchanged, and `label` and `verdict` with them) or "" where there is one order
    label      the truth: Label.binary, Label.winner (-1 a tie), Label.score or Label.ranks as a number or a list, or
               its word: no yes unsafe safe bad good / A B tie C left right first second both_good both_bad /
               "CDAB" or "C > D > A > B", the best first
    verdict    the answer, in the same forms; None where none could be read
    score_expected   the expected grade, or the probability of class 1 (the good one), or None
    score_true       Label.score, a mean opinion score or a rating, or None
    raw        dict of the record's raw JSON: category, source, dataset_source, rank, group, original_dataset, vote_type
    sampled_verdicts   optional: further answers, sampled, in the same forms

A row is one decision, so the two orders of a pair are two rows. Several samples of one example are rows with equal example_id
and order: they vote where the data set's rules say so, otherwise each counts. The answers in `sampled_verdicts` are such samples:
where a judge's samples vote by the rules (_VOTED), their numbers come beside those of `verdict`, as "voted/..".
UnsafeBench's vote is over three prompts of its own, not over samples. Where official code tosses a coin for an unreadable
answer, that answer is wrong here. A number that is undefined (a correlation with a constant) is left out.
"""

from collections.abc import Callable

from mtjudge_jax.eval.official import choices, graded
from mtjudge_jax.eval.official.words import Predictions

_VOTED = ("vl_rewardbench", "mllm_pair")
_KEYS = ("example_id", "task", "group_id", "order", "label", "verdict", "score_expected", "score_true", "raw")

OFFICIAL: dict[str, Callable[[Predictions], dict[str, float]]] = {
    "agin_nat": graded.agin,
    "agin_tech": graded.agin,
    "agin_rat": graded.agin,
    "seetrue": graded.seetrue,
    "imagereward": graded.imagereward,
    "unsafebench": graded.unsafebench,
    "mj_alignment": choices.mj_bench,
    "mj_safety": choices.mj_bench,
    "mj_quality": choices.mj_bench,
    "mj_bias": choices.mj_bench,
    "vl_rewardbench": choices.vl_rewardbench,
    "multimodal_rewardbench": choices.multimodal_rewardbench,
    "genai_image": choices.genai_bench,
    "genai_edit": choices.genai_bench,
    "mllm_score": graded.mllm_score,
    "mllm_pair": choices.mllm_pair,
    "mllm_batch": choices.mllm_batch,
    "pickapic": choices.pickapic,
    "hpdv2": choices.hpdv2,
    "hpdv2_list": choices.hpdv2_list,
}


def official(task: str, predictions: Predictions) -> dict[str, float]:
    """The task's own numbers, {} if it has no metric of its own or nothing was judged.

    Raises ValueError for a prediction that lacks a key and for a word that is no label.
    """
    if task not in OFFICIAL or not predictions:
        return {}
    for p in predictions:
        if lacking := [key for key in _KEYS if key not in p]:
            raise ValueError(f"a prediction of {task} lacks {', '.join(lacking)}; it has {', '.join(p)}")
    found = OFFICIAL[task](predictions)
    if task in _VOTED and all(len(p.get("sampled_verdicts") or ()) > 1 for p in predictions):
        samples = [p | {"verdict": verdict} for p in predictions for verdict in p["sampled_verdicts"]]
        found |= {f"voted/{name}": value for name, value in OFFICIAL[task](samples).items()}
    return found
