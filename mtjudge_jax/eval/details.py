"""Further scores of a task, beside macro-F1 and accuracy: agreement, ranks, calibration, votes of samples, orders of lists.

A number is None if the predictions do not define it (no probabilities, no samples, one class only).
"""

import numpy as np

from mtjudge_jax.metrics import agreement, calibration, correlation
from mtjudge_jax.metrics.bootstrap import bootstrap_interval, checked_shares, group_numbers, ratio_interval, rows_interval
from mtjudge_jax.tasks import Task


def answer_details(predictions: list[dict], task: Task, label: np.ndarray, verdict: np.ndarray, by_group: np.ndarray) -> dict:
    """Agreement, calibration, majority over samples and tokens of one task's predictions.

    label, verdict: int `[N]` (-1 = invalid); by_group: confusion counts `[groups, T, T + 1]`.
    """
    group, graded = group_numbers(predictions), task.kind == "pointwise_score"
    grades = np.array([float(word) for word in task.labels]) if graded else None
    agree = lambda counts: agreement.kappa(counts, grades=grades)  # noqa: E731
    name = "quadratic_kappa" if graded else "kappa"
    found = {name: float(agree(by_group.sum(axis=0))), f"{name}_ci": bootstrap_interval(by_group, agree)}
    if grades is not None:
        errors = agreement.grade_errors(label, verdict, grades)
        found |= {"mae": float(errors.mean()), "mae_ci": ratio_interval(errors, np.ones(len(errors)), group)}
    else:
        found |= _class_auroc(predictions, task, label, group)
    return found | _score_ranks(predictions, group) | _calibration(predictions, task, label, verdict, group) | _votes(
        predictions, task, label, group
    ) | {"mean_tokens": _mean_tokens(predictions)}  # fmt: skip


def list_score(predictions: list[dict]) -> dict:
    """The score of a listwise task: label and verdict are orders, "B > A = C".

    accuracy is the share of completely right orders; tau_b and levenshtein are means over lists, where an invalid order gets the
    worst value, -1 and 1. Orders have no macro-F1: its keys are None.
    """
    group, ones = group_numbers(predictions), np.ones(len(predictions))
    orders = [(p["label"], p["verdict"]) for p in predictions]
    tau = np.array([agreement.order_tau(*pair) for pair in orders])
    distance = np.array([agreement.order_distance(*pair) for pair in orders])
    right = np.array([said is not None and agreement.rank_by_name(true) == agreement.rank_by_name(said) for true, said in orders])
    values = {"accuracy": right.astype(float), "tau_b": tau, "levenshtein": distance}
    found = {"count": len(predictions), "macro_f1": None, "macro_f1_ci": None}
    for name, value in values.items():
        found |= {name: float(value.mean()), f"{name}_ci": ratio_interval(value, ones, group)}
    given = [p["sampled_accuracy"] for p in predictions if p["sampled_accuracy"] is not None]
    sampled = len(given) == len(predictions)
    found["sampled_accuracy"] = float(np.mean(given)) if sampled else None
    found["sampled_accuracy_ci"] = ratio_interval(np.array(given), ones, group) if sampled else None
    invalid = float(np.mean([verdict is None for _, verdict in orders]))
    return found | {"invalid_rate": invalid, "constant_macro_f1": None, "mean_tokens": _mean_tokens(predictions)}


def _score_ranks(predictions: list[dict], group: np.ndarray) -> dict:
    """Correlations of the expected score with the data set's own score, over the rows that have both; {} if none has the latter.

    Kendall's tau-b has no interval.
    """
    if all(p.get("score_true") is None for p in predictions):
        return {}
    statistics = {
        "spearman": (correlation.spearman, correlation.weighted_spearman),
        "pearson": (correlation.pearson, correlation.weighted_pearson),
    }
    kept = [i for i, p in enumerate(predictions) if p.get("score_true") is not None and p.get("score_expected") is not None]
    found = {"score_count": len(kept), "kendall": None} | {key: None for name in statistics for key in (name, f"{name}_ci")}
    if len(kept) < 2:
        return found
    expected, true = (np.array([predictions[i][key] for i in kept], np.float64) for key in ("score_expected", "score_true"))
    found["kendall"] = correlation.kendall_tau_b(expected, true)
    for name, (plain, weighted) in statistics.items():
        found[name] = plain(expected, true)
        found[f"{name}_ci"] = rows_interval(lambda w, s=weighted: s(expected, true, w), _renumber(group[kept]))
    return found


