import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref
from hyperattention_ref.measures.attention_matrix import attention_probabilities
from hyperattention_ref.measures.spectral_guarantee import spectral_error

shapes = {
    "n_q": st.integers(1, 10),
    "n_k": st.integers(1, 10),
    "d_v": st.integers(1, 6),
    "seed": st.integers(0, 99),
    "causal": st.booleans(),
}


def problem(n_q, n_k, d_v, seed, causal, d=3):
    rng = np.random.default_rng(seed)
    n_q = n_k if causal else n_q
    sizes = (n_q, d), (n_k, d), (n_k, d_v), (n_q, d_v)
    return [rng.normal(size=size) for size in sizes]


def literal_attention(q, k, causal):
    a = np.exp(q @ k.T / np.sqrt(q.shape[1]))
    a = np.tril(a) if causal else a
    return a / a.sum(axis=1, keepdims=True)


@given(**shapes)
def test_errors_are_the_norms_of_inequality_1(n_q, n_k, d_v, seed, causal):
    q, k, v, estimate = problem(n_q, n_k, d_v, seed, causal)
    p = literal_attention(q, k, causal)
    mean = np.array([v[: i + 1 if causal else n_k].mean(axis=0) for i in range(len(q))])
    result = spectral_error(q, k, v, estimate, is_causal=causal)
    pairs = {"": estimate, "_zero": np.zeros_like(estimate), "_mean": mean}
    for name, output in pairs.items():
        ratio = np.linalg.norm(p @ v - output, 2) / (np.linalg.norm(p, 2) * np.linalg.norm(v, 2))
        frobenius = np.linalg.norm(p @ v - output) / np.linalg.norm(p @ v)
        assert getattr(result, f"ratio{name}") == pytest.approx(ratio, rel=1e-12, abs=1e-14)
        assert getattr(result, f"relative_frobenius{name}") == pytest.approx(frobenius, rel=1e-12, abs=1e-13)


@given(**shapes)
def test_exact_attention_has_no_error_and_zero_has_frobenius_error_one(n_q, n_k, d_v, seed, causal):
    q, k, v, _ = problem(n_q, n_k, d_v, seed, causal)
    exact = literal_attention(q, k, causal) @ v
    result = spectral_error(q, k, v, exact, is_causal=causal)
    assert result.ratio <= 1e-14
    assert result.relative_frobenius <= 1e-13
    assert result.relative_frobenius_zero == 1
    assert result.ratio_zero <= 1 + 1e-12  # ||P V|| <= ||P|| ||V||


@given(**shapes)
def test_flat_attention_is_the_mean_of_v(n_q, n_k, d_v, seed, causal):
    q, k, v, estimate = problem(n_q, n_k, d_v, seed, causal)
    result = spectral_error(0 * q, k, v, estimate, is_causal=causal)
    assert result.ratio_mean <= 1e-14
    assert result.ratio > 1e-6


@given(**shapes)
def test_an_estimate_that_is_a_baseline_has_the_baselines_errors(n_q, n_k, d_v, seed, causal):
    q, k, v, estimate = problem(n_q, n_k, d_v, seed, causal)
    result = spectral_error(q, k, v, 0 * estimate, is_causal=causal)
    assert (result.ratio, result.relative_frobenius) == (result.ratio_zero, result.relative_frobenius_zero)


@pytest.mark.parametrize("causal", [False, True])
def test_scale_multiplies_the_logits_and_defaults_to_one_over_root_d(causal):
    q, k, v, estimate = problem(7, 7, 3, 0, causal, d=4)
    default = spectral_error(5 * q, k, v, estimate, is_causal=causal)
    given_scale = spectral_error(q, k, v, estimate, scale=2.5, is_causal=causal)
    for field, x in vars(default).items():
        assert getattr(given_scale, field) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-200, 1e-3, 1e200])
def test_errors_do_not_see_the_unit_of_v(factor):
    q, k, v, estimate = problem(6, 8, 3, 0, causal=False)
    unit = spectral_error(q, k, v, estimate)
    scaled = spectral_error(q, k, factor * v, factor * estimate)
    for field, x in vars(unit).items():
        assert getattr(scaled, field) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize("spread", [80, 500])
def test_large_logits_pick_the_rows_of_v(spread):
    n = 5
    order = np.array([3, 0, 4, 1, 2])
    q, k, v = 2 * spread * np.eye(n)[order] - spread, np.eye(n), np.random.default_rng(0).normal(size=(n, 2))
    result = spectral_error(q, k, v, v[order], scale=1)
    assert result.ratio <= 1e-14
    assert result.ratio_mean > 0.1


