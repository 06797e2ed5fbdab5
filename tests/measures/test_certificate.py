import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.attention import exact_attention, hyper_attention
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.measures.attention_matrix import attention_probabilities
from hyperattention_ref.measures.attention_rows import ROWS
from hyperattention_ref.measures.betting import Sum, quotient_lower, quotient_upper
from hyperattention_ref.measures.certificate import certify
from hyperattention_ref.measures.kl_bounds import kl_lower, kl_upper
from hyperattention_ref.measures.row_estimates import estimate_hardness
from hyperattention_ref.measures.row_sample import RowSample
from hyperattention_ref.measures.spectral_guarantee import spectral_error

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
    n_q, n_k, s, delta = len(q), len(k), max(1, len(q) // 2), 0.1
    result = certify(q, k, v, output, rows=s, confidence=1 - delta, is_causal=causal, rng=seed)
    p, exact = attention_probabilities(q, k, is_causal=causal), exact_attention(q, k, v, is_causal=causal)
    distance = np.linalg.norm(v - v.mean(axis=0), axis=1)
    sees = [slice(0, i + 1) if causal else slice(None) for i in range(n_q)]

    def caps(o):
        from_center = np.linalg.norm(o - v.mean(axis=0), axis=1)
        return np.array([(from_center[i] + distance[sees[i]].max()) ** 2 for i in range(n_q)])

    weights = np.maximum(caps(output), 0.01 * caps(output).mean())
    sample = RowSample.draw(weights, streams(seed, 1, purpose=ROWS)[0]).first(s)

    def known(x, caps):
        return Sum.sampled(sample, x[sample.rows], (caps / weights).max())

    longest = np.array([np.linalg.norm(v[sees[i]], axis=1).max() ** 2 for i in range(n_q)])
    attention, one = known((exact**2).sum(axis=1), longest), Sum.one(sample)
    columns, most = sample.factors() @ p[sample.rows] ** 2, sample.left[0] / weights.min()
    column = most * kl_lower(min(1, columns.max() / most), math.log(2 * n_k / delta) / s)
    together = (p[sample.rows].sum(axis=0) ** 2).sum() / s
    p_low = math.sqrt(max(n_q / n_k, together, column))
    assert result.sizes.p_op_norm_low == pytest.approx(p_low, rel=1e-9)
    assert result.sizes.v_op_norm == pytest.approx(np.linalg.norm(v, 2), rel=1e-12)
    low = math.sqrt(quotient_lower(attention, one, delta / 2))
    assert result.sizes.attention_frobenius_low == pytest.approx(low, rel=2e-4)

    for name, o in ({"output": output} | baselines(v, n_q, causal)).items():
        bounds, error = getattr(result, name), exact - o
        if caps(o).max() < 1e-20:  # a single key: every row of Att is the mean of V
            continue
        top, nothing = (known(x, caps(o)) for x in ((error**2).sum(axis=1), np.zeros(n_q)))
        largest = (caps(o) / weights).max()
        square = np.linalg.norm(np.sqrt(sample.factors())[:, None] * error[sample.rows], 2) ** 2
        others = np.linalg.norm(error[sample.rows], 2) ** 2 + largest * sample.left[-1]

        def op_norm(delta, most=largest * sample.left[0], square=square, others=others):
            return math.sqrt(min(others, most * kl_upper(min(1, square / most), math.log(1 / delta) / s)))

        assert bounds.frobenius == pytest.approx(math.sqrt(quotient_upper(top, one, delta)), rel=2e-4)
        assert bounds.op_norm == pytest.approx(op_norm(delta), rel=1e-9)
        assert bounds.limit == pytest.approx(math.sqrt(quotient_upper(nothing, one, delta)), rel=2e-4)
        assert bounds.ratio == pytest.approx(op_norm(delta / 2) / p_low / np.linalg.norm(v, 2), rel=1e-9)
        relative_limit = math.sqrt(quotient_upper(nothing, attention, delta))
        assert bounds.relative_limit == pytest.approx(relative_limit, rel=2e-4)
        assert bounds.frobenius_estimate == pytest.approx(math.sqrt(top.terms.mean()), abs=1e-12)
        assert bounds.op_norm_estimate == pytest.approx(math.sqrt(square), abs=1e-12)
        if name != "zero":
            for found, function in (("", quotient_upper), ("_low", quotient_lower)):
                expected = math.sqrt(function(top, attention, delta))
                assert getattr(bounds, "relative_frobenius" + found) == pytest.approx(expected, rel=2e-4, abs=1e-12)


def test_the_zero_output_is_never_estimated():
    q, k, v, output = problem(300, 200, 3, 0, False)
    zero = certify(q, k, v, output, rows=10, rng=0).zero
    values = (zero.relative_frobenius, zero.relative_frobenius_low, zero.relative_frobenius_estimate)
    assert (*values, zero.relative_frobenius_standard_error) == (1, 1, 1, 0)


def test_the_standard_error_is_that_of_the_estimate():
    """Over many draws the estimates spread as each of them says, and about the truth."""
    q, k, v, output = problem(400, 100, 3, 0, False)
    truth = certify(q, k, v, output, rows="all").output.relative_frobenius
    draws = [certify(q, k, v, output, rows=60, rng=seed).output for seed in range(150)]
    estimates = np.array([x.relative_frobenius_estimate for x in draws])
    said = np.sqrt(np.mean([x.relative_frobenius_standard_error**2 for x in draws]))
    assert estimates.std() == pytest.approx(said, rel=0.25)
    assert estimates.mean() == pytest.approx(truth, abs=4 * said / math.sqrt(150) + 0.02 * truth)


@given(**shapes)
def test_all_rows_give_the_exact_errors(n_q, n_k, d_v, seed, causal):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    result, exact = certify(q, k, v, output, is_causal=causal), spectral_error(q, k, v, output, is_causal=causal)
    assert result.rows == len(q)
    for name, suffix in (("output", ""), ("zero", "_zero"), ("mean", "_mean")):
        bounds = getattr(result, name)
        relative, ratio = getattr(exact, "relative_frobenius" + suffix), getattr(exact, "ratio" + suffix)
        assert bounds.relative_frobenius == pytest.approx(relative, rel=1e-9, abs=1e-13)
        assert bounds.relative_frobenius_estimate == pytest.approx(relative, rel=1e-9, abs=1e-13)
        assert bounds.relative_frobenius_low == bounds.relative_frobenius
        assert bounds.frobenius == bounds.frobenius_estimate
        assert bounds.ratio >= ratio * (1 - 1e-9) - 1e-13
        assert bounds.limit == bounds.relative_limit == 0
    p = attention_probabilities(q, k, is_causal=causal)
    assert result.sizes.p_op_norm_low <= np.linalg.norm(p, 2) * (1 + 1e-12)
    # ||P^T 1|| / sqrt(n_q), which is exact then
    expected = np.linalg.norm(p.sum(axis=0)) / math.sqrt(len(p))
    assert result.sizes.p_op_norm_estimate == pytest.approx(expected, rel=1e-9)


@given(**shapes)
def test_bounds_are_ordered(n_q, n_k, d_v, seed, causal):
    q, k, v, output = problem(n_q, n_k, d_v, seed, causal)
    s = max(1, len(q) // 2)
    loose, tight = (certify(q, k, v, output, rows=s, confidence=c, is_causal=causal, rng=0) for c in (0.99, 0.5))
    for name in UPPER:
        assert getattr(loose.output, name) >= getattr(tight.output, name) * (1 - 2e-4)
    assert loose.output.relative_frobenius_low <= tight.output.relative_frobenius_low * (1 + 2e-4)
    for bounds in (loose.output, loose.mean):
        assert bounds.frobenius >= bounds.limit * (1 - 2e-4)
        assert bounds.relative_frobenius >= max(bounds.relative_limit, bounds.relative_frobenius_low) * (1 - 2e-4)


def test_without_any_error_the_bound_is_the_limit():
    q, k, v, _ = problem(300, 200, 3, 0, False)
    bounds = certify(q, k, v, exact_attention(q, k, v), rows=100, rng=0).output
    assert bounds.frobenius == pytest.approx(bounds.limit, rel=2e-4)
    assert bounds.frobenius_estimate < 1e-12
    radius = np.linalg.norm(v - v.mean(axis=0), axis=1).max()
    # A gambler who stakes all of a capital of 1/2 each time excludes that so many rows are as bad as 2 radii.
    assert bounds.limit <= 2 * radius * math.sqrt(300 * ((2 / 0.05) ** (1 / 100) - 1)) * (1 + 2e-4)


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
        assert getattr(rounded.output, field) == pytest.approx(x, rel=tolerance, abs=tolerance)


def test_a_batch_is_its_heads():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 20, 4)), rng.normal(size=(2, 3, 25, 4))
    v, output = rng.normal(size=(2, 3, 25, 2)), rng.normal(size=(2, 3, 20, 2))
    batch = certify(q, k, v, output, rows=8, rng=7)
    assert batch.output.frobenius.shape == batch.sizes.v_op_norm.shape == (2, 3)
    assert (batch.rows.tolist(), batch.confidence) == ([[8] * 3] * 2, 0.95)
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
    assert off.frobenius == pytest.approx(0.5 * math.sqrt(24), rel=2e-4)  # every row is as wrong as it can be


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
        ({"rows": "some"}, ValueError, 'rows is .some.; it must be a number from 1 to 4, "auto", "all" or None'),
        ({"tolerance": 0}, ValueError, "tolerance is 0"),
        ({"backend": "numby"}, ValueError, "numby"),
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


