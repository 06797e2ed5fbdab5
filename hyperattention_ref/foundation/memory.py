"""Where the arrays of a backend live: in the memory of the host, or in that of a GPU.

Past the door the library handles an array by its shape, its dtype and its slices alone, which cost nothing anywhere.
The little arithmetic that it does itself, outside of the operations of a backend, it asks of the backend's `memory`.
Nothing is copied between host and device but by `from_host` and `to_host`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

KDL_CUDA = (2, 13)  # device types of DLPack: memory of a CUDA device, and managed memory


class Memory(Protocol):
    """The arrays that a backend takes, and what the library does with them by itself.

    A backend for NumPy arrays has none: `memory_of` gives it HOST.
    """

    def view(self, name: str, x) -> Any:
        """The caller's array as the library handles it: `shape`, `ndim`, `size`, `dtype`, `reshape` and basic slices.

        Nothing is copied. A TypeError names the remedy for an array that lies elsewhere or has a dtype that the
        backend does not take. Its own views are taken as they are.
        """

    def broadcast(self, x, shape: tuple[int, ...]) -> Any:
        """A view of that shape, with stride 0 along the axes where the view x has length 1."""

    def largest(self, named: dict[str, Any]) -> Callable[[], list[float]]:
        """Begin to look for max |x| of each view; the result waits for it. NaN or infinity where there is one.

        The names are for errors: views must be in one memory.
        """

    def copy(self, x, dtype, *, rows: np.ndarray | None = None) -> Any:
        """The numbers of a view (..., n, d) in another dtype, of these rows only if `rows` is given."""

    def centred(self, x) -> Any:
        """A positive multiple of the rows of a view (n, d) less their mean; its hash codes do not depend on the factor.

        The subtraction is exact to float64 on the host, to float32 elsewhere.
        """

    def to_host(self, x) -> np.ndarray:
        """A view, or a result of the backend, as a NumPy array (bfloat16 as float32)."""

    def from_host(self, x: np.ndarray, like=None) -> Any:
        """A NumPy array as the backend takes it, with the strides it has, on the device of the view `like`."""


class HostMemory:
    """NumPy arrays, and whatever NumPy converts."""

    dtypes = ("float16", "float32", "float64")

    def view(self, name, x):
        if kind := device_kind(x):
            raise TypeError(
                f"{name} is a {kind} on a GPU, and this call works on the host: name a backend for GPUs, if the call "
                f"takes one, or copy the array with {_to_host_by(x)}"
            )
        x = np.asarray(x)
        if x.dtype.name not in self.dtypes:
            raise TypeError(
                f"{name} has dtype {x.dtype}; it must be float16, float32 or float64: convert it with "
                ".astype(np.float64)"
            )
        return x

    def broadcast(self, x, shape):
        return np.broadcast_to(x, shape)

    def largest(self, named):
        found = [max(abs(float(x.min())), abs(float(x.max()))) if x.size else 0.0 for x in named.values()]
        return lambda: found  # NaN propagates through both min and max

    def copy(self, x, dtype, *, rows=None):
        return (x if rows is None else x[..., rows, :]).astype(dtype, copy=False)

    def centred(self, x):
        x = x.astype(np.float64)
        x /= max(np.abs(x).max(), np.finfo(np.float64).tiny)  # so that neither sum nor difference overflows
        return x - x.mean(axis=0)

    def to_host(self, x):
        return np.asarray(x)

    def from_host(self, x, like=None):
        return x


HOST = HostMemory()


def memory_of(backend) -> Memory:
    """The memory of a backend: its attribute `memory`, or the host's."""
    return getattr(backend, "memory", HOST)


def working_dtype(x) -> np.dtype:
    """The type of the arithmetic for a view: float64 for float64, float32 for all shorter types."""
    return np.dtype(np.float64 if x.dtype == "float64" else np.float32)


def device_kind(x) -> str | None:
    """What an array on a GPU is called, such as "torch.Tensor"; None for everything that is not on a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        on_gpu = x.is_cuda
    elif isinstance(x, np.ndarray):
        on_gpu = False
    elif library_of(x) == "cupy":
        on_gpu = True
    elif hasattr(type(x), "__dlpack_device__"):
        on_gpu = x.__dlpack_device__()[0] in KDL_CUDA
    else:
        on_gpu = hasattr(x, "__cuda_array_interface__")
    return f"{library_of(x)}.{type(x).__name__}" if on_gpu else None


def library_of(x) -> str:
    """The package that an array comes from."""
    return type(x).__module__.partition(".")[0]


def _to_host_by(x) -> str:
    torch_way = "x.float().cpu().numpy()" if "bfloat16" in str(getattr(x, "dtype", "")) else "x.cpu().numpy()"
    ways = {"cupy": "cupy.asnumpy(x)", "torch": torch_way}
    return ways.get(library_of(x), "x.copy_to_host()" if hasattr(x, "copy_to_host") else "its own library")
