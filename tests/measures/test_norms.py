import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import linalg as sparse_linalg

from hyperattention_ref.measures.norms import frobenius_norm, operator_norm, stable_rank

RTOL = 1e-12  # what the docstring promises
LARGE = 160  # above the size up to which the whole Gram matrix is used
CROWDED = np.sqrt(1 - np.linspace(0, 1, 1024) ** 3)  # Lanczos gives up on this one


def gaussian(n, m, seed=0):
    return np.random.default_rng(seed).standard_normal((n, m))


def with_singular_values(sigma, seed=0):
    n = len(sigma)
    left, right = (np.linalg.qr(gaussian(n, n, seed + side))[0] for side in (0, 1))
    return (left * sigma) @ right


@given(n=st.integers(1, 40), m=st.integers(1, 40), seed=st.integers(0, 99), dtype=st.sampled_from(["f2", "f4", "f8"]))
def test_norms_of_small_matrices_are_those_of_the_svd(n, m, seed, dtype):
    x = gaussian(n, m, seed).astype(dtype)
    sigma = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    assert operator_norm(x) == pytest.approx(sigma[0], rel=RTOL)
    assert frobenius_norm(x) == pytest.approx(np.sqrt((sigma**2).sum()), rel=RTOL)
    assert stable_rank(x) == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=RTOL)


@pytest.mark.parametrize("shape", [(128, 300), (300, 128), (129, 129), (LARGE, 400), (400, LARGE), (513, 511)])
def test_operator_norm_is_the_largest_singular_value_on_both_sides_of_the_switch(shape):
    x = gaussian(*shape)
    assert operator_norm(x) == pytest.approx(np.linalg.svd(x, compute_uv=False)[0], rel=RTOL)


@pytest.mark.parametrize(
    "sigma",
    [
        np.ones(LARGE),
        np.r_[1, np.full(LARGE - 1, 1 - 1e-9)],
        np.r_[1, 1 - 1e-5 * np.arange(1, LARGE)],
        np.r_[1, 1 - 1e-7, np.zeros(LARGE - 2)],
        np.linspace(1, 0, LARGE),
        CROWDED,
    ],
    ids=["orthogonal", "cluster", "close", "pair", "line", "edge"],
)
def test_operator_norm_finds_the_top_of_crowded_spectra(sigma):
    assert operator_norm(with_singular_values(sigma)) == pytest.approx(1, rel=RTOL)


