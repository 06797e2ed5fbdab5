"""Rates, predictions, tables and words of a benchmark on a GPU."""

import json

import numpy as np

from hyperattention_ref.bench.device import Ceilings
from hyperattention_ref.bench.gpu.report import GpuReport
from hyperattention_ref.bench.gpu.tables import markdown, overviews
from tests.bench.gpu.stand_in import SMALL
from tests.bench.planted import TICK


def case_of(report, name):
    return next(case for case in report.cases if case.name == name)


def test_where_exact_attention_does_not_run_its_time_is_predicted(report):
    case = case_of(report, "bfloat16-d8-full-n256")
    assert report.best_sdpa(case)[0::2] == (4 * TICK, False)
    assert report.times_best_sdpa(case) == 4
    assert report.best_sdpa(case_of(report, "float32-d8-full-n64")) is None
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
    assert data["command"] == "hyperattention bench-gpu"
    assert data["environment"]["GPU"] == "none, a stand-in"
    assert data["environment"]["numpy"] == np.__version__
    assert {"numba-cuda", "torch"} <= set(data["environment"])
    assert data["cases"][0]["times_best_sdpa"] == 1
    assert data["cases"][0]["contestants"][0]["rates"]["flops"] > 0
    page = markdown(report)
    assert page.startswith("# HyperAttention on a GPU\n\n```sh\nhyperattention bench-gpu\n```")
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 * 4
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_a_report_without_ceilings_or_cases_can_be_shown():
    report = GpuReport(SMALL, "hyperattention bench-gpu", {}, None, {}, (), {}, {"ceilings": "RuntimeError: no"})
    assert "FAILED: ceilings (RuntimeError: no). Nothing was timed." in markdown(report)
    assert Ceilings(1.0, 1.0, 1.0).to_dict().keys() == {"flops", "exponentials", "bytes"}
