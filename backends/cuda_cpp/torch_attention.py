"""Exact attention by operators of PyTorch that return their log-sum-exp.

Exact attention, and the leaves of a causal Plan (`leaves`), need only a pair (out, lse) for each query. An
`ExactPrimitive` is anything that computes it. Two operators of PyTorch do: its FlashAttention ("flash") and the one of
cuDNN ("cudnn"). They take torch tensors as views; no input is copied. Where a copy would be needed, an obstacle names
it. torch is imported at first use.

What the operators need beyond their signatures is documented in PyTorch: `flash_api.cpp` (what raises),
`sdp_utils.cpp` (what its own dispatcher refuses), and `_meta_registrations.py` (the shapes of what they return). That
both log-sum-exps are natural logarithms is what its context parallelism relies on when it merges them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

MAX_HEADS = 65535  # blocks along the second and third dimension of a grid: batch and heads
CUDNN_NEEDED, CUDNN_ANY_LENGTH = 90000, 91501  # as torch.backends.cudnn.version() counts: 9.0.0 and 9.15.1


class ExactPrimitive(Protocol):
    """Exact softmax attention that returns its log-sum-exp.

    Arrays are torch tensors q `(..., n_q, d)`, k `(..., n_k, d)` and v `(..., n_k, d_v)` of equal leading shape, which
    fit together (the backend has checked them), with any strides, stride 0 included.
    """

    name: str

    def obstacle(self, q, k, v, *, is_causal: bool, scale: float = 1.0) -> str | None:
        """Why this primitive cannot take these tensors, with the remedy, or None if it can."""

    def __call__(self, q, k, v, *, scale: float, is_causal: bool) -> tuple[Any, Any]:
        """(out, lse): `(..., n_q, d_v)` of the dtype of the inputs, `(..., n_q)` float32, both contiguous.

        `lse` is the natural logarithm of the softmax denominator. Tensors with an obstacle are a ValueError.
        """


class TorchOperator(ABC):
    """What the operators of PyTorch have in common; a subclass calls one of them on `(B, H, n, d)`."""

    name: str
    operator: str  # its name in torch.ops.aten
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    multiple = 8  # of which d and d_v must be multiples: 16 bytes
    widest = 256

    def obstacle(self, q, k, v, *, is_causal, scale=1.0):
        return next(filter(None, self._obstacles(q, k, v, is_causal, scale)), None)

    def __call__(self, q, k, v, *, scale, is_causal):
        if reason := self.obstacle(q, k, v, is_causal=is_causal, scale=scale):
            raise ValueError(f"the exact primitive {self.name!r} cannot run: {reason}; use another")
        import torch

        merged: Any = _merged_heads(q, k, v)  # not None: there is no obstacle
        q4, k4, v4 = merged
        with torch.no_grad():  # the operators are differentiable, and would keep their inputs for it
            out, lse, *_ = self.run(q4, k4, v4, float(scale), bool(is_causal))
        *lead, n_q, _ = q.shape
        lse = (lse.squeeze(-1) if lse.ndim == 4 else lse)[..., :n_q]  # some releases pad the rows
        if out.numel() != math.prod((*lead, n_q, v.shape[-1])) or lse.numel() != math.prod((*lead, n_q)):
            shapes = f"{tuple(out.shape)} and {tuple(lse.shape)}"
            raise RuntimeError(f"{self.operator} of torch {torch.__version__} returned {shapes} for {tuple(q.shape)}")
        out, lse = out.contiguous(), lse.to(torch.float32).contiguous()
        return out.view(*lead, n_q, v.shape[-1]), lse.view(*lead, n_q)

    @abstractmethod
    def run(self, q, k, v, scale: float, is_causal: bool) -> tuple:
        """Call the operator on q `(B, H, n_q, d)`; k and v may have fewer heads, each shared by H / H_k of q."""

    def function(self):
        """The operator."""
        import torch

        return getattr(torch.ops.aten, self.operator).default

    def device_obstacle(self, device) -> str | None:
        """Why the operator cannot run on this torch.device, or None."""
        import torch

        if device.type != "cuda":
            return f"query is on the device {device}; move the arrays to a CUDA device"
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"the device has compute capability {major}.{minor}; 8.0 is needed: use the kernels of this library"
        return None

    def limits(self, q, k, v) -> str | None:
        """What else the operator refuses, of q `(B, H, n_q, d)`, k and v, or None."""
        return None

    def _obstacles(self, q, k, v, is_causal: bool, scale: float) -> Iterator[str | None]:
        """One check after the other; the first reason ends them."""
        arrays = {"query": q, "key": k, "value": v}
        yield self._missing(arrays)
        yield self.device_obstacle(q.device)
        for name, x in arrays.items():
            yield self._obstacle_of(name, x, q)
        if is_causal and q.shape[-2] != k.shape[-2]:
            yield f"is_causal with {q.shape[-2]} queries and {k.shape[-2]} keys; causal attention needs equal lengths"
        if not scale > 0:  # FlashAttention multiplies the largest product by the scale
            yield f"scale is {scale}; it must be positive: negate the queries, or use the kernels of this library"
        merged = _merged_heads(q, k, v)
        if merged is None:
            strides = ", ".join(f"{name} {x.stride()}" for name, x in arrays.items())
            yield (
                f"the leading shape {tuple(q.shape[:-2])} with strides {strides} cannot be viewed as batch and heads of"
                f" at most {MAX_HEADS} each: pass contiguous() tensors, or fewer heads at a time"
            )
        else:
            yield self.limits(*merged)

    def _missing(self, arrays: dict[str, Any]) -> str | None:
        try:
            import torch
        except ImportError:
            return "PyTorch is not installed; install its build for CUDA, see pytorch.org"
        for name, x in arrays.items():
            if not isinstance(x, torch.Tensor):
                return f"{name} is a {type(x).__module__}.{type(x).__name__}; pass torch.from_dlpack of it"
        if not hasattr(torch.ops.aten, self.operator):
            return f"torch {torch.__version__} has no operator {self.operator}; install a newer one"
        return None

    def _obstacle_of(self, name: str, x, q) -> str | None:
        """The obstacle in one array; q is the first."""
        dtype, d = str(x.dtype).removeprefix("torch."), x.shape[-1]
        if dtype not in self.dtypes or x.dtype != q.dtype or x.device != q.device:
            kinds = " or ".join(self.dtypes)
            return f"{name} is {dtype} on {x.device}; all arrays must be {kinds}, of one dtype, on one device"
        if d % self.multiple or d > self.widest:
            return f"{name} has d = {d}; a multiple of {self.multiple} of at most {self.widest} is needed: pad with 0"
        strides = [s for s, n in zip(x.stride()[:-1], x.shape[:-1], strict=True) if n > 1]
        if x.stride(-1) != 1 or any(s % self.multiple for s in strides) or x.data_ptr() % (2 * self.multiple):
            return f"{name} has strides {x.stride()}; contiguous rows at multiples of 16 bytes are needed: copy it"
        return None


class TorchFlash(TorchOperator):
    """FlashAttention as PyTorch brings it: float16 and bfloat16, d = d_v up to 256, compute capability 8.0."""

    name = "flash"
    operator = "_scaled_dot_product_flash_attention"

    def run(self, q, k, v, scale, is_causal):
        return self.function()(q, k, v, dropout_p=0.0, is_causal=is_causal, return_debug_mask=False, scale=scale)

    def device_obstacle(self, device):
        import torch

        if reason := super().device_obstacle(device):
            return reason
        built = torch.backends.cuda.is_flash_attention_available()
        return None if built else f"torch {torch.__version__} was built without FlashAttention; install another build"

    def limits(self, q, k, v):
        if q.shape[-1] == v.shape[-1]:
            return None
        return f"value has d = {v.shape[-1]} and query d = {q.shape[-1]}; they must be equal: pad the narrower with 0"


class TorchCudnn(TorchOperator):
    """Attention of cuDNN 9 through PyTorch: float16 and bfloat16, d and d_v up to 128, compute capability 8.0.

    cuDNN builds a graph for every combination of shapes and strides at its first use, and keeps it.
    """

    name = "cudnn"
    operator = "_scaled_dot_product_cudnn_attention"
    widest = 128  # what PyTorch allows on every device; wider heads depend on the releases of three libraries

    def run(self, q, k, v, scale, is_causal):
        options = {"dropout_p": 0.0, "is_causal": is_causal, "return_debug_mask": False, "scale": scale}
        return self.function()(q, k, v, attn_bias=None, compute_log_sumexp=True, **options)

    def device_obstacle(self, device):
        import torch

        if reason := super().device_obstacle(device):
            return reason
        version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        if version is None or version < CUDNN_NEEDED:
            found = "none" if version is None else f"version {version}"
            return f"cuDNN 9 is needed and torch {torch.__version__} has {found}; install a newer build of torch"
        return None

    def limits(self, q, k, v):
        import torch

        n_q, n_k, version = q.shape[-2], k.shape[-2], torch.backends.cudnn.version()
        if n_k == 1:
            return "there is one key; cuDNN needs two: use another primitive"
        if (n_q % 128 or n_k % 128) and version < CUDNN_ANY_LENGTH:  # memory errors, pytorch/pytorch#169849
            return f"lengths {n_q} and {n_k} must be multiples of 128 before cuDNN 9.15.1, this is version {version}"
        for name, x in (("query", q), ("key", k), ("value", v)):
            if any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)):
                return f"{name} has strides {x.stride()} after merging its heads; cuDNN takes none that is 0: copy it"
        return None


PRIMITIVES: dict[str, ExactPrimitive] = {primitive.name: primitive for primitive in (TorchFlash(), TorchCudnn())}


def _merged_heads(q, k, v) -> list | None:
    """Views `(B, H, n, d)` of q and `(B, H_k, n, d)` of k and v, or None where only a copy could be that.

    The last leading dimensions along which k and v only repeat themselves (stride 0: grouped queries) are left out of
    these two: query head h then has the key head h // (H / H_k), as the operators understand it. B is 1 where all heads
    merge into one dimension, otherwise the split is the first that does.
    """
    lead, n_shared = q.shape[:-2], 0
    while n_shared < len(lead) and all(_repeats(x, -3 - n_shared) for x in (k, v)):
        n_shared += 1
    one = (..., *(0,) * n_shared, slice(None), slice(None))
    for i in range(len(lead) - n_shared + 1):
        if max(math.prod(lead[:i]), math.prod(lead[i:])) > MAX_HEADS:
            continue
        try:
            return [x.view(math.prod(x.shape[:i]), -1, *x.shape[-2:]) for x in (q, k[one], v[one])]
        except RuntimeError:  # these strides do not merge
            continue
    return None


def _repeats(x, dimension: int) -> bool:
    return x.shape[dimension] == 1 or x.stride(dimension) == 0
