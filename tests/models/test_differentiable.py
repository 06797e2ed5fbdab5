"""Autograd goes through HyperAttention: PyTorch's own differences for every plan, PyTorch's attention where exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import plans
from hyperattention_ref.foundation.backend import GRADIENTS
from hyperattention_ref.models.differentiable import differentiable_attention

OPTIONS = {"recipe": hr.Recipe(block_size=8, sample_size=4), "min_seq_len": 16, "rng": 5}
EVERYTHING = {"recipe": hr.Recipe(views=("local",), block_size=48, sample_size=0), "min_seq_len": 16}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")


def heads(torch, n=48, dtype="float32"):
    draw = torch.Generator().manual_seed(n)
    shapes = ((2, 4, n, 8), (2, 2, n, 8), (2, 2, n, 5))
    return [torch.randn(shape, generator=draw).to(getattr(torch, dtype)).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("name", ["reference", "numpy", "numba"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_gradient_is_that_of_differences_for_every_plan(torch, name, data):
    """gradcheck compares the whole Jacobian, of output and log-sum-exp, with central differences in float64."""
    is_causal, n_q = data.draw(st.booleans()), data.draw(st.integers(1, 8))
    n_k = n_q if is_causal else data.draw(st.integers(1, 8))
    shape = data.draw(st.sampled_from([(), (2,)]))
    sizes = {"shape": shape, "n_q": n_q, "n_k": n_k, "is_causal": is_causal}
    plan = data.draw(st.one_of(st.none(), plans(**sizes, landmarks_d=data.draw(st.sampled_from([None, 2])))))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    arrays = [
        torch.randn((*shape, n, 2), generator=draw, dtype=torch.float64).requires_grad_() for n in (n_q, n_k, n_k)
    ]

    def attend(*arrays):
        out, lse = differentiable_attention(*arrays, plan, is_causal=is_causal, backend=name)
        return out, lse[torch.isfinite(lse)]

    tolerance = 1e-3 if plan is not None and plan.landmarks else 1e-6  # landmarks are steep: their ridge is 1e-3
    assert torch.autograd.gradcheck(attend, arrays, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_exact_gradients_are_those_of_pytorchs_attention(torch, dtype, is_causal):
    common = {"is_causal": is_causal, "enable_gqa": True, "scale": 0.4}
    gradients = []
    for attend, more in ((hr.scaled_dot_hyper_attention, EVERYTHING), (sdpa(torch), {})):
        arrays = heads(torch, dtype=dtype)
        out = attend(*arrays, **common, **more)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape))
        gradients.append([x.grad for x in arrays])
    tolerance = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 6e-2}[dtype]
    for x, y in zip(*gradients, strict=True):
        assert x.dtype == y.dtype
        assert (x - y).abs().max() < tolerance


def sdpa(torch):
    return torch.nn.functional.scaled_dot_product_attention


def test_the_output_does_not_depend_on_whether_a_gradient_is_wanted(torch):
    arrays = heads(torch)
    found = hr.scaled_dot_hyper_attention(*arrays, enable_gqa=True, **OPTIONS)
    with torch.no_grad():
        assert torch.equal(found, hr.scaled_dot_hyper_attention(*arrays, enable_gqa=True, **OPTIONS))


def test_merges_outside_a_call_are_differentiable(torch):
    """Attention to all keys is the merge of attention to two halves, gradients included."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(9, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
    whole = torch.autograd.grad(sdpa(torch)(q, k, v).square().sum(), (q, k, v))
    (out_1, lse_1), (out_2, lse_2) = (differentiable_attention(q, k[part], v[part], None) for part in HALVES)
    weight = torch.sigmoid(lse_1 - lse_2)[:, None]
    merged = torch.autograd.grad((weight * out_1 + (1 - weight) * out_2).square().sum(), (q, k, v))
    for x, y in zip(whole, merged, strict=True):
        torch.testing.assert_close(x, y)


HALVES = slice(0, 4), slice(4, 9)


def test_what_autograd_cannot_have_is_refused_by_name(torch):
    arrays = heads(torch)
    out = hr.scaled_dot_hyper_attention(*arrays, enable_gqa=True, **OPTIONS).sum()
    with pytest.raises(NotImplementedError, match="a second derivative is asked for"):
        torch.autograd.grad(out, arrays, create_graph=True)
    forward = type("Forward", (BlockedNumpy,), {"name": "forward", "lacks": frozenset({GRADIENTS})})()
    with pytest.raises(ValueError, match=r"'forward' does not compute gradients.*or detach the tensors"):
        differentiable_attention(*arrays, None, enable_gqa=True, backend=forward)
    changed = heads(torch)
    out = hr.scaled_dot_hyper_attention(*changed, enable_gqa=True, **OPTIONS).sum()
    with torch.no_grad():
        changed[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_what_is_kept_for_the_backward_pass_is_linear_in_n(torch):
    sizes = []
    for n in (256, 512):
        arrays, kept = heads(torch, n), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            hr.scaled_dot_hyper_attention(*arrays, enable_gqa=True, **OPTIONS)
        sizes.append(np.sum(kept))
    assert sizes[1] == 2 * sizes[0]
