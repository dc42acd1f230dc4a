"""Whether a judge's confidence matches its accuracy, and whether its samples agree, over plain arrays.

The confidence of an answer is the probability of the verdict it gave, from the answer-token probabilities, normalised over
the labels.
"""

from collections.abc import Sequence

import numpy as np

_BINS = 15


def bin_sums(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What each row adds to the sums of the bins, `[N, _BINS, 3]`: count, confidence, right. Bins are equal, (low, high]."""
    edge = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    place = np.arange(_BINS) == edge[:, None]
    return place[..., None] * np.stack([np.ones(len(right)), confidence, right], axis=-1)[:, None, :]


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """ECE of sums over rows `[.., _BINS, 3]`: distance of mean confidence and accuracy in each bin, weighted by its count.

    Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    count, confidence, right = np.moveaxis(sums, -1, 0)
    return np.abs(confidence - right).sum(axis=-1) / np.maximum(count.sum(axis=-1), 1)


def brier(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Half the squared distance of the probabilities `[N, T]` from the label, `[N]`; (p - y)^2 for two labels (Brier 1950)."""
    return 0.5 * ((probabilities - np.eye(probabilities.shape[1])[label]) ** 2).sum(axis=1)


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean over n of the share of wrong answers among the n most confident.

    Equally confident rows share their mean wrongness, so their order does not matter (Geifman et al. 2019, arXiv
    1805.08206). Confidence .9 .8 .7, right, wrong, right: (0 + 1/2 + 1/3) / 3.
    """
    _, place = np.unique(-confidence, return_inverse=True)
    wrong = (np.bincount(place, weights=1.0 - right) / np.bincount(place))[np.sort(place)]
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


def majority(votes: Sequence[int]) -> int:
    """The label with the most votes, the first voted for if there are several; -1 (invalid) if no vote is valid."""
    valid = [vote for vote in votes if vote >= 0]
    return max(valid, key=valid.count) if valid else -1


def self_agreement(votes: Sequence[int]) -> float:
    """Share of pairs of votes that agree; an invalid vote agrees with none. no no yes invalid: 1 of 6."""
    pairs = len(votes) * (len(votes) - 1) // 2
    counts = np.bincount([vote for vote in votes if vote >= 0], minlength=1)
    return float((counts * (counts - 1) // 2).sum() / pairs)
