"""The standard error of a mean of dependent terms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from hyperattention_ref.perplexity.losses import mean_and_error

series = arrays(float, st.integers(2, 60), elements=st.floats(-10, 10))


@given(series)
def test_the_error_is_the_quadratic_form_of_bartletts_weights(x):
    count, lags = len(x), min(int(np.ceil(np.cbrt(len(x)))), len(x) - 1)
    distance = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    weights = np.maximum(0, 1 - distance / (lags + 1))
    centred = x - x.mean()
    mean, error = mean_and_error(x)
    assert mean == pytest.approx(x.mean())
    assert error**2 == pytest.approx(centred @ weights @ centred / count**2, rel=1e-9, abs=1e-12)


@given(series, st.floats(-5, 5), st.floats(-3, 3))
def test_the_error_follows_scale_and_direction_and_ignores_the_mean(x, shift, factor):
    error = mean_and_error(x)[1]
    assert mean_and_error(factor * x + shift)[1] == pytest.approx(abs(factor) * error, rel=1e-6, abs=1e-6)
    assert mean_and_error(x[::-1])[1] == pytest.approx(error, rel=1e-9, abs=1e-12)


def test_intervals_hold_the_mean_of_dependent_series_where_naive_ones_do_not():
    rng, count, trials = np.random.default_rng(0), 4096, 400
    noise = rng.standard_normal((trials, count))
    x = np.zeros_like(noise)
    for t in range(1, count):
        x[:, t] = 0.5 * x[:, t - 1] + noise[:, t]  # the mean is 0
    found = np.array([mean_and_error(row) for row in x])
    naive = x.std(axis=1) / np.sqrt(count)
    held = [int((np.abs(found[:, 0]) <= 1.96 * error).sum()) for error in (found[:, 1], naive)]
    robust, independent = (binomtest(k, trials).proportion_ci(0.999, method="exact") for k in held)
    assert robust.high >= 0.95  # Bartlett's weights leave out some covariance, so that a little less is expected
    assert robust.low >= 0.85
    assert independent.high < 0.85
