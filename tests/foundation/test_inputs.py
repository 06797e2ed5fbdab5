"""The door's limits, to the last bit, and that what it lets in is computed without overflow."""

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.foundation import inputs

LARGEST = {dtype: float(np.finfo(dtype).max) for dtype in (np.float32, np.float64)}
BACKENDS = ("reference", "numpy", "numba")


def full(shape, x, dtype):
    return np.full(shape, x, dtype)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("scale", [1.0, 0.25, 4.0, -4.0])
def test_logits_may_reach_a_quarter_of_the_largest_number(dtype, scale):
    """d max|q| max|k| max(1, |scale|)."""
    edge = LARGEST[dtype] / 4 / 2 / max(1.0, abs(scale))
    k = full((3, 2), 1, dtype)
    inputs.logit_range(full((5, 2), -edge, dtype), k, scale)
    with pytest.raises(ValueError, match="logits may overflow"):
        inputs.logit_range(full((5, 2), np.nextafter(dtype(edge), dtype(np.inf)), dtype), k, scale)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("draws", [0, 4])
def test_sums_of_values_may_reach_a_sixteenth_of_the_largest_number(dtype, draws):
    """max|v| (n_k + draws); the rest is left to the rounding of weights and to differences of outputs."""
    edge = dtype(LARGEST[dtype] / 16 / (4 + draws))
    q, k = np.zeros((2, 4, 1), dtype)
    inputs.logit_range(q, k, 1.0, full((4, 3), -edge, dtype), draws)
    with pytest.raises(ValueError, match="sums of values may overflow"):
        inputs.logit_range(q, k, 1.0, full((4, 3), np.nextafter(edge, dtype(np.inf)), dtype), draws)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_largest_values_that_are_let_in_are_averaged_without_overflow(dtype, backend):
    edge = dtype(LARGEST[dtype] / 16 / 8)
    q, k = np.zeros((2, 4, 1), dtype)
    plan = hr.Plan.from_views([], shape=(4, 4), sampled_keys=[0, 0, 1, 3], log_weights=np.zeros(4))
    for sign in (1, -1):
        v = full((4, 3), sign * edge, dtype)
        np.testing.assert_allclose(hr.hyper_attention(q, k, v, plan=plan, backend=backend), v, rtol=1e-6)
