import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.attention import exact_attention, hyper_attention
from hyperattention_ref.measures.attention_matrix import attention_probabilities
from hyperattention_ref.measures.attention_rows import draw_rows
from hyperattention_ref.measures.certificate import certify
from hyperattention_ref.measures.kl_bounds import kl_lower, kl_upper
from hyperattention_ref.measures.row_estimates import estimate_hardness
from hyperattention_ref.measures.spectral_guarantee import spectral_error
from hyperattention_ref.synthetic import sink

UPPER = ("frobenius", "op_norm", "ratio", "relative_frobenius")
ABSOLUTE = ("frobenius", "op_norm", "frobenius_estimate", "op_norm_estimate", "limit")

shapes = {
    "n_q": st.integers(2, 30),
    "n_k": st.integers(1, 30),
    "d_v": st.integers(1, 5),
    "seed": st.integers(0, 99),
    "causal": st.booleans(),
}


def problem(n_q, n_k, d_v, seed, causal, spread=1.0):
    """q, k, v and an output that is off by a little everywhere and by much in some rows."""
    rng = np.random.default_rng(seed)
    n_q = n_k if causal else n_q
    q, k, v = spread * rng.normal(size=(n_q, 4)), rng.normal(size=(n_k, 4)), rng.normal(size=(n_k, d_v)) + 1
    output = exact_attention(q, k, v, is_causal=causal) + 0.1 * rng.normal(size=(n_q, d_v))
    output[:: max(1, n_q // 3)] += 2
    return q, k, v, output


def baselines(v, n_q, causal):
    mean = np.array([v[: i + 1 if causal else len(v)].mean(axis=0) for i in range(n_q)])
    return {"zero": np.zeros_like(mean), "mean": mean}


# --- the formulas -------------------------------------------------------------------------------------------------


@given(**shapes)
def test_bounds_are_those_of_the_theory_page(n_q, n_k, d_v, seed, causal):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    n_q, s = len(q), max(1, len(q) // 2)
    result = certify(q, k, v, output, rows=s, confidence=0.9, is_causal=causal, rng=seed)
    drawn, p = draw_rows(seed, n_q, s, 1)[0], attention_probabilities(q, k, is_causal=causal)
    attention, share, delta = (p @ v)[drawn], s / n_q, 0.1

    def upper(mean, delta):
        return min(kl_upper(min(mean, 1), math.log(1 / delta) / s), share * mean + 1 - share)

    def lower(mean, delta):
        return max(kl_lower(min(mean, 1), math.log(1 / delta) / s), share * mean)

    column = max(lower(mean, delta / 2 / n_k) for mean in (p[drawn] ** 2).mean(axis=0))
    together = np.linalg.norm(p[drawn].sum(axis=0)) / math.sqrt(s)
    p_low = max(math.sqrt(n_q / n_k), together, math.sqrt(n_q * column))
    largest = (v**2).sum(axis=1).max()
    attention_low = math.sqrt(n_q * largest * lower((attention**2).sum(axis=1).mean() / largest, delta / 2))
    assert result.sizes.p_op_norm_low == pytest.approx(p_low, rel=1e-12)
    assert result.sizes.v_op_norm == pytest.approx(np.linalg.norm(v, 2), rel=1e-12)
    assert result.sizes.attention_frobenius_low == pytest.approx(attention_low, rel=1e-9)

    for name, o in ({"output": output} | baselines(v, n_q, causal)).items():
        bounds, error, c = getattr(result, name), attention - o[drawn], v.mean(axis=0)
        b = max(np.linalg.norm(row - c) + np.linalg.norm(v - c, axis=1).max() for row in o) ** 2
        if b < 1e-20:  # a single key: every row of Att is the mean of V
            continue
        mean, top = (error**2).sum() / s / b, np.linalg.norm(error, 2) ** 2 / s / b
        frobenius, op = (lambda mean, delta, b=b: math.sqrt(n_q * b * upper(mean, delta)) for _ in range(2))
        assert bounds.frobenius == pytest.approx(frobenius(mean, delta), rel=1e-9)
        assert bounds.op_norm == pytest.approx(op(top, delta), rel=1e-9)
        assert bounds.limit == pytest.approx(frobenius(0, delta), rel=1e-9)
        assert bounds.ratio == pytest.approx(op(top, delta / 2) / p_low / np.linalg.norm(v, 2), rel=1e-9)
        assert bounds.relative_frobenius == pytest.approx(frobenius(mean, delta / 2) / attention_low, rel=1e-9)
        assert bounds.relative_limit == pytest.approx(frobenius(0, delta / 2) / attention_low, rel=1e-9)
        assert bounds.frobenius_estimate == pytest.approx(math.sqrt(n_q / s) * np.linalg.norm(error), abs=1e-12)
        assert bounds.op_norm_estimate == pytest.approx(math.sqrt(n_q / s) * np.linalg.norm(error, 2), abs=1e-12)


def test_the_norm_of_p_and_the_numerator_share_delta():
    problem = sink(800, 8, 0.7, rng=0)
    q, k, v = problem.query, problem.key, problem.value
    result = certify(q, k, v, np.zeros_like(v), rows=80, scale=problem.scale, rng=3)
    drawn = draw_rows(3, 800, 80, 1)[0]
    heaviest = (attention_probabilities(q, k, scale=problem.scale)[drawn] ** 2).mean(axis=0).max()
    low = kl_lower(heaviest, math.log(2 * 800 / 0.05) / 80)
    assert result.sizes.p_op_norm_low == pytest.approx(math.sqrt(800 * low), rel=1e-9)


@given(**shapes)
def test_all_rows_give_the_exact_errors(n_q, n_k, d_v, seed, causal):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    result, exact = certify(q, k, v, output, is_causal=causal), spectral_error(q, k, v, output, is_causal=causal)
    assert result.rows == len(q)
    for name, suffix in (("output", ""), ("zero", "_zero"), ("mean", "_mean")):
        bounds = getattr(result, name)
        relative, ratio = getattr(exact, "relative_frobenius" + suffix), getattr(exact, "ratio" + suffix)
        # The bound that no row is longer than `reach` may cut a rounding error of 1e-16 to 0.
        assert bounds.relative_frobenius == pytest.approx(relative, rel=1e-9, abs=1e-13)
        assert bounds.relative_frobenius_estimate == pytest.approx(relative, rel=1e-9, abs=1e-13)
        assert bounds.frobenius == pytest.approx(bounds.frobenius_estimate, rel=1e-9, abs=1e-13)
        assert bounds.ratio >= ratio * (1 - 1e-9) - 1e-13
        assert bounds.limit == bounds.relative_limit == 0
    p = attention_probabilities(q, k, is_causal=causal)
    assert result.sizes.p_op_norm_low <= np.linalg.norm(p, 2) * (1 + 1e-12)
    # ||P^T 1|| / sqrt(n_q), which is exact then
    expected = np.linalg.norm(p.sum(axis=0)) / math.sqrt(len(p))
    assert result.sizes.p_op_norm_estimate == pytest.approx(expected, rel=1e-9)


@given(**shapes)
def test_a_baseline_is_what_it_would_be_as_the_output(n_q, n_k, d_v, seed, causal):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    s = max(1, len(q) // 2)
    result = certify(q, k, v, output, rows=s, is_causal=causal, rng=0)
    for name, o in baselines(v, len(q), causal).items():
        alone = certify(q, k, v, o, rows=s, is_causal=causal, rng=0).output
        for field, x in vars(alone).items():
            assert getattr(getattr(result, name), field) == pytest.approx(x, rel=1e-9, abs=1e-12)


@given(**shapes)
def test_bounds_are_ordered(n_q, n_k, d_v, seed, causal):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    s = max(1, len(q) // 2)
    loose, tight = (certify(q, k, v, output, rows=s, confidence=c, is_causal=causal, rng=0) for c in (0.99, 0.5))
    for name in UPPER:
        assert getattr(loose.output, name) >= getattr(tight.output, name)
    for bounds in (loose.output, loose.zero):
        assert bounds.frobenius >= max(bounds.frobenius_estimate, bounds.limit) * (1 - 1e-12)
        assert bounds.op_norm >= max(bounds.op_norm_estimate, bounds.limit) * (1 - 1e-12)
        assert bounds.frobenius >= bounds.op_norm * (1 - 1e-12)


def test_without_any_error_the_bound_is_the_limit():
    q, k, v, _ = problem(300, 200, 3, 0, False)
    bounds = certify(q, k, v, exact_attention(q, k, v), rows=100, rng=0).output
    assert bounds.frobenius == pytest.approx(bounds.limit, rel=1e-9)
    assert bounds.frobenius_estimate < 1e-12
    radius = np.linalg.norm(v - v.mean(axis=0), axis=1).max()
    # At most delta^(1/s) = 0.97 of the rows are surely without error; the others may be as bad as 2 radii.
    assert bounds.limit <= 2 * radius * math.sqrt(300 * (1 - 0.05 ** (1 / 100))) * (1 + 1e-12)


# --- invariance, ranges, types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1000, -500, 100, 1000])
def test_the_bounds_scale_with_the_values_at_any_size(exponent):
    q, k, v, output = problem(40, 30, 3, 0, False)
    plain = certify(q, k, v, output, rows=20, rng=0)
    scaled = certify(q, k, np.ldexp(v, exponent), np.ldexp(output, exponent), rows=20, rng=0)
    for field, x in vars(plain.output).items():
        factor = 2.0**exponent if field in ABSOLUTE else 1.0
        assert getattr(scaled.output, field) == pytest.approx(x * factor, rel=1e-9, abs=0)
    assert scaled.sizes.v_op_norm == pytest.approx(plain.sizes.v_op_norm * 2.0**exponent, rel=1e-9, abs=0)


@pytest.mark.parametrize("spread", [80, 500, 5000])
@pytest.mark.parametrize("causal", [False, True])
def test_large_logits(spread, causal):
    q, k, v, output = problem(60, 60, 3, 0, causal, spread=spread)
    result = certify(q, k, v, output, rows=30, is_causal=causal, rng=0)
    exact = spectral_error(q, k, v, output, is_causal=causal)
    assert exact.relative_frobenius <= result.output.relative_frobenius < math.inf
    assert exact.ratio <= result.output.ratio < math.inf


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-2)])
def test_low_precision_is_certified_up_to_its_rounding(dtype, tolerance):
    q, k, v, output = problem(60, 50, 3, 0, False)
    exact = certify(q, k, v, output, rows=30, rng=0)
    rounded = certify(*(x.astype(dtype) for x in (q, k, v)), output, rows=30, rng=0)
    for field, x in vars(exact.output).items():
        assert getattr(rounded.output, field) == pytest.approx(x, rel=tolerance)


def test_a_batch_is_its_heads():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 20, 4)), rng.normal(size=(2, 3, 25, 4))
    v, output = rng.normal(size=(2, 3, 25, 2)), rng.normal(size=(2, 3, 20, 2))
    batch = certify(q, k, v, output, rows=8, rng=7)
    assert batch.output.frobenius.shape == batch.sizes.v_op_norm.shape == (2, 3)
    assert (batch.rows, batch.confidence) == (8, 0.95)
    first = certify(q[0, 0], k[0, 0], v[0, 0], output[0, 0], rows=8, rng=7)
    for field, x in vars(first.output).items():
        assert type(x) is float
        assert getattr(batch.output, field)[0, 0] == pytest.approx(x, rel=1e-12)
    assert json.loads(json.dumps(batch.to_dict()))["zero"]["ratio"][1][2] == batch.zero.ratio[1, 2]
    assert repr(first).startswith("Certificate(output=ErrorBounds(frobenius=")


