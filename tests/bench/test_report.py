"""The arithmetic of the report of a benchmark."""

import json

import numpy as np
import pytest

from hyperattention_ref.bench import stages
from hyperattention_ref.bench.cases import EXACT, PLANNED, WHOLE
from hyperattention_ref.bench.results import LengthResult
from tests.bench.planted import TICK


def test_a_report_is_the_arithmetic_of_its_times(report):
    assert [case.n for case in report.lengths] == [64, 128]
    assert report.wrong == []
    for case in report.lengths:
        assert [x.kind for x in case.contestants] == [WHOLE, PLANNED, EXACT]
        assert case.input_bytes == 3 * case.output_bytes == 3 * case.n * 8 * 4
        for x in case.contestants:
            assert (x.seconds, x.median, x.quartiles) == ((TICK,) * 3, TICK, (TICK, TICK))
            assert (x.first_seconds, x.peak_bytes) == (TICK, 12345)
            assert report.times_hyper(case, x) == 1
            assert report.flops(x) == 32 * x.logits
            assert report.share_of_ceilings(x) == pytest.approx(33 * x.logits / 1e9 / TICK)
            assert (x.relative_error < 1e-5) == (x.kind == EXACT)
        assert sum(case.stages["numpy"].values()) == pytest.approx(TICK)
        assert set(case.stages["numpy"]) == set(stages.STAGES)
    for case in report.families:
        assert (case.n, case.baselines["zero"]) == (128, 1.0)
        assert {x.budget for x in case.points} == {64, None}
    assert len(report.findings) == 5


def test_json_has_everything_and_nothing_that_json_lacks(report):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["settings"]["n"] == [64, 128]
    assert data["ceilings"] == {"flops": 1e9, "exponentials": 1e9, "bytes": 1e9}
    entry = data["lengths"][0]["contestants"][0]
    assert entry["check"]["is_right"] is True
    assert (entry["name"], entry["seconds"], entry["median"], entry["quartiles"]) == (
        "numpy: HyperAttention",
        [TICK] * 3,
        TICK,
        [TICK, TICK],
    )
    assert entry["times_hyper_attention"] == 1
    assert entry["flops"] == 32 * entry["logits"]
    assert data["environment"]["numpy"] == np.__version__
    assert data["wrong"] == data["left_out"] == []


def test_find_is_none_where_there_is_nothing():
    case = LengthResult(n=2, input_bytes=0, output_bytes=0, contestants=(), baselines={}, stages={}, sums={})
    assert case.find(WHOLE, "numpy") is None