def test_a_sink_flatters_the_ratio_of_any_output():
    """One column takes all, ||P||_op = sqrt(n): zero has ratio ||v_0|| / ||V||, small for long inputs."""
    n = 200
    q, k, v = np.ones((n, 1)), np.zeros((n, 1)), np.random.default_rng(0).normal(size=(n, 4))
    k[0] = 500
    result = spectral_error(q, k, v, np.zeros((n, 4)), scale=1)
    assert result.ratio == pytest.approx(np.linalg.norm(v[0]) / np.linalg.norm(v, 2), rel=1e-12)
    assert result.ratio < 0.2
    assert result.relative_frobenius == 1


def test_zero_over_zero_is_zero_and_anything_else_over_zero_infinite():
    q, k, v, estimate = problem(4, 5, 3, 0, causal=False)
    perfect = spectral_error(q, k, 0 * v, 0 * estimate)
    assert set(perfect.to_dict().values()) == {0.0}
    wrong = spectral_error(q, k, 0 * v, estimate)
    assert (wrong.ratio, wrong.relative_frobenius) == (math.inf, math.inf)
    assert (wrong.ratio_zero, wrong.relative_frobenius_zero, wrong.ratio_mean) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_is_its_heads(causal):
    q, k, v, estimate = np.random.default_rng(0).normal(size=(4, 2, 3, 7, 4))
    batch = spectral_error(q, k, v, estimate, scale=0.7, is_causal=causal)
    for head in np.ndindex(2, 3):
        one = spectral_error(q[head], k[head], v[head], estimate[head], scale=0.7, is_causal=causal)
        for field, x in vars(one).items():
            assert getattr(batch, field)[head] == x
    assert batch.ratio.shape == (2, 3)


def test_types_and_layouts_do_not_matter():
    wide = np.random.default_rng(0).normal(size=(4, 14, 8)).astype(np.float32)
    q, k, v, estimate = wide[:, ::-2, ::2]
    exact = spectral_error(*(x.astype(np.float64).copy() for x in (q, k, v, estimate)))
    mixed = spectral_error(q, k, v, estimate.astype(np.float64))
    for field, x in vars(exact).items():
        assert getattr(mixed, field) == pytest.approx(x, rel=1e-12)


def test_one_head_gives_plain_floats_and_json():
    result = spectral_error(*problem(4, 5, 3, 0, causal=False))
    assert {type(x) for x in vars(result).values()} == {float}
    assert json.loads(json.dumps(result.to_dict())) == vars(result)
    assert repr(result).startswith("SpectralError(ratio=")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"estimate": np.ones((4, 3))}, ValueError, r"estimate has shape \(4, 3\); .* \(4, 2\)"),
        ({"estimate": np.ones((1, 4, 2))}, ValueError, "estimate has shape"),
        ({"estimate": np.full((4, 2), np.nan)}, ValueError, "estimate has non-finite"),
        ({"estimate": np.ones((4, 2), dtype=int)}, TypeError, "estimate has dtype"),
        ({"v": np.ones((4, 2))}, ValueError, "value has 4 rows and key has 5"),
        ({"v": np.full((5, 2), np.inf)}, ValueError, "value has non-finite"),
        ({"v": np.full((5, 2), 1e308)}, ValueError, "overflow"),
        ({"q": np.ones((4, 2))}, ValueError, "query has d = 2 and key has d = 3"),
        ({"q": np.ones((4, 3), dtype=np.float32)}, TypeError, "dtypes differ"),
        ({"is_causal": True}, ValueError, "is_causal"),
        ({"scale": np.nan}, ValueError, "scale"),
    ],
)
def test_bad_input_is_refused(change, error, match):
    arguments = {"q": np.ones((4, 3)), "k": np.ones((5, 3)), "v": np.ones((5, 2)), "estimate": np.ones((4, 2))} | change
    with pytest.raises(error, match=match):
        spectral_error(**arguments)


def test_on_real_heads_a_small_ratio_does_not_mean_a_good_output():
    """On two of the six sample heads zero has a ratio below 0.15 while its Frobenius error is 1."""
    with np.load(Path(hyperattention_ref.__file__).parent / "data" / "minilm_heads.npz") as data:
        q, k, v, scale = data["query"], data["key"], data["value"], float(data["scale"])
    exact = attention_probabilities(q, k, scale=scale) @ v
    result = spectral_error(q, k, v, exact, scale=scale)
    assert result.ratio.max() <= 1e-13
    assert (result.ratio_zero < 0.15).sum() >= 2
    np.testing.assert_array_equal(result.relative_frobenius_zero, 1)
