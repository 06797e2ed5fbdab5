"""The benchmark on a GPU, without one: the same code on tensors of the host, and what it does with CUDA on a fake."""

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance.examples import AttentionInputs
from hyperattention_ref.bench import check as checks
from hyperattention_ref.bench import timing
from hyperattention_ref.bench.cases import EXACT, LEAVES, PLANNED, SDPA, THEIRS, WHOLE, Heads
from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.bench.check import bfloat, check, check_rows, exact_rows, planned_rows
from hyperattention_ref.bench.gpu import console as gpu_console
from hyperattention_ref.bench.gpu import device as gpu_device
from hyperattention_ref.bench.gpu import run as gpu_run
from hyperattention_ref.bench.gpu.cases import GpuSettings
from hyperattention_ref.bench.gpu.console import make_report
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.gpu.report import GpuReport, best_sdpa, markdown, overviews, times_best_sdpa
from hyperattention_ref.bench.gpu.run import Budget, Job, benchmark_gpu, jobs
from hyperattention_ref.foundation import registry
from tests.backends.cuda_cpp.emulation.battery import from_bfloat, on_storage, to_bfloat
from tests.backends.cuda_cpp.emulation.device import EmulatedBackend, missing_compiler

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
TICK = 0.5  # seconds between two readings of the clock of the tests
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
        q, k, v, scale = super().heads(case)
        return Heads(*(x.float().numpy() for x in (q, k, v)), scale)

    def sdpa(self, name, heads, is_causal):
        return super().sdpa(name, Heads(*map(self.torch.from_numpy, heads.arrays), heads.scale), is_causal)

    def synchronize(self):
        pass

    def seconds(self, call, repeats):
        for _ in range(repeats):
            call()
        return DEVICE_TIME * repeats

    def release(self):
        pass

    def peak_bytes(self, call, engine):
        call()
        return None if engine in gpu_device.UNSEEN else 4321

    def tasks(self):
        return [[(lambda: None, 1e9), (lambda: None, 2e9)], [(lambda: None, 3e9)], [(lambda: None, 4e9)]]


CONFORMS = {"examples": 6, "worst_ratio": 0.5}


