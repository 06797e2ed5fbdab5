import json
import math

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from hyperattention_ref.measures.attention_matrix import attention_probabilities
from hyperattention_ref.measures.attention_rows import draw_rows
from hyperattention_ref.measures.hardness_parameters import hardness
from hyperattention_ref.measures.kl_bounds import kl_lower, mean_lower, mean_upper
from hyperattention_ref.measures.row_estimates import OUTSIDE, estimate_hardness
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.planner import make_plan
from hyperattention_ref.synthetic import sink

LEFT_OUT = (0, 1, 4, 32)

shapes = {
    "n_q": st.integers(2, 50),
    "n_k": st.integers(1, 40),
    "seed": st.integers(0, 99),
    "causal": st.booleans(),
}


def problem(n_q, n_k, seed, causal=False, spread=1.0):
    rng = np.random.default_rng(seed)
    n_q = n_k if causal else n_q
    return spread * rng.normal(size=(n_q, 4)), rng.normal(size=(n_k, 4)), rng.random((n_q, n_k)) < 0.4


def log_unmasked(q, k, mask, causal):
    """Log R_i, long doubles; -inf for a covered row."""
    a = np.exp((q @ k.T / math.sqrt(q.shape[1])).astype(np.longdouble))
    a = np.tril(a) if causal else a
    with np.errstate(divide="ignore"):
        return np.log(np.where(mask, 0, a).sum(axis=1)).astype(float)


def entropies(p):
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)


# --- the formulas -------------------------------------------------------------------------------------------------


