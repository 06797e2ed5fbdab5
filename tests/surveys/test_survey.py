"""A survey: it resumes, runs in parallel, and refuses before it writes."""

import sys
from pathlib import Path

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.surveys import survey as survey_module
from hyperattention_ref.surveys.survey import load_results

from .small_maps import write_maps

FEW = hr.SurveySettings(recipes=("paper", "heavy", "window_sinks"), budget=16, seed=3)


@pytest.fixture
def maps(tmp_path):
    return write_maps(tmp_path / "maps.npz")


@pytest.fixture
def measured(monkeypatch):
    """The names of the heads that are measured from now on."""
    names, measure = [], survey_module.measure_head

    def noting(head, settings):
        names.append(head.name)
        return measure(head, settings)

    monkeypatch.setattr(survey_module, "measure_head", noting)
    return names


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finished_heads_are_not_measured_again(maps, tmp_path, measured):
    out = tmp_path / "out"
    first = hr.survey(maps, out, FEW, layers=[0])
    assert measured == ["L0H1", "L0H4"]
    seen = []
    everything = hr.survey(maps, out, FEW, progress=lambda *step: seen.append(step))
    assert measured == ["L0H1", "L0H4", "L2H1", "L2H4"]
    assert everything[:2] == first
    assert [count for _, count, total in seen if total == 4] == [1, 2, 3, 4]
    (out / "heads" / "L2H1.json").unlink()
    before = files(out)
    assert hr.survey(maps, out, FEW) == everything == list(load_results(out))
    assert measured[4:] == ["L2H1"]
    assert before.items() <= files(out).items()


def test_a_killed_run_leaves_valid_results_and_goes_on_from_them(maps, tmp_path, monkeypatch):
    out, measure = tmp_path / "out", survey_module.measure_head

    def killed(head, settings):
        if head.name == "L2H1":
            raise KeyboardInterrupt
        return measure(head, settings)

    monkeypatch.setattr(survey_module, "measure_head", killed)
    with pytest.raises(KeyboardInterrupt):
        hr.survey(maps, out, FEW)
    assert sorted(files(out)) == ["heads/L0H1.json", "heads/L0H4.json", "survey.json"]
    left = list(load_results(out))
    monkeypatch.setattr(survey_module, "measure_head", measure)
    assert hr.survey(maps, out, FEW)[:2] == left


def test_a_head_whose_writing_fails_leaves_no_file(maps, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        hr.survey(maps, tmp_path / "out", FEW)
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize("other", [{"seed": 4}, {"recipes": ("paper",)}, {"n": 64}])
def test_a_folder_with_other_settings_is_refused_and_left_alone(maps, tmp_path, other):
    out = tmp_path / "out"
    hr.survey(maps, out, FEW, layers=[0])
    before = files(out)
    with pytest.raises(ValueError, match="with other settings"):
        hr.survey(maps, out, hr.SurveySettings(**{**FEW.to_dict(), **other}))
    assert files(out) == before


def test_a_file_of_the_same_name_and_size_with_other_numbers_is_refused(maps, tmp_path):
    hr.survey(maps, tmp_path / "out", FEW, layers=[0])
    size = maps.stat().st_size
    write_maps(maps, scale=np.float64(0.1))
    with pytest.raises(ValueError, match="another file"):
        hr.survey(maps, tmp_path / "out", FEW)
    write_maps(maps, layer=[0, 0, 2, 3])
    assert maps.stat().st_size == size
    with pytest.raises(ValueError, match="another file"):
        hr.survey(maps, tmp_path / "out", FEW)


def test_a_folder_of_something_else_is_refused(maps, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="no folder"):
        hr.survey(maps, tmp_path / "file", FEW)
    (tmp_path / "out" / "heads").mkdir(parents=True)
    (tmp_path / "out" / "heads" / "L0H1.json").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        hr.survey(maps, tmp_path / "out", FEW)


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"layers": [1]}, {}, r"layer 1 is not in .* layers \[0, 2\]"),
        ({"heads": [0]}, {}, "head 0 is in none"),
        ({"n_jobs": 0}, {}, "n_jobs is 0"),
        ({}, {"n": 129}, "n is 129 and L0H1 has 128 tokens"),
        ({}, {"rows": 129}, "rows is 129"),
        ({}, {"backend": "none"}, "'none' is unknown"),
    ],
)
def test_what_does_not_fit_the_file_is_refused_before_anything_is_written(maps, tmp_path, options, settings, message):
    with pytest.raises(ValueError, match=message):
        hr.survey(maps, tmp_path / "out", hr.SurveySettings(**settings), **options)
    assert not (tmp_path / "out").exists()


def test_bad_maps_are_refused_before_anything_is_written(tmp_path):
    query, key, value = np.ones((3, 2, 16, 4))
    bad = {
        "non-finite": {"query": query * np.array([1, np.nan])[:, None, None]},
        "may overflow": {"query": query * 1e200, "key": key * 1e200},
        "self-attention": {"query": query[:, :8]},
    }
    for message, arrays in bad.items():
        np.savez(tmp_path / "maps.npz", **{"query": query, "key": key, "value": value, **arrays})
        with pytest.raises(ValueError, match=message):
            hr.survey(tmp_path / "maps.npz", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_parallel_heads_give_the_same_numbers(maps, tmp_path):
    alone = hr.survey(maps, tmp_path / "alone", FEW)
    assert hr.survey(maps, tmp_path / "together", FEW, n_jobs=2) == alone


def test_a_survey_runs_on_a_dask_cluster(maps, tmp_path):
    distributed = pytest.importorskip("distributed", reason="the extra `test` has Dask's scheduler")
    import joblib

    alone = hr.survey(maps, tmp_path / "alone", FEW)
    cluster = distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        results = hr.survey(maps, tmp_path / "cluster", FEW)
    assert results == alone
    assert list(load_results(tmp_path / "cluster")) == alone


@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_surveys_killed_at_random_times_lose_no_head_and_end_with_the_same_bytes(run_process, tmp_path, kills):
    """SIGKILL, at any time from the start of a run to its end; then the same call again, until it is done."""
    maps = write_maps(tmp_path / "maps.npz", n=64, d=4)
    program = Path(__file__).with_name("kill_surveys.py")
    done = run_process([sys.executable, program, maps, tmp_path, str(kills)])
    assert int(done.stdout.split()[0]) == kills
    whole = files(tmp_path / "whole")
    assert sorted(whole) == ["heads/L0H1.json", "heads/L0H4.json", "heads/L2H1.json", "heads/L2H4.json", "survey.json"]
    for out in tmp_path.glob("killed*"):
        left = {name: content for name, content in files(out).items() if not name.endswith(".partial")}
        assert left == whole
