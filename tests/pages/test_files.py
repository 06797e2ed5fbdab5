"""Files of a report appear whole or not at all, and pages stand alone."""

import base64
import json
import math
import os
from dataclasses import dataclass

import pytest
from matplotlib.figure import Figure

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.files import maths, with_anchors, write_json, write_plots, write_report
from hyperattention_ref.pages.plot_style import Plot

PAGE = """{% extends "pages/page.html.j2" %}
{% block title %}A page{% endblock %}
{% block summary %}{{ report.x if report.x is string else report.x|number }}, {{ about }}{% endblock %}
{% block details %}the end{% endblock %}"""


@dataclass(frozen=True)
class Report(Result):
    x: float | str


@pytest.fixture
def plot():
    return Plot("curve", "x_1 < y", "n^2 pairs", Figure(figsize=(1, 1)))


@pytest.fixture
def template(monkeypatch):
    """A page of its own beside the package's."""
    from jinja2 import ChoiceLoader, DictLoader, PackageLoader

    def loader(*package):
        return ChoiceLoader([DictLoader({"own.html.j2": PAGE}), PackageLoader(*package)])

    monkeypatch.setattr("jinja2.PackageLoader", loader)
    return "own.html.j2"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def broken(source, target):
        raise OSError("disk full")

    (tmp_path / "report.json").write_text("old")
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_json(tmp_path / "report.json", {"new": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "x.json", {"α": 1.5})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{"α": 1.5}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "y.json", {"x": math.nan})
    assert not (tmp_path / "y.json").exists()


def test_a_file_name_that_is_no_utf8_can_be_written_of(template, tmp_path):
    name = os.fsdecode(b"\xff.npz")
    write_report(tmp_path, "data.json", Report(name), [], template, about=name)
    assert json.loads((tmp_path / "data.json").read_text(encoding="utf-8")) == {"x": name}
    assert r"\udcff.npz" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_plots_are_files_and_come_back_for_the_page(plot, tmp_path):
    ((same, png),) = write_plots([plot], tmp_path)
    assert same is plot
    assert base64.b64decode(png) == (tmp_path / "curve.png").read_bytes()


def test_a_report_is_data_plots_and_a_page_that_shows_them(plot, template, tmp_path):
    write_report(tmp_path, "data.json", Report(math.inf), [plot], template, about="<b>")
    assert {path.name for path in tmp_path.iterdir()} == {"data.json", "curve.png", "report.html"}
    assert json.loads((tmp_path / "data.json").read_text()) == {"x": "inf"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    for text in ("<title>A page</title>", "<h1>A page</h1>", "∞, &lt;b&gt;", "the end", "x<sub>1</sub> &lt; y"):
        assert text in page
    assert base64.b64encode((tmp_path / "curve.png").read_bytes()).decode() in page
    assert "font:" in page.split("</style>")[0]


def test_a_name_that_the_page_needs_and_nobody_passes_is_an_error(template, tmp_path):
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="about"):
        write_report(tmp_path, "data.json", Report(1.0), [], template)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("n^(1+o(1)) - 1", "n<sup>1+o(1)</sup> − 1"),
        ("2^-r", "2<sup>−r</sup>"),
        ("‖P_W‖_op", "‖P<sub>W</sub>‖<sub>op</sub>"),
        ("e^U[0,5] (-1)", "e<sup>U[0,5]</sup> (−1)"),
        ("<i> & x_∞", "&lt;i&gt; &amp; x<sub>∞</sub>"),
    ],
)
def test_formulas_are_typeset_and_escaped(text, html):
    assert maths(text) == html


def test_every_heading_is_in_the_jump_list(template, tmp_path):
    write_report(tmp_path, "data.json", Report(1.0), [], template, about="")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<nav><a href="#plots">Plots</a></nav>' in page
    assert '<h2 id="plots">Plots</h2>' in page


def test_headings_get_anchors_of_their_words():
    headings, page = with_anchors("<h2>How wrong: <i>α</i> &amp; κ?</h2><p>x</p><h2>Plots</h2>")
    assert headings == {"how-wrong-α-κ": "How wrong: <i>α</i> &amp; κ?", "plots": "Plots"}
    assert page == '<h2 id="how-wrong-α-κ">How wrong: <i>α</i> &amp; κ?</h2><p>x</p><h2 id="plots">Plots</h2>'


def test_a_report_with_a_command_shows_it(template, tmp_path):
    @dataclass(frozen=True)
    class Repeatable(Report):
        command: str

    write_report(tmp_path, "data.json", Repeatable(1.0, "hyperattention <x>"), [], template, about="")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<code>hyperattention &lt;x&gt;</code>" in page
