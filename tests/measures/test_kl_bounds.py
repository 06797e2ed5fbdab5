import decimal
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom

from hyperattention_ref.measures.kl_bounds import (
    binary_kl,
    failure_probability,
    kl_lower,
    kl_upper,
    mean_lower,
    mean_upper,
)

probability = st.one_of(st.floats(0, 1, allow_subnormal=False), st.sampled_from([0.0, 1.0, 1e-12, 1 - 1e-12, 1e-300]))
level = st.floats(1e-7, 30)


def exact_kl(p, q):
    """kl of two Decimals with 40 digits."""
    one = Decimal(1)
    first = p * (p / q).ln() if p else Decimal(0)
    second = (one - p) * ((one - p) / (one - q)).ln() if p < 1 else Decimal(0)
    return first + second


def exact_inverse(p, level, upper):
    with decimal.localcontext() as context:
        context.prec = 40
        p, level, tiny = Decimal(float(p)), Decimal(float(level)), Decimal("1e-38")
        if p == (1 if upper else 0):
            return float(p)
        inside, outside = p, (1 - tiny if upper else tiny * p)
        for _ in range(110):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if exact_kl(p, middle) <= level else (inside, middle)
        return float(outside)


@given(p=probability, q=st.floats(1e-9, 1 - 1e-9))
def test_kl_is_the_divergence(p, q):
    with decimal.localcontext() as context:
        context.prec = 40
        exact = float(exact_kl(Decimal(p), Decimal(q)))
    assert binary_kl(p, q) == pytest.approx(exact, rel=1e-12, abs=1e-15 * abs(p - q) + 1e-300)


def test_kl_at_the_ends():
    assert binary_kl(0, 0) == binary_kl(1, 1) == 0
    assert binary_kl(0.5, 0) == binary_kl(0.5, 1) == binary_kl(1, 0) == binary_kl(0, 1) == math.inf
    assert binary_kl(0, 0.25) == pytest.approx(-math.log(0.75), rel=1e-15)


@given(p=probability, level=level)
def test_the_inverses_are_accurate_to_1e_12(p, level):
    assert kl_upper(p, level) == pytest.approx(exact_inverse(p, level, upper=True), rel=1e-12)
    assert kl_lower(p, level) == pytest.approx(exact_inverse(p, level, upper=False), rel=0, abs=1e-12 * p)


@given(level=level)
def test_closed_forms_at_the_ends(level):
    assert kl_upper(0, level) == pytest.approx(-math.expm1(-level), rel=1e-14)
    assert kl_lower(1, level) == pytest.approx(math.exp(-level), abs=1e-15)
    assert (kl_upper(1, level), kl_lower(0, level)) == (1, 0)


@given(p=probability, level=level)
def test_the_two_coins_are_mirror_images(p, level):
    q = 1 - p
    p = 1 - q  # so that both are exact
    assert kl_lower(p, level) == pytest.approx(1 - kl_upper(q, level), abs=1e-14)


@given(p=probability, level=level)
def test_zero_level_gives_p_and_the_bounds_widen(p, level):
    assert kl_upper(p, 0) == kl_lower(p, 0) == p
    assert kl_lower(p, 2 * level) <= kl_lower(p, level) <= p <= kl_upper(p, level) <= kl_upper(p, 2 * level)


def test_the_bounds_increase_with_p():
    p = np.linspace(0, 1, 1001)
    for level in (1e-6, 0.01, 0.3, 5):
        assert np.all(np.diff(kl_upper(p, level)) >= -1e-15)
        assert np.all(np.diff(kl_lower(p, level)) >= -1e-15)


def test_arrays_broadcast():
    p, levels = np.linspace(0, 1, 7)[:, None], np.array([0.0, 0.1, 2.0])
    for inverse in (kl_upper, kl_lower):
        table = inverse(p, levels)
        assert table.shape == (7, 3)
        assert table[4, 1] == inverse(p[4, 0], 0.1)


# --- the statement that the bounds are for, with exact tails ------------------------------------------------------


def miss(bound, ones, drawn, population, delta):
    """Exactly how often the bound for the mean of `ones` ones among `population` numbers is wrong."""
    hits = np.arange(drawn + 1)
    limit = bound(hits / drawn, delta, drawn, population)
    mean, slack = ones / population, 1 + 1e-14  # bound and mean may be equal but for rounding
    wrong = limit * slack < mean if bound is mean_upper else limit > mean * slack
    return float(hypergeom.pmf(hits, population, ones, drawn)[wrong].sum())


@pytest.mark.parametrize("bound", [mean_upper, mean_lower])
@pytest.mark.parametrize(("drawn", "population"), [(1, 5), (7, 20), (64, 300)])
def test_the_mean_of_zeros_and_ones_is_missed_with_probability_at_most_delta(bound, drawn, population):
    for delta in (0.3, 0.05, 1e-3):
        assert max(miss(bound, ones, drawn, population, delta) for ones in range(population + 1)) <= delta


@pytest.mark.parametrize("bound", [mean_upper, mean_lower])
def test_a_quarter_of_the_level_is_missed_too_often(bound):
    assert max(miss(bound, ones, 32, 1024, 0.05**0.25) for ones in range(0, 1025, 8)) > 2 * 0.05


def test_the_upper_bound_holds_with_replacement():
    s, hits = 40, np.arange(41)
    for mu in np.linspace(0.001, 0.999, 200):
        assert binom.pmf(hits, s, mu)[kl_upper(hits / s, math.log(20) / s) < mu].sum() <= 0.05


@given(mean=probability, drawn=st.integers(1, 50))
def test_a_sample_of_everything_leaves_no_doubt(mean, drawn):
    assert mean_lower(mean, 0.05, drawn, drawn) == mean_upper(mean, 0.05, drawn, drawn) == mean


def test_rounding_past_one_is_forgiven():
    assert mean_upper(1 + 1e-15, 0.05, 10, 100) == 1
    assert mean_lower(-1e-300, 0.05, 10, 100) == 0


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [kl_upper, kl_lower])
@pytest.mark.parametrize(("p", "level"), [(-0.1, 1), (1.1, 1), (np.nan, 1), (0.5, -1), (0.5, np.nan)])
def test_bad_arguments_are_refused(inverse, p, level):
    with pytest.raises(ValueError, match="must"):
        inverse(p, level)


@pytest.mark.parametrize("confidence", [0, 1, -1, 95, np.nan])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        failure_probability(confidence)


def test_a_confidence_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="confidence"):
        failure_probability("high")
