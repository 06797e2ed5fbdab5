"""The level of every interval, by an exact tail: a bound at delta must not be one at delta / 2, nor at 2 delta.

Where the drawn numbers are all 0, or all 1, inequality (H) is an equality: the bound is the mean for which so extreme a
sample has exactly the probability that the bound is granted. The samples below are such ones.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom

from hyperattention_ref.measures.betting import BETS, PARTS
from hyperattention_ref.measures.certificate import certify
from hyperattention_ref.measures.kl_bounds import binary_kl, mean_lower, mean_upper
from hyperattention_ref.measures.row_estimates import estimate_hardness

N, ROWS, DELTA = 2000, 20, 0.05
OPTIONS = {"rows": ROWS, "confidence": 1 - DELTA, "scale": 1.0, "rng": 0}


def exactly(probability):
    return pytest.approx(probability, rel=1e-9)


def of_zeros(mean, drawn=ROWS):
    """Pr[all drawn numbers are 0] for zeros and ones of this mean."""
    return float(binom.cdf(0, drawn, mean))


def of_ones(mean, drawn=ROWS):
    """Pr[all drawn numbers are 1]."""
    return float(binom.sf(drawn - 1, drawn, mean))


@pytest.mark.parametrize("drawn", [1, 7, 500])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-6])
def test_a_bound_for_a_mean_is_the_exact_limit_of_a_sample_of_zeros_or_ones(drawn, delta):
    assert of_zeros(mean_upper(0.0, delta, drawn, 10**9), drawn) == exactly(delta)
    assert of_ones(mean_lower(1.0, delta, drawn, 10**9), drawn) == exactly(delta)


@pytest.mark.parametrize("drawn", [5, 40, 1000])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-6])
def test_a_bound_for_a_mean_is_near_the_exact_limit_of_every_other_sample(drawn, delta):
    """The tail at the bound is at most delta, and no less than the types of the sample allow: no bound is idle."""
    ones = np.arange(1, drawn)
    least = delta / np.sqrt(8 * ones * (1 - ones / drawn))
    for tail in (
        binom.cdf(ones, drawn, mean_upper(ones / drawn, delta, drawn, 10**9)),
        binom.sf(ones - 1, drawn, mean_lower(ones / drawn, delta, drawn, 10**9)),
    ):
        assert np.all(tail <= delta)
        assert np.all(tail >= least * (1 - 1e-9))


def one_hot(n_k=3):
    """Query and key of N rows that give all their attention to key 0."""
    return np.ones((N, 1)), np.where(np.arange(n_k) == 0, 500.0, -500.0)[:, None]


def marking(key, n_k=3):
    return np.tile(np.arange(n_k) == key, (N, 1))


def test_both_ends_of_the_mask_mass_get_half_of_delta():
    assert of_ones(estimate_hardness(*one_hot(), marking(0), **OPTIONS).mask_mass_low) == exactly(DELTA / 2)
    assert of_zeros(estimate_hardness(*one_hot(), marking(1), **OPTIONS).mask_mass_high) == exactly(DELTA / 2)


def test_both_ends_of_the_perplexity_get_half_of_delta():
    flat = estimate_hardness(np.zeros((N, 1)), np.zeros((3, 1)), **OPTIONS)
    assert of_zeros(math.log(estimate_hardness(*one_hot(), **OPTIONS).perplexity_high) / math.log(3)) == exactly(
        DELTA / 2
    )
    assert of_ones(math.log(flat.perplexity_low) / math.log(3)) == exactly(DELTA / 2)


def test_both_ends_of_the_mean_square_get_half_of_delta():
    """No row of P has the square 0: for the upper end, (H) itself."""
    flat = estimate_hardness(np.zeros((N, 1)), np.zeros((4, 1)), **OPTIONS)
    assert of_ones(estimate_hardness(*one_hot(), **OPTIONS).mean_square_low) == exactly(DELTA / 2)
    assert math.exp(-ROWS * binary_kl(0.25, flat.mean_square_high)) == exactly(DELTA / 2)


def test_the_ends_of_alpha_share_half_of_delta_among_the_columns():
    estimate = estimate_hardness(*one_hot(5), left_out=(0, 1, 3), **OPTIONS)
    assert of_ones(estimate.alpha_low[0] / 5**2) == exactly(DELTA / 2 / 5)
    for place, columns in ((1, 2), (2, 4)):
        assert of_zeros(estimate.alpha_high[place] / 5**2) == exactly(DELTA / 2 / columns)


def test_the_norm_of_p_shares_delta_among_the_columns():
    assert of_ones(estimate_hardness(*one_hot(5), **OPTIONS).op_norm_low ** 2 / N) == exactly(DELTA / 5)


def test_every_bound_of_a_certificate_has_its_share_of_delta():
    """One-hot attention to a value of the largest norm, and an output without error, though it might be off by 2."""
    v = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    certificate = certify(*one_hot(4), v, np.ones((N, 1)), **OPTIONS)
    bounds, sizes, worst = certificate.output, certificate.sizes, N * 2**2
    assert of_zeros(bounds.op_norm**2 / worst) == exactly(DELTA)
    assert of_zeros((bounds.ratio * sizes.p_op_norm_low * sizes.v_op_norm) ** 2 / worst) == exactly(DELTA / 2)
    assert of_ones(sizes.p_op_norm_low**2 / N) == exactly(DELTA / 2 / 4)

    def capital(gain, risk):
        return sum(part * np.prod(1 + bet * gain / risk) for bet, part in zip(BETS, PARTS, strict=True))

    drawn = np.arange(ROWS)
    left = 4.0 * (N - drawn)  # the squares of the errors that the other rows may have
    reached = pytest.approx(1 / DELTA, rel=1e-2)
    for absolute in (bounds.frobenius, bounds.limit):
        assert capital(absolute**2, left - absolute**2) == reached
    for square in (bounds.relative_frobenius**2, bounds.relative_limit**2):
        assert capital(square * N, left - square * drawn) == reached  # all rows of Att have the norm 1
    low = sizes.attention_frobenius_low**2
    assert capital(N - low, low - drawn) == pytest.approx(2 / DELTA, rel=1e-2)
