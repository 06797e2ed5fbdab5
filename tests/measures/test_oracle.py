import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.measures.mask_mass import captured_mass
from hyperattention_ref.measures.oracle import oracle_attention, oracle_mask


def heads(n_q, n_k=None, lead=(), size=1.0):
    """Random query, key and value."""
    rng = np.random.default_rng(0)
    shapes = (*lead, n_q, 4), (*lead, n_k or n_q, 4), (*lead, n_k or n_q, 3)
    return tuple(size * rng.standard_normal(shape) for shape in shapes)


@given(n_q=st.integers(1, 20), n_k=st.integers(1, 20), b=st.integers(1, 25), is_causal=st.booleans())
def test_no_mask_of_as_many_keys_beats_the_oracle(n_q, n_k, b, is_causal):
    n_k = n_q if is_causal else n_k
    q, k, _ = heads(n_q, n_k)
    mask = oracle_mask(q, k, b, is_causal=is_causal)
    allowed = np.minimum(b, np.arange(1, n_k + 1)) if is_causal else min(b, n_k)
    assert np.all(mask.sum(axis=1) == allowed)
    best = np.sort(hr.attention_probabilities(q, k, is_causal=is_causal), axis=1)[:, ::-1][:, :b].sum(axis=1).mean()
    assert captured_mass(q, k, mask, is_causal=is_causal) == pytest.approx(best, rel=1e-12)


def test_the_oracle_is_its_mask_and_uniform_samples_for_the_rest():
    q, k, v = heads(6, 9, lead=(2,))
    exact = hr.exact_attention(q, k, v)
    np.testing.assert_allclose(oracle_attention(q, k, v, 18, rng=0), exact, rtol=1e-13, atol=1e-14)
    outs = oracle_attention(q, k, v, 5, rng=1)
    for h, stream in enumerate(streams(1, 2)):
        drawn, mask = stream.integers(9, size=3), oracle_mask(q[h], k[h], 2)
        weights = mask * 1.0
        for j in drawn:
            weights[:, j] += ~mask[:, j] * 9 / 3
        a = weights * np.exp(q[h] @ k[h].T / 2)
        np.testing.assert_allclose(outs[h], a @ v[h] / a.sum(axis=1, keepdims=True), rtol=1e-12, atol=1e-13)


def test_the_oracle_takes_causal_grouped_and_huge_logits():
    q, k, v = heads(12, lead=(4,), size=500)[0], *heads(12, lead=(2,))[1:]
    out = oracle_attention(q, k, v, 24, is_causal=True, enable_gqa=True, rng=0)
    exact = hr.exact_attention(q, k, v, is_causal=True, enable_gqa=True)
    np.testing.assert_allclose(out, exact, rtol=1e-10, atol=1e-12)


def test_the_oracle_ranks_by_the_logits_that_attention_has():
    q, k, v = heads(5, 9)
    np.testing.assert_array_equal(oracle_mask(q, k, 3, scale=-2.0), oracle_mask(-q, k, 3))
    with pytest.raises(ValueError, match="sums of values may overflow"):
        oracle_attention(q, k, np.full_like(v, 1e308), 4)


def test_bad_input_is_refused():
    q, k, v = heads(4)
    with pytest.raises(ValueError, match="keys_per_query is 0"):
        oracle_mask(q, k, 0)
    with pytest.raises(ValueError, match="budget is 1; it must be at least 2"):
        oracle_attention(q, k, v, 1)
