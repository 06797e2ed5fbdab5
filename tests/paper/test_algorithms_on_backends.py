"""Algorithms 2, 3 and 4 on the backend "numpy" against the literal `reference`: same draws and figures, less memory."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import logsumexp

import hyperattention_ref as hr
from hyperattention_ref.backends import get_backend
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance.error_bound import error_bounds, head_terms
from hyperattention_ref.paper.row_sums import covered_rows, large_entries

ARGUMENTS = {"kappa": math.pi, "epsilon": 0.5, "m": 9}  # an irrational kappa: no estimate ties with the floor
MASKS = ("none", "block", "rectangle", "dense", "sparse", "everything")


def rounding(q, k, scale=1.0):
    """How far a log d̃_i of two backends may be apart.

    Derived: every sum over some pairs of a row has a logarithm that is wrong by β, the conformance bound of the sum
    over all of them, plus 3u|L| for its own logarithm L. log, max, min and logaddexp amplify no error. log d̃_i adds a
    pilot (β) to sums (β) from which a pilot was subtracted (β) after they were capped by H_i, τ and a pilot (3β): 6β,
    and the rounding of at most 16 additions of logarithms.
    """
    u, nothing = np.finfo(np.float64).eps / 2, np.zeros((len(k), 1))
    out, lse = get_backend("reference").exact_attention(q, k, nothing, scale=scale, is_causal=False)
    _, beta = error_bounds(head_terms(q, k, scale), nothing, out, lse, np.float64, np.float64)
    largest = np.abs(scale * q @ k.T).max() + np.log(len(k))
    return 6 * (beta.max() + 3 * u * largest) + 16 * u * (largest + 50)  # 50: no other logarithm here is larger


@st.composite
def heads(draw, is_square=False):
    """Query, key and value (n, 4), Gaussian, with zero vectors, or all equal; the largest logit is 1, 80 or 500."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    n_q = draw(st.integers(1, 40))
    n_k = n_q if is_square else draw(st.integers(1, 40))
    q, k, v = (rng.standard_normal((n, 4)) for n in (n_q, n_k, n_k))
    kind = draw(st.sampled_from(["gaussian", "gaussian", "zero vectors", "equal rows"]))
    if kind == "zero vectors":
        q[::2], k[::3] = 0, 0
    if kind == "equal rows":
        q[:], k[:] = q[0], k[0]
    top = np.abs(q @ k.T).max()
    return (q * draw(st.sampled_from([1.0, 80.0, 500.0])) / top if top else q), k, v


