"""Exact attention by PyTorch's operators: what they refuse, how they are called, and that they compute it.

No GPU is needed for most of it: `OnCpu` runs the same code through PyTorch's operator for CPUs, and the two operators
for GPUs are replaced by the formula, with the signatures and the result shapes that PyTorch itself declares.
"""

import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance.strategies import AttentionInputs
from hyperattention_ref.backends.cuda_cpp.tables import plan_tables
from hyperattention_ref.backends.cuda_cpp.torch_attention import (
    PRIMITIVES,
    TorchOperator,
    carried_state,
    leaves_attention,
    leaves_obstacle,
)
from hyperattention_ref.backends.device_array import LIBRARIES
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.foundation.memory import library_of
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.tiling import causal_tiling

from .emulation.battery import battery, bfloat_bound, judge
from .emulation.device import EmulatedBackend, EmulatedDevice, missing_compiler

torch = pytest.importorskip("torch", reason="the exact primitives are operators of torch: run `make models`")

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false")
emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LAYOUTS = ("contiguous", "rows before heads", "grouped", "one head", "keys of one head", "one row")
CPU_EXPONENTIAL = 2.0**-12  # relative error of the exponential that PyTorch uses on a CPU for 16-bit types


class OnCpu(TorchOperator):
    """PyTorch's FlashAttention for CPUs."""

    name = "cpu"
    operator = "_scaled_dot_product_flash_attention_for_cpu"
    dtypes = tuple(UNIT)
    multiple = 1

    def device_obstacle(self, device):
        return None if device.type == "cpu" else f"query is on the device {device}"

    def run(self, q, k, v, scale, is_causal):
        return self.function()(q, k, v, dropout_p=0.0, is_causal=is_causal, scale=scale)


# --- Examples --------------------------------------------------------------------------------------------------------


def laid_out(x, layout: str, which: str):
    """The numbers of x in another layout; with stride 0 the first head, or row, repeated."""
    if layout == "rows before heads" and x.ndim > 2:
        return x.movedim(-2, -3).contiguous().movedim(-3, -2)
    if layout == "grouped" and x.ndim > 2 and which != "q":
        return x[..., :1, :, :].clone().expand(x.shape)
    if (layout == "one head" and which != "q") or (layout == "keys of one head" and which == "k"):
        return x[(0,) * (x.ndim - 2)].clone().expand(x.shape)
    if layout == "one row" and which != "q":
        return x[..., :1, :].clone().expand(x.shape)
    return x.contiguous()


