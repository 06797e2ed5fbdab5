"""The gradient of every backend that has one, against differences of its own attention in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattention_ref.backends import get_backend
from hyperattention_ref.backends.conformance import plans

NAMES = ["reference", "numpy", "numba"]


@st.composite
def problems(draw):
    """(rng, q, k, v, plan, scale, is_causal): one head, exact attention where plan is None."""
    rng, d = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), 3
    is_causal, n_q = draw(st.booleans()), draw(st.integers(1, 20))
    n_k = n_q if is_causal else draw(st.integers(1, 20))
    plan = None
    if draw(st.integers(0, 4)):
        landmarks_d = draw(st.sampled_from((None, d)))
        plan = draw(plans(shape=(), n_q=n_q, n_k=n_k, is_causal=is_causal, landmarks_d=landmarks_d))
    q, k, v = (rng.standard_normal(shape) for shape in ((n_q, d), (n_k, d), (n_k, 2)))
    return rng, q, k, v, plan, draw(st.sampled_from((0.6, 1.0, -0.5))), is_causal


def attend(backend, q, k, v, plan, scale, is_causal):
    if plan is None:
        return backend.exact_attention(q, k, v, scale=scale, is_causal=is_causal)
    return backend.planned_attention(q, k, v, plan, scale=scale)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(st.data())
def test_the_gradient_is_the_limit_of_differences(name, data):
    """Along a random direction; the extrapolated central difference is wrong by h⁴ and by roundings of ε/h.

    With h = 1e-3 these are 1e-12 and 1e-13 for a function of order 1 with derivatives of order 1; fifth derivatives of
    logits up to 10 are far larger, hence 1e-8. Landmarks are steeper, by their ridge of 1e-3, and rounding of their
    solve is up to 1e3 times as large.
    """
    backend = get_backend(name)
    rng, *arrays, plan, scale, is_causal = data.draw(problems())
    out, lse = attend(backend, *arrays, plan, scale, is_causal)
    dout, dlse = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    found = backend.attention_gradient(*arrays, plan, out, lse, dout, dlse, scale=scale, is_causal=is_causal)
    directions = [rng.standard_normal(x.shape) for x in arrays]

    def difference(h):
        values = []
        for step in (h, -h):
            moved = (x + step * along for x, along in zip(arrays, directions, strict=True))
            out, lse = attend(backend, *moved, plan, scale, is_causal)
            values.append(np.sum(dout * out) + np.sum(dlse * np.where(np.isfinite(lse), lse, 0)))
        return (values[0] - values[1]) / (2 * h)

    h = 1e-4 if plan is not None and plan.landmarks else 1e-3
    expected = (4 * difference(h / 2) - difference(h)) / 3
    products = [x * along for x, along in zip(found, directions, strict=True)]
    size = 1 + sum(np.abs(x).sum() for x in products) + np.abs(dlse * np.where(np.isfinite(lse), lse, 0)).sum()
    tolerance = 1e-6 if plan is not None and plan.landmarks else 1e-8
    assert sum(x.sum() for x in products) == pytest.approx(expected, abs=tolerance * size)


@pytest.mark.parametrize("name", NAMES)
def test_a_query_without_a_key_has_no_gradient(name):
    from hyperattention_ref import Plan

    backend, rng = get_backend(name), np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((4, 3)) for _ in range(4))
    plan = Plan.from_views([], shape=(4, 4))
    out, lse = backend.planned_attention(q, k, v, plan, scale=1.0)
    found = backend.attention_gradient(q, k, v, plan, out, lse, dout, np.ones(4), scale=1.0, is_causal=False)
    assert all(np.array_equal(x, np.zeros((4, 3))) for x in found)


@pytest.mark.parametrize("name", ["numpy", "numba"])
@settings(max_examples=40)
@given(problem=problems())
def test_backends_agree_with_the_reference_in_float64(name, problem):
    """Landmarks, too, which the conformance suite leaves out: rounding there is 1e3 times as large, by their ridge."""
    rng, *arrays, plan, scale, is_causal = problem
    reference = get_backend("reference")
    out, lse = attend(reference, *arrays, plan, scale, is_causal)
    upstream = out, lse, rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    options = {"scale": scale, "is_causal": is_causal}
    expected = reference.attention_gradient(*arrays, plan, *upstream, **options)
    found = get_backend(name).attention_gradient(*arrays, plan, *upstream, **options)
    tolerance = 1e-8 if plan is not None and plan.landmarks else 1e-12
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * (1 + np.abs(y).max()))
