"""`hyperattention measure` and `capture`: what they print, and what they refuse."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.maps import model_capture
from hyperattention_ref.surveys import survey as survey_module
from hyperattention_ref.surveys.report import error_number, error_words
from hyperattention_ref.surveys.survey import load_results

from .small_maps import arrays


@pytest.fixture
def maps(tmp_path):
    path = tmp_path / "maps.npz"
    np.savez(path, **arrays())
    return path


def test_the_demo_measures_the_shipped_heads(invoke, tmp_path):
    result = invoke("measure", "--demo", "--recipes", "paper,local_heavy", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for head in hr.load_sample_heads():
        assert re.search(rf"{head.name} +512 ", result.output)
    assert "6 heads" in result.output
    assert "local + heavy, 64 keys, 96 logits" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "local + heavy" in result.output
    assert (tmp_path / "out" / "report.html").exists()


def test_every_head_has_a_line_with_its_numbers(surveyed, heads):
    result, _ = surveyed
    assert result.exit_code == 0, result.output
    for head in heads:
        line = next(line for line in result.output.splitlines() if line.startswith(head.name))
        assert error_number(head.baselines["mean"].relative_frobenius_estimate) in line
        assert error_words(head, "paper") in line
        assert error_words(head, head.best_recipe) in line
        assert f"{head.hardness.log_kappa / math.log(10):.1f}" in line
        assert line.rstrip().endswith(head.verdict)


def test_names_are_printed_as_they_are(invoke, tmp_path):
    """A file and a folder may be called what rich takes for markup, and a browser for a tag."""
    path, out = tmp_path / "[red]a[-] <b>&.npz", tmp_path / "[link=x] :eye: <i>"
    np.savez(path, **arrays(64))
    result = invoke("measure", path, "--heads", "0", "--layers", "0", "--recipes", "paper", "--out", out)
    assert result.exit_code == 0, result.output
    assert str(out / "report.html") in result.output
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<dd>[red]a[-] &lt;b&gt;&amp;.npz</dd>" in page
    absent = tmp_path / "[red]b.npz"
    refused(invoke("measure", absent, "--out", tmp_path / "no"), tmp_path / "no", f"{absent}: No such file")


def test_a_second_run_measures_only_what_is_missing(invoke, maps, tmp_path, monkeypatch):
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


def test_layers_heads_and_prefix_choose_what_is_measured(invoke, maps, tmp_path):
    choice = ("--layers", "3,3", "--heads", "1", "--n", 96, "--seed", 7, "--jobs", 1, "--backend", "reference")
    result = invoke("measure", maps, *choice, "--recipes", "uniform", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (head,) = load_results(tmp_path / "out")
    assert (head.name, head.n) == ("L3H1", 96)
    assert list(head.recipes) == ["uniform"]


def test_the_norm_can_be_left_out(invoke, maps, tmp_path):
    options = ("--layers", "3", "--recipes", "uniform", "--no-op-norm", "--out", tmp_path / "out")
    result = invoke("measure", maps, *options)
    assert result.exit_code == 0, result.output
    for head in load_results(tmp_path / "out"):
        assert [head.hardness.op_norm, head.hardness.op_norm_high, head.hardness.stable_rank] == [None] * 3


def test_a_causal_map_shows_its_rectangles(invoke, tmp_path):
    np.savez(tmp_path / "maps.npz", **arrays(n=256, is_causal=True))
    options = ("--recipes", "paper", "--budget", 16, "--min-seq-len", 64, "--out", tmp_path / "out")
    result = invoke("measure", tmp_path / "maps.npz", *options)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "causal rectangle" in page
    assert "exact leaves up to" in page


@pytest.mark.parametrize(
    ("options", "rows"), [((), None), (("--rows", "17"), 17), (("--rows", "auto"), "auto"), (("--exact",), "all")]
)
def test_rows_are_a_number_or_auto_or_all(invoke, maps, tmp_path, options, rows):
    result = invoke(
        "measure", maps, "--layers", 0, "--heads", 0, "--recipes", "paper", *options, "--out", tmp_path / "o"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "o" / "survey.json").read_text())["settings"]["rows"] == rows


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
        (("--layers", "a"), ("--layers is 'a'", "such as 0,1,5")),
        (("--recipes", "paper,best"), ("recipe 'best' is unknown", "window_sinks")),
        (("--recipes", ""), ("recipe '' is unknown",)),
        (("--n", "161"), ("n is 161 and L0H0 has 160 tokens",)),
        (("--rows", "161"), ("rows is 161",)),
        (("--rows", "0"), ("rows is 0",)),
        (("--rows", "many"), ("--rows is 'many'", "a number of rows, or auto", "--exact")),
        (("--rows", "8", "--exact"), ("give --exact, which takes all rows, or --rows, but not both",)),
        (("--rows", "auto", "--exact"), ("but not both",)),
        (("--keep", "kept.npz"), ("--keep keeps the maps of a model", "MODEL TEXT")),
        (("--against", "nothing"), ("nothing is no survey: it has no survey.json",)),
        (("a text.txt",), ("maps.npz is a file, and a text belongs to a model",)),
        (("--confidence", "1"), ("confidence is 1",)),
        (("--tolerance", "-1"), ("tolerance is -1",)),
        (("--backend", "none"), ("'none' is unknown",)),
        (("--demo",), ("either a file of maps or --demo",)),
    ],
)
def test_bad_arguments_are_refused(invoke, maps, tmp_path, arguments, words):
    refused(invoke("measure", maps, *arguments, "--out", tmp_path / "out"), tmp_path / "out", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("No such file or directory", "MODEL TEXT")),
        (b"text", ("maps.npz",)),
        ({"query": np.ones((4, 2))}, ("lacks key, value",)),
        (arrays(value=np.full((4, 160, 8), np.nan, np.float32)), ("value of L0H0", "non-finite")),
        (
            arrays(key=np.ones((4, 160, 5), np.float32)),
            ("maps.npz holds no", "(it has query", "need one d"),
        ),
    ],
    ids=["absent", "no archive", "arrays missing", "NaN", "shapes"],
)
def test_bad_files_are_refused(invoke, tmp_path, content, words):
    path = tmp_path / "maps.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    refused(invoke("measure", path, "--out", tmp_path / "out"), tmp_path / "out", *words)


def test_a_folder_that_holds_another_survey_is_refused_and_left_alone(invoke, maps, tmp_path):
    arguments = ("measure", maps, "--recipes", "paper", "--out", tmp_path / "out")
    assert invoke(*arguments).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    result = invoke(*arguments, "--seed", 1)
    assert result.exit_code == 2
    assert "with other settings" in result.output
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_capture_passes_its_arguments_on_and_says_what_it_wrote(invoke, maps, tmp_path, monkeypatch):
    given = []

    def capture_text(*arguments, **options):
        given.append((arguments, options))
        return maps

    monkeypatch.setattr(model_capture, "capture_text", capture_text)
    choice = ("--n", 64, "--layers", "0,3", "--heads", "1", "--force")
    result = invoke("capture", "model", "text.txt", "--out", maps, *choice)
    assert result.exit_code == 0, result.output
    ((model, text, out), options), *_ = given
    assert (model, str(text), out) == ("model", "text.txt", maps)
    assert options == {"n": 64, "layers": [0, 3], "heads": [1], "overwrite": True}
    assert "4 heads of 2 layers, 160 tokens" in result.output


def test_capture_says_what_is_missing(invoke, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = invoke("capture", "model", tmp_path / "text.txt", "--out", tmp_path / "maps.npz")
    refused(result, tmp_path / "maps.npz", "needs torch and transformers", 'pip install ".[models]"')


@pytest.mark.slow
def test_two_processes_that_measure_into_one_folder_both_succeed(tmp_path):
    np.savez(tmp_path / "maps.npz", **arrays(n=48, d=4))
    command = [
        sys.executable,
        "-c",
        "from hyperattention_ref.cli import main; main()",
        "measure",
        tmp_path / "maps.npz",
    ]
    options = ["--recipes", "paper", "--budget", "16", "--out"]
    out, alone = tmp_path / "out", tmp_path / "alone"
    processes = [
        subprocess.Popen([*command, *options, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for folder in (out, out, alone)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    written = [sorted(str(x.relative_to(folder)) for x in folder.rglob("*")) for folder in (out, alone)]
    assert written[0] == written[1]
    assert all((out / name).read_bytes() == (alone / name).read_bytes() for name in ("measures.csv", "survey.json"))