def tensors(lead, n_q, n_k, d, dtype="float32", layout="contiguous", seed=0, device="cpu", factor=1.0):
    """q, k, v of Gaussian numbers."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (*lead, n_q, d), "k": (*lead, n_k, d), "v": (*lead, n_k, d)}
    factors = {"q": factor, "k": 1.0, "v": 1.0}
    arrays = {x: torch.from_numpy(factors[x] * rng.standard_normal(shape)) for x, shape in shapes.items()}
    return [laid_out(x.to(device, getattr(torch, dtype)), layout, which) for which, x in arrays.items()]


def exactly(q, k, v, scale, is_causal) -> AttentionInputs:
    """The same example for the reference: float64 tensors in float64, all others in float32, which holds them."""
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    return AttentionInputs(*(x.cpu().to(kind).numpy() for x in (q, k, v)), scale, is_causal)


def check(primitive, q, k, v, scale, is_causal, *, slack=0.0) -> None:
    """What the primitive computes, against float64."""
    out, lse = primitive(q, k, v, scale=scale, is_causal=is_causal)
    assert out.is_contiguous()
    assert lse.is_contiguous()
    check_results(out, lse, q, k, v, scale, is_causal, slack=slack)


def check_results(out, lse, q, k, v, scale, is_causal, *, slack=0.0) -> None:
    """(out, lse) against float64 within gate A, and for 16 bits the rounding of weights and output.

    `slack` is a relative error that exponentials are allowed on top.
    """
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    name, one = str(q.dtype).removeprefix("torch."), exactly(q, k, v, scale, is_causal)
    expected = one.call(Reference())
    working = one.query.dtype
    bounds = one.bounds(expected, {"out": working, "lse": working})
    bounds["lse"] += slack + UNIT["float32"] * np.abs(expected["lse"])
    if UNIT[name] > UNIT["float32"]:
        bounds["out"] += (UNIT[name] / UNIT["bfloat16"] + slack / UNIT["bfloat16"]) * bfloat_bound(one, expected)
    found = {"out": out.cpu().double().numpy(), "lse": lse.cpu().double().numpy()}
    for x, bound in bounds.items():
        assert np.all(np.abs(found[x] - expected[x]) <= bound), (x, np.max(np.abs(found[x] - expected[x]) - bound))


def cpu_slack(q) -> float:
    return CPU_EXPONENTIAL if UNIT[str(q.dtype).removeprefix("torch.")] > UNIT["float32"] else 0.0


# --- The formula, through PyTorch's operator for CPUs -----------------------------------------------------------------


@given(
    st.sampled_from(((), (3,), (2, 3), (2, 1, 3))),
    st.one_of(st.integers(1, 9), st.integers(1, 70)),
    st.one_of(st.none(), st.integers(1, 9), st.integers(1, 70)),
    st.sampled_from((1, 3, 8, 17, 64)),
    st.sampled_from(tuple(UNIT)),
    st.sampled_from(LAYOUTS),
    st.sampled_from((0.1, 1.0)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=120)
def test_the_same_code_on_a_cpu_is_exact_attention(lead, n_q, n_k, d, dtype, layout, scale, seed):
    is_causal = n_k is None
    q, k, v = tensors(lead, n_q, n_q if is_causal else n_k, d, dtype, layout, seed)
    if OnCpu().obstacle(q, k, v, is_causal=is_causal) is None:
        check(OnCpu(), q, k, v, scale, is_causal, slack=cpu_slack(q))
    else:  # the three heads share keys, the two before them do not merge with them: nothing else may be refused
        assert (lead, layout) in {((2, 3), "keys of one head"), ((2, 1, 3), "keys of one head")}


@pytest.mark.parametrize(
    ("lead", "layout", "query", "key"),
    [
        ((), "contiguous", (1, 1), (1, 1)),
        ((3,), "contiguous", (1, 3), (1, 3)),
        ((2, 3), "contiguous", (1, 6), (1, 6)),
        ((2, 3), "rows before heads", (2, 3), (2, 3)),
        ((1, 3), "rows before heads", (1, 3), (1, 3)),
        ((2, 3), "grouped", (1, 6), (1, 2)),
        ((4, 2, 3), "grouped", (1, 24), (1, 8)),
        ((2, 3), "one head", (1, 6), (1, 1)),
        ((2, 3), "one row", (1, 6), (1, 6)),
    ],
)
def test_heads_merge_without_a_copy(lead, layout, query, key):
    seen = []

    class Watched(OnCpu):
        def run(self, q, k, v, scale, is_causal):
            seen.extend((q, k, v))
            return super().run(q, k, v, scale, is_causal)

    q, k, v = tensors(lead, 5, 7, 8, layout=layout)
    Watched()(q, k, v, scale=1.0, is_causal=False)
    assert [tuple(x.shape[:2]) for x in seen] == [query, key, key]
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (q, k, v)]


def test_gradients_are_not_kept():
    q, k, v = (x.requires_grad_() for x in tensors((2,), 5, 5, 8))
    out, lse = OnCpu()(q, k, v, scale=1.0, is_causal=True)
    assert not out.requires_grad
    assert not lse.requires_grad


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
    state = carried_state(out, lse, 8)
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
    how = {"is_causal": is_causal, "return_lse": True}
    decisions = {"block_size": 8, "sample_size": 8, "min_seq_len": 16, "rng": 0}
    exact = hr.exact_attention(*tensors, backend=backend, **how)
    assert "attend" not in backend.device.launched
    drawn = hr.hyper_attention(*tensors, backend=backend, **how, **decisions)
    plan = hr.make_plan(*tensors[:2], is_causal=is_causal, backend=backend, **decisions)
    planned = hr.hyper_attention(*tensors, backend=backend, plan=plan, **how)
    for x, y in zip(drawn, planned, strict=True):
        assert torch.equal(x, y)
    expected = hr.exact_attention(*host, **how), hr.hyper_attention(*host, **how, **decisions)
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


def test_tables_without_leaves_have_only_sweeps_that_take_up_a_state():
    with_leaves, without = (plan_tables(battery()[3].plan, leaves) for leaves in (True, False))
    assert [set(w["first"].tolist()) for w in with_leaves.waves] == [{1}, *[{0}] * (len(with_leaves.waves) - 1)]
    assert [set(w["first"].tolist()) for w in without.waves] == [{0}] * len(without.waves)
    assert len(without.segments) < len(with_leaves.segments)
    assert without.carries
    lone = plan_tables(causal_examples()[2].plan, leaves=False)
    assert (lone.waves, len(lone.segments)) == ((), 0)
    free = battery()[2].plan  # a plan that is not causal has no leaves to leave out
    assert set(plan_tables(free, leaves=False).waves[0]["first"].tolist()) == {1}


# --- The operators for GPUs, without one -----------------------------------------------------------------------------

ARGUMENTS = {
    "flash": ("query", "key", "value", "dropout_p", "is_causal", "return_debug_mask", "scale"),
    "cudnn": (
        *("query", "key", "value", "attn_bias", "compute_log_sumexp"),
        *("dropout_p", "is_causal", "return_debug_mask", "scale"),
    ),
}


def pretend_gpu(monkeypatch, name, capability=(9, 0), flash=True, cudnn=91900):
    """The primitive of that name as on a machine with this GPU; tensors stay where they are."""
    primitive = PRIMITIVES[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: cudnn is not None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    on_any = type(primitive).device_obstacle
    monkeypatch.setattr(type(primitive), "device_obstacle", lambda self, _: on_any(self, torch.device("cuda", 0)))
    return primitive


def formula(q, k, v, scale, is_causal):
    """The output and the log-sum-exp of `(B, H, n, d)`, in float64; heads of q share those of k."""
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = scale * q.double() @ k.mT
    if is_causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


class Recorder:
    """Stands for an operator: notes its arguments by their names in PyTorch, and computes the formula."""

    def __init__(self, schema, padded: int = 0):
        self.names = [x.name for x in schema.arguments]
        self.results = [x.name for x in schema.returns]
        self.padded, self.calls = padded, []

    def default(self, *args, **options):
        assert set(options) <= set(self.names[len(args) :])
        call = dict(zip(self.names, args, strict=False)) | options
        self.calls.append(call)
        q = call["query"]
        out, lse = formula(q, call["key"], call["value"], call["scale"], call["is_causal"])
        lse = torch.nn.functional.pad(lse.float(), (0, self.padded), value=math.nan)
        out = out.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)  # as FlashAttention may lay it out
        lse = lse[..., None] if "attn_bias" in call else lse
        return out, lse, *(None,) * (len(self.results) - 2)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_signatures_are_those_that_torch_declares(name):
    schema = PRIMITIVES[name].function()._schema
    assert tuple(x.name for x in schema.arguments) == ARGUMENTS[name]
    assert [x.name for x in schema.returns][:2] == ["output", "logsumexp"]


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize(("lead", "layout"), [((), "contiguous"), ((2, 3), "rows before heads"), ((2, 3), "grouped")])
def test_operators_get_what_they_expect(name, padded, lead, layout, monkeypatch):
    primitive = pretend_gpu(monkeypatch, name)
    recorder = Recorder(primitive.function()._schema, padded)
    monkeypatch.setattr(torch.ops.aten, primitive.operator, recorder)
    for dtype, is_causal in (("bfloat16", False), ("float16", True)):
        check(primitive, *tensors(lead, 40, 40, 16, dtype, layout), 0.3, is_causal)
        call = recorder.calls[-1]
        constant = {"dropout_p": 0.0, "return_debug_mask": False, "is_causal": is_causal, "scale": 0.3}
        constant |= {"compute_log_sumexp": True, "attn_bias": None} if name == "cudnn" else {}
        assert {x: value for x, value in call.items() if not isinstance(value, torch.Tensor)} == constant
        assert {call[x].ndim for x in ("query", "key", "value")} == {4}


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_operators_declare_the_shapes_that_are_taken(name, layout, monkeypatch):
    """On meta tensors PyTorch checks the arguments and computes shapes, dtypes and strides only."""
    primitive = pretend_gpu(monkeypatch, name)
    q, k, v = (x.to("meta") for x in tensors((2, 4), 40, 24, 16, "bfloat16", layout))
    out, lse = primitive(q, k, v, scale=1.0, is_causal=False)
    assert (out.shape, out.dtype) == ((2, 4, 40, 16), torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((2, 4, 40), torch.float32)


def test_a_result_of_another_shape_is_refused(monkeypatch):
    primitive = pretend_gpu(monkeypatch, "flash")
    short = types.SimpleNamespace(default=lambda q, k, v, **_: (q, q[..., :2, 0].float(), None))
    monkeypatch.setattr(torch.ops.aten, primitive.operator, short)
    with pytest.raises(RuntimeError, match=r"returned \(1, 1, 40, 16\) and \(1, 1, 2\) for \(40, 16\)"):
        primitive(*tensors((), 40, 40, 16, "bfloat16"), scale=1.0, is_causal=False)


# --- Obstacles -------------------------------------------------------------------------------------------------------


def wide(x):
    return torch.cat([x, x[..., :4]], dim=-1)[..., : x.shape[-1]]


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda q, k, v: (q, k, v), {}, None),
        (lambda q, k, v: (q.numpy(), k, v), {}, r"query is a numpy\.ndarray; pass torch\.from_dlpack of it"),
        (lambda q, k, v: (q.float(), k.float(), v.float()), {}, "query is float32 on cpu; all arrays must be float1"),
        (lambda q, k, v: (q, k.to(torch.bfloat16), v), {}, "key is bfloat16 on cpu; all arrays must be float16 or"),
        (lambda q, k, v: (q[..., :12], k[..., :12], v[..., :12]), {}, "query has d = 12; a multiple of 8"),
        (lambda q, k, v: (q.mT.contiguous().mT, k, v), {}, r"query has strides .* contiguous rows at multiples of 16"),
        (lambda q, k, v: (q, wide(k), v), {}, r"key has strides .* contiguous rows at multiples of 16"),
        (lambda q, k, v: (q, k[:, :20], v[:, :20]), {"is_causal": True}, "is_causal with 24 queries and 20 keys"),
        (lambda q, k, v: (q, k, v), {"scale": -1.0}, r"scale is -1\.0; it must be positive: negate the queries"),
        (lambda q, k, v: (q, k, v), {"scale": 0.0}, r"scale is 0\.0; it must be positive"),
    ],
)
def test_what_both_refuse(name, change, options, reason, monkeypatch):
    primitive = pretend_gpu(monkeypatch, name)
    arrays = change(*tensors((2,), 24, 24, 16, "float16"))
    found = primitive.obstacle(*arrays, **({"is_causal": False} | options))
    if reason is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=f"the exact primitive {name!r} cannot run: {reason}"):
            primitive(*arrays, **({"is_causal": False, "scale": 1.0} | options))


@pytest.mark.parametrize("name", PRIMITIVES)
def test_heads_that_do_not_merge_are_refused(name, monkeypatch):
    primitive = pretend_gpu(monkeypatch, name)
    q, k, v = tensors((2, 2, 3), 24, 24, 16, "float16")
    k = k.permute(2, 1, 0, 3, 4).contiguous().permute(2, 1, 0, 3, 4)
    assert "cannot be viewed as batch and heads" in primitive.obstacle(q, k, v, is_causal=False)
    many = torch.zeros((65536, 2, 16), dtype=torch.float16)
    assert primitive.obstacle(many, many, many, is_causal=True) is not None
    halves = many.view(2, 32768, 2, 16)
    assert primitive.obstacle(halves, halves, halves, is_causal=True) is None


@pytest.mark.parametrize(
    ("name", "d", "d_v", "reason"),
    [
        ("flash", 256, 256, None),
        ("flash", 264, 264, "query has d = 264; a multiple of 8 of at most 256"),
        ("flash", 64, 32, "value has d = 32 and query d = 64; they must be equal: pad the narrower with 0"),
        ("cudnn", 64, 32, None),
        ("cudnn", 136, 64, "query has d = 136; a multiple of 8 of at most 128"),
    ],
)
def test_which_widths_are_taken(name, d, d_v, reason, monkeypatch):
    primitive = pretend_gpu(monkeypatch, name)
    q, k, v = (torch.zeros((8, e), dtype=torch.bfloat16) for e in (d, d, d_v))
    found = primitive.obstacle(q, k, v, is_causal=False)
    assert found is None if reason is None else found.startswith(reason)


@pytest.mark.parametrize(
    ("name", "machine", "reason"),
    [
        ("flash", {"capability": (7, 5)}, "the device has compute capability 7.5; 8.0 is needed"),
        ("cudnn", {"capability": (7, 5)}, "the device has compute capability 7.5; 8.0 is needed"),
        ("flash", {"capability": (12, 1)}, None),
        ("flash", {"flash": False}, "was built without FlashAttention; install another build"),
        ("flash", {"cudnn": None}, None),
        ("cudnn", {"cudnn": None}, "cuDNN 9 is needed and torch"),
        ("cudnn", {"cudnn": 8907}, "has version 8907; install a newer build of torch"),
        ("cudnn", {"cudnn": 91002}, "lengths 24 and 24 must be multiples of 128 before cuDNN 9.15.1"),
        ("cudnn", {"cudnn": 91501, "flash": False}, None),
    ],
)
def test_which_machines_are_taken(name, machine, reason, monkeypatch):
    found = pretend_gpu(monkeypatch, name, **machine).obstacle(*tensors((), 24, 24, 16, "float16"), is_causal=True)
    assert found is None if reason is None else reason in found


def test_cudnn_takes_no_stride_of_0(monkeypatch):
    q, k, v = tensors((3,), 24, 24, 16, "float16", "keys of one head")
    assert "cuDNN takes none that is 0" in pretend_gpu(monkeypatch, "cudnn").obstacle(q, k, v, is_causal=True)
    assert pretend_gpu(monkeypatch, "flash").obstacle(q, k, v, is_causal=True) is None


def test_tensors_on_the_host_are_refused():
    for primitive in PRIMITIVES.values():
        reason = primitive.obstacle(*tensors((), 24, 24, 16, "float16"), is_causal=True)
        assert reason == "query is on the device cpu; move the arrays to a CUDA device"


def test_missing_torch_or_operator_is_a_reason(monkeypatch):
    arrays = tensors((), 24, 24, 16, "float16")
    with monkeypatch.context() as patch:
        patch.setattr(PRIMITIVES["flash"], "operator", "_no_such_operator", raising=False)
        assert "has no operator _no_such_operator" in PRIMITIVES["flash"].obstacle(*arrays, is_causal=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert PRIMITIVES["flash"].obstacle(*arrays, is_causal=True).startswith("PyTorch is not installed; install")


# --- On a GPU --------------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("lead", "n_q", "n_k", "d", "layout"),
    [
        ((), 1, 2, 8, "contiguous"),
        ((3,), 5, 9, 64, "contiguous"),
        ((2, 3), 130, 77, 40, "rows before heads"),
        ((2, 4), 200, 200, 128, "grouped"),
        ((2,), 4096, 4096, 64, "contiguous"),
    ],
)
def test_on_a_gpu_it_is_exact_attention(name, dtype, is_causal, lead, n_q, n_k, d, layout):
    n_q, n_k = (max(n_q, n_k),) * 2 if is_causal else (n_q, n_k)
    arrays = tensors(lead, n_q, n_k, d, dtype, layout, device="cuda", factor=3.0)
    if reason := PRIMITIVES[name].obstacle(*arrays, is_causal=is_causal):
        pytest.skip(reason)
    check(PRIMITIVES[name], *arrays, d**-0.5, is_causal)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize(("n", "layout"), [(4096, "contiguous"), (4096, "grouped"), (1000, "rows before heads")])
def test_on_a_gpu_leaves_are_causal_attention_of_slices(name, n, layout):
    arrays = tensors((2, 2), n, n, 64, "bfloat16", layout, device="cuda")
    leaves, _ = causal_tiling(n, 512)
    if reason := leaves_obstacle(PRIMITIVES[name], *arrays, leaves):
        pytest.skip(reason)
    check_leaves(PRIMITIVES[name], *arrays, leaves, 0.125)
