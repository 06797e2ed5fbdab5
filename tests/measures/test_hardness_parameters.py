import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.measures import hardness_parameters
from hyperattention_ref.measures.attention_matrix import attention_probabilities
from hyperattention_ref.measures.hardness_parameters import hardness
from hyperattention_ref.measures.norm_interval import TOLERANCE
from hyperattention_ref.paper.row_rescaling import PILOT_SIZE
from hyperattention_ref.plan.block_mask import BlockMask

OF_P_ALONE = ("alpha", "alpha_curve", "stable_rank", "op_norm", "frobenius_norm")

shapes = {"n_q": st.integers(1, 12), "n_k": st.integers(1, 12), "seed": st.integers(0, 99)}


def qk_with_logits(logits):
    """Query and key whose logits at scale 1 are the given matrix."""
    logits = np.asarray(logits, dtype=np.float64)
    return logits, np.eye(logits.shape[1])


def random_logits(n_q, n_k, seed, spread=1.0):
    return spread * np.random.default_rng(seed).uniform(-1, 1, size=(n_q, n_k))


def random_mask(n_q, n_k, seed):
    return np.random.default_rng(seed + 1000).random((n_q, n_k)) < 0.4


def literal(a, mask):
    """alpha curve, heavy columns, log kappa of an unnormalised matrix as the paper writes them, without log domain."""
    n_q, n_k = a.shape
    p = np.diag(1 / a.sum(axis=1)) @ a
    columns = [np.linalg.norm(p @ e) ** 2 for e in np.eye(n_k)]
    heavy = sorted(range(n_k), key=lambda j: -columns[j])
    r = [row[~marked].sum() for row, marked in zip(a, mask, strict=True) if not marked.all()]
    r = [total for total in r if total > 0]
    return n_k**2 / n_q * np.array([columns[j] for j in heavy]), heavy, np.log(max(r) / min(r)) if r else 0.0


# --- against the paper's formulas ---------------------------------------------------------------------------------


@given(**shapes, causal=st.booleans())
def test_hardness_is_what_the_paper_writes(n_q, n_k, seed, causal):
    n_q = n_k if causal else n_q
    logits, mask = random_logits(n_q, n_k, seed, spread=3), random_mask(n_q, n_k, seed)
    a = np.tril(np.exp(logits)) if causal else np.exp(logits)
    curve, heavy, log_kappa = literal(a, mask)
    result = hardness(*qk_with_logits(logits), mask, scale=1, is_causal=causal, rng=0)
    np.testing.assert_allclose(result.alpha_curve, curve, rtol=1e-12)
    assert result.alpha == result.alpha_curve[0]
    np.testing.assert_array_equal(result.heavy_columns, heavy)
    assert result.log_kappa == pytest.approx(log_kappa, abs=1e-13)
    p = a / a.sum(axis=1, keepdims=True)
    slack = 1 + 1e-12
    assert result.op_norm / slack <= np.linalg.norm(p, 2) <= result.op_norm_high * slack
    assert result.op_norm_high <= result.op_norm * (1 + TOLERANCE)
    assert result.frobenius_norm == pytest.approx(np.linalg.norm(p), rel=1e-12)
    assert result.stable_rank == pytest.approx((np.linalg.norm(p) / result.op_norm) ** 2, rel=1e-12)
    counted = logits[np.tril_indices(n_q)] if causal else logits
    assert (result.logit_min, result.logit_max) == pytest.approx((counted.min(), counted.max()), rel=1e-14)


def test_scale_none_is_one_over_root_d():
    q, k = np.random.default_rng(0).normal(size=(2, 6, 9))
    assert hardness(q, k, rng=0).to_dict() == hardness(q, k, scale=1 / 3, rng=0).to_dict()


def test_equal_columns_are_listed_in_order_of_index():
    logits = np.tile([0.0, 2.0, 0.0], (4, 100))
    heavy = [*range(1, 300, 3), *(j for j in range(300) if j % 3 != 1)]
    np.testing.assert_array_equal(hardness(*qk_with_logits(logits), scale=1).heavy_columns, heavy)


