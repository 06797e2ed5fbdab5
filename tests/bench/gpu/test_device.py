"""What knows CUDA, on a fake of it; and the same code on tensors of the host."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hyperattention_ref.bench.check import bfloat
from hyperattention_ref.bench.gpu import device as gpu_device
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.gpu.run import jobs
from tests.bench.gpu.stand_in import DEVICE_TIME, SMALL, OnCpu
from tests.bench.planted import TICK


def test_short_calls_are_calls_several_times_in_a_run(stand_in, monkeypatch):
    monkeypatch.setattr(gpu_device, "timed", lambda call: (call(), 0.6e-3))
    calls = []
    assert stand_in.calls_in_a_run(lambda: calls.append(1)) == 4
    assert len(calls) == 2
    times = stand_in.times({"x": lambda: calls.append(1)}, SMALL.repeats, SMALL.seconds)
    assert len(calls) == 4 + 4 * 4
    assert times["x"]["wall"].median == TICK / 4
    assert times["x"]["device"].median == DEVICE_TIME
    monkeypatch.setattr(gpu_device, "timed", lambda call: (call(), 1e-9))
    assert stand_in.calls_in_a_run(lambda: None) == 50


class FakeCuda:
    """As much of torch.cuda as is used: a queue that is worked off at `synchronize`, and memory."""

    def __init__(self):
        self.log, self.now, self.pending, self.allocated, self.peak = [], 0.0, [], 100, 900

    def Event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: self.pending.append(lambda: setattr(event, "at", self.now))
        event.elapsed_time = lambda stop: stop.at - event.at
        return event

    def work(self, milliseconds, n_bytes=0):
        self.pending.append(lambda: setattr(self, "now", self.now + milliseconds))
        self.peak = max(self.peak, self.allocated + n_bytes)
        return "result"

    def synchronize(self):
        while self.pending:
            self.pending.pop(0)()

    def empty_cache(self):
        self.log.append("empty_cache")

    def reset_peak_memory_stats(self):
        self.peak = self.allocated

    def memory_allocated(self):
        return self.allocated

    def max_memory_allocated(self):
        return self.peak

    def current_device(self):
        return 0

    def get_device_properties(self, device):
        return SimpleNamespace(name="H200", major=9, minor=0, multi_processor_count=132, total_memory=141 * 2**30)


@pytest.fixture
def fake(monkeypatch):
    """A Gpu over a FakeCuda, without CuPy."""
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: None)
    gpu = object.__new__(Gpu)
    cudnn = SimpleNamespace(version=lambda: 91002)
    version, cuda = SimpleNamespace(cuda="13.0"), FakeCuda()
    gpu.torch = SimpleNamespace(cuda=cuda, version=version, backends=SimpleNamespace(cudnn=cudnn))
    return gpu


def with_pool(monkeypatch, pool):
    """CuPy with this memory pool."""
    cupy = SimpleNamespace(
        get_default_memory_pool=lambda: pool,
        __version__="14.0",
        cuda=SimpleNamespace(runtime=SimpleNamespace(driverGetVersion=lambda: 13000)),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: name == "cupy")


def test_times_are_those_between_events(fake):
    fake.torch.cuda.work(7)  # before the first event: not counted
    assert fake.seconds(lambda: fake.torch.cuda.work(30), 5) == pytest.approx(0.150)
    assert fake.torch.cuda.pending == []
    assert fake.finished(lambda: fake.torch.cuda.work(1)) == "result"
    assert fake.torch.cuda.pending == []


def test_the_peak_is_that_of_pytorch_and_the_growth_of_the_pool_of_cupy(fake, monkeypatch):
    cuda = fake.torch.cuda
    assert fake.peak_bytes(lambda: cuda.work(1, 250), "flash") == 250
    pool = SimpleNamespace(held=[70, 5], total_bytes=lambda: sum(pool.held), free_all_blocks=lambda: pool.held.pop())
    with_pool(monkeypatch, pool)

    def call():
        pool.held.append(33)
        return cuda.work(1, 10)

    assert fake.peak_bytes(call, "cupy") == 10 + 33
    assert fake.peak_bytes(call, "numba-cuda") is None
    assert cuda.log == ["empty_cache"] * 2


def test_facts_are_those_of_the_machine(fake, monkeypatch):
    monkeypatch.setattr(gpu_device.shutil, "which", lambda name: None)
    assert fake.facts() == {
        "GPU": "H200",
        "compute capability": "9.0",
        "multiprocessors": 132,
        "GPU memory, GiB": 141,
        "driver": "unknown",
        "CUDA of PyTorch": "13.0",
        "cuDNN of PyTorch": "91002",
    }
    monkeypatch.setattr(gpu_device.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_device.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="580.65.06\n580.65.06\n"))
    with_pool(monkeypatch, None)
    facts = fake.facts()
    assert (facts["driver"], facts["CuPy"], facts["CUDA of the driver"]) == ("580.65.06", "14.0", 13000)


@pytest.mark.parametrize(
    ("cuda", "is_available", "words"),
    [
        (None, False, ["PyTorch 2.13.0+cpu is built without CUDA", "https://pytorch.org"]),
        ("13.0", False, ["finds no NVIDIA GPU", "nvidia-smi"]),
        ("13.0", True, None),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, cuda, is_available, words):
    torch = SimpleNamespace(
        __version__="2.13.0+cpu",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(is_available=lambda: is_available),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: True)
    reason = Gpu.obstacle()
    assert reason is None if words is None else all(word in reason for word in words)


def test_tensors_rows_and_flaws():
    torch = pytest.importorskip("torch")
    gpu = OnCpu()
    case = next(job.run.args[1] for name, job in jobs(gpu, SMALL, ["cupy"]).items() if "n64" in name)
    q, k, v, scale, _ = heads = Gpu.heads(gpu, case)
    assert (q.dtype, tuple(q.shape), scale) == (torch.bfloat16, (2, 64, 8), 8**-0.5)
    assert torch.equal(q, Gpu.heads(gpu, case).query)
    assert not torch.equal(q, k)
    host = gpu.on_host(heads)
    assert (host.n, len(host.query), host.query[1].dtype) == (64, 2, np.float32)
    np.testing.assert_array_equal(host.value[1], v[1].float().numpy())
    np.testing.assert_array_equal(host.value[1], bfloat(host.value[1]))
    rows = [np.array([3, 5]), np.array([0, 63])]
    np.testing.assert_array_equal(gpu.rows(v, rows)[1], v[1, [0, 63]].double().numpy())
    assert gpu.flaw(v, v) is None
    assert "(2, 64, 8) torch.float32, not (2, 64, 8) torch.bfloat16" in gpu.flaw(v.float(), v)
    v[1, 63, 7] = torch.inf
    assert "not finite" in gpu.flaw(v, v)


def test_the_tasks_of_the_ceilings_run(monkeypatch):
    pytest.importorskip("torch")
    for name, size in {"SIDE": 8, "COPIED": 64, "IN_CACHE": 32}.items():
        monkeypatch.setattr(gpu_device, name, size)
    tasks = Gpu.tasks(OnCpu())
    assert [[amount for _, amount in task] for task in tasks] == [[2 * 8**3], [32], [128]]
    for call in (call for task in tasks for call, _ in task):
        call()
