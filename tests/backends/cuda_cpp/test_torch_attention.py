"""Exact attention by PyTorch's operators: what they refuse, how they are called, and that they compute it.

No GPU is needed for most of it: `OnCpu` runs the same code through PyTorch's operator for CPUs, and the two operators
for GPUs are replaced by the formula, with the signatures and the result shapes that PyTorch itself declares.
"""

import math
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattention_ref.backends.cuda_cpp.torch_attention import PRIMITIVES

from .emulation.torch_on_cpu import LAYOUTS, UNIT, OnCpu, check, cpu_slack, pretend_gpu, tensors, torch

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is false")


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


# --- The operators for GPUs, without one -----------------------------------------------------------------------------

ARGUMENTS = {
    "flash": ("query", "key", "value", "dropout_p", "is_causal", "return_debug_mask", "scale"),
    "cudnn": (
        *("query", "key", "value", "attn_bias", "compute_log_sumexp"),
        *("dropout_p", "is_causal", "return_debug_mask", "scale"),
    ),
}


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
        pytest.skip(reason)  # what the primitive says that it cannot take on this device, such as a width
    check(PRIMITIVES[name], *arrays, d**-0.5, is_causal)
