"""Arrays on a GPU, of any library: where they lie, and new ones of the same kind.

A `DeviceArray` is a view like NumPy's: slices, new axes and broadcasts change its shape and strides and touch nothing
on the device. It is made from torch tensors, CuPy arrays, whatever has the CUDA array interface (Numba, JAX), and
through CuPy from whatever has DLPack only. bfloat16, which NumPy does not know, is a name here.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyperattention_ref.foundation.memory import device_kind, library_of


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A view of an array in the memory of a GPU.

    Attributes
    ----------
    owner : the array of some library that keeps the memory alive.
    pointer : address of the first entry.
    dtype : its name.
    shape : as of a NumPy array.
    strides : in entries.
    device : number of the GPU; None where the owner does not say.
    """

    owner: Any
    pointer: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: int | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        kind = "<V2" if self.dtype == "bfloat16" else np.dtype(self.dtype).str
        strides = tuple(stride * self.item_bytes for stride in self.strides)
        return {"shape": self.shape, "strides": strides, "typestr": kind, "data": (self.pointer, False), "version": 3}

    @property
    def is_contiguous(self) -> bool:
        """Whether the entries lie behind each other in row-major order."""
        return all(n == 1 or s == c for n, s, c in zip(self.shape, self.strides, row_major(self.shape), strict=True))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> DeviceArray:
        """A view by integers, slices, None and an ellipsis."""
        index = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis not in index:
            index.append(Ellipsis)
        place = index.index(Ellipsis)
        n_items = sum(item is not None for item in index) - 1
        index[place : place + 1] = [slice(None)] * (self.ndim - n_items)
        pointer, shape, strides, axis = self.pointer, [], [], 0
        for item in index:
            if item is None:
                shape.append(1)
                strides.append(0)
                continue
            n, stride = self.shape[axis], self.strides[axis]
            axis += 1
            if isinstance(item, slice):
                kept = range(n)[item]
                shape.append(len(kept))
                strides.append(stride * kept.step)
                pointer += (kept.start if kept else 0) * stride * self.item_bytes
            else:
                pointer += range(n)[item] * stride * self.item_bytes
        return replace(self, pointer=pointer, shape=tuple(shape), strides=tuple(strides))

    def reshape(self, *shape: int) -> DeviceArray:
        """The same entries with one axis split into two; a ValueError for all other shapes, which may need a copy."""
        if shape == self.shape:
            return self
        for i, n in enumerate(self.shape):
            parts = shape[i : i + 2]
            if shape == (*self.shape[:i], *parts, *self.shape[i + 1 :]) and math.prod(parts) == n:
                strides = (*self.strides[:i], self.strides[i] * shape[i + 1], *self.strides[i:])
                return replace(self, shape=shape, strides=strides)
        raise ValueError(f"an array of shape {self.shape} on a device cannot be viewed as {shape}")

    def broadcast_to(self, shape: tuple[int, ...]) -> DeviceArray:
        """A view with stride 0 along the axes where this one has length 1."""
        if self.ndim != len(shape) or any(n not in (1, m) for n, m in zip(self.shape, shape, strict=True)):
            raise ValueError(f"an array of shape {self.shape} cannot be broadcast to {shape}")
        strides = tuple(s if n == m else 0 for n, m, s in zip(self.shape, shape, self.strides, strict=True))
        return replace(self, shape=tuple(shape), strides=strides)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in entries, of a contiguous array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def torch_view(x: DeviceArray):
    """A view into the memory of a torch tensor as a torch tensor."""
    start = x.owner.storage_offset() + (x.pointer - x.owner.data_ptr()) // x.item_bytes
    return x.owner.detach().as_strided(x.shape, x.strides, start)


def strided_bytes(x: np.ndarray) -> tuple[np.ndarray, int]:
    """A copy of all bytes between the first and the last of a view, and where in them its first entry lies."""
    spans = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)]
    low, high = sum(min(span, 0) for span in spans), sum(max(span, 0) for span in spans) + x.itemsize
    address = x.__array_interface__["data"][0]
    return np.frombuffer(ctypes.string_at(address + low, high - low), np.uint8), -low


def device_view(name: str, x, backend: str) -> DeviceArray:
    """The caller's array on a GPU; a TypeError for a host array."""
    if isinstance(x, DeviceArray):
        return x
    if device_kind(x) is None:
        raise TypeError(
            f"{name} is a {library_of(x)}.{type(x).__name__} on the host; the backend {backend!r} works on arrays that "
            f"are on a GPU, and copies none there: pass {_to_device_by(x)}, or choose a backend for host arrays"
        )
    return _library(x).view(x)


