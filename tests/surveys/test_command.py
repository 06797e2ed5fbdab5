"""`hyperattention measure` and `capture`: what they print and write, and what they refuse."""

import base64
import csv
import json
import math
import re
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli
from hyperattention_ref.maps import model_capture
from hyperattention_ref.surveys import survey as survey_module
from hyperattention_ref.surveys.page import write_report
from hyperattention_ref.surveys.report import (
    SurveyReport,
    curve,
    exponent,
    is_useful,
    keys,
    relative_error,
    table,
)
from hyperattention_ref.surveys.survey import load_results

RECIPES = "paper,heavy,window_sinks"


def invoke(*arguments):
    return CliRunner().invoke(cli.app(), list(map(str, arguments)), env={"COLUMNS": "200"})


def numbers(n=160, d=8, **facts):
    """Two layers of two heads."""
    query, key, value = np.random.default_rng(5).standard_normal((3, 4, n, d)).astype(np.float32)
    return {"query": 2 * query, "key": key, "value": value, "layer": [0, 0, 3, 3], "head": [0, 1, 0, 1]} | facts


@pytest.fixture
def maps(tmp_path):
    path = tmp_path / "maps.npz"
    np.savez(path, **numbers())
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One survey with bounds from half of the rows; its result and folder."""
    folder = tmp_path_factory.mktemp("measure")
    np.savez(folder / "maps.npz", **numbers())
    arguments = ("--recipes", RECIPES, "--budget", 16, "--rows", 80, "--tolerance", 0.9, "--out", folder / "out")
    return invoke("measure", folder / "maps.npz", *arguments), folder / "out"


def test_the_demo_measures_the_shipped_heads(tmp_path):
    result = invoke("measure", "--demo", "--recipes", "paper,local_heavy", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for head in hr.load_sample_heads():
        assert re.search(rf"{head.name} +512 ", result.output)
    assert "6 heads" in result.output
    assert "costs as much as 32 more" in result.output
    assert "local + heavy" in result.output
    assert (tmp_path / "out" / "report.html").exists()


def test_every_head_has_a_line_with_its_numbers(run):
    result, out = run
    assert result.exit_code == 0, result.output
    for head in load_results(out):
        line = next(line for line in result.output.splitlines() if line.startswith(head["name"]))
        assert f"{relative_error(head, 'mean'):.2f}" in line
        assert f"{relative_error(head, 'paper'):.2f}" in line
        assert f"{head['hardness']['log_kappa'] / math.log(10):.1f}" in line
        assert line.rstrip().endswith(head["verdict"])


def test_json_and_csv_hold_every_head(run):
    _, out = run
    heads = list(load_results(out))
    data = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    assert data["heads"] == heads
    assert sum(data["verdicts"].values()) == len(heads) == 4
    with (out / "measures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["L0H0", "L0H1", "L3H0", "L3H1"]
    for row, head in zip(rows, heads, strict=True):
        assert float(row["alpha"]) == head["hardness"]["alpha"]
        assert float(row["error_heavy"]) == head["recipes"]["heavy"]["relative_frobenius"]
        assert float(row["error_zero"]) == head["baselines"]["zero"]["relative_frobenius"] >= 1
        assert row["verdict"] == head["verdict"]


def test_the_page_stands_alone_and_shows_every_head_verdict_and_rule(run):
    _, out = run
    page = (out / "report.html").read_text(encoding="utf-8")
    for outside in ("http:", "https:", "<script", "<link", "url(", "@import", "file:"):
        assert outside not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(picture) for picture in pictures} == {path.read_bytes() for path in out.glob("*.png")}
    assert len(pictures) == 6
    for head in load_results(out):
        assert page.count(f"<b>{head['name']}</b>") == 2
        assert f"<b>{head['verdict']}</b><small>{head['rule']}</small>" in page
    assert "16 + 32 pilot" in page
    assert "nan" not in page.lower().split("<figure>")[0]


def test_the_rows_drawn_decide_how_loose_the_bounds_are(run):
    _, out = run
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "from 80 exact rows;" in page
    for head in load_results(out):
        recipe = head["recipes"]["paper"]
        assert recipe["relative_frobenius"] > recipe["relative_frobenius_estimate"]
        assert is_useful(head, "paper") == (
            recipe["relative_frobenius_estimate"] < head["baselines"]["mean"]["relative_frobenius_estimate"]
        )
        assert recipe["mass"]["low"] < recipe["mass"]["estimate"] < recipe["mass"]["high"]


def test_a_second_run_measures_only_what_is_missing(maps, tmp_path, monkeypatch):
    arguments = ("measure", maps, "--recipes", "paper", "--out", tmp_path / "out")
    assert invoke(*arguments).exit_code == 0
    first = (tmp_path / "out" / "measures.json").read_bytes()
    (tmp_path / "out" / "heads" / "L3H0.json").unlink()
    measured, measure = [], survey_module.measure_head
    monkeypatch.setattr(
        survey_module, "measure_head", lambda head, settings: measured.append(head.name) or measure(head, settings)
    )
    assert invoke(*arguments).exit_code == 0
    assert measured == ["L3H0"]
    assert (tmp_path / "out" / "measures.json").read_bytes() == first


def test_layers_heads_and_prefix_choose_what_is_measured(maps, tmp_path):
    choice = ("--layers", "3,3", "--heads", "1", "--n", 96, "--seed", 7, "--jobs", 1, "--backend", "reference")
    result = invoke("measure", maps, *choice, "--recipes", "uniform", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (head,) = load_results(tmp_path / "out")
    assert (head["name"], head["n"]) == ("L3H1", 96)
    assert list(head["recipes"]) == ["uniform"]


def test_a_causal_map_shows_its_rectangles(tmp_path):
    np.savez(tmp_path / "maps.npz", **numbers(n=256, is_causal=True))
    options = ("--recipes", "paper", "--budget", 16, "--min-seq-len", 64, "--out", tmp_path / "out")
    result = invoke("measure", tmp_path / "maps.npz", *options)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "causal rectangle" in page
    assert "exact leaves up to" in page


def refused(result, out, *words):
    """Exit code 2, one line, nothing written."""
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layers", "7"), ("layer 7 is not in", "[0, 3]")),
        (("--heads", "5"), ("head 5 is in none",)),
        (("--layers", "a"), ("no list of numbers",)),
        (("--recipes", "paper,best"), ("recipe 'best' is unknown", "window_sinks")),
        (("--recipes", ""), ("recipe '' is unknown",)),
        (("--n", "161"), ("n is 161 and L0H0 has 160 tokens",)),
        (("--rows", "161"), ("rows is 161",)),
        (("--confidence", "1"), ("confidence is 1",)),
        (("--tolerance", "-1"), ("tolerance is -1",)),
        (("--backend", "none"), ("'none' is unknown",)),
        (("--demo",), ("either a file of maps or --demo",)),
    ],
)
def test_bad_arguments_are_refused(maps, tmp_path, arguments, words):
    refused(invoke("measure", maps, *arguments, "--out", tmp_path / "out"), tmp_path / "out", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("No such file",)),
        (b"text", ("maps.npz",)),
        ({"query": np.ones((4, 2))}, ("lacks key, value",)),
        (numbers(value=np.full((4, 160, 8), np.nan, np.float32)), ("value of L0H0", "non-finite")),
        (numbers(key=np.ones((4, 160, 5), np.float32)), ("maps.npz has query", "need one d")),
    ],
    ids=["absent", "no archive", "arrays missing", "NaN", "shapes"],
)
def test_bad_files_are_refused(tmp_path, content, words):
    path = tmp_path / "maps.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    refused(invoke("measure", path, "--out", tmp_path / "out"), tmp_path / "out", *words)


def test_a_folder_that_holds_another_survey_is_refused_and_left_alone(maps, tmp_path):
    arguments = ("measure", maps, "--recipes", "paper", "--out", tmp_path / "out")
    assert invoke(*arguments).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    result = invoke(*arguments, "--seed", 1)
    assert result.exit_code == 2
    assert "with other settings" in result.output
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_fitted_exponent_is_the_slope_of_a_power(run):
    _, out = run
    head = next(load_results(out)) | {"n": 256}
    head["growth"] = [
        {"n": n, "alpha": 3.0 * n**1.5, "alpha_sixteenth": n, "log_kappa": 2 * math.log(n)} for n in (64, 128)
    ]
    head["hardness"] = head["hardness"] | {"alpha": 3.0 * 256**1.5, "log_kappa": 2 * math.log(256)}
    head["hardness"]["alpha_left_out"] = {"16": 256.0}
    slopes = [exponent(head, name) for name in ("alpha", "alpha_sixteenth", "log_kappa")]
    assert slopes == pytest.approx([1.5, 1.0, 2.0])
    assert list(curve(head, "alpha")[0]) == [64, 128, 256]
    assert math.isnan(exponent(head | {"growth": []}, "alpha"))
    assert keys(head, "heavy") == "16 + 32 pilot"


def test_a_report_can_be_made_of_heads_with_infinite_bounds_and_without_prefixes(maps, tmp_path):
    settings = hr.SurveySettings(recipes=("paper",), n=20)
    heads = hr.survey(maps, tmp_path / "out", settings)
    heads[0]["recipes"]["paper"]["relative_frobenius"] = "inf"
    heads[1]["hardness"] |= {"log_kappa_shifted": None, "stable_rank": None}
    report = SurveyReport("maps.npz", settings, tuple(heads))
    write_report(report, tmp_path / "out")
    assert next(table(report))["alpha_32"] is None
    assert "∞" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "growth.png").exists()


def test_capture_passes_its_arguments_on_and_says_what_it_wrote(maps, tmp_path, monkeypatch):
    given = []

    def capture_text(*arguments, **options):
        given.append((arguments, options))
        return maps

    monkeypatch.setattr(model_capture, "capture_text", capture_text)
    result = invoke("capture", "model", "text.txt", "--out", maps, "--n", 64, "--layers", "0,3", "--heads", "1")
    assert result.exit_code == 0, result.output
    ((model, text, out), options), *_ = given
    assert (model, str(text), out) == ("model", "text.txt", maps)
    assert options == {"n": 64, "layers": [0, 3], "heads": [1]}
    assert "4 heads of 2 layers, 160 tokens" in result.output


def test_capture_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = invoke("capture", "model", tmp_path / "text.txt", "--out", tmp_path / "maps.npz")
    refused(result, tmp_path / "maps.npz", "needs torch and transformers", "hyperattention-ref[models]")
