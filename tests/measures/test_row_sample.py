from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hyperattention_ref.measures.row_sample import RowSample


def in_order(rows, weights) -> RowSample:
    """The sample that drew these rows, all of them, one after another."""
    drawn = np.asarray(weights, dtype=float)[list(rows)]
    left = np.append(np.cumsum(drawn[::-1])[::-1], 0.0)
    return RowSample(np.array(rows), drawn / left[:-1], left)


def all_draws(weights, count):
    """Every draw of `count` rows with its probability."""
    for rows in permutations(range(len(weights)), count):
        rest = [i for i in range(len(weights)) if i not in rows]
        sample = in_order([*rows, *rest], weights).first(count)
        yield sample, float(np.prod(sample.shares))


weights = st.lists(st.floats(0.01, 10), min_size=2, max_size=6)
numbers = st.lists(st.floats(0, 10), min_size=6, max_size=6).map(np.array)


@given(weights, numbers, st.integers(1, 3))
def test_the_estimate_and_the_square_of_its_standard_error_are_unbiased(weights, numbers, count):
    n, count = len(weights), min(count, len(weights))
    x = numbers[:n]
    draws = [(p, sample.terms(x[sample.rows])) for sample, p in all_draws(weights, count)]
    assert sum(p for p, _ in draws) == pytest.approx(1)
    assert sum(p * terms.mean() for p, terms in draws) == pytest.approx(x.sum(), rel=1e-9, abs=1e-9)
    if count > 1:
        variance = sum(p * (terms.mean() - x.sum()) ** 2 for p, terms in draws)
        estimated = sum(p * terms.var(ddof=1) / count for p, terms in draws)
        assert estimated == pytest.approx(variance, rel=1e-6, abs=1e-6)


@given(weights, numbers, st.integers(0, 5))
def test_factors_give_the_mean_of_the_later_terms(weights, numbers, start):
    sample = in_order(range(len(weights)), weights)
    x, start = numbers[: len(weights)], min(start, len(weights) - 1)
    assert sample.factors(start) @ x == pytest.approx(sample.terms(x)[start:].mean(), rel=1e-9, abs=1e-9)


@given(weights, st.integers(0, 9))
def test_a_draw_is_a_permutation_with_its_own_probabilities(weights, seed):
    sample = RowSample.draw(np.array(weights), np.random.default_rng(seed))
    assert sorted(sample.rows) == list(range(len(weights)))
    expected = in_order(sample.rows, weights)
    np.testing.assert_allclose(sample.shares, expected.shares, rtol=1e-12)
    np.testing.assert_allclose(sample.left, expected.left, rtol=1e-12)
    assert sample.shares[-1] == 1
    assert len(sample.first(1)) == 1


def test_the_order_has_the_stated_law():
    """Pairs of first rows, counted: every exact limit contains the probability of the pair."""
    weights, trials = np.array([1.0, 2.0, 5.0]), 4000
    rng = np.random.default_rng(0)
    found = [tuple(RowSample.draw(weights, rng).rows[:2]) for _ in range(trials)]
    for sample, probability in all_draws(weights, 2):
        interval = binomtest(found.count(tuple(sample.rows)), trials).proportion_ci(1 - 1e-6, method="exact")
        assert interval.low <= probability <= interval.high
