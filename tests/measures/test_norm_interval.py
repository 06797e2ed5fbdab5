import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.measures import norm_interval as module
from hyperattention_ref.measures.norm_interval import ROUNDS, TOLERANCE, norm_interval

N = 512
SLACK = 1 + 1e-12  # of float64 products


def attention(logits, is_causal):
    p = np.exp(logits - logits.max(axis=1, keepdims=True)) * (np.tri(*logits.shape) if is_causal else 1)
    return p / p.sum(axis=1, keepdims=True)


def interval(p):
    """The interval, and the number of products that it took."""
    products = []

    def gram(x):
        products.append(x.shape)
        return p.T @ (p @ x)

    return *norm_interval(gram, (p**2).sum(axis=0)), len(products)


def positions(n=N, amplitude=6.0):
    angles = np.arange(n)[:, None] * 1e4 ** -(np.arange(32) / 32)
    return amplitude * np.hstack([np.sin(angles), np.cos(angles)])


def gaussian(n=N, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 64))


HEADS = {
    "gaussian": gaussian() @ gaussian(seed=1).T / 8,
    "spread": 3 * gaussian() @ gaussian(seed=1).T / 8,
    "local": positions() @ positions().T / 8,  # thousands of singular values within a per cent of the largest
    "wide": positions(amplitude=2) @ positions(amplitude=2).T / 8,
    "near identity": 2.2 * gaussian() @ gaussian().T / 8,
    "permutation": 10 * np.eye(N)[::-1],
    "clusters": 12 * np.kron(np.eye(N // 32), np.ones((32, 32))),
    "sink": 8 * np.eye(1, N) + gaussian() @ gaussian(seed=1).T / 8,
    "flat": np.zeros((N, N)),
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_the_norm_is_in_a_narrow_interval_after_few_products(head, is_causal):
    p = attention(HEADS[head], is_causal)
    low, high, products = interval(p)
    norm = np.linalg.norm(p, 2)
    assert low / SLACK <= norm <= high * SLACK
    assert high / low <= 1 + TOLERANCE
    assert products <= 6


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_rounds_that_add_nothing_new_do_no_harm(monkeypatch, head, is_causal):
    """A basis that is not orthonormal to rounding has Ritz values above the norm."""
    monkeypatch.setattr(module, "TOLERANCE", -1)
    p = attention(HEADS[head], is_causal)
    low, high, products = interval(p)
    assert products == ROUNDS
    norm = np.linalg.norm(p, 2)
    assert low / SLACK <= norm <= high * SLACK
    assert low == pytest.approx(norm, rel=1e-10)


def test_a_local_head_takes_no_more_products_than_a_gaussian_one():
    local, gaussian_head = (interval(attention(HEADS[name], False))[2] for name in ("local", "gaussian"))
    assert local <= gaussian_head <= 4


@given(
    n_q=st.integers(1, 40),
    n_k=st.integers(1, 40),
    seed=st.integers(0, 999),
    spread=st.sampled_from([0, 1, 10, 500]),
    empty=st.floats(0, 1),
)
def test_any_nonnegative_matrix_is_enclosed(n_q, n_k, seed, spread, empty):
    """With rows that do not add up to one, columns of zeros, and entries of any scale."""
    rng = np.random.default_rng(seed)
    p = np.exp(-spread * rng.random((n_q, n_k))) * (rng.random(n_k) >= empty)
    p[0, 0] = 1
    low, high, _ = interval(p)
    assert low / SLACK <= np.linalg.norm(p, 2) <= high * SLACK
    assert high / low <= 1 + TOLERANCE


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_an_interval_that_was_cut_short_is_wide_and_true(monkeypatch, rounds):
    monkeypatch.setattr(module, "ROUNDS", rounds)
    p = attention(HEADS["near identity"], False)
    low, high, products = interval(p)
    assert products == rounds
    assert high / low > 1 + TOLERANCE
    assert low / SLACK <= np.linalg.norm(p, 2) <= high * SLACK


def test_the_first_block_has_the_bounds_that_need_no_method(monkeypatch):
    """The heaviest column and sqrt(n_q / n_k) from below, the largest column sum and ||P||_F from above."""
    monkeypatch.setattr(module, "ROUNDS", 1)
    for is_causal in (False, True):
        for logits in HEADS.values():
            p = attention(logits, is_causal)
            low, high, _ = interval(p)
            assert low * SLACK >= max(1, np.linalg.norm(p, axis=0).max())
            assert high <= min(np.sqrt(p.sum(axis=0).max()), np.linalg.norm(p)) * SLACK


def test_the_interval_repeats_bit_for_bit():
    p = attention(HEADS["spread"], False)
    assert len({interval(p) for _ in range(5)}) == 1


def test_products_in_float32_move_the_interval_by_their_rounding():
    p = attention(HEADS["spread"], True)
    single = p.astype(np.float32)
    low, high = norm_interval(
        lambda x: (single.T @ (single @ x.astype(np.float32))).astype(np.float64), (p**2).sum(axis=0)
    )
    assert (low, high) == pytest.approx(interval(p)[:2], rel=1e-5)
