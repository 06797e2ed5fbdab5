"""The device of the backend `numba-cuda`: which arrays it takes, and a queue of work for them.

All work of a call goes to one stream, the one in which the caller's library works, and no call waits for the device
unless it must return a number. Memory is freed with its Python object, perhaps before a kernel that uses it has run.
This is safe:

- Scratch memory comes from the caller's library, as the results do. PyTorch and CuPy reuse memory that was freed in a
  stream only for later work in the same stream, which starts after our kernels. Numba's own memory is freed by
  cuMemFree, which waits for the device.
- The driver may read a host array after the call that copies it has returned. The queue keeps such arrays until an
  event, recorded after the last kernel, has passed.
- For libraries that do not say in which stream they work, and for several libraries in one call, the device is
  synchronised before the first kernel and after the last one; afterwards the caller may change or free the arrays.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hyperattention_ref.foundation.extras import install
from hyperattention_ref.foundation.memory import library_of

from ..device_array import (
    LIBRARIES,
    DeviceArray,
    current_stream,
    device_view,
    new_array,
    require_dtype,
    require_one,
)

NAME = "numba-cuda"
REMEDY = install("cuda")
FLOATS = ("float16", "float32", "float64")
LEGACY_STREAM = 1  # CU_STREAM_LEGACY: the default stream of CuPy and PyTorch, whatever Numba's own is set to


class NumbaDevice:
    """Numba's current device."""

    def __init__(self):
        self._in_flight: deque = deque()  # events, each with the host arrays that are read until it has passed

    @property
    def kernels(self):
        """The module of the kernels; Numba is imported with it."""
        from . import kernels

        return kernels

    def unavailable(self) -> str | None:
        """Why no kernel can run here, with the remedy, or None."""
        try:
            from numba import config, cuda
        except ImportError as error:
            return f"numba.cuda cannot be imported ({error}); install it with: {REMEDY}"
        if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]  # Numba sets its options at run time
            return "NUMBA_ENABLE_CUDASIM is set, which puts a simulator in the place of the device; unset it"
        if getattr(cuda, "implementation", None) != "NVIDIA":
            return (
                f"the package numba-cuda is missing (Numba's own CUDA target is deprecated); install it with: {REMEDY}"
            )
        if not cuda.is_available():
            reason = " ".join(str(cuda.cuda_error() or "a CUDA library is missing").split()).rstrip(" :.")
            return f"Numba finds no CUDA device ({reason}); it needs an NVIDIA driver and the libraries of: {REMEDY}"
        return None

    def view(self, name: str, x) -> DeviceArray:
        """The caller's array, or a result; a TypeError for a host array."""
        if reason := self.unavailable():
            raise RuntimeError(f"the backend {NAME!r} cannot run here: {reason}")
        return device_view(name, x, NAME)

    def floating(self, name: str, x) -> DeviceArray:
        """The caller's array; a TypeError for a host array, or for another dtype than those of the kernels."""
        x = self.view(name, x)
        remedy = "use the backend 'cupy', or convert it to float32" if x.dtype == "bfloat16" else "convert it"
        return require_dtype(name, x, FLOATS, remedy)

    def views(self, **arrays) -> list[DeviceArray]:
        """The caller's arrays, on one device and of one dtype."""
        named = {name: self.floating(name, x) for name, x in arrays.items()}
        require_one(named, "device")
        require_one(named, "dtype")
        return list(named.values())

    @contextmanager
    def queue(self, *arrays) -> Iterator[Queue]:
        """The queue for work on the DeviceArrays among these; new arrays are of the library of the first one."""
        from numba import cuda

        on_device = [x for x in arrays if isinstance(x, DeviceArray)]
        _require_current(on_device)
        libraries = {library_of(x.owner) for x in on_device}
        needs_barrier = len(libraries) > 1 or bool(libraries - LIBRARIES.keys())
        pointer = current_stream(on_device[0]) if on_device else None
        stream = 0 if pointer is None else cuda.external_stream(pointer or LEGACY_STREAM)
        while self._in_flight and self._in_flight[0][0].query():
            self._in_flight.popleft()
        if needs_barrier:
            cuda.synchronize()
        queue = Queue(self.kernels, stream, on_device[0] if on_device else None)
        try:
            yield queue
        finally:
            if queue.copied:
                event = cuda.event()
                event.record(stream)
                self._in_flight.append((event, queue.copied))
        if needs_barrier:
            cuda.synchronize()


@dataclass(frozen=True)
class Queue:
    """Launches of the kernels of a module in one stream, and memory for them.

    Attributes
    ----------
    kernels : the module.
    stream : as Numba names it, 0 for its default one.
    like : new arrays are of the library that owns this one; None means Numba.
    copied : the host arrays that copies of this queue read.
    """

    kernels: Any
    stream: Any = 0
    like: DeviceArray | None = None
    copied: list = field(default_factory=list)

    def empty(self, shape: tuple[int, ...], dtype) -> DeviceArray:
        """A new array."""
        return new_array(shape, np.dtype(dtype).name, self.like, otherwise="numba")

    def upload(self, x) -> DeviceArray:
        """A contiguous copy of a host array."""
        x = np.array(x, order="C")  # a private copy, which does not change while the driver reads it
        copy = self.empty(x.shape, x.dtype)
        if x.size:
            _numba_array(copy).copy_to_device(x, stream=self.stream)
            self.copied.append(x)
        return copy

    def download(self, x: DeviceArray) -> np.ndarray:
        """A copy on the host of a contiguous array; waits for the stream."""
        copy = _numba_array(x).copy_to_host(stream=self.stream)
        if self.stream:
            self.stream.synchronize()
        return copy

    def tiles(self, n: int) -> int:
        """How many tiles cover n rows."""
        return -(-n // self.kernels.TILE)

    def launch(self, name: str, n_blocks: int, *args) -> None:
        """Run a kernel with so many blocks of TILE x TILE threads."""
        threads = self.kernels.TILE, self.kernels.TILE
        args = tuple(_numba_array(x) if isinstance(x, DeviceArray) else x for x in args)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Grid size")  # a small grid is right for few rows
            getattr(self.kernels, name)[n_blocks, threads, self.stream](*args)


def _numba_array(x: DeviceArray):
    """The array as kernels take it; made from the pointer, because Numba's indexing fails where a stride is 0."""
    from numba import cuda

    interface = x.__cuda_array_interface__
    if x.is_contiguous or x.size == 0:  # libraries differ in the strides of axes of length 0 or 1, and Numba would
        interface["strides"] = None  # compile the kernels again for each
    return cuda.from_cuda_array_interface(interface, owner=x.owner)


def _require_current(arrays: list[DeviceArray]) -> None:
    """Refuse arrays that are known to be on another device than the one that Numba launches on."""
    known = {x.device for x in arrays if x.device is not None}
    if not known:
        return
    from numba import cuda

    current = cuda.get_current_device().id
    if known != {current}:
        listed = ", ".join(map(str, sorted(known)))
        raise ValueError(
            f"arrays are on device {listed}, and the current device of Numba is {current}: call "
            "numba.cuda.select_device with the number of theirs, or move them"
        )