def make_mask(kind, n_q, n_k, seed=0):
    rng = np.random.default_rng(seed)
    block = hr.BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), 5)
    views = (block, hr.BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), 3))
    sampled = rng.integers(n_k, size=4)
    dense = rng.random((n_q, n_k)) < 0.4
    dense[rng.random(n_q) < 0.3] = True  # rows that are covered
    return {
        "none": None,
        "block": block,
        "rectangle": hr.Rectangle(n_q, n_k, views, rng.choice(n_k, n_k // 4, replace=False), sampled, np.zeros(4)),
        "dense": dense,
        "sparse": sparse.csr_array(dense),
        "everything": hr.Rectangle(n_q, n_k, (block,), exact_keys=np.arange(n_k)),
    }[kind]


def assert_same_diagonal(result, literal, tolerance):
    np.testing.assert_array_equal(result.subset, literal.subset)
    np.testing.assert_array_equal(result.samples, literal.samples)
    assert (result.n_capped, result.n_floored) == (literal.n_capped, literal.n_floored)
    for name in ("log_d", "log_caps", "log_pilot", "log_tau", "log_floor"):
        np.testing.assert_allclose(getattr(result, name), getattr(literal, name), rtol=0, atol=tolerance, err_msg=name)


def assert_same_estimate(result, literal, log_a, v, tolerance):
    """Each term A_ij w² V_j / d̃_i has the relative error of d̃_i and that of a term: at most twice the tolerance."""
    with np.errstate(under="ignore"):
        x = np.exp(log_a - literal.diagonal.log_d[:, None])
    size = hr.sampled_product(x, np.abs(v), literal.sample) if v.any() else np.zeros(literal.estimate.shape)
    np.testing.assert_array_equal(result.sample.indices, literal.sample.indices)
    assert np.all(np.abs(result.estimate - literal.estimate) <= np.expm1(2 * tolerance) * size)


@pytest.mark.parametrize("kind", MASKS)
@given(
    qkv=heads(),
    rescale=st.booleans(),
    gamma=st.sampled_from([1.0, np.inf]),
    scale=st.sampled_from([1.0, -0.5]),
    seed=st.integers(0, 99),
)
def test_algorithm_3_and_its_diagonal_are_those_of_the_reference(kind, qkv, rescale, gamma, scale, seed):
    q, k, v = qkv
    mask = make_mask(kind, len(q), len(k), seed)
    run = {"scale": scale, "rescale_rows": rescale, "cap_constant": gamma, "rng": seed, **ARGUMENTS}
    result, literal = (hr.literal_hyper_attention(q, k, v, mask, backend=name, **run) for name in ("numpy", None))
    tolerance = rounding(q, k, scale)
    assert_same_diagonal(result.diagonal, literal.diagonal, tolerance)
    assert_same_estimate(result, literal, scale * q @ k.T, v, tolerance)


@given(
    qkv=heads(is_square=True),
    least=st.integers(1, 10),
    block_size=st.sampled_from([None, 3]),
    rescale=st.booleans(),
    seed=st.integers(0, 99),
)
def test_causal_algorithms_are_those_of_the_reference(qkv, least, block_size, rescale, seed):
    q, k, v = qkv
    run = {"min_seq_len": least, "block_size": block_size, "rescale_rows": rescale, "rng": seed, **ARGUMENTS}
    result, literal = (hr.causal_literal_hyper_attention(q, k, v, backend=name, **run) for name in ("numpy", None))
    tolerance = rounding(q, k)
    for part, other in zip(result.diagonal.parts, literal.diagonal.parts, strict=True):
        assert_same_diagonal(part, other, tolerance)
    np.testing.assert_allclose(result.diagonal.log_d, literal.diagonal.log_d, rtol=0, atol=2 * tolerance)
    log_a = np.where(np.tri(len(q), dtype=bool), q @ k.T, -np.inf)
    assert_same_estimate(result, literal, log_a, v, 2 * tolerance)


def test_none_is_the_reference_and_a_backend_is_obeyed_everywhere():
    q, k, v = np.random.default_rng(0).standard_normal((3, 30, 4))
    spy, asked = BlockedNumpy(), set()
    operations = {"planned_attention", "attention_sums", "capped_sums"}

    def recording(name, operation):
        return lambda *args, **kwargs: (asked.add(name), operation(*args, **kwargs))[1]

    for name in operations:
        setattr(spy, name, recording(name, getattr(spy, name)))
    calls = {
        hr.approx_d: ((q, k, None), "log_d"),
        hr.literal_hyper_attention: ((q, k, v, None), "estimate"),
        hr.causal_approx_d: ((q, k), "log_d"),
        hr.causal_literal_hyper_attention: ((q, k, v), "estimate"),
    }
    for function, (arrays, field) in calls.items():
        run = {"rescale_rows": True, "rng": 0, **ARGUMENTS}
        if "causal" in function.__name__:
            run["min_seq_len"] = 5
        asked.clear()
        spied, named, given_none = (function(*arrays, backend=b, **run) for b in (spy, "reference", None))
        np.testing.assert_array_equal(getattr(named, field), getattr(given_none, field))
        np.testing.assert_allclose(getattr(spied, field), getattr(named, field), rtol=1e-10)
        assert asked == operations
        with pytest.raises(ValueError, match="backend 'nobody' is unknown"):
            function(*arrays, backend="nobody", **run)
        with pytest.raises(TypeError, match="it must be None, a name or an object"):
            function(*arrays, backend=BlockedNumpy, **run)


@given(n_q=st.integers(1, 12), n_k=st.integers(1, 12), seed=st.integers(0, 999))
def test_covered_rows_are_those_that_the_views_together_mark(n_q, n_k, seed):
    rng = np.random.default_rng(seed)
    orders = ((rng.permutation(n_q), rng.permutation(n_k)) for _ in range(rng.integers(4)))
    views = tuple(hr.BlockMask.from_orders(*order, int(rng.integers(1, n_k + 1))) for order in orders)
    rectangle = hr.Rectangle(n_q, n_k, views, exact_keys=np.flatnonzero(rng.random(n_k) < 0.4))
    np.testing.assert_array_equal(covered_rows(rectangle), rectangle.toarray().all(axis=1))
    np.testing.assert_array_equal(covered_rows(rectangle.toarray()), rectangle.toarray().all(axis=1))


def test_the_place_and_the_sampled_keys_of_a_rectangle_play_no_part():
    rectangle = make_mask("rectangle", 8, 9)
    moved = hr.Rectangle(8, 9, rectangle.views, rectangle.exact_keys, query_start=9, key_start=0)
    for mask in (rectangle, moved):
        taken = large_entries(mask, 8, 9)
        np.testing.assert_array_equal(taken.toarray(), rectangle.toarray())
        assert (taken.sampled_keys.size, taken.query_start, taken.key_start) == (0, 0, 0)


def test_a_rectangle_of_the_wrong_shape_is_refused():
    q, k = np.ones((6, 2)), np.ones((7, 2))
    with pytest.raises(ValueError, match=r"mask has shape \(7, 6\); it must be \(n_q, n_k\) = \(6, 7\)"):
        hr.approx_d(q, k, hr.Rectangle(7, 6), **ARGUMENTS)


N = 20_000


@pytest.fixture(scope="module")
def long_head():
    q, k, v = np.random.default_rng(0).standard_normal((3, N, 8))
    return q, k, v, hr.sort_lsh(q, k, 64, rng=0)


def peak_memory(run):
    """(result, the most bytes allocated at one time while it was computed)."""
    tracemalloc.start()
    try:
        return run(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_20000_tokens_take_less_than_one_bit_for_each_pair(long_head):
    q, k, v, mask = long_head
    run = {"kappa": 1e6, "epsilon": 0.5, "m": 64, "rescale_rows": True, "rng": 0, "backend": "numpy"}
    result, peak = peak_memory(lambda: hr.literal_hyper_attention(q, k, v, mask, **run))
    assert peak < N * N / 8
    diagonal = result.diagonal
    for i in (0, 777, N - 1):  # line 4, from what the result records
        log_a = q[i] @ k.T - diagonal.log_pilot[i]
        marked = mask.rows([i])[0]
        drawn = np.where(marked, -np.inf, log_a)[diagonal.samples]
        log_estimate = np.log(N / 64) + logsumexp(np.minimum(drawn, diagonal.log_caps[i]))
        log_d = np.logaddexp(logsumexp(log_a[marked]), max(log_estimate, diagonal.log_floor))
        assert diagonal.log_d[i] == pytest.approx(log_d + diagonal.log_pilot[i], abs=1e-12)
        weights = np.exp(q[i] @ k[result.sample.indices].T - diagonal.log_d[i]) * result.sample.weights**2
        np.testing.assert_allclose(result.estimate[i], weights @ v[result.sample.indices], rtol=1e-11, atol=1e-13)
    log_r = [logsumexp((q[i] @ k.T - diagonal.log_pilot[i])[~mask.rows([i])[0]]) for i in diagonal.subset]
    assert diagonal.log_tau == pytest.approx(max(log_r), abs=1e-12)


@pytest.mark.slow
def test_20000_causal_tokens_take_less_than_one_bit_for_each_pair(long_head):
    q, k, v, _ = long_head
    run = {"kappa": 1e6, "epsilon": 0.5, "m": 64, "block_size": 64, "min_seq_len": 256, "rng": 0, "backend": "numpy"}
    result, peak = peak_memory(lambda: hr.causal_literal_hyper_attention(q, k, v, **run))
    assert peak < N * N / 8
    for i in (0, 777, N - 1):
        met = result.sample.indices <= i
        seen = result.sample.indices[met]
        weights = np.exp(q[i] @ k[seen].T - result.diagonal.log_d[i]) * result.sample.weights[met] ** 2
        np.testing.assert_allclose(result.estimate[i], weights @ v[seen], rtol=1e-11, atol=1e-13)
