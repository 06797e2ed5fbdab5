"""A benchmark resumes, refuses other folders, and never times a wrong answer."""

from dataclasses import replace

import numpy as np
import pytest

from hyperattention_ref.bench import run as runner
from hyperattention_ref.bench.cases import EXACT, PLANNED, RIVAL, WHOLE
from hyperattention_ref.bench.rivals import RIVALS
from tests.bench.planted import SMALL, Biased, OneKeyShort, files, plant


def test_a_stopped_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    out, whole, measured = tmp_path / "out", runner.measure_length, []

    def noting(settings, n):
        measured.append(n)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return whole(settings, n)

    monkeypatch.setattr(runner, "measure_length", noting)
    with pytest.raises(KeyboardInterrupt):
        runner.benchmark(SMALL, out)
    before = files(out)
    assert set(before) == {"settings.json", "cases/ceilings.json", "cases/n=64.json"}
    steps = []
    results = runner.benchmark(SMALL, out, progress=lambda *step: steps.append(step))
    assert measured == [64, 128, 128]
    assert before.items() <= files(out).items()
    assert steps == [(name, i, 5) for i, name in enumerate(["ceilings", "n=64", "n=128", *SMALL.families])]
    assert runner.benchmark(SMALL, out) == results
    assert measured == [64, 128, 128]


def test_a_folder_of_something_else_is_refused(tmp_path):
    runner.benchmark(replace(SMALL, families=("flat",)), tmp_path / "out")
    with pytest.raises(ValueError, match="other settings or of another machine"):
        runner.benchmark(SMALL, tmp_path / "out")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="no folder"):
        runner.benchmark(SMALL, tmp_path / "file")
    with pytest.raises(ValueError, match="something else"):
        runner.benchmark(SMALL, tmp_path)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(("planted", "kinds"), [(OneKeyShort, {EXACT}), (Biased, {WHOLE, PLANNED})])
def test_a_wrong_answer_is_reported_and_never_timed(tmp_path, monkeypatch, planted, kinds):
    plant(monkeypatch, planted)
    settings = replace(SMALL, n=(128,), backends=("planted", "numpy"), measure=True)
    report = runner.benchmark(settings, tmp_path / "out")
    (case,) = report.lengths
    for x in case.contestants:
        is_wrong = x.engine == "planted" and x.kind in kinds
        assert x.check.is_right is not is_wrong
        for timing in (x.seconds, x.median, x.quartiles, x.peak_bytes):
            assert (timing is None) is is_wrong
    assert set(case.stages) == set(case.sums) == {"numpy"}
    at_n = {f"planted: {kind} at n = 128" for kind in kinds}
    assert at_n <= set(report.wrong)
    assert report.summary.startswith("WRONG, and not timed: planted")
    timed = {x.name for family in report.families for x in family.points if x.seconds}
    assert not any(name.startswith(f"planted: {kind}") for kind in kinds for name in timed)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda output: output[:, 1:], "(1, 63, 8), not (1, 64, 8)"), (lambda output: output * np.inf, "not finite")],
)
def test_an_approximation_of_a_rival_must_have_finite_numbers_for_every_query(tmp_path, monkeypatch, change, words):
    def mean(q, k, v, **options):
        return lambda: change(np.broadcast_to(v.mean(axis=1, keepdims=True), v.shape) + np.float32(1))

    monkeypatch.setitem(RIVALS, "performer", replace(RIVALS["performer"], prepare=mean, module="numpy"))
    settings = replace(SMALL, n=(64,), against=("performer",), families=("flat",))
    report = runner.benchmark(settings, tmp_path / "out")
    (x,) = (x for x in report.lengths[0].contestants if x.kind == RIVAL)
    assert words in x.check.flaw
    assert "Performer at n = 64" in report.wrong
    assert runner.benchmark(settings, tmp_path / "out") == report
