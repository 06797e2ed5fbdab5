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

import numpy as np

from hyperattention_ref.backends import cuda_launcher
from hyperattention_ref.backends.cuda_launcher import Array, CudaBackend, Kernel

SOURCES = Path(cuda_launcher.__file__).parent / "cuda"
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

    def describe(self, name, x):
        if not isinstance(x, Array):
            raise TypeError(f"{name} is a {type(x).__name__}; device arrays are needed")
        return x

    def empty(self, shape, dtype):
        """A new array, full of ones in all bits: NaN or -1."""
        size = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        poison = np.full((*shape, size), 0xFF, np.uint8)
        return _array(poison.view(f"u{size}" if dtype == "bfloat16" else dtype)[..., 0], dtype)

    def upload(self, x, dtype=None):
        return _array(x, dtype or x.dtype.name)

    def download(self, x):
        return x.owner

    def synchronize(self):
        pass

    def cast(self, x, dtype):
        return _array(x.owner.astype(dtype, order="C"), dtype)

    def give(self, x, like):
        return x

    def launch(self, kernel: Kernel, grid, threads, shared_bytes, args):
        self.launched.append(kernel.name)
        library = ctypes.CDLL(str(build(kernel.file, kernel.name, kernel.defines, self.sources, self.flags)))
        values = [np.array(x) for x in args]
        pointers = (ctypes.c_void_p * len(values))(*(x.ctypes.data for x in values))
        error = ctypes.create_string_buffer(4000)
        failed = getattr(library, f"emulated_{kernel.name}")(
            (ctypes.c_uint * 2)(*grid),
            ctypes.c_uint(threads),
            ctypes.c_size_t(shared_bytes),
            self.schedule.encode(),
            ctypes.c_uint(self.seed),
            pointers,
            error,
            ctypes.c_size_t(len(error)),
        )
        if failed:
            raise KernelError(f"{kernel.name}: {error.value.decode()}")


class EmulatedBackend(CudaBackend):
    """The launcher on the emulated device, with NumPy arrays at the outside: they are moved there and back."""

    name = "cuda emulation"

    def __init__(self, path="auto", device=None):
        super().__init__(device or EmulatedDevice(), path)

    def unavailable(self):
        return missing_compiler()

    def hash_codes(self, x, planes):
        return super().hash_codes(self._move(x), planes).owner

    def exact_attention(self, q, k, v, **options):
        return self._back(super().exact_attention(*map(self._move, (q, k, v)), **options))

    def planned_attention(self, q, k, v, plan, **options):
        return self._back(super().planned_attention(*map(self._move, (q, k, v)), plan, **options))

    def attention_sums(self, q, k, mask, **options):
        sums = super().attention_sums(self._move(q), self._move(k), mask, **options)
        arrays = {name: x.owner if isinstance(x, Array) else x for name, x in vars(sums).items()}
        return type(sums)(**arrays)

    def transposed_attention(self, q, k, y, lse, **options):
        return super().transposed_attention(*map(self._move, (q, k, y)), np.asarray(lse), **options).owner

    def capped_sums(self, q, k, mask, samples, log_caps, **options):
        return self._back(super().capped_sums(self._move(q), self._move(k), mask, samples, log_caps, **options))

    def attention_of(self, q, k, v, example):
        """(out, lse) of the arguments of an AttentionInputs, with its arrays on the device already."""
        if example.plan is None:
            return super().exact_attention(q, k, v, scale=example.scale, is_causal=example.is_causal)
        return super().planned_attention(q, k, v, example.plan, scale=example.scale)

    def _move(self, x):
        return self.device.upload(x)

    @staticmethod
    def _back(results):
        return tuple(x.owner for x in results)


@cache
def build(file: str, name: str, defines: tuple[str, ...], sources: Path, flags: tuple[str, ...]) -> Path:
    """The shared library of one variant, compiled once for each state of the sources."""
    unit = "".join(f"#define {d.replace('=', ' ', 1)}\n" for d in ("CUDA_EMULATION=1", *defines))
    unit += f'#include "{file}"\nEMULATED_KERNEL({name})\n'
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
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"g++ refuses {file}:\n{result.stderr[:4000]}")
            built.replace(library)
    return library


def _array(x: np.ndarray, dtype: str) -> Array:
    return Array(x, x.ctypes.data, dtype, x.shape, tuple(stride // x.itemsize for stride in x.strides))
