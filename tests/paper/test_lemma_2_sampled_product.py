"""Lemma 2: the sampled matrix product."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import RowNormSample, row_norm_sample, sampled_product


def values(n, d_v=3, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d_v))


@given(
    n=st.integers(1, 20),
    d_v=st.integers(1, 5),
    n_q=st.integers(1, 9),
    m=st.integers(1, 40),
    seed=st.integers(0, 99),
    zero_share=st.sampled_from([0.0, 0.5]),
)
def test_dense_operator_and_product_agree(n, d_v, n_q, m, seed, zero_share):
    g = np.random.default_rng(seed)
    v, x = values(n, d_v, seed), g.standard_normal((n_q, n))
    v[g.random(n) < zero_share] = 0
    sample = row_norm_sample(v, m, seed)
    s = sample.toarray()
    operator = sample.as_linear_operator()
    assert sample.shape == s.shape == operator.shape == (m, n)
    np.testing.assert_allclose(operator @ v, s @ v, rtol=1e-13)
    np.testing.assert_allclose(operator.T @ (s @ v), s.T @ (s @ v), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(operator @ v[:, 0], s @ v[:, 0], rtol=1e-13)
    np.testing.assert_allclose(sampled_product(x, v, sample), x @ s.T @ (s @ v), rtol=1e-11, atol=1e-12)


@given(n=st.integers(1, 20), m=st.integers(1, 40), seed=st.integers(0, 99))
def test_rows_of_s_are_the_definition(n, m, seed):
    v = values(n, 3, seed)
    s = row_norm_sample(v, m, seed).toarray()
    assert np.all((s != 0).sum(axis=1) == 1)
    rows, columns = np.nonzero(s)
    weights = np.linalg.norm(v) / (math.sqrt(m) * np.linalg.norm(v[columns], axis=1))
    np.testing.assert_allclose(s[rows, columns], weights, rtol=1e-13)


def test_every_sampled_row_of_sv_has_the_same_norm():
    v = values(30) * 10 ** np.random.default_rng(0).uniform(-3, 3, (30, 1))
    s_v = row_norm_sample(v, 50, 0).toarray() @ v
    np.testing.assert_allclose(np.linalg.norm(s_v, axis=1), np.linalg.norm(v) / math.sqrt(50), rtol=1e-12)


@given(n=st.integers(2, 20), seed=st.integers(0, 99))
def test_zero_rows_are_never_drawn(n, seed):
    g = np.random.default_rng(seed)
    v = values(n, 2, seed)
    zero = g.random(n) < 0.6
    zero[g.integers(n)] = False
    v[zero] = 0
    sample = row_norm_sample(v, 300, seed)
    assert not zero[sample.indices].any()
    assert np.all(np.isfinite(sample.weights))


@pytest.mark.parametrize("m", [1, 7])
def test_a_value_of_zeros_gives_the_product_zero(m):
    v, x = np.zeros((5, 2)), np.ones((3, 5))
    sample = row_norm_sample(v, m, 0)
    assert np.all(sample.weights == 0)
    product = sampled_product(x, v, sample)
    np.testing.assert_array_equal(product, np.zeros((3, 2)))


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_extreme_values_are_sampled_like_ordinary_ones(scale):
    v, x = values(12), np.random.default_rng(1).standard_normal((4, 12))
    plain, extreme = row_norm_sample(v, 20, 3), row_norm_sample(v * scale, 20, 3)
    np.testing.assert_array_equal(plain.indices, extreme.indices)
    np.testing.assert_allclose(plain.weights, extreme.weights, rtol=1e-12)
    product = sampled_product(x, v * scale, extreme)
    np.testing.assert_allclose(product / scale, sampled_product(x, v, plain), rtol=1e-10)


def test_rows_of_extremely_different_size():
    v = np.array([[1e-150, 0.0], [1e150, 0.0], [0.0, 1.0]])
    sample = row_norm_sample(v, 50, 0)
    assert set(sample.indices.tolist()) == {1}  # the others have probability below 1e-299
    np.testing.assert_allclose(sampled_product(np.eye(3), v, sample)[1], v[1], rtol=1e-12)


def outcomes(v):
    """All single draws (m = 1) with their probabilities."""
    squares = (v**2).sum(axis=1)
    for j in np.flatnonzero(squares):
        p = squares[j] / squares.sum()
        yield p, RowNormSample(np.array([j]), np.array([1 / math.sqrt(p)]), len(v))


def test_expected_gram_matrix_is_the_identity_on_the_rows_that_are_not_zero():
    v = values(6)
    v[2] = 0
    mean = sum(p * sample.toarray().T @ sample.toarray() for p, sample in outcomes(v))
    np.testing.assert_allclose(mean, np.diag([1.0, 1, 0, 1, 1, 1]), atol=1e-13)


def test_product_is_unbiased_with_the_stated_second_moment():
    v, x = values(6), np.random.default_rng(1).standard_normal((4, 6))
    v[2] = 0
    exact = x @ v
    mean = sum(p * sampled_product(x, v, sample) for p, sample in outcomes(v))
    np.testing.assert_allclose(mean, exact, atol=1e-13)
    moment = sum(p * np.sum((sampled_product(x, v, sample) - exact) ** 2) for p, sample in outcomes(v))
    squares = (v**2).sum(axis=1)
    formula = squares.sum() * np.sum(x[:, squares > 0] ** 2) - np.sum(exact**2)
    assert moment == pytest.approx(formula, rel=1e-12)


def test_draws_follow_the_squared_row_norms():
    v = np.sqrt(np.array([[1.0], [2.0], [3.0], [0.0], [4.0]]))
    counts = np.bincount(row_norm_sample(v, 50000, 0).indices, minlength=5)
    p = np.array([0.1, 0.2, 0.3, 0.0, 0.4])
    assert np.all(np.abs(counts - 50000 * p) <= 6 * np.sqrt(50000 * p * (1 - p)))


def test_many_samples_come_close():
    v, x = values(40), np.random.default_rng(1).standard_normal((5, 40))
    errors = [
        np.mean([np.linalg.norm(sampled_product(x, v, row_norm_sample(v, m, s)) - x @ v) for s in range(20)])
        for m in (100, 10000)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)


def test_seeds_reproduce_also_in_another_process(run_python, tmp_path):
    v = values(20)
    sample = row_norm_sample(v, 9, 4)
    np.testing.assert_array_equal(sample.indices, row_norm_sample(v, 9, np.random.default_rng(4)).indices)
    assert not np.array_equal(sample.indices, row_norm_sample(v, 9, 5).indices)
    code = (
        "import numpy as np, hyperattention_ref as hr;"
        "v = np.random.default_rng(0).standard_normal((20, 3));"
        "s = hr.row_norm_sample(v, 9, 4); print(s.indices.tolist(), s.weights.tobytes().hex())"
    )
    done = run_python(code, cwd=tmp_path)
    assert done.stdout == f"{sample.indices.tolist()} {sample.weights.tobytes().hex()}\n"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_dtypes_are_computed_in_double_precision(dtype):
    v, x = values(8).astype(dtype), np.random.default_rng(1).standard_normal((4, 8)).astype(dtype)
    sample = row_norm_sample(v, 9, 0)
    product = sampled_product(x, v, sample)
    assert product.dtype == np.float64
    np.testing.assert_array_equal(product, sampled_product(x.astype(float), v.astype(float), sample))
