"""The mean of losses along a text, and its standard error: neighbouring tokens are not independent."""

from __future__ import annotations

import math

import numpy as np


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """The mean of a stationary series and its standard error, robust to autocorrelation (HAC).

    Derived: the variance of the mean of T terms is (c_0 + 2 sum_l w_l c_l) / T, with autocovariances c_l, and weights
    w_l = 1 - l / (L + 1) up to the lag L = ceil(T^(1/3)), Bartlett's, with which it is never negative (Newey and West).
    Cost O(T L).

    Parameters
    ----------
    x : (T,) float64, in the order of the text.
    """
    count = len(x)
    mean = float(np.mean(x))
    centred = x - mean
    lags = np.arange(1, min(math.ceil(math.cbrt(count)), count - 1) + 1)
    products = np.array([centred[lag:] @ centred[:-lag] for lag in lags])
    weights = 1 - lags / (len(lags) + 1)
    variance = float(centred @ centred + 2 * (weights @ products)) / count**2
    return mean, math.sqrt(max(variance, 0.0))  # rounding may leave it just below 0