def _mean_tokens(predictions: list[dict]) -> float | None:
    """Mean length of the greedy answers in tokens, None if a prediction lacks it."""
    tokens = [p.get("tokens") for p in predictions]
    return None if None in tokens else float(np.mean(tokens))


def _class_auroc(predictions: list[dict], task: Task, label: np.ndarray, group: np.ndarray) -> dict:
    """AUROC of the second label's probability, over rows whose label is one of the first two."""
    kept = np.array([bool(p["probabilities"]) for p in predictions]) & (label < 2)
    rows = np.flatnonzero(kept)
    if not len(rows):
        return {"auroc": None, "auroc_ci": None}
    value, positive = np.array([predictions[i]["probabilities"][task.labels[1]] for i in rows]), label[rows] == 1
    interval = rows_interval(lambda w: correlation.weighted_roc_auc(positive, value, w), _renumber(group[rows]))
    return {"auroc": correlation.roc_auc(positive, value), "auroc_ci": interval}


def _calibration(predictions: list[dict], task: Task, label: np.ndarray, verdict: np.ndarray, group: np.ndarray) -> dict:
    """Calibration over the rows with a verdict and probabilities; calibrated_share is their share."""
    rows = [i for i, p in enumerate(predictions) if p["probabilities"] and verdict[i] >= 0]
    names = ("ece", "ece_ci", "brier", "brier_ci", "confidence_auroc", "confidence_auroc_ci", "risk_coverage")
    found = {"calibrated_share": len(rows) / len(predictions)} | dict.fromkeys(names)
    if not rows:
        return found
    shares = checked_shares([[predictions[i]["probabilities"][word] for word in task.labels] for i in rows], "probabilities")
    true, said, at = label[rows], verdict[rows], _renumber(group[rows])
    confidence, right = shares[np.arange(len(rows)), said], (said == true)
    bins = calibration.bin_sums(confidence, right.astype(float))
    by_group = np.zeros((int(at.max()) + 1, *bins.shape[1:]))
    np.add.at(by_group, at, bins)
    distance = calibration.brier(shares, true)
    return found | {
        "ece": float(calibration.calibration_error(bins.sum(axis=0))),
        "ece_ci": bootstrap_interval(by_group, calibration.calibration_error),
        "brier": float(distance.mean()),
        "brier_ci": ratio_interval(distance, np.ones(len(rows)), at),
        "confidence_auroc": correlation.roc_auc(right, confidence),
        "confidence_auroc_ci": rows_interval(lambda w: correlation.weighted_roc_auc(right, confidence, w), at),
        "risk_coverage": calibration.risk_coverage(confidence, right.astype(float)),
    }


def _votes(predictions: list[dict], task: Task, label: np.ndarray, group: np.ndarray) -> dict:
    """Majority over the sampled answers (`sampled_verdicts`), None if a prediction has none.

    self_agreement is None if a question has one sample only, or if no sample at all is valid: nothing can agree.
    """
    names = ("majority_k", "majority_accuracy", "majority_accuracy_ci", "self_agreement", "self_agreement_ci")
    if not all(p.get("sampled_verdicts") for p in predictions):
        return dict.fromkeys(names)
    index = {word: i for i, word in enumerate(task.labels)} | {None: -1}
    votes = [[index[word] for word in p["sampled_verdicts"]] for p in predictions]
    right = np.array([calibration.majority(v) for v in votes]) == label
    least, ones = min(map(len, votes)), np.ones(len(votes))
    values = (least, float(right.mean()), ratio_interval(right.astype(float), ones, group))
    if least < 2 or all(vote < 0 for v in votes for vote in v):
        return dict(zip(names, (*values, None, None), strict=True))
    agree = np.array([calibration.self_agreement(v) for v in votes])
    return dict(zip(names, (*values, float(agree.mean()), ratio_interval(agree, ones, group)), strict=True))


def _renumber(group: np.ndarray) -> np.ndarray:
    """The groups of some of the rows, numbered without gaps."""
    return np.unique(group, return_inverse=True)[1]
