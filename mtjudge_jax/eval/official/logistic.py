"""The curve through which scores are read before they are correlated with opinion scores, as AGIN's code and VQEG's do."""

from collections.abc import Sequence

import numpy as np

PARAMETERS = 4
STEPS = 500
LIMIT = 50.0  # of the exponent: beyond it a float64 curve is flat


def fit_logistic(x: Sequence[float], y: Sequence[float]) -> np.ndarray | None:
    """Values [N] at x of the curve b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) that fits y best by least squares.

    From AGIN's start, (max y, min y, mean x, 0.5), by Levenberg and Marquardt's damped Gauss-Newton steps (AGIN, JOINT/utils/
    function.py, lets scipy's curve_fit do it). None where there are no more points than parameters, or all x are equal.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) <= PARAMETERS or np.all(x == x[0]):
        return None
    b, damping = np.array([y.max(), y.min(), x.mean(), 0.5]), 1e-3
    value, slope = _curve(x, b)
    error = np.sum((y - value) ** 2)
    for _ in range(STEPS):
        normal, pull = slope.T @ slope, slope.T @ (y - value)
        scale = np.diag(np.maximum(np.diag(normal), 1e-12))
        tried = b + np.linalg.solve(normal + damping * scale, pull)
        new_value, new_slope = _curve(x, tried)
        new_error = np.sum((y - new_value) ** 2)
        if not new_error < error:
            damping *= 4
            if damping > 1e12:
                break
            continue
        done = error - new_error <= 1e-14 * error
        b, value, slope, error, damping = tried, new_value, new_slope, new_error, damping / 3
        if done:
            break
    return value


def _curve(x: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values [N] and their derivatives by the parameters, [N, 4]."""
    width = max(abs(b[3]), 1e-12)
    z = (x - b[2]) / width
    up = 1 / (1 + np.exp(-np.clip(z, -LIMIT, LIMIT)))
    bend = (b[0] - b[1]) * up * (1 - up) / width
    return b[1] + (b[0] - b[1]) * up, np.stack([up, 1 - up, -bend, -bend * z * np.where(b[3] < 0, -1, 1)], axis=1)
