"""The Nyström coreset is exact where it is all keys, sees no shift of the keys, and no later key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr


def heads(n_q, n_k, seed=0, lead=(), size=1.0):
    rng = np.random.default_rng(seed)
    return tuple(size * rng.standard_normal((*lead, n, d)) for n, d in ((n_q, 4), (n_k, 4), (n_k, 3)))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.sampled_from([None, 0.1, 2.0]))
def test_a_coreset_of_all_keys_is_exact(n_q, n_k, seed, scale):
    q, k, v = heads(n_q, n_k, seed)
    found = hr.nystrom_attention(q, k, v, n_k, scale=scale, rng=seed)
    np.testing.assert_allclose(found, hr.exact_attention(q, k, v, scale=scale), rtol=0, atol=1e-4)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_causal_rectangles_with_all_their_keys_are_exact(n, min_seq_len, seed):
    q, k, v = heads(n, n, seed)
    found = hr.nystrom_attention(q, k, v, n, is_causal=True, min_seq_len=min_seq_len, scale=0.3, rng=seed)
    np.testing.assert_allclose(found, hr.exact_attention(q, k, v, is_causal=True, scale=0.3), rtol=0, atol=1e-4)


def test_no_query_sees_a_later_key():
    q, k, v = heads(64, 64)
    changed = [np.concatenate([x[:40], -3 * x[40:]]) for x in (k, v)]
    options = {"size": 4, "is_causal": True, "min_seq_len": 8, "rng": 1}
    first, second = (hr.nystrom_attention(q, *pair, **options)[:32] for pair in ((k, v), changed))
    np.testing.assert_array_equal(first, second)


@given(st.floats(-3, 3), st.integers(1, 6))
def test_a_common_shift_of_the_keys_changes_nothing(shift, size):
    q, k, v = heads(9, 20)
    found = [hr.nystrom_attention(q, x, v, size, rng=2) for x in (k, k + shift)]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)


@given(st.integers(1, 8), st.sampled_from([0.0, 1.0, 30.0]), st.integers(0, 99))
def test_outputs_are_within_the_range_of_the_values(size, magnitude, seed):
    q, k, v = heads(15, 30, seed)
    out = hr.nystrom_attention(magnitude * q, magnitude * k, v, size, rng=seed)
    assert np.isfinite(out).all()
    assert np.all(out >= np.minimum(v.min(axis=0), 0) - 1e-12)
    assert np.all(out <= np.maximum(v.max(axis=0), 0) + 1e-12)


def test_a_small_coreset_is_the_formula_at_its_pivots():
    """Of keys at two places the coreset is one of each, with the number of the others as weights."""
    q, places, v = heads(5, 2)[0], np.array([[1.0, 0, 0, 0], [0, -1, 0, 0]]), heads(5, 6)[2]
    k = places[[0, 1, 1, 0, 1, 1]]
    found = hr.nystrom_attention(q, k, v, 2, rng=0)
    np.testing.assert_allclose(found, hr.exact_attention(q, k, v), rtol=0, atol=1e-7)


def test_heads_are_independent_and_grouped_ones_share_keys():
    q, k, v = heads(8, 8, lead=(2, 3))
    out = hr.nystrom_attention(q, k, v, 8, rng=0)
    np.testing.assert_allclose(out, hr.exact_attention(q, k, v), rtol=0, atol=1e-5)
    shared = hr.nystrom_attention(q, k[:, :1], v[:, :1], 8, enable_gqa=True, rng=0)
    expected = hr.exact_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
    np.testing.assert_allclose(shared, expected, rtol=0, atol=1e-5)


def test_bad_arguments_are_one_clear_error():
    q, k, v = heads(4, 5)
    with pytest.raises(ValueError, match="size is 0"):
        hr.nystrom_attention(q, k, v, 0)
    with pytest.raises(ValueError, match=r"scale is -1"):
        hr.nystrom_attention(q, k, v, 2, scale=-1)
    with pytest.raises(ValueError, match="min_seq_len is 0"):
        hr.nystrom_attention(q, k[:4], v[:4], 2, is_causal=True, min_seq_len=0)
