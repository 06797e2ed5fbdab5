import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hyperattention_ref.measures import betting
from hyperattention_ref.measures.betting import BETS, PARTS, Sum, log_capital, quotient_lower, quotient_upper
from hyperattention_ref.measures.row_sample import RowSample

from .test_row_sample import all_draws, in_order

DELTA = 0.05
sizes = st.integers(2, 5)
entries = st.lists(st.floats(0.01, 10), min_size=5, max_size=5).map(np.array)
parts = st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=5, max_size=5).map(np.array)


def sums(sample, weights, top, bottom):
    """Both sums after a draw; `top` and `bottom` are numbers for each row, in parts of its weight."""
    x, y = top * weights, bottom * weights
    return Sum.sampled(sample, x[sample.rows], 1.0), Sum.sampled(sample, y[sample.rows], 1.0)


CLAIMS = {"at least": betting._against_at_least, "at most": betting._against_at_most}


@pytest.mark.parametrize("claim", CLAIMS)
@given(sizes, entries, parts, parts)
def test_where_the_claim_is_true_the_expected_capital_is_one(claim, n, weights, top, bottom):
    """At the true quotient every bet is fair: summed over all orders of the rows."""
    weights, top, bottom = weights[:n], top[:n], bottom[:n]
    if not (bottom.any() and top.any()):
        return
    x = (top @ weights) / (bottom @ weights)
    expected = np.zeros(n - 1)
    for sample, probability in all_draws(weights, n - 1):
        gain, risk = CLAIMS[claim](x, *sums(sample, weights, top, bottom))
        assert np.all(risk >= -1e-9 * x * weights.sum())
        assert np.all(gain >= -risk[:-1] - 1e-9 * (1 + x) * weights.sum())
        expected += probability * np.exp(log_capital(gain, risk[:-1]))
    np.testing.assert_allclose(expected, 1, rtol=1e-6)


@given(sizes, entries, parts, parts, st.floats(0.01, 100), st.floats(1, 10))
def test_what_is_refuted_is_refuted_beyond(n, weights, top, bottom, x, factor):
    weights, top, bottom = weights[:n], top[:n], bottom[:n]
    both = sums(in_order(range(n), weights).first(n - 1), weights, top, bottom)
    for claim, further in (("at least", x * factor), ("at most", x / factor)):
        near, far = (betting._reaches(*CLAIMS[claim](y, *both), DELTA) for y in (x, further))
        assert far or not near


def test_the_capital_is_that_of_the_bets():
    gain, risk = np.array([0.5, -0.2, 1.0, 3.0]), np.array([1.0, 0.4, 2.0, 0.0])
    capital = np.zeros(4)
    for bet, part in zip(BETS, PARTS, strict=True):
        capital += part * np.cumprod([1 + bet * 0.5, 1 - bet * 0.5, 1 + bet * 0.5, 1])
    np.testing.assert_allclose(log_capital(gain, risk), np.log(capital), rtol=1e-12)
    assert PARTS.sum() == 1


def test_without_any_error_the_bound_is_what_the_largest_bet_proves():
    n, s = 10**6, 300
    sample = in_order(range(n), np.ones(n)).first(s)
    nothing = Sum.sampled(sample, np.zeros(s), 1.0)
    x = quotient_upper(nothing, Sum.one(sample), DELTA)
    # Half of the capital is multiplied by 1 + x / (n - x) each time, or a little more.
    assert 0.5 * (1 + x / n) ** s <= 1 / DELTA
    assert x == pytest.approx(n * (2 / DELTA) ** (1 / s) - n, rel=0.05)


@given(sizes, entries, parts, parts)
def test_all_rows_leave_no_doubt(n, weights, top, bottom):
    weights, top, bottom = weights[:n], top[:n], bottom[:n]
    both = sums(in_order(range(n), weights), weights, top, bottom)
    if bottom.any():
        quotient = pytest.approx((top @ weights) / (bottom @ weights), rel=2e-4, abs=1e-30)
        assert quotient_upper(*both, DELTA) == quotient
        assert quotient_lower(*both, DELTA) == quotient


def test_rows_that_say_nothing_exclude_nothing():
    sample = in_order(range(3), np.ones(3)).first(1)
    zero, one = Sum.sampled(sample, np.zeros(1), 1.0), Sum.one(sample)
    assert quotient_upper(one, zero, DELTA) == math.inf  # all of the bottom may be zero
    assert quotient_lower(zero, one, DELTA) == 0


FAMILIES = {
    "zeros and ones": lambda rng, n: rng.random(n) < 0.03,
    "half of the rows": lambda rng, n: np.arange(n) % 2,
    "heavy tail": lambda rng, n: np.minimum(1, 0.001 / rng.random(n)),
    "one row": lambda rng, n: np.arange(n) == 7,
    "equal": lambda rng, n: np.full(n, 0.01),
}


def path_coverage(family, delta, trials, n=300, s=200):
    """How often the true quotient lay within both bounds at every step of a draw."""
    rng, held = np.random.default_rng(0), {"upper": 0, "lower": 0}
    weights = rng.uniform(1, 4, n)
    top, bottom = FAMILIES[family](rng, n) * weights, rng.uniform(0.1, 1, n) * weights
    x = top.sum() / bottom.sum()
    for _ in range(trials):
        sample = RowSample.draw(weights, rng).first(s)
        both = (Sum.sampled(sample, y[sample.rows], 1.0) for y in (top, bottom))
        top_sum, bottom_sum = both
        held["upper"] += not betting._reaches(*CLAIMS["at least"](x * (1 - 1e-9), top_sum, bottom_sum), delta)
        held["lower"] += not betting._reaches(*CLAIMS["at most"](x * (1 + 1e-9), top_sum, bottom_sum), delta)
    return {name: binomtest(k, trials).proportion_ci(0.999, method="exact") for name, k in held.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bounds_hold_along_the_whole_draw_in_500_trials(family):
    """Of all steps together, not of one: whatever is refuted once stays refuted."""
    for limits in path_coverage(family, DELTA, 500).values():
        assert limits.high >= 1 - DELTA


def test_a_gambler_who_stakes_too_much_is_found_out(monkeypatch):
    """The coverage test sees a capital that grows twice as fast as it may."""
    honest = betting.log_capital
    monkeypatch.setattr(betting, "log_capital", lambda gain, risk: 2 * honest(gain, risk))
    limits = [path_coverage(family, 0.5, 500)["upper"] for family in ("half of the rows", "zeros and ones")]
    assert min(x.high for x in limits) < 0.5


def test_the_rows_that_would_decide_are_about_as_many_as_it_takes():
    rng, n = np.random.default_rng(0), 20_000
    weights = np.ones(n)
    error, attention = 0.004 * rng.random(n), np.full(n, 0.5)  # quotient 0.004
    order = RowSample.draw(weights, rng)

    def at(s, x):
        sample = order.first(s)
        both = (Sum.sampled(sample, y[sample.rows], 1.0) for y in (error, attention))
        return betting.rows_to_refute(x, *both, DELTA)

    predicted = at(400, 0.01)
    needed = next(s for s in range(100, n, 10) if at(s, 0.01) == s)
    assert 400 < predicted < n
    assert predicted == pytest.approx(needed, rel=0.2)
    assert at(400, 0.004) > n  # the quotient itself is never refuted