# --- how many rows ------------------------------------------------------------------------------------------------


def spread_evenly(error, n=4096):
    """Rows that are all as long as a row can be, and an output that is off by a share of that in each."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(n, 4)), np.zeros((n, 4))
    v = np.tile([1.0, 0.0], (n, 1))
    return q, k, v, v + error * rng.choice([-1, 1], size=(n, 2)) / math.sqrt(2)


@pytest.mark.parametrize(("error", "rows"), [(0.01, 256), (0.5, 256), (0.1, 4096)])
def test_auto_stops_where_the_rows_decide_and_else_takes_all(error, rows):
    q, k, v, output = spread_evenly(error)
    result = certify(q, k, v, output, rows="auto", tolerance=0.1, rng=0)
    assert (result.rows, result.rows_to_decide) == (rows, rows)
    bounds = result.output
    assert bounds.relative_frobenius_low <= error * (1 + 1e-6) <= bounds.relative_frobenius * (1 + 2e-4)
    if rows < 4096:
        assert bounds.relative_frobenius <= 0.1 or bounds.relative_frobenius_low > 0.1


def test_auto_decides_no_later_than_the_number_that_a_sample_names():
    q, k, v, output = problem(9000, 300, 3, 0, False)
    few = certify(q, k, v, output, rows=256, tolerance=0.1, rng=0)
    assert few.rows_to_decide > 256
    assert not few.output.relative_frobenius_low > 0.1
    assert certify(q, k, v, output, rows=9000, tolerance=0.1).rows_to_decide == 9000


@pytest.mark.parametrize("backend", ["reference", "numpy", "numba"])
def test_all_rows_are_those_of_any_backend(backend):
    q, k, v, output = problem(300, 300, 3, 0, True)
    result = certify(q, k, v, output, is_causal=True, rows="all", backend=backend, rng=0)
    exact = certify(q, k, v, output, is_causal=True, rows=300, rng=0)
    assert result.output.relative_frobenius == pytest.approx(exact.output.relative_frobenius, rel=1e-12)
    assert result.output.limit == 0


def test_without_a_number_all_rows_are_taken_where_that_takes_less_than_a_minute(monkeypatch):
    q, k, v, output = problem(2000, 20, 3, 0, False)
    assert certify(q, k, v, output).rows == 2000
    monkeypatch.setattr("hyperattention_ref.measures.certificate.EXACT_OPERATIONS", 2000 * 20 * 7 - 1)
    assert certify(q, k, v, output).rows == 1024
    assert certify(q[:500], k, v, output[:500]).rows == 500


def test_auto_holds_at_whatever_stop():
    """An output whose error is just beyond the tolerance is almost never certified to be within."""
    q, k, v, output = spread_evenly(0.0)
    output[:60] += 1 / math.sqrt(2) * math.sqrt(4096 * 0.011 / 60)  # few rows hold all the error: relative 0.105
    wrong = [certify(q, k, v, output, rows="auto", tolerance=0.1, rng=seed) for seed in range(20)]
    assert all(x.output.relative_frobenius > 0.1 for x in wrong)
