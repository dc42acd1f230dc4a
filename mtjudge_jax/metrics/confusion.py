"""Confusion counts and what they give: macro-F1, accuracy, the best constant answer.

Counts `[.., T, T + 1]` of T labels: row = true label, column = answered label, last column = no valid answer.
"""

import numpy as np


def group_confusion(label_index: np.ndarray, verdict: np.ndarray, group: np.ndarray, *, num_labels: int) -> np.ndarray:
    """Counts `[groups, T, T + 1]`; `group` is an index 0 .. groups - 1 a row."""
    shape = (int(group.max(initial=0)) + 1, num_labels, num_labels + 1)
    column = np.where(verdict < 0, num_labels, verdict)
    cell = np.ravel_multi_index((group, label_index, column), shape)
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)


def macro_f1(counts: np.ndarray, *, whole: np.ndarray | None = None) -> np.ndarray:
    """Mean over all T labels of F1 = 2 TP / (2 TP + FP + FN); counts `[.., T, T + 1]` -> `[..]`.

    An invalid answer is a false negative of the true label and a false positive of none. A label that is neither true
    nor answered anywhere has F1 = 0 and stays in the mean, so the number means the same on every subset.
    whole: for resamples, the counts `[T, T + 1]` that they were drawn from. A label that a resample lacks and the whole
    has is left out of its mean: no answer to it was drawn, right or wrong.

        true no:  4 answered no, 1 yes, 1 invalid  -> F1(no)  = 8 / (8 + 2 + 2) = 2/3
        true yes: 2 answered no, 2 yes             -> F1(yes) = 4 / (4 + 1 + 2) = 4/7;  macro-F1 = 13/21
    """
    true_positive = np.diagonal(counts, axis1=-2, axis2=-1)
    answered, true = counts[..., :-1].sum(axis=-2), counts.sum(axis=-1)
    total = answered + true  # = 2 TP + FP + FN
    f1 = 2.0 * true_positive / np.maximum(total, 1)
    if whole is None:
        return np.mean(f1, axis=-1)
    lacking = (total == 0) & (whole[:, :-1].sum(axis=0) + whole.sum(axis=1) > 0)
    return f1.sum(axis=-1) / np.maximum(lacking.shape[-1] - lacking.sum(axis=-1), 1)


def accuracy(counts: np.ndarray) -> np.ndarray:
    """Share of right answers, an invalid one is wrong; counts `[.., T, T + 1]` -> `[..]`, 0 where there are no rows."""
    right = np.diagonal(counts, axis1=-2, axis2=-1).sum(axis=-1)
    return right / np.maximum(counts.sum(axis=(-2, -1)), 1)


def constant_macro_f1(counts: np.ndarray) -> float:
    """Macro-F1 of the best judge that always gives the same answer, on the labels of counts `[T, T + 1]`."""
    true = counts.sum(axis=1)
    return float(np.max(2.0 * true / (true + true.sum()))) / len(true)