def require_dtype(name: str, x: DeviceArray, dtypes: tuple[str, ...], remedy: str = "convert it") -> DeviceArray:
    """The array; a TypeError for a dtype that a backend does not take."""
    if x.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {x.dtype}; it must be one of {', '.join(dtypes)}: {remedy}")
    return x


def require_one(named: dict[str, DeviceArray], attribute: str) -> None:
    """Refuse arrays that differ in their device or dtype; a device that is not known does not differ."""
    found = {name: getattr(x, attribute) for name, x in named.items()}
    if len({x for x in found.values() if x is not None}) > 1:
        listed = ", ".join(f"{name} {x}" for name, x in found.items())
        raise (TypeError if attribute == "dtype" else ValueError)(
            f"the {attribute}s differ ({listed}); all must be the same: "
            + ("convert the arrays to one" if attribute == "dtype" else "move the arrays to one")
        )


def new_array(shape: tuple[int, ...], dtype: str, like: DeviceArray | None, otherwise: str) -> DeviceArray:
    """A new array of the library that owns `like`, beside it; of `otherwise` where that library makes none here."""
    owner, device = (otherwise, None) if like is None else (library_of(like.owner), like.device)
    library = LIBRARIES.get(owner, LIBRARIES[otherwise])
    return library.view(library.empty(shape, dtype, device))


def current_stream(x: DeviceArray) -> int | None:
    """The stream into which the library that owns x puts its work now, 0 for the default one; None: it does not say."""
    library = LIBRARIES.get(library_of(x.owner))
    return library.stream(x.device) if library else None


def _library(x):
    """The reader of this array."""
    if known := LIBRARIES.get(library_of(x)):
        return known
    return LIBRARIES["numba"] if hasattr(x, "__cuda_array_interface__") else LIBRARIES["dlpack"]


class _Torch:
    """PyTorch, asked directly: its CUDA array interface does not know bfloat16."""

    def view(self, x) -> DeviceArray:
        import torch

        if x.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                "a torch tensor requires a gradient, and none is computed here: call within torch.no_grad(), or pass "
                "x.detach()"
            )
        dtype = str(x.dtype).removeprefix("torch.")
        return DeviceArray(x, x.data_ptr(), dtype, tuple(x.shape), tuple(x.stride()), x.device.index)

    def empty(self, shape, dtype, device):
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype), device=torch.device("cuda", device))

    def stream(self, device) -> int | None:
        import torch

        return torch.cuda.current_stream(device).cuda_stream


class _Cupy:
    def view(self, x) -> DeviceArray:
        strides = tuple(stride // x.itemsize for stride in x.strides)
        return DeviceArray(x, x.data.ptr, x.dtype.name, x.shape, strides, x.device.id)

    def empty(self, shape, dtype, device):
        import cupy

        with cupy.cuda.Device(device):
            return cupy.empty(shape, np.dtype(dtype))

    def stream(self, device) -> int | None:
        import cupy

        with cupy.cuda.Device(device):
            return cupy.cuda.get_current_stream().ptr


class _Interface:
    """Numba, and every other library with the CUDA array interface."""

    def view(self, x) -> DeviceArray:
        described = x.__cuda_array_interface__
        shape, dtype = tuple(described["shape"]), np.dtype(described["typestr"])
        strides = described.get("strides")
        if strides is None:
            strides = [dtype.itemsize * stride for stride in row_major(shape)]
        number = getattr(getattr(x, "device", None), "id", None)
        device = number if isinstance(number, int) else None
        in_entries = tuple(stride // dtype.itemsize for stride in strides)
        return DeviceArray(x, described["data"][0], dtype.name, shape, in_entries, device)

    def empty(self, shape, dtype, device):
        from numba import cuda

        return cuda.device_array(shape, np.dtype(dtype))

    def stream(self, device) -> int | None:
        return None


class _Dlpack:
    """Libraries with DLPack only: CuPy reads it."""

    def view(self, x) -> DeviceArray:
        try:
            import cupy
        except ImportError:
            raise TypeError(
                f"a {library_of(x)}.{type(x).__name__} offers DLPack only, which CuPy reads: install CuPy, such as "
                "cupy-cuda13x"
            ) from None
        return LIBRARIES["cupy"].view(cupy.from_dlpack(x))


LIBRARIES: dict[str, Any] = {"torch": _Torch(), "cupy": _Cupy(), "numba": _Interface(), "dlpack": _Dlpack()}
"""Readers of arrays by the package that makes them; all but `dlpack` also make new ones and know of a stream."""


def _to_device_by(x) -> str:
    return "x.cuda()" if library_of(x) == "torch" else "cupy.asarray(x) or a torch tensor on a CUDA device"