@given(**shapes)
def test_every_form_of_a_mask_gives_the_same(n_q, n_k, seed):
    logits, rng = random_logits(n_q, n_k, seed), np.random.default_rng(seed)
    block = BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), 3)
    results = [
        hardness(*qk_with_logits(logits), mask, scale=1, rng=0).to_dict()
        for mask in (block, block.toarray(), scipy.sparse.csr_array(block.toarray().astype(float)))
    ]
    assert results[0] == results[1] == results[2]


# --- range facts --------------------------------------------------------------------------------------------------


@given(**shapes, spread=st.sampled_from([0, 1, 10, 80, 500]), causal=st.booleans())
def test_range_facts(n_q, n_k, seed, spread, causal):
    n_q = n_k if causal else n_q
    q, k = qk_with_logits(random_logits(n_q, n_k, seed, spread))
    h = hardness(q, k, random_mask(n_q, n_k, seed), scale=1, is_causal=causal, rng=seed)
    slack = 1 + 1e-12
    assert 1 / slack <= h.alpha <= n_k**2 * slack
    assert np.all(np.diff(h.alpha_curve) <= 0)
    assert h.op_norm >= np.sqrt(n_q / n_k) / slack
    assert h.frobenius_norm**2 <= h.alpha * n_q / n_k * slack
    assert 1 / slack <= h.stable_rank <= h.alpha * slack
    assert h.log_kappa >= 0
    assert h.log_kappa_rescaled >= 0


@given(**shapes)
def test_alpha_is_one_iff_p_is_flat(n_q, n_k, seed):
    rows = np.random.default_rng(seed).normal(size=(n_q, 1)) * np.ones(n_k)  # equal logits within each row: P is flat
    assert hardness(*qk_with_logits(rows), scale=1).alpha == pytest.approx(1, rel=1e-12)
    if n_k > 1:
        rows[0, 0] += 0.1
        # P_00 grows by d >= 0.1 (n_k - 1) / (n_k (n_k + 0.11)), so alpha >= 1 + 2 d n_k / n_q > 1.007 here.
        assert hardness(*qk_with_logits(rows), scale=1).alpha > 1.007


