import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

import hyperattention_ref as hr
from hyperattention_ref.measures.projected_error import length_factors

from .test_certificate import problem, shapes


@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-6])
@pytest.mark.parametrize("r", [1, 2, 5, 40])
def test_the_factors_bound_the_exact_tails_of_the_worst_case(r, delta):
    """An error of rank one has a length that is chi-squared; its tails are within delta, and not idle."""
    shortest, longest = length_factors(r, delta)
    for factor, tail in ((shortest, chi2.cdf), (longest, chi2.sf)):
        assert (factor**2 * math.exp(1 - factor**2)) ** (r / 2) == pytest.approx(delta, rel=1e-9)
        assert delta / 200 < tail(r * factor**2, r) <= delta
    assert shortest < 1 < longest


@given(**shapes, r=st.integers(1, 6))
def test_bound_and_estimate_are_those_of_the_theory_page(n_q, n_k, d_v, seed, causal, r):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    options = {"is_causal": causal, "directions": r, "rng": seed}
    result = hr.projected_error(q, k, v, output, confidence=0.9, **options)
    nothing = hr.projected_error(q, k, v, np.zeros_like(output), confidence=0.9, **options)
    error = hr.exact_attention(q, k, v, is_causal=causal)
    both = [hr.projected_error(q, k, v, x, **options).frobenius_estimate for x in (2 * output - error, output)]
    assert both[0] == pytest.approx(2 * both[1], rel=1e-6, abs=1e-9)  # the same directions, twice the error
    assert result.frobenius == pytest.approx(result.frobenius_estimate / length_factors(r, 0.1)[0], rel=1e-9)
    factor = length_factors(r, 0.05)[1] / length_factors(r, 0.05)[0]
    relative = result.frobenius_estimate / nothing.frobenius_estimate
    assert result.relative_frobenius_estimate == pytest.approx(relative, rel=1e-6)
    assert result.relative_frobenius == pytest.approx(factor * relative, rel=1e-6)


def coverage(confidence, trials=500):
    """Of an error of rank one, which is the worst case."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 30, 5))
    exact = hr.exact_attention(q, k, v)
    output = exact + np.outer(rng.normal(size=30), rng.normal(size=5))
    norm = np.linalg.norm(output - exact)
    options = {"directions": 2, "confidence": confidence, "backend": "numpy"}
    draws = [hr.projected_error(q, k, v, output, rng=seed, **options) for seed in range(trials)]
    assert np.mean([x.frobenius_estimate**2 for x in draws]) == pytest.approx(norm**2, rel=0.2)
    relative = norm / np.linalg.norm(exact)
    held = [x.frobenius >= norm for x in draws], [x.relative_frobenius >= relative for x in draws]
    return [binomtest(sum(x), trials).proportion_ci(0.999, method="exact").high for x in held]


def test_the_bounds_cover_in_500_trials():
    assert min(coverage(0.95)) >= 0.95
    assert coverage(0.6)[0] < 0.95  # and a bound that is too narrow is found out


@pytest.mark.parametrize("exponent", [-500, 100, 1000])
def test_it_scales_with_the_values_at_any_size(exponent):
    q, k, v, output = problem(40, 30, 3, 0, False)
    plain = hr.projected_error(q, k, v, output, rng=0)
    scaled = hr.projected_error(q, k, np.ldexp(v, exponent), np.ldexp(output, exponent), rng=0)
    assert scaled.relative_frobenius == pytest.approx(plain.relative_frobenius, rel=1e-9)
    assert scaled.frobenius == pytest.approx(math.ldexp(plain.frobenius, exponent), rel=1e-9)


def test_heads_types_and_zeros():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 3, 20, 4)).astype(np.float16)
    result = hr.projected_error(q, k, v, hr.exact_attention(q, k, v), rng=0)
    assert result.frobenius.shape == (2, 3)
    assert np.all(result.relative_frobenius < 0.02)
    assert (result.directions, result.confidence) == (4, 0.95)
    zero = hr.projected_error(q[0, 0], k[0, 0], 0 * v[0, 0], 0 * v[0, 0], rng=0)
    assert (zero.frobenius, zero.relative_frobenius) == (0, 0)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"output": np.ones((5, 2))}, ValueError, "output has shape"),
        ({"directions": 0}, ValueError, "directions is 0"),
        ({"confidence": 95}, ValueError, "confidence is 95"),
        ({"rng": "seed"}, TypeError, "rng"),
    ],
)
def test_bad_input_is_refused(change, error, match):
    arguments = {"q": np.ones((4, 3)), "k": np.ones((5, 3)), "v": np.ones((5, 2)), "output": np.ones((4, 2))} | change
    with pytest.raises(error, match=match):
        hr.projected_error(**arguments)