def test_the_seed_of_the_output_may_be_used_again():
    q, k, v, _ = problem(500, 500, 3, 0, False)
    output = hyper_attention(q, k, v, block_size=32, sample_size=32, rng=3)
    first, again = (certify(q, k, v, output, rows=100, rng=3).to_dict() for _ in range(2))
    assert first == again
    assert first != certify(q, k, v, output, rows=100, rng=4).to_dict()


def test_values_that_are_all_equal_leave_no_error_but_the_output_s_own():
    q, k = np.random.default_rng(0).normal(size=(2, 12, 3))
    v = np.ones((12, 2))
    assert certify(q, k, v, v, rows=6, rng=0).output.frobenius == 0
    off = certify(q, k, v, v + 0.5, rows=6, rng=0).output
    assert off.frobenius == pytest.approx(0.5 * math.sqrt(24), rel=1e-12)  # every row is as wrong as it can be


def test_zero_values():
    q, k = np.random.default_rng(0).normal(size=(2, 12, 3))
    zero = np.zeros((12, 2))
    bounds = certify(q, k, zero, zero, rows=6, rng=0)
    assert (bounds.output.frobenius, bounds.output.ratio, bounds.output.relative_frobenius) == (0, 0, 0)
    assert certify(q, k, zero, zero + 1, rows=6, rng=0).output.relative_frobenius == math.inf


