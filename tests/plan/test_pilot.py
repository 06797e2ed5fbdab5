"""The pilot estimates the column norms of P from some of its rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.plan.pilot import pilot_column_masses


def problem(n_q, n_k=None, d=4, seed=0, lead=(), dtype=np.float64, size=1.0):
    g = np.random.default_rng(seed)
    n_k = n_q if n_k is None else n_k
    return tuple(
        (size * g.standard_normal((*lead, n, width))).astype(dtype) for n, width in ((n_q, d), (n_k, d), (n_k, 3))
    )


@given(n_q=st.integers(1, 80), n_k=st.integers(1, 30), logits=st.sampled_from([1, 80, 500]))
def test_a_pilot_of_all_rows_gives_the_column_norms(n_q, n_k, logits):
    q, k, _ = problem(n_q, n_k, size=logits**0.5)
    masses = pilot_column_masses(q, k, 10**6, 0.3, np.random.default_rng(0), Reference())
    expected = (hr.attention_probabilities(q, k, scale=0.3) ** 2).mean(axis=0)
    np.testing.assert_allclose(masses, expected, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_pilot_computes_in_float64(dtype):
    q, k, _ = problem(40, 9, dtype=dtype)
    pairs = (q, k), (q.astype(np.float64), k.astype(np.float64))
    masses, wide = (pilot_column_masses(*x, 8, 0.3, np.random.default_rng(0), Reference()) for x in pairs)
    assert np.array_equal(masses, wide)


def test_the_pilot_is_unbiased_over_its_rows():
    q, k, _ = problem(4, 5)
    by_pilot = {pilot_column_masses(q, k, 1, 0.5, np.random.default_rng(s), Reference()).tobytes() for s in range(100)}
    expected = hr.attention_probabilities(q, k, scale=0.5) ** 2
    assert len(by_pilot) == 4  # one row each
    np.testing.assert_allclose(np.mean([np.frombuffer(x) for x in by_pilot], axis=0), expected.mean(axis=0), rtol=1e-12)
