"""`measure` on files from elsewhere, and on folders that were tampered with: one line, exit code 2, nothing written."""

import csv
import json
import shutil

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.maps import map_file
from hyperattention_ref.surveys import survey as survey_module

from ..maps.bad_files import CELL, LINK, ROWS
from ..maps.map_examples import layer_maps, write
from .small_maps import write_maps

FEW = ("--recipes", "paper", "--budget", 16)


def is_refused(result, *words):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("hyperattention: ")
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in line


@pytest.mark.parametrize("what", ROWS)
def test_a_bad_file_is_one_line_and_exit_code_2(invoke, tmp_path, what):
    name, make, words = ROWS[what]
    make(tmp_path / name)
    is_refused(invoke("measure", tmp_path / name, "--out", tmp_path / "out"), tmp_path / name, words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def resumable(tmp_path_factory):
    """A file of maps and the folder of its survey."""
    folder = tmp_path_factory.mktemp("resumable")
    maps = write_maps(folder / "maps.npz", n=64, d=4)
    settings = hr.SurveySettings(recipes=("paper",), budget=16)
    hr.survey(maps, folder / "out", settings)
    return folder


def head_edit(change):
    def make(out):
        file = out / "heads" / "L0H1.json"
        content = json.loads(file.read_text())
        change(content["result"])
        file.write_text(json.dumps(content))

    return make


def copied(source, target):
    return lambda out: shutil.copy(out / "heads" / source, out / "heads" / target)


def put(name, content):
    return lambda out: (out / name).write_bytes(content)


def record_edit(**changes):
    def make(out):
        record = json.loads((out / "survey.json").read_text())
        record["settings"].update(changes)
        (out / "survey.json").write_text(json.dumps(record))

    return make


REMOVE = "remove it and run again"
HEAD = "heads/L0H1.json"
TAMPERED = {
    "an edited error": (head_edit(lambda x: x["recipes"]["paper"].update(relative_frobenius=0.0)), HEAD, REMOVE),
    "an edited verdict": (head_edit(lambda x: x.update(verdict="replace")), HEAD, "its checksum differs"),
    "a live cell as verdict": (head_edit(lambda x: x.update(rule=CELL)), HEAD, "its checksum differs"),
    "a missing recipe": (head_edit(lambda x: x["recipes"].clear()), HEAD, "its checksum differs"),
    "another head's file": (copied("L0H4.json", "L0H1.json"), HEAD, "it was written as 'L0H4'"),
    "the head of another layer": (copied("L2H1.json", "L0H1.json"), HEAD, "it was written as 'L2H1'"),
    "{}": (put(HEAD, b"{}"), HEAD, "it must have exactly"),
    "null": (put(HEAD, b"null"), HEAD, "it must have exactly"),
    "a nested head": (put(HEAD, b"[" * 100_000), HEAD, "nested too deeply"),
    "a head cut short": (put(HEAD, b'{"name": "L0H1", "rec'), HEAD, "no valid JSON"),
    "an empty head": (put(HEAD, b""), HEAD, "no valid JSON"),
    "a latin-1 head": (put(HEAD, b'{"\xfc": 1}'), HEAD, "not in UTF-8"),
    "a record {}": (put("survey.json", b"{}"), "out", "settings.seed is absent there and 0 here"),
    "a nested record": (put("survey.json", b"[" * 100_000), "survey.json", "nested too deeply"),
    "a record cut short": (put("survey.json", b'{"file": "ma'), "survey.json", "no valid JSON"),
    "an empty record": (put("survey.json", b""), "survey.json", "no valid JSON"),
    "another seed": (record_edit(seed=7), "out", "settings.seed is 7 there and 0 here"),
    "another budget and confidence": (
        record_edit(budget=32, confidence=0.9),
        "settings.budget is 32 there and 16 here",
        "settings.confidence is 0.9 there and 0.95 here",
    ),
    "a setting too many": (record_edit(colour="red"), "out", 'settings.colour is "red" there and absent here'),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_folder_is_one_line_and_exit_code_2(invoke, resumable, tmp_path, what):
    make, *words = TAMPERED[what]
    shutil.copytree(resumable, tmp_path / "here")
    out = tmp_path / "here" / "out"
    make(out)
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    is_refused(invoke("measure", tmp_path / "here" / "maps.npz", *FEW, "--out", out), tmp_path, *words)
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before


def test_the_heads_of_a_survey_of_other_maps_are_not_taken(invoke, resumable, tmp_path):
    """Also where its record was put in place of the right one's, the heads say that they are of another."""
    shutil.copytree(resumable, tmp_path / "here")
    maps = write_maps(tmp_path / "here" / "maps.npz", n=64, d=4, scale=0.5)
    hr.survey(maps, tmp_path / "other", hr.SurveySettings(recipes=("paper",), budget=16), layers=[2])
    shutil.copy(tmp_path / "other" / "survey.json", tmp_path / "here" / "out")
    result = invoke("measure", maps, *FEW, "--out", tmp_path / "here" / "out")
    is_refused(result, "heads/L", "another run than the one in survey.json", REMOVE)


def test_text_from_a_file_is_shown_as_it_is_and_is_no_markup_and_no_formula(invoke, tmp_path):
    layer = layer_maps(n=32, d=4, d_v=4, heads=2, key_heads=2)
    maps = write(tmp_path / "maps.npz", layer, model=LINK + "\x1b[31m<b>", source=CELL)
    result = invoke("measure", maps, *FEW, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "example.org" not in result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert LINK in page
    assert "&lt;b&gt;" in page
    assert "=HYPERLINK(&#34;" in page
    with (tmp_path / "out" / "measures.csv").open(encoding="utf-8", newline="") as file:
        cells = {cell for row in csv.reader(file) for cell in row if cell.startswith(("=", "+", "-", "@", "\t"))}
    assert all(np.isfinite(float(cell)) for cell in cells)  # negative numbers


def test_only_the_prefix_is_read_and_memory_is_checked_before(tmp_path, monkeypatch):
    maps = write_maps(tmp_path / "maps.npz", n=64, d=4)
    sizes, read = [], map_file.MapFile.head

    def noting(*arguments):
        sizes.append(len((head := read(*arguments)).query))
        return head

    monkeypatch.setattr(map_file.MapFile, "head", noting)
    hr.survey(maps, tmp_path / "out", hr.SurveySettings(recipes=("paper",), budget=8, n=16), heads=[1])
    assert set(sizes) == {16}
    sizes.clear()
    monkeypatch.setattr("hyperattention_ref.surveys.head.physical_memory", lambda: 5e8)
    with pytest.raises(ValueError, match="L0H1 with n = 64 needs about"):
        hr.survey(maps, tmp_path / "more", hr.SurveySettings(recipes=("paper",)))
    assert sizes == []


def test_a_prefix_gives_the_numbers_of_a_file_of_the_prefix(tmp_path):
    settings = hr.SurveySettings(recipes=("paper",), budget=8, n=32)
    long = hr.survey(write_maps(tmp_path / "long.npz", n=64, d=4), tmp_path / "a", settings, heads=[4])
    with hr.MapFile(tmp_path / "long.npz") as maps:
        assert long == [survey_module.measure_head(maps.head(layer, 4), settings) for layer in maps.layers]
