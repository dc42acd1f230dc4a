"""The score of a task's predictions: macro-F1, accuracy, 95 % intervals, and for pairs what both orders show."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from mtjudge_jax.eval.details import answer_details, list_score
from mtjudge_jax.eval.pairs import pair_details
from mtjudge_jax.metrics.bootstrap import bootstrap_interval, checked_shares, group_numbers
from mtjudge_jax.metrics.confusion import accuracy, constant_macro_f1, group_confusion, macro_f1
from mtjudge_jax.tasks import TASKS, Task, get_task, task_of


def task_score(predictions: list[dict]) -> dict:
    """The score of one task's predictions (lines of a predictions file), ready for JSON.

    Keys: count, macro_f1, macro_f1_ci, accuracy, accuracy_ci, sampled_accuracy, sampled_accuracy_ci (None if nothing was
    sampled), invalid_rate, constant_macro_f1, label_share and verdict_share ({label: share of all rows}; the verdict shares and
    invalid_rate sum to 1), and those of `details.answer_details`. A listwise task has the keys of `details.list_score`.
    Intervals are 95 % bootstrap intervals over `group_id`.

    Raises ValueError for no predictions, more than one task, an unknown label, and a sampled accuracy that is outside [0, 1] or
    in some rows only.
    """
    task = _only_task(predictions)
    if task.kind == "listwise":
        return list_score(predictions)
    label_index, verdict = _indices(predictions, task)
    group = group_numbers(predictions)
    by_group = group_confusion(label_index, verdict, group, num_labels=len(task.labels))
    counts = by_group.sum(axis=0)
    sampled, sampled_ci = _sampled_accuracy(predictions, group)
    share = counts / len(predictions)
    return {
        "count": len(predictions),
        "macro_f1": float(macro_f1(counts)),
        "macro_f1_ci": bootstrap_interval(by_group, partial(macro_f1, whole=counts)),
        "accuracy": float(accuracy(counts)),
        "accuracy_ci": bootstrap_interval(by_group, accuracy),
        "sampled_accuracy": sampled,
        "sampled_accuracy_ci": sampled_ci,
        "invalid_rate": float(share[:, -1].sum()),
        "constant_macro_f1": constant_macro_f1(counts),
        "label_share": dict(zip(task.labels, share.sum(axis=1).tolist(), strict=True)),
        "verdict_share": dict(zip(task.labels, share[:, :-1].sum(axis=0).tolist(), strict=True)),
    } | answer_details(predictions, task, label_index, verdict, by_group)


def pairwise_score(predictions: list[dict], *, single_yes: Mapping[str, tuple[float, float]] | None = None) -> dict:
    """`task_score` over both orders of each pair, and what only both orders can show.

    Each `example_id` comes twice: `order` "ab" (pictures as stored) and "ba" (swapped, so its label is the other one). A third
    label is a tie, the same in both orders.
    single_yes: example_id -> the yes-probabilities of the stored first and second picture, each judged alone.

    Keys, beside those of `task_score` and `pairs.pair_details`:
    accuracy_ab, accuracy_ba: accuracy in each order.
    first_share: share of valid answers that prefer the picture shown first; 1/2 without position bias, None if none is valid.
    probability_accuracy: share of decided pairs whose true winner has the larger probability, added over both orders; a tie
    counts half.
    single_accuracy: share of decided pairs whose true winner has the larger yes-probability alone; a tie counts half; None
    without `single_yes`.

    A judge that always gives the same answer has accuracy 1/2, consistency 0 and probability_accuracy 1/2 exactly. Raises
    ValueError as `task_score` does, and for a pair that lacks an order or whose labels contradict each other.
    """
    task = _only_task(predictions)
    ids, ab, ba = _both_orders(predictions, task)
    winner, verdict_ab = _indices(ab, task)
    label_ba, verdict_ba = _indices(ba, task)
    if clash := [name for name, same in zip(ids, winner == _turned(label_ba), strict=True) if not same]:
        raise ValueError(f"pair {clash[0]!r} has the same label in both orders: swapping the pictures swaps the label")
    right_ab, right_ba = verdict_ab == winner, verdict_ba == label_ba
    valid = np.concatenate([verdict_ab, verdict_ba])
    valid = valid[valid >= 0]
    # Victory of the stored second picture minus that of the stored first, from both orders.
    margin = _yes_minus_no(ab, task) - _yes_minus_no(ba, task)
    single, decided = None, winner < 2
    if single_yes is not None:
        alone = checked_shares([single_yes[name] for name in ids], "single_yes")
        single = _winner_share((alone[:, 1] - alone[:, 0])[decided], winner[decided])
    pairs = pair_details(winner, verdict_ab, _turned(verdict_ba), group_numbers(ab))
    own = {
        "accuracy_ab": float(right_ab.mean()),
        "accuracy_ba": float(right_ba.mean()),
        "first_share": float(np.mean(valid == 0)) if len(valid) else None,
        "probability_accuracy": _winner_share(margin[decided], winner[decided]),
        "single_accuracy": single,
    }
    return task_score(predictions) | pairs | own


def main_score(score: dict) -> float:
    """Macro-F1; of a listwise task, which has none, the accuracy."""
    return score["accuracy"] if score["macro_f1"] is None else score["macro_f1"]


def in_short(tasks: dict[str, dict]) -> str:
    """The main score of each task: "technical 0.950 safety 1.000"."""
    return " ".join(f"{name} {main_score(score):.3f}" for name, score in tasks.items())


def mean_score(tasks: dict[str, dict], known: Mapping[str, Task] = TASKS) -> dict:
    """Mean main score ("macro_f1") and sampled_accuracy (None unless all have it) over the tasks that are not out of
    distribution.
    """
    scored = [score for name, score in tasks.items() if not get_task(name, known).ood]
    if not scored:
        raise ValueError(f"no task to average over: {list(tasks)} are all out of distribution")
    sampled = [score["sampled_accuracy"] for score in scored]
    return {
        "macro_f1": float(np.mean([main_score(score) for score in scored])),
        "sampled_accuracy": None if None in sampled else float(np.mean(sampled)),
    }


def _only_task(predictions: list[dict]) -> Task:
    names = sorted({p["task"] for p in predictions})
    if len(names) != 1:
        raise ValueError(f"{len(predictions)} predictions of the tasks {names}: score one task at a time")
    return task_of(predictions[0])


def _indices(predictions: list[dict], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """True label and verdict (-1 = invalid) of each prediction, int64 `[N]`, from the words in the predictions."""
    index = {word: i for i, word in enumerate(task.labels)}
    for p in predictions:
        if p["label"] not in index or not (p["verdict"] is None or p["verdict"] in index):
            raise ValueError(
                f"prediction {p['example_id']!r} has label {p['label']!r} and verdict {p['verdict']!r}, "
                f"task {task.name!r} has the labels {task.labels}"
            )
    verdict = [-1 if p["verdict"] is None else index[p["verdict"]] for p in predictions]
    return np.array([index[p["label"]] for p in predictions]), np.array(verdict)


def _sampled_accuracy(predictions: list[dict], group: np.ndarray) -> tuple[float | None, list[float] | None]:
    given = [p["sampled_accuracy"] for p in predictions if p["sampled_accuracy"] is not None]
    if not given:
        return None, None
    if len(given) < len(predictions):
        raise ValueError(f"sampled_accuracy is given for {len(given)} of {len(predictions)} rows: sample all or none")
    values = checked_shares(given, "sampled_accuracy")
    sums = np.stack([np.bincount(group, weights=values), np.bincount(group)], axis=1)
    return float(values.mean()), bootstrap_interval(sums, lambda s: s[:, 0] / s[:, 1])


def _both_orders(predictions: list[dict], task: Task) -> tuple[list[str], list[dict], list[dict]]:
    by_order: dict[str, dict[str, dict]] = {"ab": {}, "ba": {}}
    for p in predictions:
        if p["order"] not in by_order or p["example_id"] in by_order[p["order"]]:
            raise ValueError(
                f"prediction {p['example_id']!r} of {task.name!r} has order {p['order']!r}: give each pair once as "
                "'ab' and once as 'ba'"
            )
        by_order[p["order"]][p["example_id"]] = p
    ab, ba = by_order["ab"], by_order["ba"]
    if lonely := sorted(ab.keys() ^ ba.keys()):
        raise ValueError(f"{len(lonely)} pair(s) of {task.name!r} have one order only: judge {lonely[0]!r} in both")
    return list(ab), list(ab.values()), [ba[name] for name in ab]


def _yes_minus_no(predictions: list[dict], task: Task) -> np.ndarray:
    """Probability that the picture shown second is better minus that of the first, float64 `[N]`.

    0 for a prediction without probabilities, one whose answer broke off before its verdict.
    """
    second, first = task.labels[1], task.labels[0]
    shares = [p["probabilities"] or {first: 0.5, second: 0.5} for p in predictions]  # a tie has the rest
    given = checked_shares([[share[first], share[second]] for share in shares], "probabilities")
    return given[:, 1] - given[:, 0]


def _turned(verdict: np.ndarray) -> np.ndarray:
    """Verdicts about swapped pictures, in the stored order: 0 and 1 change places, a tie (2) and invalid (-1) stay."""
    return np.where((verdict == 0) | (verdict == 1), 1 - verdict, verdict)


def _winner_share(margin: np.ndarray, winner: np.ndarray) -> float | None:
    """Share of pairs whose margin (second minus first) has the winner's sign; a tie counts half; None without pairs."""
    if not len(winner):
        return None
    toward_winner = np.where(winner == 1, margin, -margin)
    return float(np.mean(np.where(toward_winner == 0, 0.5, toward_winner > 0)))
