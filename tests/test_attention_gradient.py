"""The public gradient: chain rule, shapes and dtypes, shared key heads, and one clear error for bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import plans
from hyperattention_ref.foundation.backend import GRADIENTS

BACKEND = "numba"


def problem(lead=(), n=24, d=4, d_v=3, dtype=np.float64, shared=1):
    rng = np.random.default_rng(n)
    few = (*lead[:-1], lead[-1] // shared) if lead else ()
    shapes = (*lead, n, d), (*few, n, d), (*few, n, d_v), (*lead, n, d_v)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def plan_of(q, k, **options):
    return hr.make_plan(q, k, block_size=4, sample_size=5, min_seq_len=6, rng=0, **options)


@given(plan=plans(shape=(), n_q=7, n_k=7), seed=st.integers(0, 99))
def test_weights_of_a_query_that_meets_a_key_add_up_to_one(plan, seed):
    """So the gradients of values add up to those of outputs, and a common shift of all keys changes nothing."""
    q, k, v, dout = np.random.default_rng(seed).standard_normal((4, 7, 3))
    out, lse = hr.hyper_attention(q, k, v, plan=plan, is_causal=plan.is_causal, return_lse=True, backend=BACKEND)
    dq, dk, dv = hr.attention_gradient(q, k, v, dout, plan=plan, is_causal=plan.is_causal, backend=BACKEND)
    met = np.isfinite(lse)
    np.testing.assert_allclose(dv.sum(axis=0), dout[met].sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(dk.sum(axis=0), 0, atol=1e-12)
    assert not dq[~met].any()
    assert out.shape == dv.shape


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_gradients_have_the_shapes_and_the_dtype_of_the_inputs(lead, is_causal, dtype):
    arrays = problem(lead, dtype=dtype)
    exact = hr.attention_gradient(*(x.astype(np.float64) for x in arrays), is_causal=is_causal, backend="reference")
    for plan in (None, plan_of(*arrays[:2], is_causal=is_causal)):
        found = hr.attention_gradient(*arrays, plan=plan, is_causal=is_causal, backend=BACKEND)
        assert [x.shape for x in found] == [x.shape for x in arrays[:3]]
        assert {x.dtype for x in found} == {np.dtype(dtype)}
        if plan is None:
            for x, y in zip(found, exact, strict=True):  # float16 is computed in float32 and rounded once
                np.testing.assert_allclose(x, y, rtol=np.finfo(dtype).eps, atol=3e3 * np.finfo(np.float32).eps)
        wide = hr.attention_gradient(*arrays, plan=plan, is_causal=is_causal, backend="reference")
        assert {x.dtype for x in wide} == {np.dtype(np.float64)}


@pytest.mark.parametrize("lead", [(6,), (2, 6)])
def test_query_heads_that_share_a_key_head_add_up(lead):
    q, k, v, dout = problem(lead, shared=3)
    plan = plan_of(q, k, enable_gqa=True)
    found = hr.attention_gradient(q, k, v, dout, plan=plan, enable_gqa=True, backend=BACKEND)
    repeated = [np.repeat(x, 3, axis=-3) for x in (k, v)]
    dq, dk, dv = hr.attention_gradient(q, *repeated, dout, plan=plan, backend=BACKEND)
    groups = (*lead[:-1], 2, 3)
    np.testing.assert_allclose(found[0], dq, atol=1e-12)
    for x, y in zip(found[1:], (dk, dv), strict=True):
        np.testing.assert_allclose(x, y.reshape(*groups, *y.shape[-2:]).sum(axis=-3), atol=1e-12)


def test_bad_upstream_gradients_are_refused():
    q, k, v, dout = problem()
    run = hr.attention_gradient
    with pytest.raises(ValueError, match=r"dout has shape \(24, 4\); it must be that of the output"):
        run(q, k, v, q, backend=BACKEND)
    with pytest.raises(TypeError, match=r"dout is float32 and query is float64: convert it"):
        run(q, k, v, dout.astype(np.float32), backend=BACKEND)
    with pytest.raises(TypeError, match="dout has dtype int64"):
        run(q, k, v, np.ones(dout.shape, int), backend=BACKEND)
    with pytest.raises(ValueError, match="dout has non-finite entries"):
        run(q, k, v, np.where(dout > 1, np.inf, dout), backend=BACKEND)
    with pytest.raises(ValueError, match=r"gradients may overflow float64: max\|dout\| = 1e\+308"):
        run(q, k, v, np.full(dout.shape, 1e308), backend=BACKEND)
    half = [x.astype(np.float16) for x in (q, k, v)]
    with pytest.raises(ValueError, match=r"the gradient of (key|value) reaches .* and overflows float16"):
        run(*half, np.full(dout.shape, 60000, np.float16), backend=BACKEND)
    with pytest.raises(TypeError, match="plan is a dict; it must be a Plan"):
        run(q, k, v, dout, plan={}, backend=BACKEND)
    with pytest.raises(ValueError, match=r"the plan was made for n_q = 24 but the call has 12"):
        run(q[:12], k, v, dout[:12], plan=plan_of(q, k), backend=BACKEND)


def test_a_backend_without_gradients_is_refused_by_name():
    class Forward(BlockedNumpy):
        name, lacks = "forward", frozenset({GRADIENTS})

    with pytest.raises(ValueError, match=r"the backend 'forward' does not compute gradients: pass backend='numba'"):
        hr.attention_gradient(*problem(), backend=Forward())
