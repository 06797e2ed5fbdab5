"""Examples for the exact primitives, and PyTorch's operator for CPUs in the place of those for GPUs."""

import numpy as np
import pytest

from hyperattention_ref.backends.conformance.strategies import AttentionInputs
from hyperattention_ref.backends.cuda_cpp.torch_attention import PRIMITIVES, TorchOperator
from hyperattention_ref.backends.reference import Reference

from .battery import bfloat_bound

torch = pytest.importorskip("torch", reason="the exact primitives are operators of torch: run `make models`")

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
