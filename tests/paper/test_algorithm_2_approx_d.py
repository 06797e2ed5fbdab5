"""Algorithm 2: ApproxD, replayed line by line, at its limits, and at the accuracy it must reach."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import logsumexp

import hyperattention_ref as hr
from hyperattention_ref import approx_d, synthetic

sizes = st.integers(1, 25)


def problem(n_q, n_k, d=4, seed=0, top=None):
    g = np.random.default_rng(seed)
    q, k = g.standard_normal((n_q, d)), g.standard_normal((n_k, d))
    return (q, k) if top is None else (q * top / np.abs(q @ k.T).max(), k)


def random_mask(n_q, n_k, share, seed=0):
    return np.random.default_rng(seed + 1).random((n_q, n_k)) < share


def as_rectangle(mask):
    """The same mask as a Rectangle: columns marked in all rows are exact keys, each row has a view of its own."""
    n_q, n_k = mask.shape
    everywhere = mask.all(axis=0)
    views = []
    for i, row in enumerate(mask & ~everywhere):  # three blocks: row i and its keys, other rows alone, other keys alone
        offsets = [0, 1, n_q, n_q], [0, row.sum(), row.sum(), n_k]
        views.append(
            hr.BlockMask(np.argsort(np.arange(n_q) != i, kind="stable"), np.argsort(~row), *map(np.array, offsets))
        )
    return hr.Rectangle(n_q, n_k, tuple(views), exact_keys=np.flatnonzero(everywhere))


def fields_equal(first, second):
    return all(np.array_equal(x, y) for x, y in zip(vars(first).values(), vars(second).values(), strict=True))


# --- the lines of the algorithm ------------------------------------------------------------------------------------


def replay(q, k, mask, result):
    """Lines 2, 4 and 5 with plain exponentials, from the T and ℓ that the result recorded."""
    n_q, n_k = mask.shape
    a = np.exp(result.scale * q @ k.T) / np.exp(result.log_pilot)[:, None]
    covered = mask.all(axis=1)
    tau = max((float(a[i, ~mask[i]].sum()) for i in result.subset), default=0.0)
    floor = tau / result.kappa
    factor = result.cap_constant * result.epsilon**2 * result.m / (n_k * math.log(max(n_q, n_k, 2)))
    d, caps, capped, floored = np.empty(n_q), np.empty(n_q), np.zeros(2, int), np.zeros(2, int)
    slack = 1 + 1e-9 * np.array([1, -1])  # ties within rounding may be counted or not
    for i in range(n_q):
        h = a[i, mask[i]].sum()
        caps[i] = factor * (h + floor) if math.isfinite(factor) else math.inf
        estimate = 0.0
        for j in result.samples:
            if not mask[i, j]:
                estimate += n_k / result.m * min(a[i, j], caps[i])
                capped += a[i, j] > caps[i] * slack
        floored += estimate * slack < floor if not covered[i] else 0
        d[i] = h if covered[i] else h + max(estimate, floor)
    return {"d": d * np.exp(result.log_pilot), "tau": tau, "caps": caps, "floor": floor, "counts": (capped, floored)}


@given(
    n_q=sizes,
    n_k=sizes,
    m=st.integers(1, 60),
    kappa=st.sampled_from([1.0, 2.0, 30.0]),
    epsilon=st.sampled_from([0.1, 0.5, 2.0]),
    gamma=st.sampled_from([1.0, 1 / 2048, 50.0, math.inf]),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    scale=st.sampled_from([1.0, 0.5, -1.0]),
    rescale=st.booleans(),
    dense=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_line_can_be_replayed_from_what_the_result_records(
    n_q, n_k, m, kappa, epsilon, gamma, share, scale, rescale, dense, seed
):
    q, k = problem(n_q, n_k, seed=seed)
    mask = random_mask(n_q, n_k, share, seed)
    result = approx_d(
        q,
        k,
        mask if dense else as_rectangle(mask),
        kappa=kappa,
        epsilon=epsilon,
        m=m,
        scale=scale,
        cap_constant=gamma,
        rescale_rows=rescale,
        pilot_size=7,
        rng=seed,
    )
    again = replay(q, k, mask, result)
    np.testing.assert_allclose(result.d, again["d"], rtol=1e-11)
    np.testing.assert_allclose(np.exp(result.log_d), result.d)
    np.testing.assert_allclose(result.tau, again["tau"], rtol=1e-11)
    np.testing.assert_allclose(np.exp(result.log_caps), again["caps"], rtol=1e-11)
    np.testing.assert_allclose(np.exp(result.log_floor), again["floor"], rtol=1e-11)
    for count, (least, most) in zip((result.n_capped, result.n_floored), again["counts"], strict=True):
        assert least <= count <= most
    assert result.subset.size == min(m, np.sum(~mask.all(axis=1)))  # line 1
    assert np.unique(result.subset).size == result.subset.size
    assert not mask.all(axis=1)[result.subset].any()
    assert result.samples.shape == (m,)  # line 3
    assert np.all((result.samples >= 0) & (result.samples < n_k))


def test_arguments_and_preconditions_are_recorded():
    q, k = problem(6, 8)
    result = approx_d(q, k, None, kappa=3, epsilon=0.5, m=9, alpha=2, scale=0.25, cap_constant=math.inf, rng=0)
    assert (result.kappa, result.epsilon, result.m, result.alpha) == (3.0, 0.5, 9, 2.0)
    assert (result.scale, result.cap_constant) == (0.25, math.inf)
    assert result.meets_epsilon is True  # 0.5 > 1/81
    assert result.meets_alpha is True  # 2 > 0.75
    other = approx_d(q, k, None, kappa=1, epsilon=0.5, m=9, alpha=0.2, rng=0)
    assert (other.meets_epsilon, other.meets_alpha) == (False, False)  # recorded, not refused
    assert approx_d(q, k, None, kappa=1, epsilon=0.5, m=9, rng=0).meets_alpha is None


def test_alpha_is_recorded_only():
    q, k = problem(6, 8)
    first, second = (approx_d(q, k, None, kappa=2, epsilon=0.5, m=9, alpha=a, rng=0) for a in (None, 7.0))
    np.testing.assert_array_equal(first.log_d, second.log_d)


def test_result_is_a_frozen_record_that_json_can_hold():
    q, k = problem(3, 4)
    result = approx_d(q, k, None, kappa=1, epsilon=0.5, m=5, cap_constant=math.inf, rng=0)
    record = json.loads(json.dumps(result.to_dict()))
    assert record["samples"] == result.samples.tolist()
    assert record["cap_constant"] == "inf"
    assert "ApproxDResult(" in repr(result)
    with pytest.raises(AttributeError):
        result.m = 3


# --- masks ------------------------------------------------------------------------------------------------------------


def test_all_kinds_of_masks_agree():
    q, k = problem(20, 14)
    block = hr.sort_lsh(q, k, 4, rng=0)
    dense = block.toarray()
    rectangle = hr.Rectangle(20, 14, (block,), sampled_keys=[0, 3, 3], log_weights=np.zeros(3))
    kinds = [dense, block, rectangle, sparse.csr_array(dense), sparse.coo_matrix(dense)]
    kinds.append(sparse.csc_array(dense.astype(float)))
    results = [approx_d(q, k, kind, kappa=5, epsilon=0.5, m=9, rng=3) for kind in kinds]
    assert all(fields_equal(results[0], other) for other in results[1:])
    empty = [approx_d(q, k, kind, kappa=5, epsilon=0.5, m=9, rng=3) for kind in (None, np.zeros((20, 14), bool))]
    assert fields_equal(*empty)
    assert not np.array_equal(results[0].log_d, empty[0].log_d)


@given(n_q=sizes, n_k=sizes, seed=st.integers(0, 99), top=st.sampled_from([1.0, 80.0, 500.0]), rescale=st.booleans())
def test_a_row_that_the_mask_covers_is_exact_and_not_drawn(n_q, n_k, seed, top, rescale):
    q, k = problem(n_q, n_k, seed=seed, top=top)
    mask = random_mask(n_q, n_k, 0.4, seed)
    covered = np.random.default_rng(seed).random(n_q) < 0.5
    mask[covered] = True
    result = approx_d(q, k, mask, kappa=2, epsilon=0.5, m=n_q, rescale_rows=rescale, rng=seed)
    exact = logsumexp(q @ k.T, axis=1)
    np.testing.assert_allclose(result.log_d[covered], exact[covered], rtol=1e-13, atol=1e-13)
    assert not set(np.flatnonzero(covered)) & set(result.subset.tolist())
    if covered.all():
        assert result.log_tau == -math.inf
        assert result.tau == 0
        assert (result.n_capped, result.n_floored) == (0, 0)


@given(n_q=sizes, n_k=sizes, seed=st.integers(0, 99), top=st.sampled_from([1.0, 80.0, 500.0]))
def test_the_floor_is_a_valid_lower_bound_and_masked_mass_is_never_lost(n_q, n_k, seed, top):
    q, k = problem(n_q, n_k, seed=seed, top=top)
    mask = random_mask(n_q, n_k, 0.3, seed)
    log_a = q @ k.T
    log_h = logsumexp(np.where(mask, log_a, -np.inf), axis=1)
    log_r = logsumexp(np.where(mask, -np.inf, log_a), axis=1)
    met = np.isfinite(log_r)
    log_kappa = float(np.ptp(log_r[met])) if met.any() else 0.0
    if log_kappa > 700:
        return  # kappa itself is no float
    kappa = math.exp(log_kappa)
    result = approx_d(q, k, mask, kappa=max(1.0, kappa), epsilon=0.5, m=5, rng=seed)
    slack = 1e-12 * (1 + np.abs(log_a).max())
    assert np.all(result.log_d >= log_h - slack)
    assert np.all(result.log_floor <= log_r[met] + slack)


# --- random draws -----------------------------------------------------------------------------------------------------


@given(n_q=sizes, n_k=sizes, m=st.integers(1, 30), seed=st.integers(0, 99))
def test_row_rescaling_draws_from_a_stream_of_its_own(n_q, n_k, m, seed):
    q, k = problem(n_q, n_k, seed=seed)
    plain, rescaled = (
        approx_d(q, k, None, kappa=2, epsilon=0.5, m=m, rescale_rows=on, rng=seed) for on in (False, True)
    )
    np.testing.assert_array_equal(plain.subset, rescaled.subset)
    np.testing.assert_array_equal(plain.samples, rescaled.samples)
    assert np.all(plain.log_pilot == 0)


def test_the_number_of_pilot_keys_changes_no_other_draw():
    q, k = problem(30, 40)
    few, many = (
        approx_d(q, k, None, kappa=2, epsilon=0.5, m=9, rescale_rows=True, pilot_size=p, rng=0) for p in (3, 300)
    )
    np.testing.assert_array_equal(few.samples, many.samples)
    np.testing.assert_array_equal(few.subset, many.subset)
    assert not np.array_equal(few.log_pilot, many.log_pilot)


def test_the_pilot_estimates_the_unmasked_row_sums():
    q, k = problem(30, 1)  # every pilot key is the one key there is
    result = approx_d(q, k, None, kappa=2, epsilon=0.5, m=9, rescale_rows=True, pilot_size=7, rng=0)
    np.testing.assert_allclose(result.log_pilot, (q @ k.T)[:, 0], rtol=1e-13, atol=1e-13)
    q, k = problem(30, 2)
    mask = np.tile([True, False], (30, 1))
    mask[:9] = True  # rows of which the pilot sees nothing get the median of the others
    result = approx_d(q, k, mask, kappa=2, epsilon=0.5, m=9, rescale_rows=True, pilot_size=500, rng=0)
    seen = result.log_pilot[9:] - (q @ k.T)[9:, 1]
    np.testing.assert_allclose(seen, seen[0], atol=1e-13)
    assert abs(np.expm1(seen[0])) < 6 / np.sqrt(500)  # half of the draws, give or take
    np.testing.assert_allclose(result.log_pilot[:9], np.median(result.log_pilot[9:]), rtol=1e-13)


def test_seeds_reproduce_differ_and_advance_a_generator():
    q, k = problem(30, 40)

    def run(rng):
        return approx_d(q, k, None, kappa=2, epsilon=0.5, m=9, rescale_rows=True, rng=rng)

    assert fields_equal(run(1), run(1))
    assert fields_equal(run(1), run(np.random.default_rng(1)))
    assert not np.array_equal(run(1).samples, run(2).samples)
    g = np.random.default_rng(1)
    first, second = run(g), run(g)
    assert not np.array_equal(first.samples, second.samples)
    assert not np.array_equal(first.log_pilot, second.log_pilot)
    assert not np.array_equal(run(None).samples, run(None).samples)


def test_a_seed_gives_the_same_result_in_another_process(run_python, tmp_path):
    code = (
        "import numpy as np, hyperattention_ref as hr;"
        "q, k = np.random.default_rng(0).standard_normal((2, 30, 4));"
        "mask = hr.sort_lsh(q, k, 5, rng=1);"
        "r = hr.approx_d(q, k, mask, kappa=9, epsilon=0.5, m=20, rescale_rows=True, rng=7);"
        "print(r.log_d.tobytes().hex(), r.subset.tolist(), r.samples.tolist())"
    )
    outputs = {run_python(code, cwd=tmp_path).stdout for _ in range(2)}
    q, k = np.random.default_rng(0).standard_normal((2, 30, 4))
    r = approx_d(q, k, hr.sort_lsh(q, k, 5, rng=1), kappa=9, epsilon=0.5, m=20, rescale_rows=True, rng=7)
    assert outputs == {f"{r.log_d.tobytes().hex()} {r.subset.tolist()} {r.samples.tolist()}\n"}


def test_samples_are_uniform_with_replacement_and_independent_of_the_subset():
    q, k = problem(50, 7)
    samples = approx_d(q, k, None, kappa=2, epsilon=0.5, m=21000, rng=0).samples
    counts = np.bincount(samples, minlength=7)
    assert np.all(np.abs(counts - 3000) < 6 * math.sqrt(21000 * 6 / 49))
    subsets = np.stack([approx_d(q, k, None, kappa=2, epsilon=0.5, m=5, rng=seed).subset for seed in range(400)])
    rows = np.bincount(subsets.ravel(), minlength=50)
    assert np.all(np.abs(rows - 40) < 6 * math.sqrt(400 * 0.1 * 0.9))


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("n_q", "n_k", "m"), [(1, 1, 1), (1, 9, 3), (9, 1, 3), (5, 6, 1000), (6, 5, 1)])
def test_any_lengths_and_more_samples_than_keys(n_q, n_k, m, rescale):
    q, k = problem(n_q, n_k)
    result = approx_d(q, k, None, kappa=10, epsilon=0.5, m=m, rescale_rows=rescale, rng=0)
    assert result.log_d.shape == (n_q,)
    assert np.all(np.isfinite(result.log_d))
    if n_k == 1 and m >= n_q:  # τ is then the one row sum of the largest row, and every draw is the one key
        uncapped = approx_d(q, k, None, kappa=1e9, epsilon=0.5, m=m, cap_constant=math.inf, rng=0)
        np.testing.assert_allclose(uncapped.log_d, (q @ k.T)[:, 0], rtol=1e-12, atol=1e-12)


def test_an_infinite_cap_constant_caps_nothing():
    q, k = problem(20, 30, top=500.0)
    result = approx_d(q, k, None, kappa=1, epsilon=1e-3, m=50, cap_constant=math.inf, rng=0)
    assert result.n_capped == 0
    assert np.all(result.log_caps == math.inf)
    capped = approx_d(q, k, None, kappa=1, epsilon=1e-3, m=50, cap_constant=1.0, rng=0)
    assert capped.n_capped > 0
    assert np.all(np.isfinite(capped.log_caps))


def test_a_larger_kappa_lowers_the_floor_by_its_logarithm():
    q, k = problem(20, 30)
    first, second = (approx_d(q, k, None, kappa=kappa, epsilon=0.5, m=9, rng=0) for kappa in (1.0, 1e300))
    assert first.log_floor == first.log_tau == second.log_tau
    assert second.log_floor == pytest.approx(second.log_tau - 300 * math.log(10))
    assert second.n_floored <= first.n_floored


@pytest.mark.parametrize("top", [80.0, 500.0, 5000.0])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_huge_logits_are_handled_in_the_log_domain(top, rescale, share):
    q, k = problem(30, 40, top=top)
    mask = random_mask(30, 40, share)
    result = approx_d(q, k, mask, kappa=3, epsilon=0.5, m=2000, cap_constant=math.inf, rescale_rows=rescale, rng=0)
    exact = logsumexp(q @ k.T, axis=1)
    assert np.all(np.isfinite(result.log_d))
    # all keys are drawn about 50 times, so an estimate is off by a factor of 2 at most; the floor lifts small rows
    assert np.all(result.log_d >= exact - math.log(2))


def test_equal_rows_and_zero_vectors():
    q, k = np.zeros((5, 3)), np.ones((7, 3))
    result = approx_d(q, k, None, kappa=1, epsilon=0.5, m=40, cap_constant=math.inf, rng=0)
    np.testing.assert_allclose(result.d, 7, rtol=1e-14)
    assert result.n_floored in (0, 5)  # estimate and floor are the same number, up to rounding


def test_exact_when_every_entry_is_equal_whatever_m():
    q = np.ones((6, 2))
    for m in (1, 3, 100):
        result = approx_d(q, q, None, kappa=1, epsilon=0.5, m=m, cap_constant=math.inf, scale=0.5, rng=0)
        np.testing.assert_allclose(result.d, 6 * math.e, rtol=1e-13)


def test_shifting_all_logits_of_a_row_shifts_its_log_d_when_rows_are_rescaled_by_the_truth():
    """Equivariance: with a pilot, scaling rows of A scales D̃ up to the change of τ, here none as kappa = 1 is ample."""
    g = np.random.default_rng(0)
    k = np.c_[g.standard_normal((40, 3)), np.ones(40)]
    q = np.c_[g.standard_normal((30, 3)), np.zeros(30)]
    shifted = q.copy()
    shifted[:, 3] = g.uniform(-300, 300, 30)
    first, second = (
        approx_d(x, k, None, kappa=2, epsilon=0.5, m=20, rescale_rows=True, pilot_size=20, rng=0) for x in (q, shifted)
    )
    np.testing.assert_allclose(second.log_d - first.log_d, shifted[:, 3], rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", ["reversed", "fortran", "strided", "float32", "float16"])
def test_layout_and_narrow_dtypes_do_not_matter(layout):
    q, k = problem(12, 15)
    if layout in ("float32", "float16"):
        q, k = q.astype(layout), k.astype(layout)
    same = {
        "reversed": q[::-1].copy()[::-1],
        "fortran": np.asfortranarray(q),
        "strided": np.repeat(q, 2, axis=0)[::2],
    }.get(layout, q)
    plain = approx_d(q.astype(np.float64), k.astype(np.float64), None, kappa=2, epsilon=0.5, m=9, rng=0)
    other = approx_d(same, k, None, kappa=2, epsilon=0.5, m=9, rng=0)
    np.testing.assert_allclose(other.log_d, plain.log_d, rtol=1e-13, atol=1e-13)


def test_inputs_are_left_alone():
    q, k = problem(12, 15)
    mask = random_mask(12, 15, 0.5)
    for x in (q, k, mask):
        x.setflags(write=False)
    before = [x.tobytes() for x in (q, k, mask)]
    approx_d(q, k, mask, kappa=2, epsilon=0.5, m=9, rescale_rows=True, rng=0)
    assert before == [x.tobytes() for x in (q, k, mask)]


# --- accuracy ---------------------------------------------------------------------------------------------------------


def exact_d(problem):
    log_a = problem.scale * problem.query @ problem.key.T
    log_d = logsumexp(log_a, axis=1)
    return log_d, np.exp(log_a - log_d[:, None])


def relative_error(p, log_d, result):
    """‖(D̃⁻¹ - D⁻¹)A‖_op / ‖D⁻¹A‖_op."""
    return hr.operator_norm(np.expm1(log_d - result.log_d)[:, None] * p) / hr.operator_norm(p)


def run(problem, log_kappa, **arguments):
    defaults = {"kappa": math.exp(log_kappa), "epsilon": 0.5, "m": 256, "scale": problem.scale}
    return approx_d(problem.query, problem.key, None, **(defaults | arguments))


def test_inequality_6_holds_on_gaussian_inputs_at_m_256():
    errors = []
    for seed in range(5):
        gaussian = synthetic.gaussian(1024, rng=seed)
        log_d, p = exact_d(gaussian)
        errors.append(relative_error(p, log_d, run(gaussian, np.ptp(log_d), rng=100 + seed)))
    assert max(errors) <= 0.25  # ε/2
    assert min(errors) > 0.01  # and it is an estimate


def test_row_rescaling_brings_the_error_from_above_1_to_below_012():
    gaussian = synthetic.gaussian(1024, rng=0)
    for seed in range(3):
        scaled = synthetic.scale_rows(gaussian, np.random.default_rng(seed).uniform(0, 5, 1024))
        log_d, p = exact_d(scaled)
        plain = run(scaled, np.ptp(log_d), rng=seed)
        assert relative_error(p, log_d, plain) > 1
        pilot = run(scaled, 0.0, rescale_rows=True, pilot_size=128, rng=seed).log_pilot
        log_kappa = np.ptp(log_d - pilot)
        assert log_kappa < 1.5
        rescaled = run(scaled, log_kappa, rescale_rows=True, pilot_size=128, rng=seed)
        assert relative_error(p, log_d, rescaled) <= 0.12


def mean_error(gaussian, log_d, p, **arguments):
    """The mean relative error of five runs."""
    runs = (run(gaussian, np.ptp(log_d), rng=seed, **arguments) for seed in range(5))
    return np.mean([relative_error(p, log_d, result) for result in runs])


@pytest.mark.parametrize(("gamma", "least"), [(1.0, 256), (math.inf, 64)], ids=["cap constant 1", "no cap"])
def test_error_falls_like_one_over_the_root_of_m(gamma, least):
    gaussian = synthetic.gaussian(1024, rng=0)
    log_d, p = exact_d(gaussian)
    sizes = least * 2 ** np.arange(5)
    errors = [mean_error(gaussian, log_d, p, m=int(m), cap_constant=gamma) for m in sizes]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 <= slope <= -0.4


def test_below_m_256_the_bias_of_the_cap_is_visible():
    gaussian = synthetic.gaussian(1024, rng=0)
    log_d, p = exact_d(gaussian)

    with_cap, without = (mean_error(gaussian, log_d, p, m=64, cap_constant=gamma) for gamma in (1.0, math.inf))
    assert with_cap > 1.2 * without


def test_estimate_is_unbiased_without_cap_and_floor():
    """Exact enumeration: the mean of d over single draws is D."""
    q, k = problem(5, 6)
    seen = {}
    for seed in range(200):
        result = approx_d(q, k, None, kappa=1e300, epsilon=0.5, m=1, cap_constant=math.inf, rng=seed)
        seen[int(result.samples[0])] = result.d
    assert sorted(seen) == list(range(6))
    means = np.mean([seen[j] for j in range(6)], axis=0)
    np.testing.assert_allclose(means, np.exp(q @ k.T).sum(axis=1), rtol=1e-12)
