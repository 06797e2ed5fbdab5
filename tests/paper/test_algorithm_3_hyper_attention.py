"""Algorithm 3: literal HyperAttention."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import literal_hyper_attention, synthetic

ARGUMENTS = {"kappa": 5.0, "epsilon": 0.5, "m": 9}


def problem(n_q, n_k, d=4, d_v=3, seed=0, top=None):
    g = np.random.default_rng(seed)
    q, k, v = g.standard_normal((n_q, d)), g.standard_normal((n_k, d)), g.standard_normal((n_k, d_v))
    return (q, k, v) if top is None else (q * top / np.abs(q @ k.T).max(), k, v)


@given(
    n_q=st.integers(1, 20),
    n_k=st.integers(1, 20),
    d_v=st.integers(1, 5),
    m=st.integers(1, 40),
    scale=st.sampled_from([1.0, 0.5]),
    masked=st.booleans(),
    rescale=st.booleans(),
    seed=st.integers(0, 99),
)
def test_estimate_is_the_dense_formula_of_the_returned_d_and_s(n_q, n_k, d_v, m, scale, masked, rescale, seed):
    q, k, v = problem(n_q, n_k, d_v=d_v, seed=seed)
    mask = hr.sort_lsh(q, k, 4, rng=seed) if masked else None
    result = literal_hyper_attention(
        q, k, v, mask, kappa=5, epsilon=0.5, m=m, scale=scale, rescale_rows=rescale, rng=seed
    )
    s = result.sample.toarray()
    dense = np.diag(1 / result.diagonal.d) @ np.exp(scale * q @ k.T) @ s.T @ s @ v
    np.testing.assert_allclose(result.estimate, dense, rtol=1e-10, atol=1e-12)
    assert result.estimate.shape == (n_q, d_v)
    assert result.sample.shape == (m, n_k)


def test_line_1_is_approx_d_and_line_2_a_sample_drawn_anew():
    q, k, v = problem(12, 15)
    g = np.random.default_rng(3)
    diagonal = hr.approx_d(q, k, None, alpha=2.0, rng=g, **ARGUMENTS)
    sample = hr.row_norm_sample(v, 9, g)
    result = literal_hyper_attention(q, k, v, None, alpha=2.0, rng=3, **ARGUMENTS)
    np.testing.assert_array_equal(result.diagonal.log_d, diagonal.log_d)
    np.testing.assert_array_equal(result.sample.indices, sample.indices)
    assert result.diagonal.alpha == 2.0
    assert result.sample.indices.tolist() != result.diagonal.samples.tolist()


def test_all_samples_and_no_approximation_give_attention():
    """With every key masked D̃ is exact; the mean over all single draws of S is then attention itself."""
    q, k, v = problem(5, 6)
    everything = np.ones((5, 6), dtype=bool)
    total, mean = 0.0, 0.0
    p = (v**2).sum(axis=1) / (v**2).sum()
    seen = {}
    for seed in range(300):
        result = literal_hyper_attention(q, k, v, everything, kappa=1, epsilon=0.5, m=1, rng=seed)
        seen[int(result.sample.indices[0])] = result.estimate
    assert sorted(seen) == list(range(6))
    for j, estimate in seen.items():
        total, mean = total + p[j], mean + p[j] * estimate
    np.testing.assert_allclose(mean, hr.exact_attention(q, k, v, scale=1.0), rtol=1e-11)


@pytest.mark.parametrize("masked", [False, True])
def test_a_value_of_zeros_gives_zero(masked):
    q, k, _ = problem(6, 7)
    mask = np.ones((6, 7), bool) if masked else None
    result = literal_hyper_attention(q, k, np.zeros((7, 2)), mask, rng=0, **ARGUMENTS)
    np.testing.assert_array_equal(result.estimate, np.zeros((6, 2)))


@pytest.mark.parametrize("top", [80.0, 500.0])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_huge_logits_give_finite_estimates(top, rescale, masked):
    for seed in range(5):
        q, k, v = problem(20, 25, seed=seed, top=top)
        mask = hr.sort_lsh(q, k, 5, rng=0) if masked else None
        log_r = (q @ k.T).max(axis=1)
        kappa = math.exp(min(700.0, float(np.ptp(log_r))))
        result = literal_hyper_attention(q, k, v, mask, kappa=kappa, epsilon=0.5, m=30, rescale_rows=rescale, rng=seed)
        assert np.all(np.isfinite(result.estimate))


def test_a_fully_covering_mask_and_huge_logits():
    q, k, v = problem(8, 9, top=500.0)
    result = literal_hyper_attention(q, k, v, np.ones((8, 9), bool), kappa=1, epsilon=0.5, m=20000, rng=0)
    exact = hr.exact_attention(q, k, v, scale=1.0)
    # standard deviation of an entry: at most ‖V‖_F/√m ‖V‖_F, seven of them
    assert np.abs(result.estimate - exact).max() <= 7 * (v**2).sum() / math.sqrt(20000)


def test_inequality_1_holds_on_gaussian_inputs():
    gaussian = synthetic.gaussian(512, rng=0)
    q, k, v, scale = gaussian.query, gaussian.key, gaussian.value, gaussian.scale
    exact = hr.exact_attention(q, k, v, scale=scale)
    p = hr.attention_probabilities(q, k, scale=scale)
    kappa = math.exp(hr.hardness(q, k, scale=scale, rng=0).log_kappa)
    unit = hr.operator_norm(p) * hr.operator_norm(v)
    for seed in range(5):
        result = literal_hyper_attention(q, k, v, None, kappa=kappa, epsilon=0.5, m=2048, scale=scale, rng=seed)
        assert hr.operator_norm(exact - result.estimate) <= 0.5 * unit


def test_seeds_reproduce_and_result_is_a_record():
    q, k, v = problem(6, 7)
    first, again = (literal_hyper_attention(q, k, v, None, rng=1, **ARGUMENTS) for _ in range(2))
    np.testing.assert_array_equal(first.estimate, again.estimate)
    record = json.loads(json.dumps(first.to_dict()))
    assert set(record) == {"diagonal", "sample", "estimate"}
    assert record["diagonal"]["m"] == 9
    assert "LiteralHyperAttention(" in repr(first)


def test_a_row_sum_so_small_that_the_estimate_overflows_is_refused():
    problem = hr.synthetic.permutation(40, strength=1000.0, rng=0)
    with pytest.raises(ValueError, match=r"too large for float64.*smaller kappa"):
        hr.literal_hyper_attention(
            problem.query, problem.key, problem.value, None, kappa=1e300, epsilon=0.5, m=1, scale=problem.scale, rng=0
        )
