"""Arrays on the host: what a caller passes as a NumPy array, and a result in the library of the caller.

Tensors of PyTorch are read in place; only bfloat16, which NumPy lacks, is copied. torch is not imported: whoever passes
a tensor has imported it.
"""

from __future__ import annotations

import sys

import numpy as np


def host_array(name: str, x) -> np.ndarray:
    """`x` as a NumPy array; the entries of a tensor are shared, those of a bfloat16 tensor become float32.

    Raises
    ------
    TypeError : a masked array, or a tensor that has no entries here, or whose gradient would be lost.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: pass the rows that count, or np.asarray({name}) to "
            "use all of them"
        )
    return _from_tensor(name, x) if is_tensor(x) else np.asarray(x)


def is_tensor(x) -> bool:
    """Whether `x` is a tensor of PyTorch, wherever it lies."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def dtype_name(x, array) -> str:
    """The dtype of the caller's `x`, which was read as `array`."""
    return str(x.dtype).removeprefix("torch.") if is_tensor(x) else str(array.dtype)


def in_library_of(x, array):
    """A result for the caller who passed `x`: a tensor for a tensor, which shares the entries."""
    if not (is_tensor(x) and isinstance(array, np.ndarray)):
        return array
    import torch

    return torch.from_numpy(array)


def like(x, array):
    """As `in_library_of`; what was computed in float32 for a bfloat16 tensor is rounded to bfloat16."""
    result = in_library_of(x, array)
    if isinstance(array, np.ndarray) and dtype_name(x, array) == "bfloat16" and array.dtype == np.float32:
        return result.to(x.dtype)
    return result


def _from_tensor(name: str, x) -> np.ndarray:
    import torch

    if reason := _obstacle(x):
        raise TypeError(f"{name} is a torch tensor {reason}")
    try:
        return (x.float() if x.dtype == torch.bfloat16 else x).detach().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a torch tensor of dtype {x.dtype} that NumPy cannot read ({error}): pass a plain one, of type "
            "float16, bfloat16, float32 or float64"
        ) from None


def _obstacle(x) -> str | None:
    """Why the entries of a tensor cannot be read, and what to do."""
    import torch

    if x.requires_grad and torch.is_grad_enabled():
        return (
            "that requires a gradient, and none is computed here: call scaled_dot_hyper_attention, pass .detach(), or "
            "call within torch.no_grad()"
        )
    if x.layout is not torch.strided or x.is_nested:
        return f"of layout {'nested' if x.is_nested else x.layout}; it must be strided: convert it with .to_dense()"
    if x.is_quantized:
        return f"of dtype {x.dtype}; it must not be quantized: convert it with .dequantize()"
    if x.device.type == "meta":
        return "on the device meta, which has no entries: make it on the CPU"
    if x.device.type != "cpu":
        return f"on the device {x.device}; it must be on the CPU: move it with .cpu()"
    return None
