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
TILE, THREADS = 64, 256
MAX_WIDTH = 256  # columns of values
MAX_LENGTH = TILE * 65535  # rows of a head: the second dimension of a grid has so many blocks


@dataclass(frozen=True)
class Kernel:
    """One variant of a kernel: a function in a file of `kernels/`, compiled with these macros."""

    file: str
    name: str
    defines: tuple[str, ...]


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

    def launch(self, kernel: Kernel, grid: tuple[int, int], threads: int, shared_bytes: int, args: list) -> None:
        """Run a kernel; args are NumPy scalars."""


def launch(device: Device, kernel: Kernel, shared_bytes: int, grid: tuple[int, int], args: list, threads=THREADS):
    """Run a kernel on a grid of so many blocks in both directions; an array among the arguments means its address."""
    if shared_bytes > device.shared_limit():
        raise ValueError(
            f"{kernel.name} needs {shared_bytes} bytes of shared memory, this device has {device.shared_limit()}"
            " for a block: use smaller heads or path='portable'"
        )
    scalars = [np.uint64(x.pointer) if isinstance(x, DeviceArray) else x for x in args]
    device.launch(kernel, grid, threads, shared_bytes, scalars)


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


def integers(*numbers: int) -> list[np.int32]:
    """Arguments of type int."""
    return [np.int32(x) for x in numbers]


def tiles(n: int, rows: int = TILE) -> int:
    """How many tiles cover n rows."""
    return -(-n // rows)


def width_of(d: int) -> int:
    """Columns of values as the portable kernels are compiled for: 16, 32, 64, 128 or 256."""
    return max(16, 1 << (d - 1).bit_length())


def transposed_kernel(x: DeviceArray, width: int) -> tuple[Kernel, int]:
    """The kernel of P^T y for y of so many columns, and its shared memory."""
    defines = storage(x), f"WIDTH={width_of(width)}"
    return Kernel("columns.cu", "transposed", defines), weighted_bytes(x, width_of(width))


def operand_bytes(x: DeviceArray) -> int:
    """Of the struct Operands in `kernels/`: two tiles of 16 coordinates, their 64 rows padded to 68 numbers."""
    return 2 * 16 * 68 * real_bytes(x)


def row_bytes(x: DeviceArray) -> int:
    """Of the struct RowTile: operands, and the numbers of 64 queries and 64 keys."""
    return operand_bytes(x) + 2 * 4 * TILE


def weighted_bytes(x: DeviceArray, width: int) -> int:
    """Of the struct Weighted: a tile of weights and a few rows of values; it is larger than Operands."""
    return (TILE * 68 + (8 if real_bytes(x) == 4 else 2) * width) * real_bytes(x)


def warp_bytes(x: DeviceArray) -> int:
    """Of the struct OfWarps: a number of each warp of a block."""
    return THREADS // 32 * real_bytes(x)


def real_bytes(x: DeviceArray) -> int:
    """Bytes of a number of the arithmetic."""
    return np.dtype(real(x)).itemsize
