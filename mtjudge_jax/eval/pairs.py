"""What both orders of a pair show: accuracy with and without ties, flips, consistency, position bias."""

import numpy as np

from mtjudge_jax.metrics.bootstrap import ratio_interval

_TIED, _INVALID = 2, -1


def pair_details(winner: np.ndarray, ab: np.ndarray, ba: np.ndarray, group: np.ndarray) -> dict:
    """Rates over N pairs, each with its interval, None if nothing can be counted. winner, ab and ba are int `[N]`: the better
    candidate as stored, 0 or 1, 2 = tie, -1 = invalid; the verdicts of ba are already turned back.

    flip_rate: share of the pairs answered in both orders whose choice changes with the order.
    accuracy_with_ties: share of right answers about decided pairs, a tie being wrong (MJ-Bench).
    accuracy_without_ties: the same without the answers that say tie (MJ-Bench).
    tie_rate: share of answers that say tie.
    position_bias: share of choices for the candidate shown first, minus the share of those questions where it is the better one.
    both_orders_accuracy: one decision per pair, the one that both orders agree on, otherwise a tie.
    consistency: share of pairs where the same picture wins in both orders; an invalid answer has no winner.
    consistent_accuracy: share of pairs that are right in both orders.
    """
    twice = np.concatenate([group, group])
    said, true = np.concatenate([ab, ba]), np.concatenate([winner, winner])
    place = np.concatenate([ab, 1 - ba])  # of the chosen candidate: 0 shown first
    first_true = np.concatenate([winner == 0, winner == 1])
    chosen, decided = (said == 0) | (said == 1), true != _TIED
    answered, same = (ab != _INVALID) & (ba != _INVALID), ab == ba
    both = np.where(answered & same, ab, np.where(answered, _TIED, _INVALID))
    bias = (place == 0).astype(float) - np.where(decided, first_true, 0.5)
    ones = np.ones(len(winner))
    rates = {
        "flip_rate": (answered & ~same, answered, group),
        "accuracy_with_ties": (decided & (said == true), decided, twice),
        "accuracy_without_ties": (decided & (said == true), decided & (said != _TIED), twice),
        "tie_rate": (said == _TIED, np.ones(len(said)), twice),
        "position_bias": (np.where(chosen, bias, 0.0), chosen, twice),
        "both_orders_accuracy": (both == winner, ones, group),
        "consistency": (answered & same, ones, group),
        "consistent_accuracy": (same & (ab == winner), ones, group),
    }
    found = {}
    for name, (part, whole, of) in rates.items():
        counted = np.asarray(whole, np.float64)
        value = float(np.sum(part) / counted.sum()) if counted.any() else None
        found[name] = value
        found[f"{name}_ci"] = None if value is None else ratio_interval(np.asarray(part, np.float64), counted, of)
    return found
