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
        if rows is None and x.dtype == dtype:
            return x
        with self.device.queue(x) as queue:
            return self._converted(queue, x, dtype, rows)

    def _converted(self, queue: Queue, x: DeviceArray, dtype: str, rows=None, center: DeviceArray | None = None):
        """A new contiguous array: x, or some rows of it, less `center` (d,) of the working type of the result."""
        *lead, n, d = x.shape
        n_rows = n if rows is None else len(rows)
        result = queue.empty((*lead, n_rows, d), dtype)
        row_numbers = queue.upload(np.empty(0, np.int64) if rows is None else np.asarray(rows, np.int64))
        if center is None:
            center = queue.empty((0,), working_dtype(result))
        for index in np.ndindex(*lead):
            queue.launch("convert", queue.tiles(n_rows), x[index], row_numbers, center, result[index])
        return result

    def centred(self, x):
        with self.device.queue(x) as queue:
            return self._converted(queue, x, working_dtype(x).name, center=self._mean(queue, x))

    def _mean(self, queue: Queue, x: DeviceArray) -> DeviceArray:
        """(d,) the mean of the rows: P^T y of flat attention to a single key, P_i1 = e^(0 - ln n), y the rows."""
        (n, d), work = x.shape, working_dtype(x)
        mean, zero = queue.upload(np.zeros((1, d), work)), queue.upload(np.zeros((1, 1), work))
        flat, log_n = zero.broadcast_to((n, 1)), queue.upload(np.full(1, math.log(n), work)).broadcast_to((n,))
        queue.launch("transposed", 1, flat, zero, x, log_n, work.type(1), False, mean)
        return mean[0]

    def to_host(self, x):
        x = self.device.view("the array", x)
        with self.device.queue(x) as queue:
            if not x.is_contiguous:
                x = self._converted(queue, x if x.ndim > 1 else x[:, None], x.dtype)
            return queue.download(x)

    def from_host(self, x, like=None):
        memory, offset = strided_bytes(x)
        with self.device.queue(*[] if like is None else [like]) as queue:
            copy = queue.upload(memory)
        strides = tuple(stride // x.itemsize for stride in x.strides)
        return replace(copy, pointer=copy.pointer + offset, dtype=x.dtype.name, shape=x.shape, strides=strides)