@given(**shapes)
def test_intervals_are_those_of_the_theory_page(n_q, n_k, seed, causal):
    q, k, mask = problem(n_q, n_k, seed, causal)
    n_q, s, delta = len(q), max(1, len(q) // 2), 0.1
    estimate = estimate_hardness(q, k, mask, rows=s, confidence=0.9, is_causal=causal, rng=seed)
    drawn = draw_rows(seed, n_q, s, 1)[0]
    p = attention_probabilities(q, k, is_causal=causal)[drawn]

    def check(name, sample, transform=lambda x: x):
        mean = sample.mean()
        assert getattr(estimate, name) == pytest.approx(transform(mean), rel=1e-10)
        low, high = (bound(mean, delta / 2, s, n_q) for bound in (mean_lower, mean_upper))
        assert getattr(estimate, name + "_low") == pytest.approx(transform(low), rel=1e-8)
        assert getattr(estimate, name + "_high") == pytest.approx(transform(high), rel=1e-8)

    check("mean_square", (p**2).sum(axis=1))
    check("mask_mass", np.where(mask[drawn], p, 0).sum(axis=1))
    longest = math.log(n_k)
    check("perplexity", entropies(p) / (longest or 1), lambda x: math.exp(x * longest))

    c = sorted((p**2).mean(axis=0), reverse=True)
    for place, left_out in enumerate(LEFT_OUT):
        if left_out >= n_k:
            assert estimate.alpha[place] == estimate.alpha_low[place] == estimate.alpha_high[place] == 0
            continue
        low = n_k**2 * mean_lower(c[left_out], delta / 2 / n_k, s, n_q)
        high = n_k**2 * mean_upper(c[left_out], delta / 2 / (left_out + 1), s, n_q)
        assert estimate.alpha[place] == pytest.approx(n_k**2 * c[left_out], rel=1e-9)
        assert estimate.alpha_low[place] == pytest.approx(max(low, float(left_out == 0)), rel=1e-8)
        assert estimate.alpha_high[place] == pytest.approx(high, rel=1e-8)
    assert (estimate.left_out, estimate.rows, estimate.confidence) == (LEFT_OUT, s, 0.9)


def test_the_lower_ends_are_proved_for_all_columns_at_once():
    problem = sink(800, 8, 0.7, rng=0)
    estimate = estimate_hardness(problem.query, problem.key, rows=80, scale=problem.scale, rng=3)
    drawn = draw_rows(3, 800, 80, 1)[0]
    c = np.sort((attention_probabilities(problem.query, problem.key, scale=problem.scale)[drawn] ** 2).mean(axis=0))
    low = kl_lower(c[-1], math.log(2 * 800 / 0.05) / 80)
    assert estimate.alpha_low[0] == pytest.approx(800**2 * low, rel=1e-9)
    low = kl_lower(c[-1], math.log(800 / 0.05) / 80)
    assert estimate.op_norm_low == pytest.approx(math.sqrt(800 * low), rel=1e-9)


@given(**shapes, spread=st.sampled_from([0, 1, 40]))
def test_all_rows_give_the_exact_values(n_q, n_k, seed, causal, spread):
    q, k, mask = problem(n_q, n_k, seed, causal, spread)
    estimate = estimate_hardness(q, k, mask, is_causal=causal, left_out=range(n_k + 2), rng=seed)
    exact, p = hardness(q, k, mask, is_causal=causal, rng=0), attention_probabilities(q, k, is_causal=causal)
    for ends in (estimate.alpha, estimate.alpha_high):
        np.testing.assert_allclose(ends[:n_k], exact.alpha_curve, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(ends[n_k:], 0)
    np.testing.assert_allclose(estimate.alpha_low[:n_k], exact.alpha_curve, rtol=1e-9, atol=1e-12)
    for name, truth in (
        ("mean_square", exact.frobenius_norm**2 / len(q)),
        ("mask_mass", np.where(mask, p, 0).sum(axis=1).mean()),
        ("perplexity", math.exp(entropies(p).mean())),
    ):
        for end in ("", "_low", "_high"):
            assert getattr(estimate, name + end) == pytest.approx(truth, rel=1e-9)
    assert estimate.op_norm_low <= exact.op_norm * (1 + 1e-12)
    assert (estimate.logit_min, estimate.logit_max) == pytest.approx((exact.logit_min, exact.logit_max), rel=1e-14)
    assert estimate.log_kappa_low == pytest.approx(exact.log_kappa, abs=1e-10)
    log_r = log_unmasked(q, k, mask, causal)
    known = log_r[np.isfinite(log_r)]
    if known.size:
        slack = 1e-10
        outside = (known < estimate.log_r_low - slack) | (known > estimate.log_r_high + slack)
        assert outside.sum() <= round(estimate.log_r_outside * len(q)) <= OUTSIDE * len(q)
        assert estimate.log_kappa_quantile == pytest.approx(exact.log_kappa, abs=1e-10)  # too few rows to leave one out


@given(**shapes)
def test_the_sample_s_kappa_is_a_lower_bound(n_q, n_k, seed, causal):
    q, k, mask = problem(n_q, n_k, seed, causal, spread=3)
    estimate = estimate_hardness(q, k, mask, rows=max(1, len(q) // 3), is_causal=causal, rng=seed)
    assert 0 <= estimate.log_kappa_low <= hardness(q, k, mask, is_causal=causal, rng=0).log_kappa + 1e-10


# --- quantiles of log R -------------------------------------------------------------------------------------------


def one_key(log_r):
    """Query and key with the given log row sums."""
    return np.asarray(log_r, float)[:, None], np.ones((1, 1))


@pytest.mark.parametrize(
    ("n", "s", "least", "most"), [(2000, 100, 0.03, 0.05), (2000, 700, 0.004, 0.01), (50, 49, 0, 0.01)]
)
def test_the_fraction_outside_is_the_least_that_the_tail_allows(n, s, least, most):
    estimate = estimate_hardness(*one_key(np.arange(n) / n), rows=s, scale=1.0, rng=0)
    drawn = draw_rows(0, n, s, 1)[0] / n
    a = 1 + int(np.flatnonzero(np.isclose(drawn, estimate.log_r_low))[0])
    assert estimate.log_r_high == pytest.approx(drawn[-a])
    m = round(estimate.log_r_outside * n)
    assert hypergeom.cdf(2 * a - 1, n, m + 2, s) <= 0.05
    assert m == 0 or hypergeom.cdf(2 * a - 1, n, m + 1, s) > 0.05
    # As many order statistics are left out as 1 % of the rows allows.
    assert hypergeom.cdf(2 * a + 1, n, int(OUTSIDE * n) + 2, s) > 0.05
    assert least <= estimate.log_r_outside <= most


def test_the_exact_probability_of_too_many_rows_outside():
    """All subsets of 4 out of 9 rows: the hypergeometric tail is the frequency itself."""
    from itertools import combinations

    subsets = list(combinations(range(9), 4))
    outside = np.array([first + 8 - last for first, *_, last in subsets])
    for m in range(6):
        assert (outside > m).mean() == pytest.approx(hypergeom.cdf(1, 9, m + 2, 4), abs=1e-12)


def test_ties_do_no_harm():
    estimate = estimate_hardness(*one_key(np.zeros(300)), rows=60, scale=1.0, rng=0)
    assert (estimate.log_r_low, estimate.log_r_high, estimate.log_kappa_quantile) == (0, 0, 0)


def test_covered_rows_have_no_part():
    q, k, mask = problem(60, 20, 0)
    mask[::2] = True
    estimate = estimate_hardness(q, k, mask, rng=0)
    assert estimate.log_kappa_low == pytest.approx(hardness(q, k, mask, rng=0).log_kappa, abs=1e-12)
    nothing = estimate_hardness(q, k, np.ones_like(mask), rows=30, rng=0)
    assert (nothing.log_r_low, nothing.log_r_high, nothing.log_r_outside) == (-math.inf, math.inf, 0)
    assert (nothing.log_kappa_low, nothing.mask_mass) == (0, pytest.approx(1, rel=1e-14))


# --- masks --------------------------------------------------------------------------------------------------------


@given(**shapes)
def test_every_form_of_a_mask_gives_the_same(n_q, n_k, seed, causal):
    q, k, _ = problem(n_q, n_k, seed, causal)
    rng = np.random.default_rng(seed)
    view = BlockMask.from_orders(rng.permutation(len(q)), rng.permutation(n_k), 3)
    forms = view, view.toarray(), scipy.sparse.csr_array(view.toarray()), Rectangle(len(q), n_k, (view,))
    forms = forms if causal else (*forms, Plan.from_views([view]))
    options = {"rows": max(1, len(q) // 2), "is_causal": causal, "rng": 0}
    results = [estimate_hardness(q, k, mask, **options).to_dict() for mask in forms]
    assert all(result == results[0] for result in results[1:])


def test_only_mask_mass_and_row_sums_depend_on_the_mask():
    q, k, mask = problem(50, 40, 0)
    without, with_mask = (estimate_hardness(q, k, m, rows=20, rng=0).to_dict() for m in (None, mask))
    differ = {name for name in without if without[name] != with_mask[name]}
    assert without["mask_mass"] == without["mask_mass_low"] == 0
    assert {name.split("_")[0] for name in differ} == {"mask", "log"}


def test_each_head_of_a_batch_has_its_own_plan():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 2, 3, 40, 4))
    plan = make_plan(q, k, block_size=8, sample_size=4, rng=1)
    batch = estimate_hardness(q, k, plan, rows=10, rng=5)
    assert batch.alpha.shape == (2, 3, 4)
    assert batch.rows == 10
    drawn = draw_rows(5, 40, 10, 6)
    for h, head in enumerate(np.ndindex(2, 3)):
        p = attention_probabilities(q[head], k[head])
        mass = np.where(plan.heads[h].rectangles[0].toarray(), p, 0)[drawn[h]].sum(axis=1).mean()
        assert batch.mask_mass[head] == pytest.approx(mass, rel=1e-12)
    assert json.loads(json.dumps(batch.to_dict()))["op_norm_low"][1][2] == batch.op_norm_low[1, 2]


def test_the_leaves_of_a_causal_plan_count_as_captured():
    q, k, _ = problem(40, 40, 0)
    plan = make_plan(q, k, block_size=4, sample_size=2, min_seq_len=10, is_causal=True, rng=1)
    mask = np.zeros((40, 40), dtype=bool)
    for a, c in plan.heads[0].leaves:
        mask[a:c, a:c] = np.tri(c - a, dtype=bool)
    for r in plan.heads[0].rectangles:
        mask[r.query_start : r.query_start + r.n_q, r.key_start : r.key_start + r.n_k] = r.toarray()
    by_plan, by_mask = (estimate_hardness(q, k, m, rows=20, is_causal=True, rng=0).to_dict() for m in (plan, mask))
    assert by_plan == by_mask
    with pytest.raises(ValueError, match="the plan was made for is_causal = True"):
        estimate_hardness(q, k, plan)


# --- ranges, types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [80, 500, 5000])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits(spread, causal, dtype):
    q, k, mask = problem(60, 60, 0, causal, spread=spread)
    q, k = q.astype(dtype), k.astype(dtype)
    estimate = estimate_hardness(q, k, mask, is_causal=causal, rng=0)
    exact = hardness(q, k, mask, is_causal=causal, rng=0)
    # A logit of 5000 carries a few units of 6e-8 times 5000 in float32; P has that as a relative error.
    rel = 1e-2 if dtype is np.float32 else 1e-9
    assert estimate.alpha[0] == pytest.approx(exact.alpha, rel=rel)
    assert estimate.log_kappa_low == pytest.approx(exact.log_kappa, rel=rel)
    assert 1 <= estimate.perplexity_low <= estimate.perplexity <= estimate.perplexity_high <= 60 * (1 + 1e-12)
    assert all(np.all(np.isfinite(x)) for x in vars(estimate).values())


def test_float16_is_computed_in_float32():
    q, k, _ = problem(50, 40, 0)
    half = estimate_hardness(q.astype(np.float16), k.astype(np.float16), rng=0)
    single = estimate_hardness(q.astype(np.float16).astype(np.float32), k.astype(np.float16).astype(np.float32), rng=0)
    assert half.to_dict() == single.to_dict()


def test_flat_attention():
    estimate = estimate_hardness(np.zeros((50, 3)), np.zeros((40, 3)), rows=20, left_out=[0, 39], rng=0)
    np.testing.assert_allclose(estimate.alpha, 1, rtol=1e-12)
    assert estimate.alpha_low[0] == 1
    assert estimate.perplexity == pytest.approx(40, rel=1e-12)
    assert estimate.op_norm_low == pytest.approx(math.sqrt(50 / 40), rel=1e-12)


def test_a_sink_is_seen_in_the_norm():
    q, k = np.ones((1000, 1)), np.zeros((1000, 1))
    k[3] = 500
    estimate = estimate_hardness(q, k, rows=200, scale=1.0, rng=0)
    assert 0.9 * math.sqrt(1000) < estimate.op_norm_low <= math.sqrt(1000)
    assert estimate.alpha[0] == pytest.approx(1000**2)


def test_one_query_one_key():
    estimate = estimate_hardness(np.ones((1, 1)), np.ones((1, 1)))
    assert (estimate.perplexity, estimate.op_norm_low, estimate.log_r_outside) == (1, 1, 0)
    np.testing.assert_array_equal(estimate.alpha, [1, 0, 0, 0])


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"q": np.ones(3)}, ValueError, "query has shape"),
        ({"k": np.ones((5, 2))}, ValueError, "d = 3 and key has d = 2"),
        ({"k": np.full((5, 3), np.nan)}, ValueError, "key has non-finite"),
        ({"is_causal": True}, ValueError, "is_causal"),
        ({"mask": np.ones((5, 4), dtype=bool)}, ValueError, "mask has shape"),
        ({"mask": np.ones((4, 5))}, TypeError, "mask has dtype"),
        ({"mask": Plan.from_orders(range(4), range(4), block_size=2)}, ValueError, "the plan was made for n_k = 4"),
        ({"rows": 5}, ValueError, "rows is 5; it must be between 1 and 4"),
        ({"confidence": 1}, ValueError, "confidence is 1"),
        ({"left_out": (-1,)}, ValueError, "left_out"),
        ({"left_out": ()}, ValueError, "left_out"),
        ({"left_out": (0.5,)}, ValueError, "left_out"),
        ({"left_out": 3}, ValueError, "left_out"),
        ({"scale": np.inf}, ValueError, "scale"),
        ({"rng": "seed"}, TypeError, "rng"),
        ({"q": np.full((4, 3), 1e200), "k": np.full((5, 3), 1e200)}, ValueError, "overflow"),
    ],
)
def test_bad_input_is_refused(change, error, match):
    arguments = {"q": np.ones((4, 3)), "k": np.ones((5, 3))} | change
    with pytest.raises(error, match=match):
        estimate_hardness(**arguments)