@pytest.fixture
def stand_in(monkeypatch):
    return set_up(monkeypatch)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a whole run."""
    with pytest.MonkeyPatch.context() as patch:
        return run(set_up(patch), tmp_path_factory.mktemp("gpu") / "out")


def set_up(patch):
    """The stand-in, backends that run on it and conform, and clocks that tick when they are read."""
    pytest.importorskip("torch", reason="the stand-in for a GPU needs torch; run `make models`")
    plant(patch, "cupy", Planted)
    plant(patch, "numba-cuda", Planted)
    patch.setattr(gpu_run, "CupyBackend", LeavesByOthers)
    patch.setattr(gpu_run, "conformance", lambda name, settings: CONFORMS)
    patch.setattr(gpu_console, "Gpu", OnCpu)
    patch.setattr(checks, "ROWS", 8)
    ticks = iter(range(10**9))
    clock = SimpleNamespace(perf_counter=lambda: TICK * next(ticks), sleep=lambda seconds: None)
    patch.setattr(timing, "time", clock)
    patch.setattr(gpu_run, "time", SimpleNamespace(monotonic=lambda: TICK * next(ticks)))
    return OnCpu()


def plant(monkeypatch, name, planted):
    """Make an instance of this class the backend of that name."""
    module = ModuleType(f"planted_{name}")
    module.Planted = type("Planted", (planted,), {"name": name})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._BUILT_IN, name, f"{module.__name__}:Planted")


def run(gpu, out, settings=SMALL, minutes=1e6):
    results = benchmark_gpu(gpu, settings, out, minutes=minutes)
    return make_report(settings, results, "hyperattention bench --gpu")


def case_of(report, name):
    return next(case for case in report.cases if case["name"] == name)


def files(out):
    return {path.stem: path.read_bytes() for path in (out / "cases").iterdir()}


# --- What runs, and in which order -----------------------------------------------------------------------------------


def test_cases_come_in_order_of_importance():
    settings = GpuSettings()
    names = list(jobs(None, settings, ["cupy", "numba-cuda"]))
    assert names[:4] == ["ceilings", "conformance-cupy", "bfloat16-d64-full-n4096", "bfloat16-d64-causal-n4096"]
    assert names[12:18] == [
        "bfloat16-d64-full-n131072", "bfloat16-d64-causal-n131072", "bfloat16-d64-full-n1048576",
        "conformance-numba-cuda", "float32-d64-full-n4096", "float32-d64-causal-n4096",
    ]  # fmt: skip
    assert names[-1] == "bfloat16-d128-full-n1048576"
    assert len(names) == len(set(names)) == 3 + 2 * 13 + 6


def test_a_backend_that_cannot_run_takes_no_part():
    assert not any("bfloat16" in name for name in jobs(None, GpuSettings(), ["numba-cuda"]))
    (case,) = {job.run.args[1].backends for name, job in jobs(None, GpuSettings(), ["cupy"]).items() if "-d" in name}
    assert case == ("cupy",)
    assert "conformance-numba-cuda" in jobs(None, GpuSettings(n=(32768,)), ["cupy", "numba-cuda"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": (1,)}, "n is 1"),
        ({"heads": 0}, "heads is 0"),
        ({"dims": (0,)}, "dim is 0"),
        ({"examples": 1000}, "examples is 1000"),
        ({"seconds": 0}, "seconds is 0"),
        ({"backends": ("numba",)}, "'numba' does not run on a GPU; with --gpu it must be one of cupy, numba-cuda"),
        ({"n": ()}, "nothing to time"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)


# --- A whole run on the stand-in -------------------------------------------------------------------------------------


def test_every_call_is_checked_timed_and_weighed(report):
    assert (report.wrong, report.broken, report.absent) == ([], [], [])
    assert report.ceilings.to_dict() == {"flops": 2e9 / 0.25, "exponentials": 3e9 / 0.25, "bytes": 4e9 / 0.25}
    assert report.conformance == {name: CONFORMS | {"took": TICK} for name in ("cupy", "numba-cuda")}
    assert [case["name"] for case in report.cases] == CASES
    for case in report.cases:
        n, dtype = case["case"]["n"], case["case"]["dtype"]
        kinds = {WHOLE, PLANNED} | ({EXACT} if n <= 128 else set())
        kinds |= {SDPA} if n <= 128 and dtype == "bfloat16" else set()
        kinds |= {LEAVES} if "causal" in case["name"] and dtype == "bfloat16" else set()
        engines = {"cupy", "numba-cuda"} if dtype == "float32" else {"cupy"}
        assert {x["kind"] for x in case["contestants"]} == kinds
        assert {x["engine"] for x in case["contestants"] if x["kind"] not in THEIRS} == engines
        assert {x["engine"] for x in case["contestants"] if x["kind"] in THEIRS} in (set(), {"flash", "cudnn"})
        assert case["paths"] == {name: {"path": "portable", "reason": "a stand-in"} for name in engines}
        assert case["input_bytes"] == 3 * case["output_bytes"] == 3 * case["case"]["heads"] * n * 8 * 4
        for x in case["contestants"]:
            assert x["check"]["worst"] <= 1
            assert (x["wall"]["median"], x["device"]["median"], x["calls_in_a_run"]) == (TICK, DEVICE_TIME, 1)
            assert len(x["wall"]["seconds"]) == len(x["device"]["seconds"]) == 4
            assert x["peak_bytes"] == (None if x["engine"] == "numba-cuda" else 4321)
            if x["kind"] in (EXACT, SDPA):
                assert x["relative_error"] < 1e-5
            assert (x["relative_error"] is None) == (n > 128)
            rates = report.rates(case, x)
            assert rates["flops"] == pytest.approx(32 * x["logits"] / DEVICE_TIME)
            assert rates["bytes"] == pytest.approx(4 * case["output_bytes"] / DEVICE_TIME)
            assert report.shares(case, x)["flops"] == pytest.approx(rates["flops"] / 8e9)


def test_short_calls_are_made_several_times_in_a_run(stand_in, monkeypatch):
    monkeypatch.setattr(gpu_run, "timed", lambda call: (call(), 0.6e-3))
    made = []
    assert gpu_run.calls_in_a_run(stand_in, lambda: made.append(1)) == 4
    assert len(made) == 2
    times = gpu_run._times(stand_in, {"x": lambda: made.append(1)}, SMALL)
    assert len(made) == 4 + 4 * 4
    assert times["x"]["wall"]["median"] == TICK / 4
    assert times["x"]["device"]["median"] == DEVICE_TIME
    monkeypatch.setattr(gpu_run, "timed", lambda call: (call(), 1e-9))
    assert gpu_run.calls_in_a_run(stand_in, lambda: None) == 50


def test_where_exact_attention_does_not_run_its_time_is_predicted(report):
    case = case_of(report, "bfloat16-d8-full-n256")
    assert best_sdpa(report, case)[0::2] == (4 * TICK, False)
    assert times_best_sdpa(report, case) == 4
    assert best_sdpa(report, case_of(report, "float32-d8-full-n64")) is None
    grid = next(overviews(report))
    assert grid.headings == [
        "n", "cupy: HyperAttention", "cupy: given a plan", "cupy: exact", "flash: PyTorch SDPA", "cudnn: PyTorch SDPA",
        "times SDPA", "exact / SDPA", "by events", "peak MB", "input MB",
    ]  # fmt: skip
    assert grid.lines[0] == ["64", *["500 ms"] * 5, "1", "1", "250 ms", "0.00412", "0.0117"]
    assert grid.lines[2] == ["256", *["500 ms"] * 2, *["≈ 2 s"] * 3, "≈ 4", "–", "250 ms", "0.00412", "0.0469"]
    assert "≈: not run" in grid.note


def test_findings_name_the_target(report, monkeypatch):
    target = {"n": 128, "heads": 2, "dim": 8, "dtype": "bfloat16", "block_size": 16, "sample_size": 16}
    monkeypatch.setattr("hyperattention_ref.bench.gpu.report.TARGET_CASE", target)
    findings = "\n".join(report.findings)
    assert "cupy conforms: 6 examples, the largest error 0.5 of what gate A allows." in findings
    assert "not causal: HyperAttention, plan included, takes 500 ms, the best of SDPA (" in findings
    assert "takes 500 ms: 1 times as long; the target is 120." in findings
    assert "the target is 12." in findings
    assert "n = 256" in findings
    assert "was not run and, in proportion to n², would take 2 s: 4 times as long." in findings


def test_the_report_is_valid_json_and_markdown(report):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["command"] == "hyperattention bench --gpu"
    assert data["environment"]["GPU"] == "none, a stand-in"
    assert data["environment"]["numpy"] == np.__version__
    assert {"numba-cuda", "torch"} <= set(data["environment"])
    assert data["cases"][0]["times_best_sdpa"] == 1
    assert data["cases"][0]["contestants"][0]["rates"]["flops"] > 0
    page = markdown(report)
    assert page.startswith("# HyperAttention on a GPU\n\n```sh\nhyperattention bench --gpu\n```")
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 * 4
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize(("planted", "kinds"), [(Biased, {WHOLE, PLANNED}), (Broken, {EXACT})])
def test_what_is_wrong_or_broken_is_reported_not_timed_and_not_kept(stand_in, tmp_path, monkeypatch, planted, kinds):
    plant(monkeypatch, "cupy", planted)
    report = run(stand_in, tmp_path / "out")
    assert not report.is_right
    for case in report.cases:
        for x in case["contestants"]:
            is_bad = x["engine"] == "cupy" and x["kind"] in kinds
            assert ("wall" in x or "device" in x or "peak_bytes" in x) is not is_bad
    named = "; ".join(report.wrong if planted is Biased else report.broken)
    for kind in kinds:
        assert f"cupy: {kind} in bfloat16-d8-full-n64" in named
    assert ("MemoryError: out of memory" in named) is (planted is Broken)
    is_kept = {"bfloat16-d8-full-n256"} if planted is Broken else set()  # exact attention takes no part in it
    assert set(files(tmp_path / "out")) == {"ceilings", "conformance-cupy", "conformance-numba-cuda"} | is_kept
    assert ("WRONG" if planted is Biased else "FAILED") in markdown(report)
    json.dumps(report.to_dict(), allow_nan=False)
    plant(monkeypatch, "cupy", Planted)  # mended, the run goes on
    assert run(stand_in, tmp_path / "out").is_right
    assert set(files(tmp_path / "out")) == WRITTEN


def test_wrong_leaves_are_wrong(stand_in, tmp_path, monkeypatch):
    class Wrong(LeavesByOthers, Biased):
        pass

    monkeypatch.setattr(gpu_run, "CupyBackend", Wrong)
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
    plant(monkeypatch, "cupy", planted)
    (_, job), *_ = (x for x in jobs(stand_in, SMALL, ["cupy"]).items() if x[0] == "bfloat16-d8-full-n128")
    by_kind = {x["kind"]: x for x in job.run()["contestants"]}
    assert by_kind[EXACT]["check"]["is_right"] is False
    assert flaw in by_kind[EXACT]["check"]["flaw"]
    assert by_kind[WHOLE]["check"]["is_right"] is True


def test_sdpa_that_cannot_run_is_left_out_with_the_reason(stand_in, tmp_path, monkeypatch):
    def no_kernel(self, name, heads, is_causal):
        raise RuntimeError("No available kernel. Aborting execution.")

    class Refuses(LeavesByOthers):
        def planned_attention(self, q, k, v, plan, *, scale):
            raise ValueError("the exact primitive 'cudnn' cannot run: the reason")

    monkeypatch.setattr(OnCpu, "sdpa", no_kernel)
    monkeypatch.setattr(gpu_run, "CupyBackend", Refuses)
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


def test_the_suite_judges_a_backend_by_name(monkeypatch):
    plant(monkeypatch, "cupy", Planted)
    assert gpu_run.conformance("cupy", SMALL)["examples"] == 6
    plant(monkeypatch, "cupy", Broken)
    result = gpu_run.conformance("cupy", SMALL)
    assert result["failure"].startswith("AssertionError: backend 'cupy' raised MemoryError")
    assert "is_causal=False" in result["message"]
    assert len(gpu_run.reason_of(ValueError("word " * 100))) <= 300
    assert not gpu_run.is_clean(result)
    report = GpuReport(SMALL, "", {}, None, {"cupy": result}, (), {}, {})
    assert "FAILED: conformance of cupy (AssertionError: " in report.summary


def test_a_suite_that_cannot_run_is_a_failure_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperattention_ref.backends.conformance", None)
    assert "pip install 'hyperattention-ref[test]'" in gpu_run.conformance("cupy", SMALL)["failure"]


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
    assert [case["name"] for case in report.cases] == CASES
    with pytest.raises(ValueError, match="other settings or of another machine"):
        run(stand_in, tmp_path / "out", replace(SMALL, heads=1))


def test_what_does_not_fit_into_the_minutes_is_left_out_and_named(stand_in, tmp_path):
    report = run(stand_in, tmp_path / "out", minutes=1)
    done = [case["name"] for case in report.cases]
    assert 0 < len(done) < len(CASES)
    assert done == CASES[: len(done)]
    assert set(CASES[len(done) :]) <= set(report.left_out)
    assert f"{CASES[-1]}: the 1 minutes are over" in report.absent
    assert report.is_right
    assert run(stand_in, tmp_path / "out").left_out == {}
    everything_there = run(stand_in, tmp_path / "out", minutes=1e-9)
    assert everything_there.left_out == {}
    assert len(everything_there.cases) == len(CASES)
    nothing = run(stand_in, tmp_path / "other", minutes=1e-9)
    assert nothing.summary == "Nothing was timed."
    assert "ceilings" in nothing.left_out


def test_a_job_must_end_in_time_as_its_series_predicts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    budget = Budget(1)
    short, long, other = Job(dict, ("a",), 10), Job(dict, ("a",), 40), Job(dict, ("b",), 10**6)
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


# --- The command -----------------------------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(cli.app(), ["bench", *map(str, arguments)], env={"COLUMNS": None})


FEW = ("--gpu", "--n", 64, "--dim", 8, "--heads", 2, "--block-size", 16, "--sample-size", 16, "--min-seq-len", 32,
       "--repeats", 2)  # fmt: skip


@pytest.mark.parametrize(("planted", "code"), [(Planted, 0), (Biased, 1)])
def test_the_command_shows_tables_and_writes_files(stand_in, tmp_path, monkeypatch, planted, code):
    plant(monkeypatch, "cupy", planted)
    result = invoke(*FEW, "--causal", "--minutes", 1e6, "--out", tmp_path / "out")
    assert result.exit_code == code, result.output
    for words in ("2 heads, d = 8, bfloat16, causal, b = 16, m = 16, leaves of 32", "cupy conforms: 6 examples"):
        assert words in result.output
    assert "not causal" not in result.output
    assert ("WRONG, and not timed: cupy: HyperAttention in" in result.output) == (code == 1)
    assert ("Every output agreed with float64 rows" in result.output) == (code == 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json", "cases", "gpu.json", "results.md"}
    settings = json.loads((tmp_path / "out" / "gpu.json").read_text())["settings"]
    assert (settings["n"], settings["dims"], settings["causal"]) == ([64], [8], [True])
    assert settings["repeats"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "float64"], ["--dtype: not with --gpu"]),
        (["--value-dim", 3, "--measure", "--threads", 1], ["--value-dim, --measure, --threads: not with --gpu"]),
        (["--against", "none", "--family", "sink", "--seconds", 1], ["--against, --family, --seconds: not with"]),
        (["--backend", "numba"], ["'numba' does not run on a GPU", "cupy, numba-cuda"]),
        (["--n", 1], ["n is 1"]),
        (["--dim", 0], ["dim is 0"]),
        (["--minutes", 0], ["minutes is 0.0"]),
        (["--minutes", "nan"], ["minutes is nan"]),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, arguments, words):
    refused(invoke("--gpu", *arguments, "--out", tmp_path / "out"), tmp_path, words)


def refused(result, folder, words):
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    for word in words:
        assert word in result.output
    assert not (folder / "out").exists()


def test_minutes_without_a_gpu_are_refused(tmp_path):
    refused(invoke("--minutes", 3, "--out", tmp_path / "out"), tmp_path, ["--minutes belongs to --gpu"])


@pytest.mark.parametrize("name", ["cupy", "numba-cuda"])
def test_the_benchmark_on_the_host_refuses_gpu_backends_and_names_the_command(tmp_path, name):
    words = [f"backend '{name}' takes device arrays", "hyperattention bench --gpu"]
    refused(invoke("--backend", name, "--against", "none", "--out", tmp_path / "out"), tmp_path, words)


def test_a_machine_without_a_gpu_is_refused_at_the_door(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: None)
    words = ["--gpu cannot run here: PyTorch is not installed", 'pip install "hyperattention-ref[bench]"']
    refused(invoke("--gpu", "--out", tmp_path / "out"), tmp_path, words)


def test_without_any_backend_the_reasons_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(Gpu, "obstacle", staticmethod(lambda: None))
    for name in ("cupy", "numba-cuda"):
        plant(monkeypatch, name, Absent)
    words = ["--gpu cannot run here: cupy: there is no GPU; numba-cuda: there is no GPU"]
    refused(invoke("--gpu", "--out", tmp_path / "out"), tmp_path, words)


def test_one_backend_that_cannot_run_is_left_out_with_the_reason(stand_in, tmp_path, monkeypatch):
    plant(monkeypatch, "numba-cuda", Absent)
    report = run(stand_in, tmp_path / "out", replace(SMALL, n=(64,)))
    assert report.absent == ["numba-cuda: there is no GPU"]
    assert report.is_right
    assert set(report.conformance) == {"cupy"}


# --- What knows CUDA, on a fake of it --------------------------------------------------------------------------------


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
    q, k, v, scale = heads = Gpu.heads(gpu, case)
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


# --- The rule for bfloat16 -------------------------------------------------------------------------------------------


def bfloat_heads(n, d=16, n_heads=2):
    return Heads(*(bfloat(x) for x in np.random.default_rng(n).standard_normal((3, n_heads, n, d))), d**-0.5)


def test_bfloat_rounds_to_the_nearest_number_ties_to_even():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(bfloat(x), from_bfloat(to_bfloat(x)))
    assert bfloat(np.array([1 + 2**-8, 1 + 3 * 2**-8])).tolist() == [1, 1 + 2**-6]


@pytest.mark.parametrize("is_causal", [False, True])
def test_float32_passes_and_a_forgotten_tile_does_not(is_causal):
    heads = bfloat_heads(500)
    options = {"is_causal": is_causal, "seed": 1, "is_bfloat": True}
    truth = exact_rows(heads, **options)
    np.testing.assert_array_equal(truth.allowed, exact_rows(heads, workers=3, **options).allowed)
    right = hr.exact_attention(*heads.arrays, is_causal=is_causal, backend="numpy")
    assert check(right, truth).worst < 0.01
    assert check(bfloat(right), truth).is_right
    assert not check(right * np.float32(1.06), truth).is_right
    assert not check(np.full_like(right, np.nan), truth).is_right
    sizes = {"block_size": 64, "sample_size": 64, "min_seq_len": 64}
    plan = hr.make_plan(heads.query, heads.key, is_causal=is_causal, rng=0, **sizes)
    few = planned_rows(heads, plan, seed=1, is_bfloat=True)
    assert check(hr.hyper_attention(*heads.arrays, is_causal=is_causal, plan=plan, backend="numpy"), few).worst < 0.01
    assert not check(right, few).is_right
    kept = np.r_[:200, 264:500]
    if not is_causal:
        forgotten = hr.exact_attention(heads.query, heads.key[:, kept], heads.value[:, kept], backend="numpy")
        assert not check(forgotten, truth).is_right


@pytest.mark.parametrize("is_causal", [False, True])
def test_pytorch_in_bfloat16_passes(is_causal):
    torch = pytest.importorskip("torch")
    heads = bfloat_heads(700, d=32)
    truth = exact_rows(heads, is_causal=is_causal, seed=1, is_bfloat=True)
    q, k, v = (torch.from_numpy(x).bfloat16() for x in heads.arrays)
    out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=is_causal)[0]
    assert check_rows(OnCpu().rows(out, truth.rows), truth).is_right


@pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))
@pytest.mark.parametrize("is_causal", [False, True])
def test_our_kernels_for_tensor_cores_pass(is_causal):
    heads = bfloat_heads(130)
    sizes = {"block_size": 32, "sample_size": 32, "min_seq_len": 40}
    plan = hr.make_plan(heads.query, heads.key, is_causal=is_causal, rng=0, **sizes)
    options = {"seed": 1, "is_bfloat": True}
    truths = {None: exact_rows(heads, is_causal=is_causal, **options), plan: planned_rows(heads, plan, **options)}
    for chosen, truth in truths.items():
        example = AttentionInputs(*heads.arrays, heads.scale, is_causal, chosen)
        out = on_storage(example, EmulatedBackend(path="tensor"), "bfloat16")["out"]
        assert check(out, truth).is_right
        assert check(out, truth).worst > 0.01  # it did round


def test_a_report_without_ceilings_or_cases_can_be_shown():
    report = GpuReport(SMALL, "hyperattention bench --gpu", {}, None, {}, (), {}, {"ceilings": "RuntimeError: no"})
    assert "FAILED: ceilings (RuntimeError: no). Nothing was timed." in markdown(report)
    assert Ceilings(1.0, 1.0, 1.0).to_dict().keys() == {"flops", "exponentials", "bytes"}