def test_one_query_one_key():
    bounds = certify(*(np.full((1, 1), x) for x in (1.0, 2.0, 3.0, 5.0)))
    assert (bounds.rows, bounds.output.frobenius, bounds.output.ratio) == (1, 2, pytest.approx(2 / 3))
    assert bounds.output.relative_frobenius == pytest.approx(2 / 3)


@pytest.mark.slow
def test_1024_rows_of_131072_take_less_than_600_mb():
    rng, n = np.random.default_rng(0), 131072
    q, k, v, output = (rng.normal(size=(n, 64)).astype(np.float32) for _ in range(4))
    for estimate in (lambda: certify(q, k, v, output, rng=0), lambda: estimate_hardness(q, k, rng=0)):
        tracemalloc.start()
        estimate()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 600e6


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"output": np.ones((5, 2))}, ValueError, "output has shape"),
        ({"output": np.ones((4, 2), dtype=int)}, TypeError, "output has dtype"),
        ({"output": np.full((4, 2), np.nan)}, ValueError, "output has non-finite"),
        ({"v": np.ones((4, 2))}, ValueError, "value has 4 rows"),
        ({"q": np.ones((4, 3), dtype=np.float32)}, TypeError, "dtypes differ"),
        ({"is_causal": True}, ValueError, "is_causal"),
        ({"rows": 5}, ValueError, "rows is 5; it must be between 1 and 4"),
        ({"rows": 0}, ValueError, "rows is 0"),
        ({"rows": 1.5}, TypeError, "rows is 1.5"),
        ({"confidence": 95}, ValueError, "confidence is 95"),
        ({"scale": np.nan}, ValueError, "scale"),
        ({"rng": "seed"}, TypeError, "rng"),
        ({"q": np.full((4, 3), 1e200), "k": np.full((5, 3), 1e200)}, ValueError, "overflow"),
    ],
)
def test_bad_input_is_refused(change, error, match):
    arguments = {"q": np.ones((4, 3)), "k": np.ones((5, 3)), "v": np.ones((5, 2)), "output": np.ones((4, 2))} | change
    with pytest.raises(error, match=match):
        certify(**arguments)
