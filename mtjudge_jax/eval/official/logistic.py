"""The curve that maps scores to opinion scores before the two are correlated, as AGIN's code and VQEG's do."""

import warnings
from collections.abc import Sequence

import numpy as np

_PARAMETERS = 4
_EVALUATIONS = 100_000  # of the curve, before the fit is given up
_LIMIT = 50.0  # of the exponent: beyond it a float64 curve is flat


def fit_logistic(x: Sequence[float], y: Sequence[float]) -> np.ndarray | None:
    """Values [N] at x of the curve b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) that fits y best by least squares.

    Starts at (max y, min y, mean x, 0.5) and uses scipy's curve_fit, as AGIN does (JOINT/utils/function.py). None where there are
    no more points than parameters, where all x are equal, or where the fit does not converge.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) <= _PARAMETERS or np.all(x == x[0]):
        return None
    from scipy.optimize import OptimizeWarning, curve_fit  # takes long to import, and only AGIN's tasks need it

    start = (y.max(), y.min(), x.mean(), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # about the covariance, which is not used
        try:
            best, _ = curve_fit(_curve, x, y, p0=start, method="lm", maxfev=_EVALUATIONS)
        except RuntimeError:  # too many evaluations
            return None
    return _curve(x, *best)


def _curve(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    z = (x - b3) / max(abs(b4), 1e-12)
    return b2 + (b1 - b2) / (1 + np.exp(-np.clip(z, -_LIMIT, _LIMIT)))
