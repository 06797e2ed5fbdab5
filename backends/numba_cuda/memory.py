"""The memory of a GPU as the library sees it (`foundation.memory`), over `kernels`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hyperattention_ref.foundation.memory import working_dtype

from ..device_array import DeviceArray, require_one, strided_bytes
from .device import NumbaDevice, Queue


class NumbaMemory:
    """Arrays on a `NumbaDevice`."""

    def __init__(self, device: NumbaDevice):
        self.device = device

    def view(self, name, x):
        return self.device.floating(name, x)

    def broadcast(self, x, shape):
        return x.broadcast_to(shape)

    def largest(self, named):
        """One number for every TILE x TILE rows; the host takes the largest of these few."""
        require_one(named, "device")
        arrays = list(named.values())
        with self.device.queue(*arrays) as queue:
            parts = [self._largest(queue, x) for x in arrays]
        return lambda: [float(queue.download(part).max()) for part in parts]

    def _largest(self, queue: Queue, x: DeviceArray) -> DeviceArray:
        n_blocks = queue.tiles(queue.tiles(x.shape[-2]))
        maxima = queue.empty((*x.shape[:-2], n_blocks), working_dtype(x))
        for index in np.ndindex(x.shape[:-2]):
            queue.launch("largest", n_blocks, x[index], maxima[index])
        return maxima

    def copy(self, x, dtype, *, rows=None):
        return x if rows is None and x.dtype == dtype else self._converted(x, dtype, rows)

    def _converted(self, x: DeviceArray, dtype: str, rows=None, center: DeviceArray | None = None) -> DeviceArray:
        """A new contiguous array: x, or some rows of it, less `center` (d,) of the working type of the result."""
        *lead, n, d = x.shape
        n_rows = n if rows is None else len(rows)
        with self.device.queue(x) as queue:
            result = queue.empty((*lead, n_rows, d), dtype)
            row_numbers = queue.upload(np.asarray([] if rows is None else rows, np.int64))
            if center is None:
                center = queue.empty((0,), working_dtype(result))
            for index in np.ndindex(*lead):
                queue.launch("convert", queue.tiles(n_rows), x[index], row_numbers, center, result[index])
        return result

    def centred(self, x):
        """The mean is P^T y of flat attention to a single key, P_i1 = e^(0 - ln n), y the rows."""
        (n, d), work = x.shape, working_dtype(x)
        with self.device.queue(x) as queue:
            mean, zero = queue.upload(np.zeros((1, d), work)), queue.upload(np.zeros((1, 1), work))
            flat, log_n = zero.broadcast_to((n, 1)), queue.upload(np.full(1, math.log(n), work)).broadcast_to((n,))
            queue.launch("transposed", 1, flat, zero, x, log_n, work.type(1), False, mean)
        return self._converted(x, work.name, center=mean[0])

    def to_host(self, x):
        x = self.device.view("the array", x)
        if not x.is_contiguous:
            x = self._converted(x if x.ndim > 1 else x[:, None], x.dtype)
        with self.device.queue(x) as queue:
            return queue.download(x)

    def from_host(self, x, like=None):
        memory, offset = strided_bytes(x)
        with self.device.queue(like) as queue:
            copy = queue.upload(memory)
        strides = tuple(stride // x.itemsize for stride in x.strides)
        return replace(copy, pointer=copy.pointer + offset, dtype=x.dtype.name, shape=x.shape, strides=strides)
