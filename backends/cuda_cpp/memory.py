"""The memory of a GPU as the library sees it (`foundation.memory`), over the kernels in `kernels/`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..device_array import DeviceArray, require_dtype, require_one
from .device import (
    MAX_WIDTH,
    STORAGE,
    Device,
    Kernel,
    Layouts,
    launch,
    real,
    storage,
    transposed_kernel,
)

LARGEST_ROWS = 256  # of a block, in `largest.cu`


class Largest:
    """The largest absolute entries of some arrays, where kernels find them on the device."""

    def __init__(self, device: Device, arrays: Sequence[DeviceArray]):
        self.device, self.dtypes = device, [x.dtype for x in arrays]
        self.bits = device.upload(np.zeros(len(arrays), np.int64))

    def place(self, number: int) -> np.uint64:
        """The address of the bits for one array, which are 0: an argument for the kernel that searches it."""
        return np.uint64(self.bits.pointer + 8 * number)

    def numbers(self) -> Callable[[], list[float]]:
        """What the kernels launched so far find; the result waits for them, and for nothing that is launched later."""
        wait = self.device.begin_download(self.bits)
        return lambda: [_number(x, bits) for x, bits in zip(self.dtypes, wait().view(np.uint64), strict=True)]


class CudaMemory:
    """Arrays on a `Device`."""

    def __init__(self, device: Device, layouts: Layouts):
        self.device, self.layouts = device, layouts

    def view(self, name, x):
        return require_dtype(name, self.device.view(name, x), tuple(STORAGE))

    def broadcast(self, x, shape):
        return x.broadcast_to(shape)

    def largest(self, named):
        """One pass over each array; the bits of |x| grow with |x|, up to those of infinity and then of NaN."""
        require_one(named, "device")
        arrays = list(named.values())
        with self.device.scope(arrays[0]):
            found = Largest(self.device, arrays)
            for number, x in enumerate(arrays):
                *lead, n, d = x.shape
                kernel = Kernel("largest.cu", "largest", (storage(x),), rows=LARGEST_ROWS)
                args = [*self.layouts.matrix(x), n, d, found.place(number)]
                launch(self.device, kernel, (math.prod(lead), n), args)
            return found.numbers()

    def copy(self, x, dtype, *, rows=None):
        return x if rows is None and x.dtype == dtype else self.converted(x, dtype, rows=rows)

    def converted(self, x: DeviceArray, dtype: str, *, rows: np.ndarray | None = None, center=None) -> DeviceArray:
        """A new contiguous array: x, or some rows of it, less `center` (..., d) of the dtype of the result."""
        *lead, n, d = x.shape
        with self.device.scope(x):
            n_rows = n if rows is None else len(rows)
            result = self.device.empty((*lead, n_rows, d), dtype, like=x)
            numbers = None if rows is None else self.device.upload(np.ascontiguousarray(rows, np.int32))
            kernel = Kernel("convert.cu", "convert", (storage(x), f"TARGET={STORAGE[dtype]}"))
            args = [*self.layouts.matrix(x), numbers, center, n_rows, d, result]
            launch(self.device, kernel, (math.prod(lead), n_rows), args)
            return result

    def centred(self, x):
        x = self.copy(x, real(x))
        return self.converted(x, x.dtype, center=self._mean(x))

    def _mean(self, x: DeviceArray) -> DeviceArray:
        """(1, d), the mean of the rows: P^T y of flat attention to a single key, P_i1 = e^(0 - ln n), y the rows."""
        n, d = x.shape
        with self.device.scope(x):
            mean = self.device.empty((1, d), x.dtype)
            log_n = self.device.upload(np.full(n, math.log(n), x.dtype))
            zero = self.device.upload(np.zeros((1, 1), x.dtype))
            pair = [*self.layouts.matrix(zero.broadcast_to((n, 1))), *self.layouts.matrix(zero)]
            for first in range(0, d, MAX_WIDTH):
                values, target = x[:, first : first + MAX_WIDTH], mean[:, first:]
                width = values.shape[1]
                args = [*pair, *self.layouts.matrix(values), n, 1, 1, width, 1.0, False, log_n, target]
                launch(self.device, transposed_kernel(x, width), (1, 1), args)
            return mean

    def to_host(self, x):
        view = self.device.view("the array", x)
        with self.device.scope(view):
            return self.device.download(view)

    def from_host(self, x, like=None):
        return self.device.upload_view(x, like)


def _number(dtype: str, bits: np.uint64) -> float:
    """The number whose bits are these: float64, or float32 for all shorter types."""
    return float(bits.view(np.float64) if dtype == "float64" else np.uint32(bits).view(np.float32))
