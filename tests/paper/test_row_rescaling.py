import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.paper.row_rescaling import PILOT_SIZE
from hyperattention_ref.paper.row_rescaling import pilot_log_row_sums as pilot_of


def pilot_log_row_sums(log_a, mask, keys=None, is_causal=False):
    """The pilot of a matrix A that is given by its logarithm: its own queries, and the unit vectors as keys."""
    n_k = log_a.shape[1]
    keys = np.arange(n_k) if keys is None else keys
    return pilot_of(log_a, np.eye(n_k), mask, keys, scale=1.0, is_causal=is_causal, backend=Reference())


@given(n_q=st.integers(1, 9), n_k=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_pilot_of_every_key_once_gives_the_exact_unmasked_row_sums(n_q, n_k, seed):
    rng = np.random.default_rng(seed)
    log_a, mask = rng.normal(size=(n_q, n_k)), rng.random((n_q, n_k)) < 0.4
    mask[:, 0] = False
    exact = np.log(np.where(mask, 0, np.exp(log_a)).sum(axis=1))
    np.testing.assert_allclose(pilot_log_row_sums(log_a, mask), exact, atol=1e-13)


def test_the_pilot_is_the_weighted_sum_over_its_uniform_draw():
    log_a, mask = np.random.default_rng(0).normal(size=(4, 50)), np.zeros((4, 50), dtype=bool)
    mask[:, ::3] = True
    keys = np.random.default_rng(7).integers(50, size=PILOT_SIZE)
    literal = np.array([50 / PILOT_SIZE * sum(np.exp(row[j]) for j in keys if j % 3) for row in log_a])
    pilot = pilot_log_row_sums(log_a, mask, keys)
    np.testing.assert_allclose(pilot, np.log(literal), atol=1e-13)


def test_a_row_whose_pilot_keys_are_masked_gets_the_median_of_the_others():
    log_a, mask = np.log([[1.0, 1.0], [2.0, 2.0], [8.0, 8.0], [5.0, 5.0]]), np.zeros((4, 2), dtype=bool)
    mask[3] = True
    np.testing.assert_allclose(pilot_log_row_sums(log_a, mask), np.log([2, 4, 16, 4]), atol=1e-13)


@pytest.mark.parametrize("mask", [None, np.eye(6, k=-1, dtype=bool)])
def test_a_causal_pilot_sees_the_keys_up_to_the_query(mask):
    log_a, keys = np.random.default_rng(0).normal(size=(6, 6)), np.array([4, 1, 3, 1])
    literal = [
        6 / 4 * sum(np.exp(log_a[i, j]) for j in keys if j <= i and (mask is None or not mask[i, j])) for i in range(6)
    ]
    informed = np.array(literal) > 0
    pilot = pilot_log_row_sums(log_a, mask, keys, is_causal=True)
    np.testing.assert_allclose(pilot[informed], np.log(np.array(literal)[informed]), atol=1e-13)
    np.testing.assert_allclose(pilot[~informed], np.median(np.log(np.array(literal)[informed])), atol=1e-13)


def test_a_pilot_that_sees_nothing_gives_zeros():
    log_a, mask = np.ones((3, 4)), np.ones((3, 4), dtype=bool)
    np.testing.assert_array_equal(pilot_log_row_sums(log_a, mask), np.zeros(3))


@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_the_pilot_works_in_the_log_domain(shift):
    log_a, mask = np.full((3, 5), shift), np.zeros((3, 5), dtype=bool)
    pilot = pilot_log_row_sums(log_a, mask)
    np.testing.assert_allclose(pilot, shift + np.log(5), rtol=1e-14)
