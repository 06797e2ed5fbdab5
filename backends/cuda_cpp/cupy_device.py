"""The backend `cupy`: the CUDA C++ kernels of `kernels/` on an NVIDIA GPU, compiled and launched through CuPy.

Arrays in, arrays of the same kind out: CuPy arrays, torch tensors on a CUDA device, Numba arrays, and whatever else has
the CUDA array interface or DLPack (CuPy arrays then come out), bfloat16 included, without a copy. The work goes to the
device of the arrays and, for CuPy and PyTorch, to the stream that is current there. CuPy compiles each variant of a
kernel at its first use, with NVRTC, and keeps it on disk.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import cache

import numpy as np

from hyperattention_ref.foundation.bfloat16 import from_bfloat16_bits

from ..device_array import (
    LIBRARIES,
    DeviceArray,
    current_stream,
    device_view,
    new_array,
    strided_bytes,
)
from .device import KERNELS, Kernel

STATIC_LIMIT = 48 * 1024  # bytes of shared memory that a kernel may have without asking


class CupyDevice:
    """`Device` over CuPy."""

    @contextmanager
    def scope(self, x: DeviceArray):
        import cupy

        stream = current_stream(x)
        with cupy.cuda.Device(x.device):
            if stream is None:  # the stream in which the array is written is unknown ...
                cupy.cuda.runtime.deviceSynchronize()
            with cupy.cuda.ExternalStream(stream, x.device) if stream else cupy.cuda.Stream.null:
                yield
            if stream is None:  # ... and so is that in which it may be changed or freed
                cupy.cuda.runtime.deviceSynchronize()

    def key(self) -> int:
        import cupy

        return cupy.cuda.Device().id

    def capability(self) -> int:
        import cupy

        return int(cupy.cuda.Device().compute_capability)

    def shared_limit(self) -> int:
        from cupy.cuda import runtime

        return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, self.key())

    def view(self, name: str, x) -> DeviceArray:
        if reason := obstacle():
            raise RuntimeError(f"the backend 'cupy' cannot run here: {reason}")
        return device_view(name, x, "cupy")

    def empty(self, shape: tuple[int, ...], dtype: str, like: DeviceArray | None = None) -> DeviceArray:
        import cupy

        if like is not None:
            return new_array(shape, dtype, like, otherwise="cupy")
        return _view(cupy.empty(shape, dtype))

    def upload(self, x: np.ndarray) -> DeviceArray:
        import cupy

        return _view(cupy.asarray(x.view(np.int64) if x.dtype.names else x))  # all columns of structs are int64

    def upload_view(self, x: np.ndarray, like: DeviceArray | None) -> DeviceArray:
        import cupy

        memory, offset = strided_bytes(x)
        with cupy.cuda.Device(like and like.device):
            start = cupy.asarray(memory).data + offset
            return _view(cupy.ndarray(x.shape, x.dtype, memptr=start, strides=x.strides))

    def fill(self, x: DeviceArray, values: np.ndarray) -> None:
        import cupy

        _as_cupy(x, x.dtype)[: len(values)] = cupy.asarray(values)  # in the current stream, unlike `set`

    def download(self, x: DeviceArray) -> np.ndarray:
        bits = x.dtype == "bfloat16"
        found = _as_cupy(x, "uint16" if bits else x.dtype).get()
        return from_bfloat16_bits(found) if bits else found

    def begin_download(self, x: DeviceArray):
        import cupy
        import cupyx

        host = cupyx.empty_pinned(x.shape, x.dtype)  # copies to other memory of the host would wait
        _as_cupy(x, x.dtype).get(out=host, blocking=False)
        done = cupy.cuda.get_current_stream().record()

        def wait() -> np.ndarray:
            done.synchronize()
            return host

        return wait

    def synchronize(self) -> None:
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def launch(self, kernel: Kernel, blocks: tuple[int, int], args: list) -> None:
        _function(kernel, self.key())(blocks, (kernel.threads,), tuple(args), shared_mem=kernel.shared_bytes)


@cache
def _function(kernel: Kernel, device: int):
    """The kernel, compiled for this device and allowed its shared memory; one error where there is no compiler."""
    import cupy

    options = ("-std=c++17", f"-I{KERNELS}", *(f"-D{macro}" for macro in kernel.macros))
    # CuPy keeps compiled kernels by the text of the source, headers not included: a digest of all stands for them
    code = f"// {_digest()}\n" + (KERNELS / kernel.file).read_text(encoding="utf-8")
    function = cupy.RawKernel(code, kernel.name, options)
    try:
        function.compile()
    except Exception as error:  # the type depends on the installation of CuPy
        if "nvrtc" not in str(error).lower() or isinstance(error, cupy.cuda.compiler.CompileException):
            raise
        raise RuntimeError(
            f"the backend 'cupy' compiles its kernels with NVRTC, which cannot be used here ({error}): install it, for "
            'example with pip install "cupy-cuda13x[ctk]"'
        ) from error
    if kernel.shared_bytes > STATIC_LIMIT:
        function.max_dynamic_shared_size_bytes = kernel.shared_bytes
    return function


@cache
def _digest() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.cu*")))).hexdigest()


def obstacle() -> str | None:
    """Why nothing can run here, with the remedy, or None."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; install the one for your driver, such as cupy-cuda13x or cupy-cuda12x"
    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no usable NVIDIA driver and device ({error}); install the driver, see nvidia-smi"
    return None if n_devices else "there is no NVIDIA GPU"


def _view(x) -> DeviceArray:
    return LIBRARIES["cupy"].view(x)


def _as_cupy(x: DeviceArray, dtype: str):
    """A CuPy array in the memory of any library."""
    import cupy

    memory = cupy.cuda.UnownedMemory(x.pointer, 0, x.owner, -1 if x.device is None else x.device)
    strides = [stride * np.dtype(dtype).itemsize for stride in x.strides]
    return cupy.ndarray(x.shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 0), strides=strides)
