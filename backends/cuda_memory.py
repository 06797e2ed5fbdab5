"""The memory of a GPU as the library sees it (`hyperattention_ref.memory`), over the kernels in `cuda/`."""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref.backends.cuda_device import (
    MAX_WIDTH,
    STORAGE,
    Device,
    Kernel,
    Layouts,
    integers,
    launch,
    real,
    storage,
    tiles,
    transposed_kernel,
)
from hyperattention_ref.backends.device_array import DeviceArray, require_dtype, require_one

LARGEST_WARPS, LARGEST_ROWS = 8, 256  # of `largest.cu`: numbers in shared memory, and rows of a block


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
            found = self.device.upload(np.zeros(len(arrays), np.int64))
            for place, x in enumerate(arrays):
                n, d = x.shape[-2:]
                args = [*self.layouts.matrix(x), *integers(n, d), np.uint64(found.pointer + 8 * place)]
                kernel = Kernel("largest.cu", "largest", (storage(x),))
                tile_bytes = LARGEST_WARPS * np.dtype(real(x)).itemsize
                launch(self.device, kernel, tile_bytes, (math.prod(x.shape[:-2]), tiles(n, LARGEST_ROWS)), args)

        def numbers() -> list[float]:
            with self.device.scope(arrays[0]):
                bits = self.device.download(found).view(np.uint64)
            return [_number(x.dtype, one) for x, one in zip(arrays, bits, strict=True)]

        return numbers

    def copy(self, x, dtype, *, rows=None):
        return x if rows is None and x.dtype == dtype else self.converted(x, dtype, rows=rows)

    def converted(self, x: DeviceArray, dtype: str, *, rows: np.ndarray | None = None, center=None) -> DeviceArray:
        """A new contiguous array: x, or some rows of it, less `center` (..., d) of the dtype of the result."""
        *lead, n, d = x.shape
        with self.device.scope(x):
            n_rows = n if rows is None else len(rows)
            result = self.device.empty((*lead, n_rows, d), dtype, like=x)
            nothing = np.uint64(0)
            chosen = nothing if rows is None else self.device.upload(np.ascontiguousarray(rows, np.int32))
            args = [*self.layouts.matrix(x), chosen, center or nothing, *integers(n_rows, d), result]
            kernel = Kernel("convert.cu", "convert", (storage(x), f"TARGET={STORAGE[dtype]}"))
            launch(self.device, kernel, 0, (math.prod(lead), tiles(n_rows)), args)
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
                args = [*pair, *self.layouts.matrix(values), *integers(n, 1, 1, width)]
                args += [np.float64(1), np.int32(0), log_n, target]
                launch(self.device, *transposed_kernel(x, width), (1, 1), args)
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