@pytest.mark.parametrize("n", [1, 6])
def test_a_permutation_has_alpha_n_and_a_sink_alpha_n_squared(n):
    permutation = 500.0 * np.eye(n)[::-1]
    assert hardness(*qk_with_logits(permutation), scale=1).alpha == pytest.approx(n, rel=1e-12)
    sink = np.zeros((n, n))
    sink[:, n // 2] = 500
    h = hardness(*qk_with_logits(sink), scale=1)
    assert h.alpha == pytest.approx(n**2, rel=1e-12)
    assert h.heavy_columns[0] == n // 2
    assert h.op_norm == pytest.approx(np.sqrt(n), rel=1e-12)


# --- invariance ---------------------------------------------------------------------------------------------------


@given(**shapes)
def test_measures_of_p_do_not_see_row_scaling_and_kappa_does(n_q, n_k, seed):
    logits, log_e = random_logits(n_q, n_k, seed), np.random.default_rng(seed).uniform(-30, 30, size=n_q)
    before = hardness(*qk_with_logits(logits), scale=1, rng=0)
    after = hardness(*qk_with_logits(logits + log_e[:, None]), scale=1, rng=0)
    for field in OF_P_ALONE:
        np.testing.assert_allclose(getattr(after, field), getattr(before, field), rtol=1e-12)
    assert after.log_kappa_rescaled == pytest.approx(before.log_kappa_rescaled, abs=1e-12)
    log_r = np.log(np.exp(logits).sum(axis=1)) + log_e
    assert after.log_kappa == pytest.approx(np.ptp(log_r), abs=1e-12)


def test_measures_of_p_do_not_see_a_shift_of_all_keys_and_kappa_does():
    rng = np.random.default_rng(0)
    q, k, shift = rng.normal(size=(20, 4)), rng.normal(size=(30, 4)), 5 * rng.normal(size=4)
    before, after = hardness(q, k, rng=0), hardness(q, k + shift, rng=0)
    for field in OF_P_ALONE:
        np.testing.assert_allclose(getattr(after, field), getattr(before, field), rtol=1e-12)
    np.testing.assert_array_equal(after.heavy_columns, before.heavy_columns)
    assert after.log_kappa > before.log_kappa + 5


# --- kappa --------------------------------------------------------------------------------------------------------


def test_log_kappa_at_logits_of_500_is_exact_where_kappa_overflows():
    logits = np.array([[500.0, 500.0, -500.0], [-500.0, -500.0, 500.0]])
    assert hardness(*qk_with_logits(logits), scale=1).log_kappa == pytest.approx(np.log(2), rel=1e-12)
    mask = np.array([[False, False, False], [False, False, True]])
    assert hardness(*qk_with_logits(logits), mask, scale=1).log_kappa == pytest.approx(1000, rel=1e-15)


def test_a_covered_row_has_no_part_in_kappa():
    logits = np.log([[1.0, 1.0], [3.0, 3.0], [1000.0, 1000.0]])
    mask = np.zeros((3, 2), dtype=bool)
    mask[2] = True
    assert hardness(*qk_with_logits(logits), mask, scale=1).log_kappa == pytest.approx(np.log(3))
    everything = hardness(*qk_with_logits(logits), np.ones((3, 2), dtype=bool), scale=1)
    assert (everything.log_kappa, everything.log_kappa_rescaled) == (0.0, 0.0)


def test_a_causal_row_whose_existing_pairs_are_all_masked_is_covered():
    logits = np.log([[7.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    mask = np.zeros((3, 3), dtype=bool)
    mask[0, 0] = True  # row 0 has no other pair
    h = hardness(*qk_with_logits(logits), mask, scale=1, is_causal=True)
    assert h.log_kappa == pytest.approx(np.log(3 / 2))


def test_rescaled_kappa_divides_by_the_pilot_of_the_given_stream():
    n_q, n_k = 15, 40
    logits, mask = random_logits(n_q, n_k, 3, spread=2), random_mask(n_q, n_k, 3)
    a = np.where(mask, 0, np.exp(logits))
    keys = np.random.default_rng(11).integers(n_k, size=PILOT_SIZE)
    rescaled = a.sum(axis=1) / (n_k / PILOT_SIZE * a[:, keys].sum(axis=1))
    expected = np.log(rescaled.max() / rescaled.min())
    result = hardness(*qk_with_logits(logits), mask, scale=1, rng=11)
    assert result.log_kappa_rescaled == pytest.approx(expected, abs=1e-12)


def test_rescaling_brings_down_a_kappa_that_row_scale_made():
    """Gaussian n = 1024, d = 64, rows times e^U[0,5]: kappa goes from above 100 to below 4."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1024, 64)) / np.sqrt(8)
    q = np.hstack([q, rng.uniform(0, 5, size=(1024, 1))])
    k = np.hstack([k, np.ones((1024, 1))])
    h = hardness(q, k, scale=1, rng=1)
    assert h.log_kappa > np.log(100)
    assert h.log_kappa_rescaled < np.log(4)


# --- causal -------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 30), seed=st.integers(0, 99), spread=st.sampled_from([1, 80, 500]))
def test_causal_alpha_is_at_least_n_whatever_the_input(n, seed, spread):
    h = hardness(*qk_with_logits(random_logits(n, n, seed, spread)), scale=1, is_causal=True)
    assert h.alpha >= n * (1 - 1e-12)


@pytest.mark.parametrize("n", [1, 7, 512])
def test_flat_causal_attention_has_alpha_n_times_the_sum_of_inverse_squares_and_kappa_n(n):
    h = hardness(np.zeros((n, 3)), np.zeros((n, 3)), is_causal=True)
    assert h.alpha == pytest.approx(n * sum(1 / i**2 for i in range(1, n + 1)), rel=1e-12)
    assert h.alpha <= np.pi**2 / 6 * n
    assert h.heavy_columns[0] == 0
    assert h.log_kappa == pytest.approx(np.log(n), abs=1e-12)
    assert (h.logit_min, h.logit_max) == (0, 0)


# --- heads, types, randomness -------------------------------------------------------------------------------------


def test_a_batch_is_its_heads_one_after_the_other():
    rng = np.random.default_rng(0)
    q, k, mask = rng.normal(size=(2, 3, 9, 4)), rng.normal(size=(2, 3, 11, 4)), random_mask(9, 11, 0)
    batch = hardness(q, k, mask, rng=5)
    stream = np.random.default_rng(5)
    for head in np.ndindex(2, 3):
        one = hardness(q[head], k[head], mask, rng=stream)
        for field, x in vars(one).items():
            np.testing.assert_array_equal(getattr(batch, field)[head], x, err_msg=field)
    assert batch.alpha.shape == (2, 3)
    assert batch.alpha_curve.shape == (2, 3, 11)
    assert batch.heavy_columns.dtype.kind == "i"


def test_one_head_gives_plain_floats_and_json():
    h = hardness(*qk_with_logits(random_logits(3, 4, 0)), rng=0)
    assert {type(getattr(h, field)) for field in ("alpha", "log_kappa", "log_kappa_rescaled", "logit_min")} == {float}
    assert json.loads(json.dumps(h.to_dict()))["heavy_columns"] == h.heavy_columns.tolist()
    assert repr(h).startswith("Hardness(alpha=")


def test_views_and_float32_are_measured_like_copies_and_float64():
    wide = np.random.default_rng(0).normal(size=(2, 18, 10)).astype(np.float32)
    q, k = wide[:, ::-2, ::2]
    exact = hardness(q.astype(np.float64).copy(), k.astype(np.float64).copy(), rng=0)
    for backend, rtol in (("reference", 1e-12), ("numpy", 1e-5)):
        single = hardness(q, k, rng=0, backend=backend)
        for field, x in vars(exact).items():
            np.testing.assert_allclose(getattr(single, field), x, rtol=rtol, err_msg=field)


def test_only_the_rescaled_kappa_depends_on_rng():
    q, k = qk_with_logits(random_logits(20, 300, 0, spread=4))
    first, again, other = (hardness(q, k, scale=1, rng=seed).to_dict() for seed in (1, 1, 2))
    assert first == again
    assert first.pop("log_kappa_rescaled") != other.pop("log_kappa_rescaled")
    assert first == other


def test_fresh_entropy_is_the_default():
    q, k = qk_with_logits(random_logits(20, 300, 0, spread=4))
    assert len({hardness(q, k, scale=1).log_kappa_rescaled for _ in range(3)}) == 3


def test_zero_vectors_are_flat():
    h = hardness(np.zeros((4, 3)), np.zeros((5, 3)))
    assert h.alpha == pytest.approx(1, rel=1e-12)
    assert (h.log_kappa, h.stable_rank) == (pytest.approx(0, abs=1e-14), pytest.approx(1, rel=1e-12))


@pytest.mark.parametrize("measure", [hardness, attention_probabilities])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"q": np.ones(3)}, ValueError, "query has shape"),
        ({"q": np.ones((0, 3))}, ValueError, "query has shape"),
        ({"k": np.ones((4, 2))}, ValueError, "d = 3 and key has d = 2"),
        ({"k": np.ones((2, 4, 3))}, ValueError, "leading shape"),
        ({"q": np.ones((4, 3), dtype=int)}, TypeError, "query has dtype"),
        ({"k": np.full((4, 3), np.nan)}, ValueError, "key has non-finite"),
        ({"k": np.ones((5, 3)), "is_causal": True}, ValueError, "is_causal"),
        ({"scale": np.inf}, ValueError, "scale"),
        ({"scale": "small"}, TypeError, "scale"),
        ({"q": np.full((4, 3), 1e200), "k": np.full((4, 3), 1e200)}, ValueError, "overflow"),
    ],
)
def test_bad_input_is_refused(measure, change, error, match):
    arguments = {"q": np.ones((4, 3)), "k": np.ones((4, 3))} | change
    with pytest.raises(error, match=match):
        measure(**arguments)


def test_a_bad_mask_or_rng_is_refused():
    q, k = np.ones((4, 3)), np.ones((5, 3))
    with pytest.raises(ValueError, match="mask has shape"):
        hardness(q, k, np.zeros((5, 4), dtype=bool))
    with pytest.raises(TypeError, match="mask has dtype"):
        hardness(q, k, np.zeros((4, 5)))
    with pytest.raises(TypeError, match="rng"):
        hardness(q, k, rng="seed")


# --- real heads ---------------------------------------------------------------------------------------------------


def test_a_real_head_has_a_sink_that_decides_alpha():
    """Layer 3, head 6 of the sample encoder: alpha is 0.18 n^2, and the column that makes it is the first token."""
    with np.load(Path(hr.__file__).parent / "data" / "minilm_heads.npz") as data:
        at = list(zip(data["layer"], data["head"], strict=True)).index((3, 6))
        h = hardness(data["query"], data["key"], scale=float(data["scale"]), rng=0)
    assert h.alpha.shape == (6,)
    assert h.alpha[at] / 512**2 == pytest.approx(0.18, abs=0.005)
    assert h.heavy_columns[at, 0] == 0
    assert h.alpha_curve[at, 1] < h.alpha[at] / 50


# --- from the sums of one pass over all logits ---------------------------------------------------------------------


def test_perplexity_counts_the_keys_of_a_flat_row():
    k = np.array([[0.0]] * 7 + [[-1e4]] * 5)
    assert hr.hardness(np.ones((3, 1)), k, scale=1.0, rng=0).perplexity == pytest.approx([7, 7, 7])


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_streamed_interval_is_the_dense_one_and_holds_the_norm(monkeypatch, is_causal):
    problem = hr.synthetic.gaussian(300, rng=0)
    dense = hr.hardness(problem.query, problem.key, scale=1.0, is_causal=is_causal, rng=0)
    monkeypatch.setattr(hardness_parameters, "DENSE_ENTRIES", 0)
    streamed = hr.hardness(problem.query, problem.key, scale=1.0, is_causal=is_causal, rng=0)
    assert streamed.op_norm == pytest.approx(dense.op_norm, rel=1e-12)
    assert streamed.op_norm_high == pytest.approx(dense.op_norm_high, rel=1e-9)
    p = hr.attention_probabilities(problem.query, problem.key, scale=1.0, is_causal=is_causal)
    assert streamed.op_norm <= np.linalg.norm(p, 2) * (1 + 1e-12)
    assert streamed.op_norm_high * (1 + 1e-12) >= np.linalg.norm(p, 2)
    assert streamed.op_norm_high <= streamed.op_norm * (1 + TOLERANCE)


def test_without_the_norm_its_fields_are_none():
    heads = np.random.default_rng(0).standard_normal((2, 3, 20, 4))
    h = hr.hardness(*heads, op_norm=False, rng=0)
    assert [h.op_norm, h.op_norm_high, h.stable_rank] == [None] * 3
    assert h.alpha.shape == (3,)


def test_a_plan_masks_each_head_with_its_own_rectangle():
    q, k = np.random.default_rng(0).standard_normal((2, 3, 60, 8))
    plan = hr.make_plan(q, k, block_size=16, sample_size=4, rng=0)
    together = hr.hardness(q, k, plan, rng=1)
    for h, head_plan in enumerate(plan.heads):
        alone = hr.hardness(q[h], k[h], head_plan.rectangles[0].toarray(), rng=1)
        assert together.log_kappa[h] == pytest.approx(alone.log_kappa, rel=1e-13)


def test_a_causal_plan_or_one_for_other_shapes_is_refused():
    q, k = np.random.default_rng(0).standard_normal((2, 60, 8))
    causal = hr.make_plan(q, k, is_causal=True, min_seq_len=16, block_size=8, sample_size=4, rng=0)
    with pytest.raises(ValueError, match="the plan was made for is_causal"):
        hr.hardness(q, k, causal)
    with pytest.raises(ValueError, match="mask has shape"):
        hr.hardness(q, k[:50], hr.sort_lsh(q, k, 8, rng=0))


def test_causal_hardness_measures_the_rectangles_of_the_recursion():
    q, k = np.random.default_rng(0).standard_normal((2, 101, 8))
    parts = hr.causal_hardness(q, k, min_seq_len=30, rng=0)
    assert list(parts) == list(hr.causal_tiling(101, 30)[1])
    for (a, s, c), part in parts.items():
        assert part.alpha == pytest.approx(hr.hardness(q[s:c], k[a:s], rng=0).alpha)
    assert hr.causal_hardness(q, k, min_seq_len=101) == {}


def test_overflow_is_told_by_the_largest_logit():
    h = hr.hardness(np.ones((2, 1)), np.array([[12.0], [0.0]]), scale=1.0, rng=0)
    assert h.overflows == {"float16": True, "bfloat16": False, "float32": False}
