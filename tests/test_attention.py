"""Everyday attention: exact_attention and hyper_attention."""

import hashlib
import math
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import BlockMask, Plan, exact_attention, hyper_attention, make_plan
from hyperattention_ref.backends import blocked_numpy
from hyperattention_ref.backends.conformance import attention_inputs

sizes = st.integers(1, 40)
DTYPES = (np.float16, np.float32, np.float64)


def problem(n_q, n_k, d=4, d_v=3, lead=(), seed=0, dtype=np.float64, top=None):
    g = np.random.default_rng(seed)
    q, k, v = (g.standard_normal((*lead, *shape)) for shape in ((n_q, d), (n_k, d), (n_k, d_v)))
    if top is not None:
        q = q * top / np.abs(q @ k.swapaxes(-1, -2)).max()
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)


def softmax_attention(q, k, v, scale, is_causal=False):
    """(out, lse) in extended precision."""
    q, k, v = (x.astype(np.longdouble) for x in (q, k, v))
    x = scale * (q[..., :, None, :] * k[..., None, :, :]).sum(axis=-1)
    if is_causal:
        x = np.where(np.tri(x.shape[-1], dtype=bool), x, -np.inf)
    top = x.max(axis=-1, keepdims=True)
    a = np.exp(x - top)
    total = a.sum(axis=-1, keepdims=True)
    return a @ v / total, (top + np.log(total))[..., 0]


def close(x, y, dtype=np.float64, factor=1.0):
    """Within a few hundred roundings of the working type, for logits of order 1, and one of the output type."""
    eps = np.finfo(np.promote_types(dtype, np.float32)).eps
    np.testing.assert_allclose(
        np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=np.finfo(dtype).eps, atol=factor * 300 * eps
    )


# --- exact attention ------------------------------------------------------------------------------


@given(
    n_q=sizes,
    n_k=sizes,
    lead=st.sampled_from([(), (2,), (2, 3)]),
    scale=st.sampled_from([None, 1.0, -0.5, 0.0]),
    backend=st.sampled_from(["reference", "numpy"]),
    seed=st.integers(0, 99),
)
def test_exact_attention_is_softmax_attention(n_q, n_k, lead, scale, backend, seed):
    q, k, v = problem(n_q, n_k, lead=lead, seed=seed)
    out, lse = exact_attention(q, k, v, scale=scale, backend=backend, return_lse=True)
    want = softmax_attention(q, k, v, 0.5 if scale is None else scale)
    close(out, want[0])
    close(lse, want[1])
    np.testing.assert_array_equal(exact_attention(q, k, v, scale=scale, backend=backend), out)


@given(n=sizes, backend=st.sampled_from(["reference", "numpy"]), seed=st.integers(0, 99))
def test_exact_causal_attention_sees_the_diagonal_and_no_future(n, backend, seed):
    q, k, v = problem(n, n, seed=seed)
    out, lse = exact_attention(q, k, v, is_causal=True, backend=backend, return_lse=True)
    want = softmax_attention(q, k, v, 0.5, is_causal=True)
    close(out, want[0])
    close(lse, want[1])
    np.testing.assert_allclose(out[0], v[0], rtol=1e-15)  # the first row sees itself only


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1025])
def test_causal_tiles_end_at_the_diagonal_for_any_length(n):
    q, k, v = problem(n, n, d=2, d_v=1)
    out = [exact_attention(q, k, v, is_causal=True, backend=name) for name in ("reference", "numpy")]
    close(*out)


def test_scale_none_is_one_over_the_root_of_d():
    q, k, v = problem(5, 6, d=9)
    np.testing.assert_array_equal(exact_attention(q, k, v), exact_attention(q, k, v, scale=1 / 3))


