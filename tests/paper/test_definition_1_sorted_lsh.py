"""Definition 1: Hamming-sorted LSH."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import hamming_sorted_lsh
from hyperattention_ref.paper.definition_1_sorted_lsh import gray_rank
from hyperattention_ref.plan.noise import MAX_BITS


def patterns(r):
    """All 2^r bit patterns, (2^r, r)."""
    return (np.arange(2**r)[:, None] >> np.arange(r)[::-1]) % 2 == 1


@pytest.mark.parametrize("r", range(1, 11))
def test_neighbouring_buckets_differ_in_exactly_one_bit_cyclically(r):
    bits = patterns(r)
    ranks = gray_rank(bits)
    assert sorted(ranks.tolist()) == list(range(2**r))  # every bucket once
    in_order = bits[np.argsort(ranks)]
    differing = (in_order != np.roll(in_order, -1, axis=0)).sum(axis=1)
    np.testing.assert_array_equal(differing, 1)


@pytest.mark.parametrize("r", [3, 7, 10])
def test_plain_binary_order_and_the_inverse_table_lack_that_property(r):
    bits = patterns(r)
    for ranks in (np.arange(2**r), np.arange(2**r) ^ (np.arange(2**r) >> 1)):
        in_order = bits[np.argsort(ranks)]
        assert (in_order != np.roll(in_order, -1, axis=0)).sum(axis=1).max() > 1


def test_the_first_buckets_of_three_bits_are_the_known_gray_sequence():
    sequence = ["000", "001", "011", "010", "110", "111", "101", "100"]
    bits = np.array([[c == "1" for c in pattern] for pattern in sequence])
    assert gray_rank(bits).tolist() == list(range(8))


@given(r=st.integers(1, MAX_BITS), seed=st.integers(0, 999))
def test_rank_and_gray_code_are_inverse_for_any_number_of_bits(r, seed):
    bits = np.random.default_rng(seed).random((20, r)) < 0.5
    for pattern, rank in zip(bits, gray_rank(bits).tolist(), strict=True):
        assert 0 <= rank < 2**r
        assert f"{rank ^ (rank >> 1):0{r}b}" == "".join("01"[int(bit)] for bit in pattern)


@given(
    r=st.integers(1, MAX_BITS),
    shape=st.sampled_from([(1, 1), (7, 3), (2, 5, 4), (2, 1, 3, 2)]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_a_bit_is_the_sign_and_zero_sets_no_bit(r, shape, dtype):
    g = np.random.default_rng(r)
    x, planes = g.standard_normal(shape).astype(dtype), g.standard_normal((r, shape[-1]))
    x[..., 0, :] = 0
    codes = hamming_sorted_lsh(x, planes)
    assert codes.shape == shape[:-1]
    assert codes.dtype == np.int64
    assert np.all(codes[..., 0] == 0)
    signs = np.einsum("...d,rd->...r", x.astype(np.float64), planes) > 0
    np.testing.assert_array_equal(codes, gray_rank(signs))


def test_all_62_bits_fit():
    x = np.ones((1, 1))
    first_bit_only = np.r_[1.0, -np.ones(MAX_BITS - 1)][:, None]
    assert hamming_sorted_lsh(x, first_bit_only).tolist() == [2**MAX_BITS - 1]  # Gray 100...0 is the last bucket
    assert hamming_sorted_lsh(-x, np.ones((MAX_BITS, 1))).tolist() == [0]


@given(seed=st.integers(0, 999), factor=st.sampled_from([1e-150, 1e-3, 1e3, 1e150]))
def test_the_bucket_depends_on_the_direction_only(seed, factor):
    g = np.random.default_rng(seed)
    x, planes = g.standard_normal((9, 4)), g.standard_normal((5, 4))
    np.testing.assert_array_equal(hamming_sorted_lsh(factor * x, planes), hamming_sorted_lsh(x, planes))
    assert np.all(hamming_sorted_lsh(x, planes) != hamming_sorted_lsh(-x, planes))


def test_opposite_vectors_are_never_neighbours_for_two_bits_or_more():
    g = np.random.default_rng(0)
    for r in (2, 3, 8):
        x, planes = g.standard_normal((200, 4)), g.standard_normal((r, 4))
        gap = np.abs(hamming_sorted_lsh(x, planes) - hamming_sorted_lsh(-x, planes))
        assert np.minimum(gap, 2**r - gap).min() > 1


@pytest.mark.parametrize("layout", ["reversed", "strided", "fortran", "one row", "read-only"])
def test_any_memory_layout_gives_the_same_codes(layout):
    g = np.random.default_rng(0)
    x, planes = g.standard_normal((10, 4)), g.standard_normal((6, 4))
    views = {
        "reversed": x[::-1].copy()[::-1],
        "strided": np.repeat(x, 2, axis=0)[::2],
        "fortran": np.asfortranarray(x),
        "one row": np.broadcast_to(x[:1], x.shape),
        "read-only": x.copy(),
    }
    view = views[layout]
    if layout == "read-only":
        view.setflags(write=False)
    np.testing.assert_array_equal(hamming_sorted_lsh(view, planes), hamming_sorted_lsh(view.copy(), planes))


@pytest.mark.parametrize("top", [3e38, 1.7e308])
def test_vectors_near_the_largest_number_are_hashed_without_overflow(top):
    dtype = np.float32 if top < 1e39 else np.float64
    g = np.random.default_rng(0)
    x, planes = g.uniform(-1, 1, (9, 4)), g.standard_normal((5, 4))
    huge = (x * top).astype(dtype)
    codes = hamming_sorted_lsh(huge, planes)
    np.testing.assert_array_equal(codes, hamming_sorted_lsh(x.astype(dtype), planes))
