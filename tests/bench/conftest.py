"""A clock that ticks when it is read, memory that is not measured, and a small benchmark."""

from types import SimpleNamespace

import pytest

from hyperattention_ref.bench import run as runner
from hyperattention_ref.bench import timing
from tests.bench.planted import CEILINGS, SMALL, TICK


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """A clock that ticks when it is read, memory that is not measured, and ceilings that are known."""
    ticks = iter(range(10**9))
    clock = SimpleNamespace(perf_counter=lambda: TICK * next(ticks), sleep=lambda seconds: None)
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(runner, "peak_memory", lambda settings, n, contestant: 12345)
    monkeypatch.setattr(runner, "measure_ceilings", lambda device: CEILINGS)


@pytest.fixture
def report(tmp_path):
    return runner.benchmark(SMALL, tmp_path / "out")
