"""A stand-in for a GPU, whose tensors lie in the memory of the host, and the backends that run on it."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.bench import check, timing
from hyperattention_ref.bench.cases import Heads
from hyperattention_ref.bench.gpu import device as gpu_device
from hyperattention_ref.bench.gpu import run as gpu_run
from hyperattention_ref.bench.gpu.cases import GpuSettings
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.gpu.results import ConformanceResult
from hyperattention_ref.bench.gpu.run import benchmark_gpu
from tests.bench.planted import TICK, plant

SMALL = GpuSettings(
    n=(64, 128, 256),
    dims=(8,),
    heads=2,
    exact_up_to=128,
    single_up_to=64,
    block_size=16,
    sample_size=16,
    min_seq_len=32,
    repeats=4,
    examples=1,
)
DEVICE_TIME = 0.25  # seconds of a call by the events of the stand-in
CASES = [
    *("bfloat16-d8-full-n64", "bfloat16-d8-causal-n64", "bfloat16-d8-full-n128", "bfloat16-d8-causal-n128"),
    *("bfloat16-d8-full-n256", "float32-d8-full-n64", "float32-d8-causal-n64"),
]
WRITTEN = {"ceilings", "conformance-cupy", "conformance-numba-cuda", *CASES}


class Path(NamedTuple):
    path: str
    reason: str | None


class Planted(BlockedNumpy):
    """Stands for a GPU backend; the only thing that it says of itself is which kernels it would run."""

    name = "cupy"

    def attention_path(self, q, k, v):
        return Path("portable", "a stand-in")


class LeavesByOthers(Planted):
    def __init__(self, exact):
        assert exact in OnCpu.sdpa_kinds


class Biased(Planted):
    def planned_attention(self, q, k, v, plan, *, scale):
        out, lse = super().planned_attention(q, k, v, plan, scale=scale)
        return out + np.float32(0.1), lse


class Broken(Planted):
    def exact_attention(self, q, k, v, **options):
        raise MemoryError("out of memory\nand more")


class Absent(Planted):
    def unavailable(self):
        return "there is no GPU"


class OnCpu(Gpu):
    """Tensors of the host, rounded to bfloat16 but held in float32, which every backend takes."""

    device = "cpu"
    sdpa_kinds = {"flash": "FLASH_ATTENTION", "cudnn": "MATH"}  # noqa: RUF012

    @staticmethod
    def obstacle():
        return None

    def facts(self):
        return {"GPU": "none, a stand-in"}

    def heads(self, case):
        heads = super().heads(case)
        return Heads(*(x.float().numpy() for x in heads.arrays), **heads.options)

    def finished(self, call):
        return call()

    def seconds(self, call, repeats):
        for _ in range(repeats):
            call()
        return DEVICE_TIME * repeats

    def release(self):
        pass

    def peak_bytes(self, call, engine):
        call()
        return None if engine in gpu_device.UNTRACKED else 4321

    def tasks(self):
        return [[(lambda: None, 1e9), (lambda: None, 2e9)], [(lambda: None, 3e9)], [(lambda: None, 4e9)]]


CONFORMS = ConformanceResult(examples=6, worst_ratio=0.5)


def set_up(patch):
    """The stand-in, backends that run on it and conform, and clocks that tick when they are read."""
    pytest.importorskip("torch", reason="the stand-in for a GPU needs torch; run `make models`")
    plant(patch, Planted, "cupy")
    plant(patch, Planted, "numba-cuda")
    patch.setattr(gpu_device, "CupyBackend", LeavesByOthers)
    patch.setattr(gpu_run, "conformance", lambda name, settings: CONFORMS)
    patch.setattr(gpu_device, "Gpu", OnCpu)
    patch.setattr(check, "ROWS", 8)
    ticks = iter(range(10**9))
    clock = SimpleNamespace(perf_counter=lambda: TICK * next(ticks), sleep=lambda seconds: None)
    patch.setattr(timing, "time", clock)
    patch.setattr(gpu_run, "time", SimpleNamespace(monotonic=lambda: TICK * next(ticks)))
    return OnCpu()


def run(gpu, out, settings=SMALL, minutes=1e6):
    return benchmark_gpu(gpu, settings, out, lambda *step: None, minutes=minutes, command="hyperattention bench-gpu")


def files(out):
    """The content of the file of every case."""
    return {path.stem: path.read_bytes() for path in (out / "cases").iterdir()}
