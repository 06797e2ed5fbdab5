"""The exact causal leaves of a primitive: that they are causal attention, and that kernels take up their state."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance.strategies import AttentionInputs
from hyperattention_ref.backends.cuda_cpp.leaves import carried_state, leaves_attention, leaves_obstacle
from hyperattention_ref.backends.cuda_cpp.torch_attention import PRIMITIVES
from hyperattention_ref.backends.device_array import LIBRARIES
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.foundation.memory import library_of
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.tiling import causal_tiling

from .emulation.battery import battery, bfloat_bound, judge
from .emulation.device import EmulatedBackend, EmulatedDevice, missing_compiler
from .emulation.torch_on_cpu import (
    CPU_EXPONENTIAL,
    LAYOUTS,
    UNIT,
    OnCpu,
    check_results,
    cpu_slack,
    pretend_gpu,
    tensors,
    torch,
)

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false")
emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


# --- Leaves ----------------------------------------------------------------------------------------------------------


def check_leaves(primitive, q, k, v, leaves, scale, *, slack=0.0) -> None:
    """`leaves_attention` against float64, leaf by leaf."""
    out, lse = leaves_attention(primitive, q, k, v, leaves, scale=scale)
    assert out.is_contiguous()
    assert lse.is_contiguous()
    for a, c in leaves:
        part = [x[..., a:c, :] for x in (q, k, v)]
        check_results(out[..., a:c, :], lse[..., a:c], *part, scale, True, slack=slack)


@given(
    st.sampled_from(((), (3,), (2, 3))),
    st.sampled_from(((64, 16), (64, 64), (50, 12), (33, 8), (7, 1), (1, 1))),
    st.sampled_from(("float32", "bfloat16")),
    st.sampled_from(LAYOUTS),
)
def test_leaves_are_causal_attention_of_slices(lead, sizes, dtype, layout):
    leaves, _ = causal_tiling(*sizes)
    q, k, v = tensors(lead, sizes[0], sizes[0], 8, dtype, layout)
    assert leaves_obstacle(OnCpu(), q, k, v, leaves) is None or (lead, layout) == ((2, 3), "keys of one head")
    if leaves_obstacle(OnCpu(), q, k, v, leaves) is None:
        check_leaves(OnCpu(), q, k, v, leaves, 0.3, slack=cpu_slack(q))


@pytest.mark.parametrize(
    ("lead", "n", "layout", "n_calls"),
    [
        ((), 64, "contiguous", 1),
        ((2, 3), 64, "contiguous", 1),
        ((2, 3), 64, "grouped", 1),
        ((1, 3), 64, "rows before heads", 1),
        ((2, 3), 64, "rows before heads", 4),
        ((3,), 63, "contiguous", 4),
    ],
)
def test_leaves_of_one_length_take_one_call_where_strides_allow_it(lead, n, layout, n_calls):
    calls = []

    class Counted(OnCpu):
        def run(self, *args, **options):
            calls.append(args)
            return super().run(*args, **options)

    check_leaves(Counted(), *tensors(lead, n, n, 8, layout=layout), causal_tiling(n, 16)[0], 1.0)
    assert len(calls) == n_calls


def test_a_leaf_with_an_obstacle_is_named(monkeypatch):
    primitive = pretend_gpu(monkeypatch, "cudnn")
    q, k, v = tensors((2,), 3, 3, 16, "bfloat16")
    reason = leaves_obstacle(primitive, q, k, v, causal_tiling(3, 1)[0])
    assert reason == "of the leaf [2, 3): there is one key; cuDNN needs two: use another primitive"


# --- The state that kernels take up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_state_of_finished_queries_finishes_as_them(dtype):
    q, k, v = tensors((2, 3), 20, 20, 8, dtype)
    out, lse = OnCpu()(q, k, v, scale=1.0, is_causal=True)
    state = carried_state(out, lse)
    assert (state.dtype, state.shape) == (torch.float32, (120, 10))
    assert state.is_contiguous()
    sums, top, total = state[:, :8], state[:, 8], state[:, 9]
    assert torch.equal((sums / total[:, None]).to(out.dtype), out.reshape(120, 8))
    found = (top.double() + total.double().log2()) * math.log(2)  # what `finish` computes
    assert torch.all((found - lse.double().ravel()).abs() <= 3 * UNIT["float32"] * lse.double().ravel().abs())


class TorchDevice(EmulatedDevice):
    """The emulated device, with tensors of torch as its arrays."""

    def view(self, name, x):
        return super().view(name, LIBRARIES["torch"].view(x) if isinstance(x, torch.Tensor) else x)

    def empty(self, shape, dtype, like=None):
        if like is None or library_of(like.owner) != "torch":
            return super().empty(shape, dtype)
        kind = getattr(torch, dtype)
        return self.view("a new array", torch.full(shape, math.nan if kind.is_floating_point else -1, dtype=kind))


def with_primitive(storage):
    """The emulated backend whose leaves come from the CPU's operator."""
    return EmulatedBackend("tensor" if storage == "bfloat16" else "portable", TorchDevice("backwards"), OnCpu())


