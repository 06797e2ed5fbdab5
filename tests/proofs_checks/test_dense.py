"""The dense quantities, against their definitions without the log domain."""

import numpy as np
import pytest

from hyperattention_ref import synthetic
from hyperattention_ref.proofs_checks.dense import Dense


@pytest.mark.parametrize("is_causal", [False, True])
def test_dense_quantities_are_those_of_section_1(is_causal):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 12, 4))
    mask = rng.random((12, 12)) < 0.3
    mask[5] = True  # a covered row, which has no part in kappa
    dense = Dense(q, k, v, 0.5, mask, is_causal)
    a = np.exp(0.5 * q @ k.T)
    a = np.tril(a) if is_causal else a
    d, h, r = a.sum(axis=1), (a * mask).sum(axis=1), (a * ~mask).sum(axis=1)
    p = a / d[:, None]
    for log, plain in ((dense.log_d, d), (dense.log_h, h), (dense.log_r, r)):
        np.testing.assert_allclose(np.exp(log), plain, rtol=1e-12)
    np.testing.assert_allclose(dense.p, p, rtol=1e-12)
    np.testing.assert_allclose(dense.attention, p @ v, rtol=1e-12, atol=1e-14)
    assert dense.alpha == pytest.approx(12 * (p**2).sum(axis=0).max())
    assert dense.kappa == pytest.approx(r[r > 0].max() / r[r > 0].min())
    assert dense.op_norm == pytest.approx(np.linalg.norm(p, 2))
    assert dense.value_norm == pytest.approx(np.linalg.norm(v, 2))
    estimate, wrong_d = p @ v + 1, 2 * d
    assert dense.error(estimate) == pytest.approx(
        np.linalg.norm(np.ones((12, 4)), 2) / np.linalg.norm(p, 2) / np.linalg.norm(v, 2)
    )
    assert dense.diagonal_error(np.log(wrong_d)) == pytest.approx(0.5)


def test_a_problem_keeps_its_arrays_and_changes_replace_them():
    problem = synthetic.planted_clusters(20, 4, rng=0)
    dense = Dense.of(problem)
    assert (dense.n, dense.query is problem.query, dense.scale) == (20, True, problem.scale)
    np.testing.assert_array_equal(dense.mask, problem.mask)
    assert not Dense.of(problem, mask_given=None).mask.any()


def test_with_every_row_covered_kappa_is_one():
    problem = synthetic.gaussian(6, 4, rng=0)
    assert Dense.of(problem, mask_given=np.ones((6, 6), dtype=bool)).kappa == 1