# --- dtypes and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_outputs_have_the_shape_and_dtype_of_the_inputs(dtype, is_causal, lead):
    q, k, v = problem(7, 7, lead=lead, dtype=dtype)
    working = np.promote_types(dtype, np.float32)
    options = {"block_size": 2, "sample_size": 3, "min_seq_len": 2, "rng": 0}
    for call, extra in ((exact_attention, {}), (hyper_attention, options)):
        out, lse = call(q, k, v, is_causal=is_causal, return_lse=True, **extra)
        assert (out.shape, out.dtype) == ((*lead, 7, 3), dtype)
        assert (lse.shape, lse.dtype) == ((*lead, 7), working)
        out, lse = call(q, k, v, is_causal=is_causal, return_lse=True, backend="reference", **extra)
        assert out.dtype == lse.dtype == np.float64  # never rounded back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n_q", "n_k", "b", "m"), [(1, 1, 1, 1), (1, 9, 4, 2), (9, 1, 4, 2), (5, 7, 100, 3), (7, 5, 2, 100), (13, 11, 3, 5)]
)
def test_any_lengths_block_sizes_and_sample_sizes(n_q, n_k, b, m, dtype):
    q, k, v = problem(n_q, n_k, dtype=dtype)
    plan = make_plan(q, k, block_size=b, sample_size=m, rng=0)
    out, lse = hyper_attention(q, k, v, plan=plan, return_lse=True)
    want = hyper_attention(q, k, v, plan=plan, backend="reference", return_lse=True)
    close(out, want[0], dtype)
    close(lse, want[1], dtype)
    assert np.all(np.isfinite(out))


@given(attention_inputs(planned=True))
def test_backends_agree_on_every_plan_through_the_public_function(example):
    """The tolerance is derived in the conformance suite; here it comes with the example."""
    q, k, v, plan = example.query, example.key, example.value, example.plan
    plan = Plan(q.shape[:-2], plan.heads)
    run = {"is_causal": example.is_causal, "scale": example.scale, "plan": plan, "return_lse": True}
    out, lse = hyper_attention(q, k, v, backend="numpy", **run)
    want_out, want_lse = hyper_attention(q, k, v, backend="reference", **run)
    bound_out, bound_lse = example.bounds({"out": want_out, "lse": want_lse}, {"out": out.dtype}).values()
    met = np.isfinite(want_lse)
    np.testing.assert_array_equal(np.isneginf(lse), ~met)
    assert not np.any(~(np.abs(out - want_out) <= bound_out))
    assert not np.any(~(np.abs(lse[met] - want_lse[met]) <= bound_lse[met]))


# --- grouped-query heads --------------------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_grouped_query_heads_are_repeated_key_heads(is_causal, lead, backend):
    g = np.random.default_rng(0)
    q = g.standard_normal((*lead, 6, 11, 4))
    k, v = g.standard_normal((*lead, 3, 11, 4)), g.standard_normal((*lead, 3, 11, 2))
    repeated = [np.repeat(x, 2, axis=-3) for x in (k, v)]
    options = {"is_causal": is_causal, "return_lse": True, "backend": backend}
    planned = {"block_size": 3, "sample_size": 4, "min_seq_len": 3, "rng": 5}
    for call, extra in ((exact_attention, {}), (hyper_attention, planned)):
        shared = call(q, k, v, enable_gqa=True, **options, **extra)
        apart = call(q, *repeated, **options, **extra)
        for x, y in zip(shared, apart, strict=True):
            np.testing.assert_array_equal(x, y)
    plan = make_plan(q, k, enable_gqa=True, is_causal=is_causal, block_size=3, sample_size=4, min_seq_len=3, rng=5)
    np.testing.assert_array_equal(
        hyper_attention(q, k, v, enable_gqa=True, plan=plan, **options)[0],
        hyper_attention(q, k, v, enable_gqa=True, **options, **planned)[0],
    )


# --- when it is exact -----------------------------------------------------------------------------


