import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.measures.attention_matrix import attention_probabilities


@given(n_q=st.integers(1, 12), n_k=st.integers(1, 12), seed=st.integers(0, 99), causal=st.booleans())
def test_attention_probabilities_are_the_normalised_exponentials(n_q, n_k, seed, causal):
    n_q = n_k if causal else n_q
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(n_q, 5)), rng.normal(size=(n_k, 5))
    a = np.exp(q @ k.T / np.sqrt(5))
    a = np.tril(a) if causal else a
    p = attention_probabilities(q, k, is_causal=causal)
    np.testing.assert_allclose(p, a / a.sum(axis=1, keepdims=True), rtol=1e-13)


@pytest.mark.parametrize("spread", [80, 500, 5000])
def test_attention_probabilities_sum_to_one_at_large_logits(spread):
    q, k = spread * np.random.default_rng(0).uniform(-1, 1, size=(9, 7)), np.eye(7)  # the logits are q
    p = attention_probabilities(q, k, scale=1)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(p.argmax(axis=1), q.argmax(axis=1))


def test_attention_probabilities_of_a_batch_are_those_of_its_heads():
    q, k = np.random.default_rng(0).normal(size=(2, 2, 3, 7, 4))
    batch = attention_probabilities(q, k, is_causal=True)
    for head in np.ndindex(2, 3):
        np.testing.assert_allclose(batch[head], attention_probabilities(q[head], k[head], is_causal=True), rtol=1e-14)
