"""The error bound of the conformance suite: it holds, it is not vacuous, and it needs no Hypothesis."""

import numpy as np
import pytest
from hypothesis import given

from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import attention_inputs
from hyperattention_ref.backends.conformance.error_bound import error_bounds, head_terms
from hyperattention_ref.backends.reference import Reference


def heads(seed, shape, dtype):
    return np.random.default_rng(seed).standard_normal((3, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_bound_is_a_bound_and_not_a_vacuous_one(dtype):
    q, k, v = heads(seed=1, shape=(200, 16), dtype=dtype)
    scale = 0.25
    out, lse = Reference().exact_attention(q, k, v, scale=scale, is_causal=False)
    bound_out, bound_lse = error_bounds(head_terms(q, k, scale), v, out, lse, dtype, dtype)
    terms = 200
    u = np.finfo(dtype).eps / 2
    assert np.all(bound_out <= 40 * terms * u * np.abs(v).max())
    assert np.all(bound_lse <= 20 * terms * u)
    rounded = BlockedNumpy().exact_attention(q, k, v, scale=scale, is_causal=False)
    if dtype == np.float32:
        assert (np.abs(rounded[0] - out) / bound_out).max() > 1e-3


def test_error_bound_covers_inputs_turned_by_one_rounding():
    """Inputs rounded anew, the cheapest adversary: the bound must cover what it does to every output."""
    q, k, v = heads(seed=2, shape=(60, 8), dtype=np.float32)
    q *= 20  # logits near 100
    out, lse = Reference().exact_attention(q, k, v, scale=1.0, is_causal=False)
    bound_out, bound_lse = error_bounds(head_terms(q, k, 1.0), v, out, lse, np.float32, np.float32)
    turned = np.nextafter(q, np.inf * np.sign(q), dtype=np.float32)
    out_2, lse_2 = Reference().exact_attention(turned, k, v, scale=1.0, is_causal=False)
    assert np.all(np.abs(out_2 - out) <= bound_out)
    assert np.all(np.abs(lse_2 - lse) <= bound_lse)
    assert (np.abs(lse_2 - lse) / bound_lse).max() > 0.05


@given(attention_inputs(planned=True))
def test_floor_of_a_random_walk_is_below_the_bound(example):
    expected = example.call(Reference())
    full, floor = (example.bounds(expected, {"out": np.float32}, random_walk=one) for one in (False, True))
    for name in expected:
        assert np.all(floor[name] >= 0)
        assert np.all(floor[name] <= full[name])


def test_the_benchmark_finds_the_bounds_without_hypothesis(run_python):
    """Users who measure a backend need not install what tests need."""
    run_python("import sys; sys.modules['hypothesis'] = None; import hyperattention_ref.bench.check")
