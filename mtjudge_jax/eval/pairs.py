"""What both orders of a pair show: with and without ties, flips, consistency, the place of the picture chosen."""

import numpy as np

from mtjudge_jax.metrics.bootstrap import ratio_interval

TIED, INVALID = 2, -1


def pair_details(winner: np.ndarray, ab: np.ndarray, ba: np.ndarray, group: np.ndarray) -> dict:
    """Rates over N pairs. All int `[N]`, of the candidates as stored: 0, 1, 2 = tie, -1 = invalid; ba is already turned back.

    flip_rate: another choice when the two are exchanged, among the pairs answered in both orders. accuracy_with_ties: of the
    answers about decided pairs, those that are right, a tie being wrong; accuracy_without_ties: the same without the answers
    that say tie (MJ-Bench's two). tie_rate: answers that say tie. position_bias: share of the answers with a choice that
    choose what was shown first, minus the share of those questions where that is the better one. both_orders_accuracy: one
    decision a pair, what both orders agree on, or a tie where they do not. None where nothing can be counted.
    """
    twice = np.concatenate([group, group])
    said, true = np.concatenate([ab, ba]), np.concatenate([winner, winner])
    place = np.concatenate([ab, 1 - ba])  # of the chosen candidate where shown: 0 first
    first_true = np.concatenate([winner == 0, winner == 1])
    chosen, decided = (said == 0) | (said == 1), true != TIED
    answered, same = (ab != INVALID) & (ba != INVALID), ab == ba
    both = np.where(answered & same, ab, np.where(answered, TIED, INVALID))
    bias = (place == 0).astype(float) - np.where(decided, first_true, 0.5)
    ones = np.ones(len(winner))
    rates = {
        "flip_rate": (answered & ~same, answered, group),
        "accuracy_with_ties": (decided & (said == true), decided, twice),
        "accuracy_without_ties": (decided & (said == true), decided & (said != TIED), twice),
        "tie_rate": (said == TIED, np.ones(len(said)), twice),
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
