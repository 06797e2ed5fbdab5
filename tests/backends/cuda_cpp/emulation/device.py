"""The launcher's `Device` on this machine's CPU: kernels are compiled by g++ and run by `emulation.h`."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from hyperattention_ref.backends.cuda_cpp.backend import CudaBackend
from hyperattention_ref.backends.cuda_cpp.device import KERNELS as SOURCES
from hyperattention_ref.backends.cuda_cpp.device import Kernel
from hyperattention_ref.backends.device_array import DeviceArray, device_view, strided_bytes

HERE = Path(__file__).parent
SCHEDULES = ("forwards", "backwards", "warps", "random")
FLAGS = (
    "-std=c++17",
    "-O2",
    "-march=native",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)


class KernelError(Exception):
    """A kernel did what it must not: a deadlock, a wrong address, a copy left in flight."""


def missing_compiler() -> str | None:
    """Why the emulation cannot be built here, or None."""
    if platform.system() != "Linux":
        return f"the CUDA emulation needs Linux (ucontext), this is {platform.system()}"
    return None if shutil.which("g++") else "the CUDA emulation needs g++, which is not installed"


class EmulatedArray(np.ndarray):
    """An array of the library whose arrays lie on the emulated device."""


class EmulatedDevice:
    """A device whose memory is that of NumPy.

    Parameters
    ----------
    schedule : the order of threads, one of SCHEDULES; `seed` draws the random one.
    sources : the folder of the kernels, another one for planted bugs.
    capability, shared_limit : what it claims to be.
    flags : further flags of the compiler.
    """

    def __init__(self, schedule="forwards", seed=0, sources=SOURCES, capability=90, shared_limit=101_376, flags=()):
        self.schedule, self.seed, self.sources, self.flags = schedule, seed, sources, flags
        self._capability, self._shared_limit = capability, shared_limit
        self.launched: list[str] = []

    def scope(self, x):
        return nullcontext()

    def key(self):
        return 0

    def capability(self):
        return self._capability

    def shared_limit(self):
        return self._shared_limit

    def view(self, name, x):
        if isinstance(x, EmulatedArray):
            x = in_place(x, x.dtype.name)
        return device_view(name, x, "cuda emulation")

    def empty(self, shape, dtype, like=None):
        """A new array, full of ones in all bits: NaN or -1."""
        size = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        poison = np.full((*shape, size), 0xFF, np.uint8)
        return in_place(poison.view(f"u{size}" if dtype == "bfloat16" else dtype)[..., 0], dtype)

    def upload(self, x, dtype=None):
        return in_place(np.array(x, order="C"), dtype or x.dtype.name)

    def upload_view(self, x, like=None):
        memory, offset = strided_bytes(x)
        return in_place(np.ndarray(x.shape, x.dtype, memory.copy(), offset, x.strides), x.dtype.name)

    def fill(self, x, values):
        assert values.dtype == x.dtype
        np.asarray(x.owner)[: len(values)] = values

    def download(self, x):
        kind = {"shape": x.shape, "strides": tuple(s * x.item_bytes for s in x.strides), "data": (x.pointer, False)}
        kind |= {"typestr": "<u2" if x.dtype == "bfloat16" else np.dtype(x.dtype).str, "version": 3}
        found = np.array(SimpleNamespace(__array_interface__=kind, owner=x.owner))
        return from_bfloat(found) if x.dtype == "bfloat16" else found

    def begin_download(self, x):
        found = self.download(x)
        return lambda: found

    def synchronize(self):
        pass

    def launch(self, kernel: Kernel, blocks, args):
        self.launched.append(kernel.name)
        library = ctypes.CDLL(str(build(kernel, self.sources, self.flags)))
        values = [np.array(x) for x in args]
        pointers = (ctypes.c_void_p * len(values))(*(x.ctypes.data for x in values))
        error = ctypes.create_string_buffer(4000)
        failed = getattr(library, f"emulated_{kernel.name}")(
            (ctypes.c_uint * 2)(*blocks),
            ctypes.c_uint(kernel.threads),
            ctypes.c_size_t(kernel.shared_bytes),
            self.schedule.encode(),
            ctypes.c_uint(self.seed),
            pointers,
            error,
            ctypes.c_size_t(len(error)),
        )
        if failed:
            raise KernelError(f"{kernel.name}: {error.value.decode()}")


class DeviceWithoutKernels(EmulatedDevice):
    """Refuses nothing and runs nothing: for what happens before a launch."""

    def launch(self, kernel, blocks, args):
        self.launched.append(kernel.name)


class EmulatedBackend(CudaBackend):
    """The launcher on the emulated device."""

    name = "cuda emulation"

    def __init__(self, path="auto", device=None, exact=None):
        super().__init__(device or EmulatedDevice(), path, exact)

    def unavailable(self):
        return missing_compiler()


def to_bfloat(x) -> np.ndarray:
    """Bits (uint16) of x rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat(bits) -> np.ndarray:
    """The float32 numbers of bfloat16 bits."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


@cache
def build(kernel: Kernel, sources: Path, flags: tuple[str, ...]) -> Path:
    """The shared library of one variant, compiled once for each state of the sources."""
    unit = "".join(f"#define {macro.replace('=', ' ', 1)}\n" for macro in ("CUDA_EMULATION=1", *kernel.macros))
    unit += f'#include "{kernel.file}"\nEMULATED_KERNEL({kernel.name})\n'
    texts = [path.read_text() for path in (*sorted(sources.glob("*.cu*")), HERE / "emulation.h")]
    digest = hashlib.sha256("\0".join([unit, *FLAGS, *flags, *texts]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / "hyperattention-cuda-emulation"
    folder.mkdir(exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source, built = Path(scratch) / "unit.cpp", Path(scratch) / "unit.so"
            source.write_text(unit)
            command = ["g++", *FLAGS, *flags, f"-I{sources}", f"-I{HERE}", str(source), "-o", str(built)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if result.returncode:
                raise RuntimeError(f"g++ refuses {kernel.file}:\n{result.stderr[:4000]}")
            built.replace(library)
    return library


def in_place(x: np.ndarray, dtype: str | None = None) -> DeviceArray:
    """The memory of a host array as an array on the emulated device."""
    strides = tuple(stride // x.itemsize for stride in x.strides)
    return DeviceArray(x.view(EmulatedArray), x.ctypes.data, dtype or x.dtype.name, x.shape, strides, 0)
