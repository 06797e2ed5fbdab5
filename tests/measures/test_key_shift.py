import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

import hyperattention_ref as hr
from hyperattention_ref.backends import get_backend


def test_a_shift_that_was_planted_is_undone():
    problem = hr.synthetic.sphere(200, 16, rng=0)
    shift = 5 * np.random.default_rng(1).standard_normal(16)
    spread = {}
    for name, key in (("before", problem.key), ("after", problem.key + shift)):
        sums = get_backend("reference").attention_sums(problem.query, key, None, scale=1.0, is_causal=False)
        spread[name] = hr.best_key_shift(problem.query, sums.log_unmasked, scale=1.0).log_kappa
        assert spread[name] <= np.ptp(sums.log_unmasked) + 1e-9
    assert spread["after"] == pytest.approx(spread["before"], abs=1e-6)


def test_the_shift_reaches_the_kappa_it_promises():
    head = hr.load_sample_heads()[1]
    q, k = head.query.astype(np.float64), head.key.astype(np.float64)
    log_r = get_backend("numpy").attention_sums(q, k, None, scale=head.scale, is_causal=False).log_unmasked
    best = hr.best_key_shift(q, log_r, scale=head.scale)
    moved = hr.hardness(q, k + best.shift, scale=head.scale, rng=0)
    assert moved.log_kappa == pytest.approx(best.log_kappa, abs=1e-6)
    assert best.log_kappa < np.ptp(log_r) - 1


def test_no_shift_does_better():
    """Weak duality by hand: one coordinate, three rows whose best spread is known."""
    best = hr.best_key_shift(np.array([[-1.0], [0.0], [1.0]]), [0.0, 3.0, 4.0], scale=1.0)
    assert best.log_kappa == pytest.approx(1.0, abs=1e-9)  # max spread of (-c, 3, 4 + c) is least at c = -2


def least_spread(q, log_r):
    """The value of the dual program with all rows: the largest difference of two means of log R with one mean of q."""
    n, d = q.shape
    one, zero = np.ones((1, n)), np.zeros((1, n))
    equal = np.vstack([np.hstack([q.T, -q.T]), np.hstack([one, zero]), np.hstack([zero, one])])
    return -linprog(np.r_[-log_r, log_r], A_eq=equal, b_eq=np.r_[np.zeros(d), 1, 1]).fun


@given(n=st.integers(1, 300), d=st.integers(1, 6), rank=st.integers(0, 6), seed=st.integers(0, 999))
def test_the_spread_is_that_of_the_dual_program(n, d, rank, seed):
    """No row that was left out of a program can be the one that decides, also with parallel or zero coordinates."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    log_r = rng.standard_normal(n) ** 3
    best = hr.best_key_shift(q, log_r, scale=1.0)
    assert best.log_kappa == pytest.approx(least_spread(q, log_r), abs=1e-6)
    assert best.log_kappa == pytest.approx(np.ptp(log_r + q @ best.shift), abs=1e-9)


def test_nearly_parallel_coordinates_are_solved():
    """Sinusoidal positions: the program in the original coordinates ends without a solution."""
    angles = np.arange(2048)[:, None] * 1e4 ** -(np.arange(32) / 32)
    q = 6 * np.hstack([np.sin(angles), np.cos(angles)])
    _, log_r = hr.exact_attention(q, q, q, is_causal=True, return_lse=True)
    assert 0 < hr.best_key_shift(q, log_r).log_kappa < 0.005


def test_covered_rows_take_no_part():
    best = hr.best_key_shift(np.eye(3), [0.0, -np.inf, 5.0], scale=1.0)
    assert best.log_kappa == pytest.approx(0.0, abs=1e-9)
    assert hr.best_key_shift(np.eye(3), [-np.inf] * 3).log_kappa == 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one log R_i for each of 3"):
        hr.best_key_shift(np.eye(3), [0.0])
    with pytest.raises(ValueError, match="at most 8192"):
        hr.best_key_shift(np.zeros((8193, 1)), np.zeros(8193))