@pytest.mark.parametrize("n", [3, LARGE])
def test_norms_of_zero_are_zero(n):
    zero = np.zeros((n, n + 1))
    assert (operator_norm(zero), frobenius_norm(zero), stable_rank(zero)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("n", [5, LARGE])
def test_rank_one_has_stable_rank_one(n):
    u, v = gaussian(n, 1), gaussian(1, n + 3)
    assert operator_norm(u @ v) == pytest.approx(np.linalg.norm(u) * np.linalg.norm(v), rel=RTOL)
    assert stable_rank(u @ v) == pytest.approx(1, rel=RTOL)


@pytest.mark.parametrize("n", [5, LARGE])
def test_a_single_entry_is_its_own_norm(n):
    x = np.zeros((n, n))
    x[1, 3] = -0.7
    assert operator_norm(x) == pytest.approx(0.7, rel=RTOL)
    assert frobenius_norm(x) == 0.7


def test_a_top_vector_orthogonal_to_the_vector_of_ones_is_found():
    """A Lanczos method that starts from ones sees only the rest of the spectrum, and returns 1."""
    sigma = np.r_[1.02, 1, np.linspace(0.5, 0, LARGE - 2)]
    top = np.where(np.arange(LARGE) % 2, -1.0, 1.0)
    top[0] = top[-1] = 0.0
    vectors = np.linalg.qr(np.column_stack([top, gaussian(LARGE, LARGE - 1)]))[0]
    assert operator_norm((vectors * sigma) @ vectors.T) == pytest.approx(1.02, rel=RTOL)


def test_operator_norm_survives_a_lanczos_method_that_does_not_converge(monkeypatch):
    def never(*args, **kwargs):
        raise sparse_linalg.ArpackNoConvergence("no convergence", np.empty(0), np.empty(0))

    monkeypatch.setattr(sparse_linalg, "eigsh", never)
    x = gaussian(LARGE, LARGE)
    assert operator_norm(x) == pytest.approx(np.linalg.svd(x, compute_uv=False)[0], rel=RTOL)


def test_lanczos_gives_up_on_a_crowded_spectrum_before_it_costs_more_than_all_eigenvalues(monkeypatch):
    eigsh, products = sparse_linalg.eigsh, []

    def counting(gram, *args, **kwargs):
        counted = sparse_linalg.LinearOperator(gram.shape, lambda u: products.append(u) or gram.matvec(u), dtype=float)
        return eigsh(counted, *args, **kwargs)

    monkeypatch.setattr(sparse_linalg, "eigsh", counting)
    assert operator_norm(with_singular_values(CROWDED)) == pytest.approx(1, rel=RTOL)
    assert 100 < len(products) <= 250


@pytest.mark.parametrize("n", [7, LARGE])
@pytest.mark.parametrize("exponent", [-1000, -600, 1, 600, 1000])
def test_norms_scale_exactly_with_powers_of_two(n, exponent):
    x = gaussian(n, n)
    scaled = np.ldexp(x, exponent)
    assert operator_norm(scaled) == np.ldexp(operator_norm(x), exponent)
    assert frobenius_norm(scaled) == np.ldexp(frobenius_norm(x), exponent)
    assert stable_rank(scaled) == stable_rank(x)


@pytest.mark.parametrize("factor", [1e-320, 1e-200, 1e200, 1e305])
def test_norms_neither_overflow_nor_underflow(factor):
    x = np.full((6, 4), factor)
    assert operator_norm(x) == pytest.approx(factor * np.sqrt(24), rel=1e-3 if factor < 1e-300 else RTOL)
    assert frobenius_norm(x) == pytest.approx(operator_norm(x), rel=RTOL)


def test_the_largest_entry_may_be_negative():
    x = np.array([[1e-200, -3e200], [0.0, -4e200]])
    assert operator_norm(x) == frobenius_norm(x) == pytest.approx(5e200, rel=RTOL)


def test_a_norm_beyond_the_largest_float_is_an_error_and_no_infinity():
    x = np.full((6, 4), 1e308)
    with pytest.raises(OverflowError):
        operator_norm(x)
    with pytest.raises(OverflowError):
        frobenius_norm(x)
    assert stable_rank(x) == pytest.approx(1, rel=RTOL)


@pytest.mark.parametrize("n", [20, LARGE])
def test_operator_norm_repeats_bit_for_bit(n):
    for x in (gaussian(n, n), np.ones((n, n)), np.eye(n), np.diag(np.arange(n) % 3.0), gaussian(n, 2) @ gaussian(2, n)):
        assert len({operator_norm(x) for _ in range(5)}) == 1


@pytest.mark.parametrize("n", [20, LARGE])
def test_views_and_transposes_have_the_same_norm(n):
    wide = gaussian(2 * n, 3 * n)
    view = wide[::2, ::-3]
    assert operator_norm(view) == pytest.approx(operator_norm(view.copy()), rel=RTOL)
    assert operator_norm(view.T) == pytest.approx(operator_norm(view), rel=RTOL)
    assert operator_norm(-view) == operator_norm(view)


def test_norms_leave_their_input_alone():
    x = gaussian(5, 5)
    before = x.copy()
    operator_norm(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("norm", [operator_norm, frobenius_norm, stable_rank])
@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.ones(3), ValueError),
        (np.ones((2, 2, 2)), ValueError),
        (np.ones((0, 3)), ValueError),
        (np.array([[1.0, np.nan]]), ValueError),
        (np.array([[1.0, np.inf]]), ValueError),
        (np.ones((2, 2), dtype=int), TypeError),
        (np.ones((2, 2), dtype=complex), TypeError),
    ],
)
def test_norms_refuse_what_is_no_finite_real_matrix(norm, x, error):
    with pytest.raises(error, match="x has"):
        norm(x)
