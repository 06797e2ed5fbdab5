"""The GPU of `bench-gpu`, through PyTorch: the one place of the benchmark that knows CUDA.

Tests run the same benchmark on a subclass whose tensors lie in the memory of the host.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from hyperattention_ref.backends.cuda_cpp import CupyBackend
from hyperattention_ref.bench.cases import LEAVES, SDPA, CallSettings, Contestant, Heads, prepare
from hyperattention_ref.bench.device import Call, Device, Task
from hyperattention_ref.bench.rivals import EXTRA
from hyperattention_ref.bench.timing import Times, take_turns, timed

SIDE = 8192
"""Of the square bfloat16 matrices that are multiplied."""
COPIED = 2**30
"""Bytes that are copied: more than any cache holds."""
IN_CACHE = 2**22
"""Numbers in an array of exponentials, 16 MB in float32: it fits into the second-level cache, as logits would."""
CHAIN = 256
"""Exponentials of exponentials for each number, where a kernel can be compiled: they never leave the registers."""
UNTRACKED = ("numba-cuda",)
"""Backends whose allocations neither PyTorch nor CuPy counts."""
LEAST_SECONDS, MOST_CALLS = 2e-3, 50
"""A run takes at least so long, for which a short call is made several times in a row, up to a limit."""


class Gpu(Device):
    """One NVIDIA GPU: tensors from a seed, times by device events, peak memory, SDPA, facts."""

    device = "cuda"
    sdpa_kinds: ClassVar = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
    """Our name of each backend of SDPA, and PyTorch's."""

    def __init__(self):
        import torch

        self.torch = torch

    @staticmethod
    def obstacle() -> str | None:
        """Why no GPU can be used, with the remedy, or None."""
        if find_spec("torch") is None:
            return f"PyTorch is not installed; {EXTRA}"
        import torch

        if torch.version.cuda is None:
            return (
                f"PyTorch {torch.__version__} is built without CUDA; install the one for your driver, see "
                "https://pytorch.org/get-started"
            )
        if not torch.cuda.is_available():
            return "PyTorch finds no NVIDIA GPU; install the driver, see nvidia-smi"
        return None

    def facts(self) -> dict[str, str | int]:
        """The GPU and what drives it."""
        cuda = self.torch.cuda
        properties = cuda.get_device_properties(cuda.current_device())
        facts: dict[str, str | int] = {
            "GPU": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "GPU memory, GiB": round(properties.total_memory / 2**30),
            "driver": _driver(),
            "CUDA of PyTorch": str(self.torch.version.cuda),
            "cuDNN of PyTorch": str(self.torch.backends.cudnn.version()),
        }
        if cupy := _cupy():
            facts |= {"CuPy": cupy.__version__, "CUDA of the driver": cupy.cuda.runtime.driverGetVersion()}
        return facts

    def heads(self, case) -> Heads:
        """Independent N(0, 1) entries, as in `synthetic.gaussian`, rounded to the dtype of the case."""
        torch, dtype = self.torch, getattr(self.torch, case.dtype)
        generator = torch.Generator(self.device).manual_seed(case.seed)
        shape = (case.heads, case.n, case.dim)
        q, k, v = (torch.randn(shape, generator=generator, device=self.device).to(dtype) for _ in range(3))
        return Heads(q, k, v, case.dim**-0.5, case.is_causal)

    def on_host(self, heads: Heads) -> Heads:
        # A head moves when it is asked for.
        q, k, v = (OnHost(self.torch.as_tensor(x)) for x in heads.arrays)
        return Heads(q, k, v, **heads.options)  # type: ignore[arg-type]  # sequences of arrays are enough for `true_rows`

    def rows(self, output, rows: list[np.ndarray]) -> np.ndarray:
        output = self.torch.as_tensor(output)
        index = self.torch.from_numpy(np.stack(rows)).to(output.device)
        heads = self.torch.arange(len(index), device=output.device)
        return output[heads[:, None], index].double().cpu().numpy()

    def flaw(self, output, value) -> str | None:
        output, value = self.torch.as_tensor(output), self.torch.as_tensor(value)
        if output.shape != value.shape or output.dtype != value.dtype:
            return f"the output is {tuple(output.shape)} {output.dtype}, not {tuple(value.shape)} {value.dtype}"
        return None if bool(self.torch.isfinite(output).all()) else "the output has entries that are not finite"

    def prepare(self, contestant: Contestant, settings: CallSettings, heads: Heads) -> Call:
        if contestant.kind == SDPA:
            return self.sdpa(contestant.engine, heads)
        backend = CupyBackend(exact=contestant.engine) if contestant.kind == LEAVES else None
        return prepare(contestant, settings, heads, backend)

    def sdpa(self, name: str, heads: Heads) -> Call:
        """Exact attention of PyTorch by one backend of SDPA alone."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kind = getattr(SDPBackend, self.sdpa_kinds[name])
        attention = self.torch.nn.functional.scaled_dot_product_attention
        q, k, v = (self.torch.as_tensor(x)[None] for x in heads.arrays)

        def call():
            with sdpa_kernel(kind), self.torch.inference_mode():
                return attention(q, k, v, **heads.options)[0]

        return call

    def finished(self, call: Call) -> Any:
        result = call()
        self.torch.cuda.synchronize()
        return result

    def times(self, calls: dict[str, Call], repeats: int, seconds: float) -> dict[str, dict[str, Any]]:
        """Device and wall seconds of each call, by runs in turns; a run is some calls in a row."""
        in_a_run = {name: self.calls_in_a_run(call) for name, call in calls.items()}
        device: dict[str, list[float]] = {name: [] for name in calls}

        def run(name: str) -> None:
            device[name].append(self.seconds(calls[name], in_a_run[name]) / in_a_run[name])

        wall = take_turns({name: partial(run, name) for name in calls}, repeats, seconds, pause=0)
        return {
            name: {
                "calls_in_a_run": in_a_run[name],
                "device": Times.of(device[name]),
                "wall": Times.of([t / in_a_run[name] for t in wall[name].seconds]),
            }
            for name in calls
        }

    def best_seconds(self, call: Call, runs: int) -> float:
        calls = self.calls_in_a_run(call)
        return min(self.seconds(call, calls) for _ in range(runs)) / calls

    def calls_in_a_run(self, call: Call) -> int:
        """So many calls in a row that a run is long beside the start of one; the call is warm afterwards."""
        self.finished(call)  # it may have to allocate
        _, seconds = timed(lambda: self.finished(call))
        return min(MOST_CALLS, max(1, math.ceil(LEAST_SECONDS / seconds)))

    def seconds(self, call: Call, repeats: int) -> float:
        """Seconds between two events of the device around so many calls in a row, which are finished on return."""
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        self.torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3

    def release(self) -> None:
        """Give memory that is kept for later back to the device, so that one library can have what another kept."""
        self.torch.cuda.empty_cache()
        if cupy := _cupy():
            cupy.get_default_memory_pool().free_all_blocks()

    def peak_bytes(self, call: Call, engine: str) -> int | None:
        """Bytes of the device that a call takes above what is there before, its output included.

        PyTorch's peak, and the growth of CuPy's pool, which gives nothing back during a call. None for an engine that
        allocates elsewhere.
        """
        if engine in UNTRACKED:
            return None
        self.release()
        self.torch.cuda.reset_peak_memory_stats()
        before = self.torch.cuda.memory_allocated() + _bytes_in_pool()
        self.finished(call)
        return self.torch.cuda.max_memory_allocated() + _bytes_in_pool() - before

    def tasks(self) -> list[list[Task]]:
        """As for any device.

        PyTorch's exponentials come out of the second-level cache and go back there, which is slower than the units
        that compute them; a kernel of CuPy, where CuPy is installed, shows what these can do.
        """
        torch = self.torch
        a, b = (torch.randn(SIDE, SIDE, device=self.device).to(torch.bfloat16) for _ in range(2))
        x = -torch.rand(IN_CACHE, device=self.device)
        y, copied = torch.empty_like(x), torch.ones(COPIED, dtype=torch.uint8, device=self.device)
        c, copy = torch.empty_like(a), torch.empty_like(copied)
        exponentials: list[Task] = [(lambda: torch.exp2(x, out=y), IN_CACHE)]
        if chain := _chain_of_exponentials():
            exponentials.append((lambda: chain(x), CHAIN * IN_CACHE))
        return [
            [(lambda: torch.matmul(a, b, out=c), 2.0 * SIDE**3)],
            exponentials,
            [(lambda: copy.copy_(copied), 2.0 * COPIED)],
        ]


@dataclass(frozen=True, eq=False)
class OnHost:
    """A tensor (heads, n, d) as a sequence of NumPy arrays; bfloat16, which NumPy lacks, becomes float32."""

    tensor: Any

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, head: int) -> np.ndarray:
        x = self.tensor[head]
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).cpu().numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def _cupy():
    """The module, or None where it is not installed."""
    return import_module("cupy") if find_spec("cupy") else None


def _bytes_in_pool() -> int:
    """The memory of the device that CuPy holds."""
    cupy = _cupy()
    return cupy.get_default_memory_pool().total_bytes() if cupy else 0


def _chain_of_exponentials() -> Callable[[Any], Any] | None:
    """A kernel that replaces each number x of a float32 tensor by 2^-x CHAIN times; None without CuPy and a GPU."""
    cupy = _cupy()
    if cupy is None or CupyBackend().unavailable():
        return None
    code = f"""
        float t = x;
        #pragma unroll 16
        for (int step = 0; step < {CHAIN}; ++step) asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(t) : "f"(-t));
        y = t;
    """
    kernel = cupy.ElementwiseKernel("float32 x", "float32 y", code, "chain_of_exponentials")
    return lambda tensor: kernel(cupy.from_dlpack(tensor))


def _driver() -> str:
    """The release of the driver, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout.split() or ["unknown"])[0]