@given(n_q=sizes, n_k=sizes, extra=st.integers(0, 9), m=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_block_that_holds_every_key_is_exact_attention(n_q, n_k, extra, m, seed):
    q, k, v = problem(n_q, n_k, seed=seed)
    out, lse = hyper_attention(q, k, v, block_size=n_k + extra, sample_size=m, rng=seed, return_lse=True)
    want_out, want_lse = exact_attention(q, k, v, return_lse=True)
    close(out, want_out)
    close(lse, want_lse)


@given(n=sizes, extra=st.integers(0, 9), seed=st.integers(0, 99))
def test_causal_attention_up_to_min_seq_len_is_exact(n, extra, seed):
    q, k, v = problem(n, n, seed=seed)
    out, lse = hyper_attention(q, k, v, is_causal=True, min_seq_len=n + extra, rng=seed, return_lse=True)
    want_out, want_lse = exact_attention(q, k, v, is_causal=True, return_lse=True)
    np.testing.assert_array_equal(out, want_out)
    np.testing.assert_array_equal(lse, want_lse)


@pytest.mark.parametrize("n", [2, 7, 33])
def test_causal_attention_with_covering_blocks_is_exact(n):
    q, k, v = problem(n, n)
    out = hyper_attention(q, k, v, is_causal=True, min_seq_len=1, block_size=n, sample_size=2, rng=0)
    close(out, exact_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_whose_sampled_keys_all_lie_in_its_block_is_block_attention(backend, dtype):
    """L_s = -inf for the first queries: they must come out as if nothing had been sampled, bit for bit."""
    q, k, v = problem(6, 8, dtype=dtype)
    view = BlockMask(np.arange(6), np.arange(8), [0, 3, 6], [0, 4, 8])
    plan = Plan.from_views([view], sampled_keys=[1, 3, 3], log_weights=np.full(3, math.log(8 / 3)))
    blocks_only = Plan.from_views([view])
    out, lse = hyper_attention(q, k, v, plan=plan, backend=backend, return_lse=True)
    want_out, want_lse = hyper_attention(q, k, v, plan=blocks_only, backend=backend, return_lse=True)
    np.testing.assert_array_equal(out[:3], want_out[:3])
    np.testing.assert_array_equal(lse[:3], want_lse[:3])
    assert np.all(out[3:] != want_out[3:])
    close(out[:3], exact_attention(q[:3], k[:4], v[:4]), dtype)


def test_many_samples_come_close_to_exact_attention():
    q, k, v = problem(50, 60)
    exact = exact_attention(q, k, v)

    def error(m):
        runs = [hyper_attention(q, k, v, block_size=8, sample_size=m, rng=seed) for seed in range(20)]
        return np.abs(np.array(runs) - exact).mean()

    assert error(100) / error(10000) == pytest.approx(10, rel=0.3)


# --- heads, repetition, seeds ---------------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("lead", [(3,), (2, 2)])
def test_a_batch_is_a_loop_over_its_heads(is_causal, backend, lead):
    q, k, v = problem(15, 15, lead=lead)
    plan = make_plan(q, k, is_causal=is_causal, block_size=3, sample_size=4, min_seq_len=4, rng=0)
    options = {"is_causal": is_causal, "backend": backend, "return_lse": True}
    planned, exact = hyper_attention(q, k, v, plan=plan, **options), exact_attention(q, k, v, **options)
    for h, i in enumerate(np.ndindex(lead)):
        one_planned = hyper_attention(q[i], k[i], v[i], plan=Plan((), (plan.heads[h],)), **options)
        one_exact = exact_attention(q[i], k[i], v[i], **options)
        for whole, one in ((planned, one_planned), (exact, one_exact)):
            np.testing.assert_array_equal(whole[0][i], one[0])
            np.testing.assert_array_equal(whole[1][i], one[1])


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_plan_gives_the_same_bits(is_causal, dtype):
    q, k, v = problem(70, 70, lead=(2,), dtype=dtype)
    options = {"is_causal": is_causal, "block_size": 8, "sample_size": 9, "min_seq_len": 10}
    plan = make_plan(q, k, rng=0, **options)
    first, again = (hyper_attention(q, k, v, is_causal=is_causal, plan=plan, return_lse=True) for _ in range(2))
    seeded = hyper_attention(q, k, v, rng=0, return_lse=True, **options)
    for x, y, z in zip(first, again, seeded, strict=True):
        assert x.tobytes() == y.tobytes() == z.tobytes()
    other = hyper_attention(q, k, v, rng=1, **options)
    assert np.any(other != first[0])


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_seed_gives_the_same_bits_in_another_process(run_python, is_causal, tmp_path):
    code = (
        "import hashlib, numpy as np, hyperattention_ref as hr;"
        "q, k, v = np.random.default_rng(0).standard_normal((3, 2, 60, 4)).astype('f4');"
        f"out = hr.hyper_attention(q, k, v, is_causal={is_causal}, block_size=7, sample_size=9, min_seq_len=8, rng=3);"
        "print(hashlib.sha256(out.tobytes()).hexdigest())"
    )
    done = run_python(code, cwd=tmp_path)
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 60, 4)).astype("f4")
    options = {"is_causal": is_causal, "block_size": 7, "sample_size": 9, "min_seq_len": 8}
    here = hyper_attention(q, k, v, rng=3, **options)
    assert done.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


