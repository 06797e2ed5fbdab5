"""The backend `cupy`: the CUDA C++ kernels of `cuda/` on an NVIDIA GPU, compiled and launched through CuPy.

Arrays in, arrays of the same kind out: CuPy arrays, or torch tensors on a CUDA device (bfloat16 too), without a copy.
The work goes to the device of the arrays and to the stream that is current there. CuPy compiles each variant of a
kernel at its first use, with NVRTC, and keeps it on disk.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from hyperattention_ref.backends.cuda_launcher import Array, CudaBackend, Kernel

SOURCES = Path(__file__).parent / "cuda"
STATIC_LIMIT = 48 * 1024  # bytes of shared memory that a kernel may have without asking


class CupyBackend(CudaBackend):
    """Exact and planned attention, hashing and measures on a GPU; see `CudaBackend` for `path`."""

    name = "cupy"

    def __init__(self, path: str = "auto"):
        super().__init__(CupyDevice(), path)

    def unavailable(self) -> str | None:
        return _obstacle()


class CupyDevice:
    """`Device` over CuPy."""

    @contextmanager
    def scope(self, x):
        if reason := _obstacle():
            raise RuntimeError(f"the backend 'cupy' cannot run here: {reason}")
        import cupy

        if _is_tensor(x):
            import torch

            with torch.cuda.device(x.device), cupy.cuda.Device(x.device.index):
                stream = torch.cuda.current_stream().cuda_stream
                with cupy.cuda.ExternalStream(stream, x.device.index) if stream else cupy.cuda.Stream.null:
                    yield
        elif isinstance(x, cupy.ndarray):
            with x.device:
                yield
        else:
            yield  # `describe` refuses it by name

    def key(self) -> int:
        import cupy

        return cupy.cuda.Device().id

    def capability(self) -> int:
        import cupy

        return int(cupy.cuda.Device().compute_capability)

    def shared_limit(self) -> int:
        from cupy.cuda import runtime

        return runtime.deviceGetAttribute(runtime.cudaDevAttrMaxSharedMemoryPerBlockOptin, self.key())

    def describe(self, name: str, x) -> Array:
        """The caller's array; a TypeError for one that is not in the memory of the current device."""
        import cupy

        if _is_tensor(x):
            import torch

            is_bfloat = x.dtype == torch.bfloat16
            owner = cupy.from_dlpack(x.detach().view(torch.int16) if is_bfloat else x.detach())
            dtype = "bfloat16" if is_bfloat else owner.dtype.name
        elif isinstance(x, cupy.ndarray):
            owner, dtype = x, x.dtype.name
        else:
            raise TypeError(
                f"{name} is a {type(x).__module__}.{type(x).__name__}; the backend 'cupy' needs device arrays: pass "
                "cupy.asarray(x) or a torch tensor on a CUDA device"
            )
        if owner.device.id != self.key():
            raise ValueError(f"{name} is on device {owner.device.id}; all arrays must be on device {self.key()}")
        return _array(owner, dtype)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        import cupy

        return _array(cupy.empty(shape, "int16" if dtype == "bfloat16" else dtype), dtype)

    def upload(self, x: np.ndarray) -> Array:
        import cupy

        plain = x.view(np.int64) if x.dtype.names else x  # CuPy has no structured arrays; all columns are int64
        return _array(cupy.asarray(plain), plain.dtype.name)

    def download(self, x: Array) -> np.ndarray:
        return x.owner.get()

    def synchronize(self) -> None:
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def cast(self, x: Array, dtype: str) -> Array:
        return _array(x.owner.astype(dtype, order="C", copy=False), dtype)

    def give(self, x: Array, like):
        if _is_tensor(like):
            import torch

            result = torch.from_dlpack(x.owner)
            return result.view(torch.bfloat16) if x.dtype == "bfloat16" else result
        return x.owner.view(like.dtype) if x.dtype == "bfloat16" else x.owner

    def launch(self, kernel: Kernel, grid: tuple[int, int], threads: int, shared_bytes: int, args: list) -> None:
        function = _module(kernel.file, kernel.defines).get_function(kernel.name)
        if shared_bytes > STATIC_LIMIT:
            function.max_dynamic_shared_size_bytes = shared_bytes
        function(grid, (threads,), tuple(args), shared_mem=shared_bytes)


@cache
def _module(file: str, defines: tuple[str, ...]):
    """One source with its macros; CuPy compiles it for every device that uses it."""
    import cupy

    options = ("-std=c++17", f"-I{SOURCES}", *(f"-D{define}" for define in defines))
    # CuPy keeps compiled kernels by the text of the source, headers not included: a digest of all stands for them
    code = f"// {_digest()}\n" + (SOURCES / file).read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=options)


@cache
def _digest() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.cu*")))).hexdigest()


def _obstacle() -> str | None:
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


def _is_tensor(x) -> bool:
    """Whether x is a torch tensor on a CUDA device; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor) and x.is_cuda


def _array(owner, dtype: str) -> Array:
    strides = tuple(stride // owner.itemsize for stride in owner.strides)
    return Array(owner, owner.data.ptr, dtype, owner.shape, strides)
