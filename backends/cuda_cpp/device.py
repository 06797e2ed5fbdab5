"""What the CUDA kernels in `kernels/` need of a machine, and how they are launched on it.

Everything that launches is written against `Device`, so that the same launches run on a GPU through CuPy
(`cupy_device`) and, in the tests, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..device_array import DeviceArray

KERNELS = Path(__file__).parent / "kernels"
"""The folder of the sources."""
STORAGE = {"float16": "Half", "bfloat16": "Bfloat", "float32": "float", "float64": "double"}
"""What the kernels call each dtype."""
TILE = 64  # rows of a tile of the portable kernels
MAX_WIDTH = 256  # columns of values
MAX_LENGTH = TILE * 65535  # rows of a head: the second dimension of a grid has so many blocks


@dataclass(frozen=True)
class Kernel:
    """One variant of a kernel, and how it is launched.

    Attributes
    ----------
    file, name : a file of `kernels/` and the function in it.
    defines : the macros that it is compiled with.
    rows : how many rows of an item of work a block takes.
    threads : how many threads a block has.
    shared_bytes : dynamic shared memory of a block; 0 where the kernel declares its shared memory.
    """

    file: str
    name: str
    defines: tuple[str, ...] = ()
    rows: int = TILE
    threads: int = 256
    shared_bytes: int = 0

    @property
    def macros(self) -> tuple[str, ...]:
        """All macros; a kernel with dynamic shared memory compares SHARED_BYTES with the size of its struct."""
        return self.defines + ((f"SHARED_BYTES={self.shared_bytes}",) if self.shared_bytes else ())


class Device(Protocol):
    """What a machine must offer to run the kernels."""

    def scope(self, x: DeviceArray) -> AbstractContextManager:
        """Within it, work goes to the device and the stream of the caller's array x."""

    def key(self) -> int:
        """A number for the device in use; tables are uploaded once for each."""

    def capability(self) -> int:
        """Compute capability, 90 for 9.0."""

    def shared_limit(self) -> int:
        """Bytes of shared memory that a block may have."""

    def view(self, name: str, x) -> DeviceArray:
        """The caller's array; a TypeError for one that is not on a device."""

    def empty(self, shape: tuple[int, ...], dtype: str, like: DeviceArray | None = None) -> DeviceArray:
        """A new array, of the library that owns `like` and beside it if that is given."""

    def upload(self, x: np.ndarray) -> DeviceArray:
        """A contiguous copy of a host array, structured or not."""

    def upload_view(self, x: np.ndarray, like: DeviceArray | None) -> DeviceArray:
        """A copy of a host array that has its strides, stride 0 included, on the device of `like`."""

    def fill(self, x: DeviceArray, values: np.ndarray) -> None:
        """Copy host numbers of the dtype of x to the beginning of x, which is contiguous."""

    def download(self, x: DeviceArray) -> np.ndarray:
        """A copy on the host; bfloat16 becomes float32."""

    def begin_download(self, x: DeviceArray) -> Callable[[], np.ndarray]:
        """Begin to copy x, which is contiguous, once everything begun so far is done; the result waits for the copy."""

    def synchronize(self) -> None:
        """Wait until everything begun in this scope is done."""

    def launch(self, kernel: Kernel, blocks: tuple[int, int], args: list) -> None:
        """Run a kernel on that many blocks in both directions; args are NumPy scalars."""


def launch(device: Device, kernel: Kernel, grid: tuple[int, int], args: list) -> None:
    """Run a kernel on a number of items of work, the longest of which has a number of rows: this pair is `grid`.

    Among the arguments an int of Python becomes an int of C, a float a double, None a null pointer, an array its
    address; NumPy scalars stay.
    """
    if kernel.shared_bytes > device.shared_limit():
        raise ValueError(
            f"{kernel.name} needs {kernel.shared_bytes} bytes of shared memory, this device has {device.shared_limit()}"
            " for a block: use smaller heads or path='portable'"
        )
    n_items, n_rows = grid
    device.launch(kernel, (n_items, tiles(n_rows, kernel.rows)), [_scalar(x) for x in args])


def _scalar(x) -> np.generic:
    if x is None:
        return np.uint64(0)
    if isinstance(x, DeviceArray):
        return np.uint64(x.pointer)
    if isinstance(x, int | np.bool_):
        return np.int32(x)
    return x if isinstance(x, np.generic) else np.float64(x)


class Layouts:
    """Where the rows, columns and heads of arrays lie, on the device, kept for the next array of that layout."""

    MOST = 64

    def __init__(self, device: Device):
        self.device = device
        self._kept: dict[tuple, DeviceArray] = {}

    def matrix(self, x: DeviceArray) -> list:
        """What the kernels call a Matrix: the data, and its layout."""
        key = self.device.key(), x.shape[:-2], x.strides
        if key not in self._kept:
            if len(self._kept) >= self.MOST:
                self._kept.clear()
            *lead, row, column = x.strides
            starts = np.zeros(1, np.int64)
            for n, stride in zip(x.shape, lead, strict=False):
                starts = np.add.outer(starts, stride * np.arange(n)).ravel()
            self._kept[key] = self.device.upload(np.r_[row, column, starts].astype(np.int64))
            self.device.synchronize()  # a later call may use the layout from another stream
        return [x, self._kept[key]]


def storage(x: DeviceArray) -> str:
    """The macro that tells a kernel the dtype of its arrays."""
    return f"STORAGE={STORAGE[x.dtype]}"


def real(x: DeviceArray) -> str:
    """The dtype of the arithmetic."""
    return "float64" if x.dtype == "float64" else "float32"


def tiles(n: int, rows: int) -> int:
    """How many tiles of so many rows cover n rows."""
    return -(-n // rows)


def width_of(d: int) -> int:
    """Columns of values as the portable kernels are compiled for: 16, 32, 64, 128 or 256."""
    return max(16, 1 << (d - 1).bit_length())


def transposed_kernel(x: DeviceArray, width: int) -> Kernel:
    """The kernel of P^T y for y of so many columns."""
    return Kernel("columns.cu", "transposed", (storage(x), f"WIDTH={width_of(width)}"))
