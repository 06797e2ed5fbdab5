"""Where the arrays of a backend are stored: in the memory of the host or of a GPU.

After the input checks the library uses only the shape, dtype and slices of an array, which cost nothing anywhere. The
few operations that it needs besides those of the backend are methods of the backend's `memory`. Only `from_host` and
`to_host` copy between host and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from hyperattention_ref.foundation.host_arrays import host_array, is_tensor

KDL_CUDA = (2, 13)  # device types of DLPack: memory of a CUDA device, and managed memory


class Memory(Protocol):
    """The arrays that a backend accepts, and the operations on them outside the backend.

    A backend for NumPy arrays need not have one: `memory_of` returns HOST for it.
    """

    def view(self, name: str, x) -> Any:
        """A view of the caller's array with `shape`, `ndim`, `size`, `dtype`, `reshape` and basic slices.

        Nothing is copied. A TypeError names the remedy for an array in another memory or with a dtype that the backend
        does not support. Its own views are returned unchanged.
        """

    def broadcast(self, x, shape: tuple[int, ...]) -> Any:
        """A view of that shape, with stride 0 along the axes where the view x has length 1."""

    def largest(self, named: dict[str, Any]) -> Callable[[], list[float]]:
        """Start computing max |x| of each view; the returned function waits for it. NaN or infinity if x has one.

        The names are used in errors: all views must be on one device.
        """

    def copy(self, x, dtype, *, rows: np.ndarray | None = None) -> Any:
        """A copy of a view (..., n, d) in another dtype, of the given `rows` only if they are not None."""

    def centred(self, x) -> Any:
        """The rows of a view (n, d) minus their mean, up to a positive factor, which does not affect hash codes.

        The subtraction is accurate to float64 on the host, to float32 elsewhere.
        """

    def to_host(self, x) -> np.ndarray:
        """A view, or a result of the backend, as a NumPy array (bfloat16 as float32)."""

    def from_host(self, x: np.ndarray, like=None) -> Any:
        """A NumPy array as a view of this memory, with its strides, on the device of the view `like`."""


class HostMemory:
    """NumPy arrays, tensors of PyTorch on the CPU, and objects that NumPy converts."""

    dtypes = ("float16", "float32", "float64")

    def view(self, name, x):
        if kind := device_kind(x):
            raise TypeError(
                f"{name} is a {kind} on a GPU, and this call works on the host: name a backend for GPUs, if the call "
                f"takes one, or copy the array with {_call_to_host(x)}"
            )
        array = host_array(name, x)
        if array.dtype.name not in self.dtypes:
            convert = ".double()" if is_tensor(x) else ".astype(np.float64)"
            raise TypeError(
                f"{name} has dtype {array.dtype}; it must be float16, float32 or float64: convert it with {convert}"
            )
        return array

    def broadcast(self, x, shape):
        return np.broadcast_to(x, shape)

    def largest(self, named):
        largest = [max(abs(float(x.min())), abs(float(x.max()))) if x.size else 0.0 for x in named.values()]
        return lambda: largest  # NaN propagates through both min and max

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
    """The type of an array on a GPU, such as "torch.Tensor"; None for anything that is not on a GPU."""
    if is_tensor(x):
        on_gpu = x.is_cuda
    elif library_of(x) == "cupy":
        on_gpu = True
    elif hasattr(type(x), "__dlpack_device__"):
        on_gpu = x.__dlpack_device__()[0] in KDL_CUDA
    else:
        on_gpu = hasattr(x, "__cuda_array_interface__")
    return f"{library_of(x)}.{type(x).__name__}" if on_gpu else None


def library_of(x) -> str:
    """The top-level package that defines the type of an array."""
    return type(x).__module__.partition(".")[0]


def _call_to_host(x) -> str:
    torch_call = "x.float().cpu().numpy()" if "bfloat16" in str(getattr(x, "dtype", "")) else "x.cpu().numpy()"
    calls = {"cupy": "cupy.asnumpy(x)", "torch": torch_call}
    return calls.get(library_of(x), "x.copy_to_host()" if hasattr(x, "copy_to_host") else "its own library")
