"""Numba's CUDA simulator with a strict scheduler and strict memory; needs NUMBA_ENABLE_CUDASIM=1 before Numba.

A thread is a greenlet: it runs until its barrier and the next one takes over, which is several times faster than one
operating-system thread for each. On hardware a mistake in the synchronisation shows now and then; here it always does:

- *race*: between two barriers one thread writes an entry (of shared or global memory) that another reads or writes; or,
  anywhere in a launch, a thread of another block does;
- *barrier*: threads of a block wait at different barriers, or some have ended;
- *shared memory read before it is written*; fresh global memory is NaN;
- *index* outside an array, negative ones too, which NumPy would wrap.

`install()` puts this below `numba.cuda`, and adds what the simulator lacks: the CUDA array interface, and events and
foreign streams, which change nothing, since everything is done when it is called.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from numba.cuda.simulator.kernel import FakeCUDAKernel


class KernelError(AssertionError):
    """A kernel broke a rule of the programming model."""


class Access(NamedTuple):
    """Who touched an entry: the block, the number of barriers that it had passed, the thread. SEVERAL means several."""

    block: object
    epoch: int
    thread: object


SEVERAL = object()


class Thread(greenlet):
    """One CUDA thread; `now` is the Access that it makes at present."""

    def __init__(self, kernel, block_index, thread_index):
        super().__init__(kernel)
        self.block_index, self.thread_index = block_index, thread_index
        self.now = Access(block_index, 0, thread_index)
        self.barrier = None


class Memory:
    """An array as kernels see it: whole indices only, every access recorded."""

    def __init__(self, array: np.ndarray, *, is_shared: bool = False):
        self.array, self.is_shared = array, is_shared
        self.shape, self.size, self.dtype = array.shape, array.size, array.dtype
        self.writes: dict[tuple, Access] = {}
        self.reads: dict[tuple, Access] = {}

    def __getitem__(self, index):
        index, now = self._index(index), getcurrent().now
        write = self.writes.get(index)
        if write is None:
            if self.is_shared:
                raise KernelError(f"shared memory is read at {index} before it is written")
        elif _collide(write, now):
            raise KernelError(f"race: {now} reads {index}, which {write} wrote")
        self.reads[index] = _together(self.reads.get(index), now)
        return self.array[index]

    def __setitem__(self, index, value):
        index, now = self._index(index), getcurrent().now
        for other, verb in ((self.reads.get(index), "read"), (self.writes.get(index), "wrote")):
            if other is not None and _collide(other, now):
                raise KernelError(f"race: {now} writes {index}, which {other} {verb}")
        self.writes[index] = now
        self.array[index] = value

    def _index(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != len(self.shape) or not all(0 <= i < n for i, n in zip(index, self.shape, strict=True)):
            raise KernelError(f"index {index} is outside an array of shape {self.shape}")
        return index


def _collide(earlier: Access, now: Access) -> bool:
    if earlier.block != now.block:
        return True
    return earlier.epoch == now.epoch and earlier.thread != now.thread


def _together(earlier: Access | None, now: Access) -> Access:
    """The reads of an entry that a later write has to respect, in one Access."""
    if earlier is None or earlier == now:
        return now
    if earlier.block != now.block:
        return Access(SEVERAL, 0, SEVERAL)
    return now if earlier.epoch < now.epoch else Access(now.block, now.epoch, SEVERAL)


class Device:
    """What the name `cuda` means inside a kernel."""

    def __init__(self, block_shape):
        self.block_shape = block_shape
        self.shared = SimpleNamespace(array=self._shared_array)
        self.arrays: dict[object, Memory] = {}

    @property
    def threadIdx(self):
        return getcurrent().thread_index

    @property
    def blockIdx(self):
        return getcurrent().block_index

    def grid(self, ndim: int):
        assert ndim == 1
        return self.blockIdx.x * self.block_shape[0] + self.threadIdx.x

    def syncthreads(self):
        caller, thread = sys._getframe(1), getcurrent()
        thread.barrier = caller.f_code, caller.f_lineno
        thread.parent.switch()

    def _shared_array(self, shape, dtype):
        place = sys._getframe(1).f_lineno  # the same line in all threads is the same array
        if place not in self.arrays:
            self.arrays[place] = Memory(np.empty(shape, dtype), is_shared=True)
        return self.arrays[place]


class Index(NamedTuple):
    x: int
    y: int = 0
    z: int = 0


def launch(kernel: FakeCUDAKernel, *args) -> None:
    """Run a kernel, one block after another; a device function is simply called."""
    if kernel._device:
        return kernel.fn(*args)
    args = [Memory(x._ary) if isinstance(x, FakeCUDAArray) else x for x in args]
    outside = kernel.fn.__globals__["cuda"]
    try:
        for block in np.ndindex(*kernel.grid_dim):
            kernel.fn.__globals__["cuda"] = Device(kernel.block_dim)
            _run_block(kernel, Index(*block), args)
    finally:
        kernel.fn.__globals__["cuda"] = outside


def _run_block(kernel, block, args) -> None:
    places = [Index(*reversed(place)) for place in np.ndindex(*reversed(kernel.block_dim))]
    threads = [Thread(kernel.fn, block, place) for place in places]
    for epoch in range(sys.maxsize):
        for thread in threads:
            thread.now = Access(block, epoch, thread.thread_index)
            thread.switch(*args) if epoch == 0 else thread.switch()
        ended = sum(thread.dead for thread in threads)
        if ended == len(threads):
            return
        if ended or len({thread.barrier for thread in threads}) > 1:
            lines = sorted({thread.barrier[1] for thread in threads if not thread.dead})
            raise KernelError(f"barrier: {ended} threads of a block have ended while others wait in the lines {lines}")


def install() -> None:
    """Replace the scheduler and the memory of `numba.cuda` for this process."""
    FakeCUDAKernel.__call__ = launch
    FakeCUDAArray.__cuda_array_interface__ = property(lambda self: self._ary.__array_interface__)
    FakeCUDAArray.shape = property(lambda self: self._ary.shape)  # outside of kernels shape[-1] is an entry
    cuda.device_array = _fresh_array
    cuda.from_cuda_array_interface = _from_interface
    cuda.event, cuda.external_stream = Event, Stream
    cuda.get_current_device = lambda: SimpleNamespace(id=0)


class Stream:
    """A stream that another library made."""

    def __init__(self, pointer: int):
        self.pointer = pointer

    def synchronize(self):
        pass


class Event:
    """A mark in a stream; here it has always passed."""

    def record(self, stream=0):
        pass

    def query(self) -> bool:
        return True


def _fresh_array(shape, dtype):
    """Memory with all bits set: NaN, or -1."""
    array = np.empty(shape, dtype)
    array = np.full(array.nbytes, 0xFF, np.uint8).view(array.dtype).reshape(array.shape)
    return FakeCUDAArray(array)


def _from_interface(description, owner):
    """The array that an interface describes; on the simulated device all pointers are the host's."""
    assert all(math.isfinite(n) for n in description["shape"])
    source = SimpleNamespace(__array_interface__=description | {"version": 3}, owner=owner)
    return FakeCUDAArray(np.asarray(source))
