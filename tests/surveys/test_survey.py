"""A survey: what it writes is what direct calls give, it resumes, and it refuses before it writes."""

import json

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.surveys import head as head_module
from hyperattention_ref.surveys import survey as survey_module
from hyperattention_ref.surveys.head import PICTURE, judge
from hyperattention_ref.surveys.survey import load_results

FEW = hr.SurveySettings(recipes=("paper", "heavy", "window_sinks"), budget=16, seed=3)


def write_maps(path, n=128, d=8, **facts):
    """Layers 0 and 2 with the heads 1 and 4 each."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 4, n, d)).astype(np.float32)
    place = {"layer": [0, 0, 2, 2], "head": [1, 4, 1, 4]}
    np.savez(path, query=query * 2, key=key, value=value, **(place | facts))
    return path


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


def test_a_survey_says_what_direct_calls_say(maps, tmp_path):
    results = hr.survey(maps, tmp_path / "out", FEW)
    assert [result["name"] for result in results] == ["L0H1", "L0H4", "L2H1", "L2H4"]
    with hr.MapFile(maps) as file:
        for result, head in zip(results, file, strict=True):
            q, k, v, scale = head.query, head.key, head.value, head.scale
            exact = hr.hardness(q, k, scale=scale, rng=FEW.seed)
            for name in ("alpha", "log_kappa", "log_kappa_rescaled", "stable_rank", "logit_max"):
                assert result["hardness"][name] == getattr(exact, name)
            assert result["hardness"]["alpha_left_out"] == {str(i): exact.alpha_curve[i] for i in (0, 1, 4, 8, 32)}
            assert result["hardness"]["perplexity"]["50 %"] == np.median(exact.perplexity)
            assert result["growth"][0]["alpha"] == hr.hardness(q[:64], k[:64], scale=scale).alpha
            p = hr.attention_probabilities(q, k, scale=scale)
            for name, recipe in result["recipes"].items():
                plan = hr.make_plan(q, k, recipe=hr.preset(name, 16), scale=scale, rng=FEW.seed)
                output = hr.hyper_attention(q, k, v, plan=plan, scale=scale)
                bounds = hr.certify(q, k, v, output, scale=scale, rng=FEW.seed)
                assert {key: recipe[key] for key in bounds.output.to_dict()} == bounds.output.to_dict()
                true = hr.spectral_error(q, k, v, output, scale=scale).relative_frobenius
                assert recipe["relative_frobenius"] == pytest.approx(true, rel=1e-4)
                assert recipe["mass"]["estimate"] == pytest.approx(hr.captured_mass(q, k, plan, scale=scale), rel=1e-5)
            assert result["baselines"]["mean"] == bounds.mean.to_dict()
            in_band = np.arange(PICTURE)[:, None] == np.arange(128) * PICTURE // 128
            bands = in_band @ p @ in_band.T / in_band.sum(axis=1, keepdims=True)
            assert np.array(result["picture"]) == pytest.approx(bands, rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 33, 64, 65])
def test_short_and_ragged_maps_are_measured(tmp_path, n):
    maps = write_maps(tmp_path / "maps.npz", n=n)
    (result,) = hr.survey(maps, tmp_path / "out", layers=[2], heads=[4])
    picture = np.array(result["picture"])
    assert picture.shape == (min(n, PICTURE),) * 2
    assert picture.sum(axis=1) == pytest.approx(np.ones(len(picture)), rel=1e-5)
    if n <= PICTURE:
        with hr.MapFile(maps) as file:
            head = file.head(2, 4)
        assert picture == pytest.approx(hr.attention_probabilities(head.query, head.key), rel=1e-4)


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

    monkeypatch.setattr(survey_module.os, "replace", full)
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


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"recipes": ("best",)}, ValueError, "recipe 'best' is unknown"),
        ({"recipes": ()}, ValueError, "recipes is empty"),
        ({"budget": 0}, ValueError, "budget is 0"),
        ({"rows": 1.5}, TypeError, "rows is 1.5"),
        ({"confidence": 1.0}, ValueError, "confidence is 1.0"),
        ({"tolerance": 0}, ValueError, "tolerance is 0.0"),
        ({"n": True}, TypeError, "n is True"),
    ],
)
def test_bad_settings_are_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        hr.SurveySettings(**given)


def test_the_first_rule_that_applies_decides():
    assert judge({"window_sinks": 0.1, "paper": 0.01}, 0.1)[0] == "window + sinks suffice"
    assert judge({"window_sinks": 0.2, "paper": 0.1, "local": 0.01}, 0.1)[0] == "replace"
    verdict, rule = judge({"window_sinks": 0.2, "paper": 0.2, "local": 0.05, "heavy": 0.04}, 0.1)
    assert verdict == "replace, with heavy"
    assert "0.1" in rule
    assert judge({"window_sinks": float("inf"), "paper": float("nan")}, 0.1)[0] == "keep exact"
    assert judge({}, 0.1)[0] == "keep exact"


def test_causal_maps_have_rectangles_and_short_ones_are_not_judged(tmp_path):
    maps = write_maps(tmp_path / "maps.npz", is_causal=True)
    (short, *_) = hr.survey(maps, tmp_path / "short", FEW)
    assert short["verdict"] == "not approximated"
    assert short["hardness"]["rectangles"] == []
    assert short["recipes"]["paper"]["mass"]["low"] == pytest.approx(1)
    assert short["recipes"]["paper"]["logits_per_query"] == 129 / 2
    settings = hr.SurveySettings(recipes=("paper",), budget=16, min_seq_len=32)
    (head, *_) = hr.survey(maps, tmp_path / "long", settings)
    with hr.MapFile(maps) as file:
        first = file.head(0, 1)
    parts = hr.causal_hardness(first.query, first.key, min_seq_len=32, scale=first.scale, op_norm=False)
    given = {tuple(part["range"]): part["alpha"] for part in head["hardness"]["rectangles"]}
    assert given == {place: part.alpha for place, part in parts.items()}
    assert len(given) == 3
    assert head["hardness"]["alpha"] >= 128
    assert head["recipes"]["paper"]["relative_frobenius"] > 0
    assert head["verdict"] != "not approximated"
    assert np.triu(head["picture"], 1).max() == 0


def test_zero_values_make_every_output_exact(tmp_path):
    query, key = np.random.default_rng(1).standard_normal((2, 96, 4))
    maps = tmp_path / "maps.npz"
    np.savez(maps, query=query, key=key, value=np.zeros((96, 4)))
    (head,) = hr.survey(maps, tmp_path / "out", hr.SurveySettings(rows=16))
    assert {recipe["relative_frobenius"] for recipe in head["recipes"].values()} == {0.0}
    json.dumps(head, allow_nan=False)


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


def test_a_head_that_needs_more_memory_than_there_is_is_refused_before_anything_is_written(maps, tmp_path, monkeypatch):
    monkeypatch.setattr(head_module, "physical_memory", lambda: 5e8)
    with pytest.raises(ValueError, match=r"L0H1 with n = 128 needs about 0.5 GB of memory.*0.5 GB; measure a shorter"):
        hr.survey(maps, tmp_path / "out", FEW)
    assert not (tmp_path / "out").exists()