def causal_examples() -> list[AttentionInputs]:
    """Heads of two rectangles deep, of one rectangle, and of a leaf only."""
    one = battery()[3]
    half = Rectangle(75, 75, exact_keys=np.arange(5), query_start=75)
    shallow = Plan((2,), (HeadPlan(150, 150, (half,), ((0, 75), (75, 150))),) * 2)
    alone = Plan((2,), (HeadPlan(150, 150, (), ((0, 150),)),) * 2)
    return [AttentionInputs(one.query, one.key, 2 * one.key, one.scale, True, x) for x in (one.plan, shallow, alone)]


@emulated
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_rectangles_take_up_the_leaves_of_a_primitive(storage):
    for one in causal_examples():
        backend = with_primitive(storage)
        q, k, v = (torch.from_numpy(x.copy()).to(getattr(torch, storage)) for x in one.arrays.values())
        out, lse = replace(one, query=q, key=k, value=v).call(backend).values()
        assert out.dtype == q.dtype
        rectangles = {r for head in one.plan.heads for r in head.rectangles}
        assert bool(backend.device.launched) == bool(rectangles)  # no kernel of ours for leaves
        judge_with_rounded_leaves(one, {"out": out.float().numpy(), "lse": lse.numpy()}, storage)


@emulated
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n", [64, 75])
def test_everyday_attention_uses_the_primitive(n, is_causal):
    host = np.random.default_rng(0).standard_normal((3, 2, n, 16)).astype(np.float32)
    tensors, backend = [torch.from_numpy(x) for x in host], with_primitive("float32")
    options = {"is_causal": is_causal, "return_lse": True}
    decisions = {"block_size": 8, "sample_size": 8, "min_seq_len": 16, "rng": 0}
    exact = hr.exact_attention(*tensors, backend=backend, **options)
    assert "attend" not in backend.device.launched
    drawn = hr.hyper_attention(*tensors, backend=backend, **options, **decisions)
    plan = hr.make_plan(*tensors[:2], is_causal=is_causal, backend=backend, **decisions)
    planned = hr.hyper_attention(*tensors, backend=backend, plan=plan, **options)
    for x, y in zip(drawn, planned, strict=True):
        assert torch.equal(x, y)
    expected = hr.exact_attention(*host, **options), hr.hyper_attention(*host, **options, **decisions)
    for pair, numbers in zip((exact, drawn), expected, strict=True):
        for x, y in zip(pair, numbers, strict=True):
            np.testing.assert_allclose(x.numpy(), y, atol=5e-6)


@emulated
def test_what_the_primitive_cannot_take_is_refused():
    backend = with_primitive("float32")
    q, k, v = np.random.default_rng(0).standard_normal((3, 20, 16)).astype(np.float32)
    arrays = [backend.memory.from_host(x) for x in (q, k, v)]
    with pytest.raises(TypeError, match=r"primitive 'cpu' takes torch tensors, and an array is a .*: pass torch\."):
        hr.exact_attention(*arrays, backend=backend)
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    with pytest.raises(ValueError, match="primitive 'cpu' cannot run: scale is -1"):
        hr.exact_attention(*tensors, scale=-1.0, backend=backend)
    halves = HeadPlan(20, 20, (Rectangle(10, 10, query_start=10),), ((0, 10), (10, 20)))
    heads = [HeadPlan(20, 20, (), ((0, 20),)), halves]
    pairs = [x.expand(2, -1, -1) for x in tensors]
    with pytest.raises(ValueError, match="primitive 'cpu' needs one set of leaves for all heads"):
        hr.hyper_attention(*pairs, plan=Plan((2,), heads), is_causal=True, backend=backend)


def judge_with_rounded_leaves(one, results, storage) -> None:
    """`judge` with what `carried_state` adds: u times the leaf's part of sum of p |v|, and the CPU's exponential."""
    exact = one.call(Reference())
    if storage == "float32":
        judge(one, results, storage)
        return
    bounds = one.bounds(exact, {"out": np.float32, "lse": np.float32})
    leaf_share = leaf_part(one, exact["lse"])
    bounds["out"] += bfloat_bound(one, exact) + (1.1 * UNIT["bfloat16"] + 2 * CPU_EXPONENTIAL) * leaf_share
    bounds["lse"] += CPU_EXPONENTIAL
    for name, x in results.items():
        assert np.all(np.abs(x - exact[name]) <= bounds[name]), name


def leaf_part(one, lse) -> np.ndarray:
    """Sum of p |v| over the leaf of each query, p being shares of the whole denominator."""
    result = np.zeros((*lse.shape, one.value.shape[-1]))
    for a, c in one.plan.heads[0].leaves:
        q, k, v = (x[:, a:c].astype(np.float64) for x in one.arrays.values())
        within, total = Reference().exact_attention(q, k, np.abs(v), scale=one.scale, is_causal=True)
        result[:, a:c] = np.exp(total - lse[:, a:c])[..., None] * within
    return result


# --- On a GPU --------------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize(("n", "layout"), [(4096, "contiguous"), (4096, "grouped"), (1000, "rows before heads")])
def test_on_a_gpu_leaves_are_causal_attention_of_slices(name, n, layout):
    arrays = tensors((2, 2), n, n, 64, "bfloat16", layout, device="cuda")
    leaves, _ = causal_tiling(n, 512)
    if reason := leaves_obstacle(PRIMITIVES[name], *arrays, leaves):
        pytest.skip(reason)  # what the primitive says that it cannot take on this device, such as a width
    check_leaves(PRIMITIVES[name], *arrays, leaves, 0.125)
