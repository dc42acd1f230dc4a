"""95 % intervals by drawing groups with replacement. Rows of one group stay together: they share a photograph or a prompt."""

from collections.abc import Callable, Iterator

import numpy as np

_RESAMPLES = 1000
_SEED = 0
# So many weights, of (resample, group) pairs, are in memory at once: 8 MB per array.
_BLOCK = 1_000_000


def bootstrap_interval(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, resamples: int = _RESAMPLES, seed: int = _SEED
) -> list[float]:
    """95 % percentile interval [lo, hi] of a statistic of sums over groups.

    sums `[groups, ..]`: what each group adds to the sums, e.g. its confusion counts. Each resample draws as many groups as there
    are, with replacement, and adds them up; `statistic` maps `[resamples, ..]` to `[resamples]`. Rows of one group stay
    together: they share a photograph or a prompt, so they are not independent. The seed is fixed: same rows, same interval.
    """
    groups = len(sums)
    if groups == 0:
        raise ValueError("no groups to resample: an interval needs at least one prediction")
    flat = sums.reshape(groups, -1).astype(np.float64)
    drawn = [weights @ flat for weights in _weights(groups, groups, resamples, seed)]
    values = statistic(np.concatenate(drawn).reshape(resamples, *sums.shape[1:]))
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def rows_interval(
    statistic: Callable[[np.ndarray], np.ndarray], group: np.ndarray, *, resamples: int = _RESAMPLES, seed: int = _SEED
) -> list[float] | None:
    """The same for a statistic that needs the rows, e.g. of ranks: it maps how often each row was drawn, `[B, N]`, to `[B]`.

    group: int `[N]`, 0 .. groups - 1. Resamples that give no number (one class only) are left out; None if all are.
    """
    groups = int(group.max()) + 1
    blocks = [statistic(weights[:, group]) for weights in _weights(groups, max(groups, len(group)), resamples, seed)]
    values = np.concatenate(blocks)
    values = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(values, [2.5, 97.5])] if len(values) else None


def ratio_interval(part: np.ndarray, whole: np.ndarray, group: np.ndarray) -> list[float]:
    """Interval of sum(part) / sum(whole) over rows, both `[N]`; a resample whose `whole` is 0 counts as 0."""
    sums = np.stack([np.bincount(group, weights=part), np.bincount(group, weights=whole)], axis=1)
    return bootstrap_interval(sums, lambda s: s[:, 0] / np.maximum(s[:, 1], 1e-12))


def group_numbers(predictions: list[dict]) -> np.ndarray:
    """Number 0 .. groups - 1 of each prediction's `group_id`."""
    return np.unique([p["group_id"] for p in predictions], return_inverse=True)[1]


def checked_shares(values: list, name: str) -> np.ndarray:
    """The values as float64. Raises ValueError unless all are between 0 and 1."""
    array = np.asarray(values, np.float64)
    if not np.all((array >= 0) & (array <= 1)):
        raise ValueError(f"{name} must be between 0 and 1, got values from {array.min()} to {array.max()}")
    return array


def _weights(groups: int, width: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, float64 `[block, groups]`, in blocks of _BLOCK / width resamples."""
    rng = np.random.default_rng(seed)
    for block in np.array_split(np.arange(resamples), -(-resamples * width // _BLOCK)):
        # Multinomial weights, counted from uniform draws: ten times faster than numpy's multinomial at 2,000 groups.
        draws = rng.integers(0, groups, (len(block), groups)) + groups * np.arange(len(block))[:, None]
        yield np.bincount(draws.ravel(), minlength=len(block) * groups).reshape(len(block), groups).astype(np.float64)