# --- difficult inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("top", [80.0, 500.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_huge_logits_neither_warn_nor_overflow(top, dtype, is_causal, backend):
    q, k, v = problem(30, 30, dtype=dtype, top=top)
    options = {"scale": 1.0, "is_causal": is_causal, "backend": backend, "return_lse": True}
    planned = {"block_size": 4, "sample_size": 6, "min_seq_len": 4, "rng": 0}
    for out, lse in (exact_attention(q, k, v, **options), hyper_attention(q, k, v, **options, **planned)):
        assert np.all(np.isfinite(out))
        assert np.all(np.isfinite(lse))
        assert np.abs(out).max() <= np.abs(v.astype(np.float64)).max() * (1 + 1e-3)


@pytest.mark.parametrize("kind", ["zero queries", "zero keys", "zero values", "equal keys", "equal queries"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_zero_vectors_and_ties(kind, is_causal):
    q, k, v = problem(20, 20)
    side, what = {"queries": q, "keys": k, "values": v}[kind.split()[1]], kind.split()[0]
    side[...] = 0 if what == "zero" else side[:1]
    options = {"is_causal": is_causal, "block_size": 4, "sample_size": 6, "min_seq_len": 4}
    plan = make_plan(q, k, rng=0, **options)
    out = [hyper_attention(q, k, v, is_causal=is_causal, plan=plan, backend=name) for name in ("reference", "numpy")]
    close(*out)
    if kind == "zero values":
        assert not out[0].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_queries_near_the_largest_number_are_hashed_without_overflow(dtype):
    q, k, _ = problem(12, 12, dtype=dtype)
    huge = q * (np.finfo(dtype).max / np.abs(q).max())
    plan, want = (make_plan(x, k, block_size=3, sample_size=3, rng=0) for x in (huge, q))
    np.testing.assert_array_equal(*(x.heads[0].rectangles[0].toarray() for x in (plan, want)))


@pytest.mark.parametrize("kind", ["fortran", "strided", "reversed", "read-only", "stride 0", "transposed heads"])
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_memory_layout_does_not_matter_and_inputs_are_left_alone(kind, backend):
    q, k, v = problem(13, 13, lead=(2, 3))
    turn = {
        "fortran": np.asfortranarray,
        "strided": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
        "reversed": lambda x: x[..., ::-1, :].copy()[..., ::-1, :],
        "read-only": lambda x: x.copy(),
        "stride 0": lambda x: np.broadcast_to(x[:1], x.shape),
        "transposed heads": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    }[kind]
    turned = [turn(x) for x in (q, k, v)]
    plain = [np.ascontiguousarray(x) for x in turned]
    for x in turned if kind == "read-only" else ():
        x.setflags(write=False)
    before = [x.tobytes() for x in turned]
    plan = make_plan(*plain[:2], block_size=3, sample_size=4, rng=0)
    close(*(hyper_attention(*x, plan=plan, backend=backend) for x in (turned, plain)))
    close(*(exact_attention(*x, backend=backend) for x in (turned, plain)))
    assert before == [x.tobytes() for x in turned]


def test_lists_of_numbers_are_arrays():
    q, k, v = problem(3, 4)
    np.testing.assert_array_equal(exact_attention(q.tolist(), k.tolist(), v.tolist()), exact_attention(q, k, v))
    options = {"block_size": 2, "sample_size": 2, "rng": 0}
    np.testing.assert_array_equal(
        hyper_attention(q.tolist(), k.tolist(), v.tolist(), **options), hyper_attention(q, k, v, **options)
    )


# --- cost -----------------------------------------------------------------------------------------


def logits_evaluated(n, is_causal, monkeypatch):
    """How many logits the NumPy backend computes for b = m = 16, counted, not timed."""
    counted = []
    fold = blocked_numpy.RunningSoftmax.fold

    def counting(self, rows, logits, v):
        counted.append(logits.size)
        fold(self, rows, logits, v)

    monkeypatch.setattr(blocked_numpy.RunningSoftmax, "fold", counting)
    q, k, v = problem(n, n, d=2, d_v=1, dtype=np.float32)
    sizes = {"block_size": 16, "sample_size": 16, "min_seq_len": 16}
    hyper_attention(q, k, v, is_causal=is_causal, **sizes, rng=0, backend="numpy")
    monkeypatch.undo()
    return sum(counted)


def test_work_grows_linearly_with_n(monkeypatch):
    for n in (256, 1024, 4096):
        assert logits_evaluated(n, False, monkeypatch) == n * (16 + 16)


def test_causal_work_grows_like_n_log_n(monkeypatch):
    for n in (256, 1024, 4096):
        levels = math.log2(n / 16)
        assert logits_evaluated(n, True, monkeypatch) <= n * 16 + levels * n / 2 * (16 + 16)


PEAK_PER_TOKEN = 9 * 64 * 4
"""Bytes: three times what out, its sums and a scaled copy of q take, for orders, offsets, states and copies."""


def peak_of(n, d=64):
    """Peak bytes that NumPy and Python allocate during one call, above the inputs."""
    q, k, v = problem(n, n, d=d, d_v=d, dtype=np.float32)
    tracemalloc.start()
    try:
        hyper_attention(q, k, v, block_size=256, sample_size=256, rng=0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_linearly_with_n():
    """A matrix n x n of float32 would take 64 MB at n = 4096 and 256 MB at n = 8192."""
    small, large = peak_of(4096), peak_of(8192)
    assert large <= 2 * small
    assert large <= 8192 * PEAK_PER_TOKEN + 16 * 2**20


@pytest.mark.slow
def test_memory_at_32768_tokens_stays_below_200_mb(run_python, tmp_path):
    """Peak resident size above import, inputs included."""
    code = (
        "import resource, numpy as np, hyperattention_ref as hr\n"
        "hr.hyper_attention(*np.zeros((3, 8, 64), 'f4'), rng=0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "q, k, v = np.random.default_rng(0).standard_normal((3, 32768, 64), dtype='f4')\n"
        "hr.hyper_attention(q, k, v, block_size=256, sample_size=256, rng=0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = run_python(code, cwd=tmp_path)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 200 * 10**6
    assert peak_of(32768) < 200 * 10**6


def test_sums_over_very_many_draws_of_large_values_are_refused_at_the_door():
    q, k, v = (np.ones((4, 2), np.float32) for _ in range(3))
    plan = Plan.from_views([], shape=(4, 4), sampled_keys=[0] * 4000, log_weights=np.zeros(4000))
    with pytest.raises(ValueError, match="sums of values may overflow float32"):
        hyper_attention(q, k, v * np.float32(5e36), plan=plan)
