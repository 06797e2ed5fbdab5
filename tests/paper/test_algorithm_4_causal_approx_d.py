"""Algorithm 4: causal masking."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

import hyperattention_ref as hr
from hyperattention_ref import causal_approx_d, causal_literal_hyper_attention

ARGUMENTS = {"kappa": 20.0, "epsilon": 0.5, "m": 9}


def problem(n, d=4, d_v=3, seed=0, top=None):
    g = np.random.default_rng(seed)
    q, k, v = g.standard_normal((n, d)), g.standard_normal((n, d)), g.standard_normal((n, d_v))
    return (q, k, v) if top is None else (q * top / np.abs(q @ k.T).max(), k, v)


def causal_log_d(q, k, scale=1.0):
    return logsumexp(np.where(np.tri(len(q), dtype=bool), scale * q @ k.T, -np.inf), axis=1)


@given(n=st.integers(1, 60), extra=st.integers(0, 5), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 0.3]))
def test_up_to_min_seq_len_everything_is_exact(n, extra, seed, scale):
    q, k, _ = problem(n, seed=seed)
    result = causal_approx_d(q, k, min_seq_len=n + extra, scale=scale, rng=0, **ARGUMENTS)
    assert result.leaves == ((0, n),)
    assert result.rectangles == result.parts == ()
    np.testing.assert_allclose(result.log_d, causal_log_d(q, k, scale), rtol=1e-13, atol=1e-13)


@given(
    n=st.integers(1, 60),
    least=st.integers(1, 10),
    seed=st.integers(0, 99),
    block_size=st.sampled_from([None, 3]),
    top=st.sampled_from([1.0, 80.0, 500.0]),
)
def test_d_is_the_sum_of_the_leaf_and_the_rectangles(n, least, seed, block_size, top):
    """Line by line from the recorded parts: nothing else contributes, no padding row and no diagonal twice."""
    q, k, _ = problem(n, seed=seed, top=top)
    result = causal_approx_d(q, k, min_seq_len=least, block_size=block_size, rng=seed, **ARGUMENTS)
    assert (result.leaves, result.rectangles) == hr.causal_tiling(n, least)
    for i in range(n):
        ((a, _),) = [leaf for leaf in result.leaves if leaf[0] <= i < leaf[1]]
        terms = [logsumexp(q[i] @ k[a : i + 1].T)]
        terms += [
            part.log_d[i - s] for (_, s, c), part in zip(result.rectangles, result.parts, strict=True) if s <= i < c
        ]
        assert result.log_d[i] == pytest.approx(logsumexp(terms), rel=1e-12, abs=1e-12)


@given(n=st.integers(2, 60), least=st.integers(1, 10), seed=st.integers(0, 99))
def test_errors_are_at_most_the_sum_of_the_rectangle_errors(n, least, seed):
    q, k, _ = problem(n, seed=seed)
    result = causal_approx_d(q, k, min_seq_len=least, rng=seed, **ARGUMENTS)
    allowed = np.zeros(n)
    for (a, s, c), part in zip(result.rectangles, result.parts, strict=True):
        allowed[s:c] += np.abs(part.d - np.exp(q[s:c] @ k[a:s].T).sum(axis=1))
    exact = np.exp(causal_log_d(q, k))
    assert np.all(np.abs(result.d - exact) <= allowed + 1e-12 * exact)


@given(n=st.integers(1, 40), least=st.integers(1, 8), seed=st.integers(0, 99))
def test_masks_that_cover_every_rectangle_make_it_exact(n, least, seed):
    q, k, _ = problem(n, seed=seed)
    result = causal_approx_d(q, k, min_seq_len=least, block_size=n, rng=seed, **ARGUMENTS)
    np.testing.assert_allclose(result.log_d, causal_log_d(q, k), rtol=1e-12, atol=1e-12)


def test_no_zero_padded_key_contributes_for_odd_lengths():
    """All logits are far below 0: a padding row would add exp(0) = 1 and dominate every sum."""
    for n in (3, 5, 7, 9, 33, 63):
        q, k = np.ones((n, 2)), -20 * np.ones((n, 2))
        result = causal_approx_d(q, k, kappa=1, epsilon=0.5, m=50, cap_constant=np.inf, min_seq_len=2, rng=0)
        np.testing.assert_allclose(result.log_d, -40 + np.log(np.arange(1, n + 1)), rtol=1e-12)


def test_the_last_row_does_not_see_the_future():
    q, k, v = problem(41)
    changed = k.copy()
    changed[30:] += 100
    values = v.copy()
    values[30:] *= -7
    run = {"min_seq_len": 4, "rng": 0, **ARGUMENTS}
    first, second = (causal_approx_d(q, x, **run) for x in (k, changed))
    np.testing.assert_array_equal(first.log_d[:21], second.log_d[:21])  # rows whose rectangles hold no changed query
    dense = [causal_literal_hyper_attention(q, x, y, **run) for x, y in ((k, v), (changed, v))]
    np.testing.assert_allclose(dense[0].estimate[:21], dense[1].estimate[:21], rtol=1e-12)


@given(
    n=st.integers(1, 40),
    least=st.integers(1, 10),
    m=st.integers(1, 30),
    block_size=st.sampled_from([None, 3]),
    rescale=st.booleans(),
    seed=st.integers(0, 99),
)
def test_estimate_is_the_dense_formula_of_the_returned_d_and_s(n, least, m, block_size, rescale, seed):
    q, k, v = problem(n, seed=seed)
    result = causal_literal_hyper_attention(
        q,
        k,
        v,
        kappa=20,
        epsilon=0.5,
        m=m,
        scale=0.7,
        min_seq_len=least,
        block_size=block_size,
        rescale_rows=rescale,
        rng=seed,
    )
    s = result.sample.toarray()
    x = np.tril(np.exp(0.7 * q @ k.T)) / result.diagonal.d[:, None]
    np.testing.assert_allclose(result.estimate, x @ s.T @ s @ v, rtol=1e-10, atol=1e-12)
    assert result.sample.shape == (m, n)


@pytest.mark.parametrize("top", [80.0, 500.0])
def test_huge_logits_are_finite(top):
    q, k, v = problem(37, top=top)
    result = causal_literal_hyper_attention(q, k, v, kappa=1e200, epsilon=0.5, m=200, min_seq_len=4, rng=0)
    assert np.all(np.isfinite(result.diagonal.log_d))
    assert np.all(np.isfinite(result.estimate))


def test_a_value_of_zeros_gives_zero():
    q, k, v = problem(11)
    result = causal_literal_hyper_attention(q, k, 0 * v, min_seq_len=3, rng=0, **ARGUMENTS)
    np.testing.assert_array_equal(result.estimate, np.zeros((11, 3)))


def test_every_rectangle_draws_its_own_samples_and_seeds_reproduce():
    q, k, _ = problem(40)
    run = {"min_seq_len": 5, "block_size": 4, "rescale_rows": True, **ARGUMENTS}
    first, again, other = (causal_approx_d(q, k, rng=seed, **run) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.log_d, again.log_d)
    assert not np.array_equal(first.log_d, other.log_d)
    places = zip(first.rectangles, first.parts, strict=True)
    same_size = [part.samples.tolist() for (a, s, _), part in places if s - a == 5]
    assert len(same_size) > 1
    assert len({tuple(samples) for samples in same_size}) == len(same_size)


def test_row_rescaling_leaves_the_draws_of_every_rectangle():
    q, k, _ = problem(40)
    plain, rescaled = (
        causal_approx_d(q, k, min_seq_len=5, rescale_rows=on, rng=0, **ARGUMENTS) for on in (False, True)
    )
    for first, second in zip(plain.parts, rescaled.parts, strict=True):
        np.testing.assert_array_equal(first.samples, second.samples)
        np.testing.assert_array_equal(first.subset, second.subset)


def test_results_are_records():
    q, k, v = problem(9)
    result = causal_literal_hyper_attention(q, k, v, min_seq_len=3, rng=0, **ARGUMENTS)
    record = json.loads(json.dumps(result.to_dict()))
    assert record["diagonal"]["rectangles"] == [list(r) for r in hr.causal_tiling(9, 3)[1]]
    assert len(record["diagonal"]["parts"]) == len(result.diagonal.parts)
    assert "CausalLiteralHyperAttention(" in repr(result)
    assert "CausalApproxDResult(" in repr(result.diagonal)
