"""A whole run on the stand-in: what is checked, timed, kept, left out and resumed."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hyperattention_ref.backends import conformance
from hyperattention_ref.bench.cases import EXACT, EXTERNAL, LEAVES, PLANNED, SDPA, WHOLE
from hyperattention_ref.bench.gpu import device as gpu_device
from hyperattention_ref.bench.gpu import run as gpu_run
from hyperattention_ref.bench.gpu.report import GpuReport
from hyperattention_ref.bench.gpu.run import Budget, Job, jobs
from hyperattention_ref.bench.gpu.tables import markdown, overviews
from tests.bench.gpu.stand_in import (
    CASES,
    CONFORMS,
    DEVICE_TIME,
    SMALL,
    WRITTEN,
    Absent,
    Biased,
    Broken,
    LeavesByOthers,
    OnCpu,
    Planted,
    files,
    run,
)
from tests.bench.planted import TICK, plant


def test_every_call_is_checked_timed_and_weighed(report):
    assert (report.wrong, report.broken, report.absent) == ([], [], [])
    assert report.ceilings.to_dict() == {"flops": 2e9 / 0.25, "exponentials": 3e9 / 0.25, "bytes": 4e9 / 0.25}
    assert report.conformance == {name: replace(CONFORMS, took=TICK) for name in ("cupy", "numba-cuda")}
    assert [case.name for case in report.cases] == CASES
    for case in report.cases:
        n, dtype = case.case.n, case.case.dtype
        kinds = {WHOLE, PLANNED} | ({EXACT} if n <= 128 else set())
        kinds |= {SDPA} if n <= 128 and dtype == "bfloat16" else set()
        kinds |= {LEAVES} if "causal" in case.name and dtype == "bfloat16" else set()
        engines = {"cupy", "numba-cuda"} if dtype == "float32" else {"cupy"}
        assert {x.kind for x in case.contestants} == kinds
        assert {x.engine for x in case.contestants if x.kind not in EXTERNAL} == engines
        assert {x.engine for x in case.contestants if x.kind in EXTERNAL} in (set(), {"flash", "cudnn"})
        assert case.paths == {name: {"path": "portable", "reason": "a stand-in"} for name in engines}
        assert case.input_bytes == 3 * case.output_bytes == 3 * case.case.heads * n * 8 * 4
        for x in case.contestants:
            assert x.check.worst <= 1
            assert (x.wall.median, x.device.median, x.calls_in_a_run) == (TICK, DEVICE_TIME, 1)
            assert len(x.wall.seconds) == len(x.device.seconds) == 4
            assert x.peak_bytes == (None if x.engine == "numba-cuda" else 4321)
            if x.kind in (EXACT, SDPA):
                assert x.relative_error < 1e-5
            assert (x.relative_error is None) == (n > 128)
            rates = report.rates(case, x)
            assert rates["flops"] == pytest.approx(32 * x.logits / DEVICE_TIME)
            assert rates["bytes"] == pytest.approx(4 * case.output_bytes / DEVICE_TIME)
            assert report.shares(case, x)["flops"] == pytest.approx(rates["flops"] / 8e9)


@pytest.mark.parametrize(("planted", "kinds"), [(Biased, {WHOLE, PLANNED}), (Broken, {EXACT})])
def test_what_is_wrong_or_broken_is_reported_not_timed_and_not_kept(stand_in, tmp_path, monkeypatch, planted, kinds):
    plant(monkeypatch, planted, "cupy")
    report = run(stand_in, tmp_path / "out")
    assert not report.is_right
    for case in report.cases:
        for x in case.contestants:
            is_bad = x.engine == "cupy" and x.kind in kinds
            assert ((x.wall or x.device or x.peak_bytes) is None) is is_bad
    named = "; ".join(report.wrong if planted is Biased else report.broken)
    for kind in kinds:
        assert f"cupy: {kind} in bfloat16-d8-full-n64" in named
    assert ("MemoryError: out of memory" in named) is (planted is Broken)
    is_kept = {"bfloat16-d8-full-n256"} if planted is Broken else set()  # exact attention takes no part in it
    assert set(files(tmp_path / "out")) == {"ceilings", "conformance-cupy", "conformance-numba-cuda"} | is_kept
    assert ("WRONG" if planted is Biased else "FAILED") in markdown(report)
    json.dumps(report.to_dict(), allow_nan=False)
    plant(monkeypatch, Planted, "cupy")  # mended, the run goes on
    assert run(stand_in, tmp_path / "out").is_right
    assert set(files(tmp_path / "out")) == WRITTEN


def test_wrong_leaves_are_wrong(stand_in, tmp_path, monkeypatch):
    class Wrong(LeavesByOthers, Biased):
        pass

    monkeypatch.setattr(gpu_device, "CupyBackend", Wrong)
    report = run(stand_in, tmp_path / "out")
    assert {words.partition(" in ")[0] for words in report.wrong} == {f"{name}: {LEAVES}" for name in OnCpu.sdpa_kinds}


class Shapeless(Planted):
    def exact_attention(self, q, k, v, **options):
        out, lse = super().exact_attention(q, k, v, **options)
        return out.astype(np.float64), lse


class Hole(Planted):
    def exact_attention(self, q, k, v, **options):
        out, lse = super().exact_attention(q, k, v, **options)
        out[..., -1, 0] = np.nan
        return out, lse


@pytest.mark.parametrize(("planted", "flaw"), [(Shapeless, "float64, not"), (Hole, "not finite")])
def test_an_output_of_another_type_or_with_a_nan_anywhere_is_wrong(stand_in, monkeypatch, planted, flaw):
    plant(monkeypatch, planted, "cupy")
    (_, job), *_ = (x for x in jobs(stand_in, SMALL, ["cupy"]).items() if x[0] == "bfloat16-d8-full-n128")
    by_kind = {x.kind: x for x in job.run().contestants}
    assert by_kind[EXACT].check.is_right is False
    assert flaw in by_kind[EXACT].check.flaw
    assert by_kind[WHOLE].check.is_right is True


def test_sdpa_that_cannot_run_is_left_out_with_the_reason(stand_in, tmp_path, monkeypatch):
    def no_kernel(self, name, heads):
        raise RuntimeError("No available kernel. Aborting execution.")

    class Refuses(LeavesByOthers):
        def planned_attention(self, q, k, v, plan, *, scale):
            raise ValueError("the exact primitive 'cudnn' cannot run: the reason")

    monkeypatch.setattr(OnCpu, "sdpa", no_kernel)
    monkeypatch.setattr(gpu_device, "CupyBackend", Refuses)
    report = run(stand_in, tmp_path / "out")
    assert report.is_right
    assert "cudnn: PyTorch SDPA in bfloat16-d8-full-n64: RuntimeError: No available kernel." in "\n".join(report.absent)
    assert f"cudnn: {LEAVES} in bfloat16-d8-causal-n64: ValueError: the exact" in "\n".join(report.absent)
    assert set(files(tmp_path / "out")) == WRITTEN
    assert next(overviews(report)).lines[0][4:8] == ["–"] * 4


def test_a_case_that_breaks_leaves_the_others(stand_in, tmp_path, monkeypatch):
    whole = OnCpu.heads

    def heads(self, case):
        if case.n == 128:
            raise RuntimeError("CUDA error: out of memory")
        return whole(self, case)

    monkeypatch.setattr(OnCpu, "heads", heads)
    report = run(stand_in, tmp_path / "out")
    failed = {name for name in CASES if "n128" in name}
    assert report.failures == dict.fromkeys(failed, "RuntimeError: CUDA error: out of memory")
    assert not report.is_right
    assert set(files(tmp_path / "out")) == WRITTEN - failed
    assert "FAILED: bfloat16-d8-full-n128 (RuntimeError" in report.summary


def test_one_backend_that_cannot_run_is_left_out_with_the_reason(stand_in, tmp_path, monkeypatch):
    plant(monkeypatch, Absent, "numba-cuda")
    report = run(stand_in, tmp_path / "out", replace(SMALL, n=(64,)))
    assert report.absent == ["numba-cuda: there is no GPU"]
    assert report.is_right
    assert set(report.conformance) == {"cupy"}


def test_the_suite_judges_a_backend_by_name(monkeypatch):
    plant(monkeypatch, Planted, "cupy")
    assert gpu_run.conformance("cupy", SMALL).examples == 8
    plant(monkeypatch, Broken, "cupy")
    result = gpu_run.conformance("cupy", SMALL)
    assert result.failure.startswith("AssertionError: backend 'cupy' raised MemoryError")
    assert "is_causal=False" in result.message
    assert len(gpu_run.reason_of(ValueError("word " * 100))) <= 300
    assert not gpu_run.is_clean(result)
    report = GpuReport(SMALL, "", {}, None, {"cupy": result}, (), {}, {})
    assert "FAILED: conformance of cupy (AssertionError: " in report.summary


def test_a_suite_that_cannot_run_is_a_failure_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    for name in ("suite", "strategies"):
        monkeypatch.delitem(sys.modules, f"hyperattention_ref.backends.conformance.{name}", raising=False)
    monkeypatch.delitem(vars(conformance), "check_backend", raising=False)
    failure = gpu_run.conformance("cupy", SMALL).failure
    assert failure.startswith("the suite cannot run")
    assert "pip install hypothesis" in failure


def test_a_stopped_run_resumes(stand_in, tmp_path, monkeypatch):
    whole, measured = gpu_run.measure_case, []

    def noting(gpu, case, settings):
        measured.append(case.name)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return whole(gpu, case, settings)

    monkeypatch.setattr(gpu_run, "measure_case", noting)
    with pytest.raises(KeyboardInterrupt):
        run(stand_in, tmp_path / "out")
    before = files(tmp_path / "out")
    assert set(before) == {"ceilings", "conformance-cupy", *CASES[:2]}
    report = run(stand_in, tmp_path / "out")
    assert measured == [*CASES[:3], *CASES[2:]]
    assert before.items() <= files(tmp_path / "out").items()
    assert [case.name for case in report.cases] == CASES
    with pytest.raises(ValueError, match="other settings or of another machine"):
        run(stand_in, tmp_path / "out", replace(SMALL, heads=1))


def test_what_does_not_fit_into_the_minutes_is_left_out_and_named(stand_in, tmp_path):
    report = run(stand_in, tmp_path / "out", minutes=1)
    done = [case.name for case in report.cases]
    assert 0 < len(done) < len(CASES)
    assert done == CASES[: len(done)]
    assert set(CASES[len(done) :]) <= set(report.left_out)
    assert f"{CASES[-1]}: the 1 minutes are over" in report.absent
    assert report.is_right
    assert run(stand_in, tmp_path / "out").left_out == {}
    everything = run(stand_in, tmp_path / "out", minutes=1e-9)
    assert everything.left_out == {}
    assert len(everything.cases) == len(CASES)
    nothing = run(stand_in, tmp_path / "other", minutes=1e-9)
    assert nothing.summary == "Nothing was timed."
    assert "ceilings" in nothing.left_out


def test_a_job_must_end_in_time_as_its_series_predicts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    budget = Budget(1)
    short, long, other = Job(dict, dict, ("a",), 10), Job(dict, dict, ("a",), 40), Job(dict, dict, ("b",), 10**6)
    assert budget.allows(long)
    budget.note(short, 12)
    now[0] = 11
    assert budget.allows(long)
    now[0] = 12
    assert not budget.allows(long)
    assert budget.allows(short)
    assert budget.allows(other)
    now[0] = 60
    assert not budget.allows(other)
