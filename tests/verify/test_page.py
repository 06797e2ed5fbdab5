"""The files of a report: valid data, and a page that stands alone."""

import base64
import csv
import json
import math
import re

import pytest

from hyperattention_ref.pages.files import render
from hyperattention_ref.verify.page import NAMES, write_report
from hyperattention_ref.verify.report import outcome

from .planted import verdict, with_verdicts

PLOTS = ("error_against_m", "caps_and_floors", "ratios", "sample_heads")
FILES = {"report.html", "report.json", "report.csv", *(f"{name}.png" for name in PLOTS)}


def page_of(report):
    return render("verify/page.html.j2", report=report, plots=[], **NAMES)


@pytest.fixture(scope="module")
def folder(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_report(full, path)
    return path


def test_every_file_is_there_and_no_temporary_one(folder):
    assert {path.name for path in folder.iterdir()} == FILES


def test_json_is_strict_and_complete(full, folder):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    data = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert data["settings"] == full.settings.to_dict()
    assert data["seconds"] == 12.0
    assert {"hyperattention-ref", "Python", "numpy", "scipy", "system", "cores"} <= set(data["environment"])
    assert data["as_expected"] is full.as_expected
    assert data["summary"] == full.summary
    assert data["findings"] == full.findings
    assert data["verdicts"] == [v.to_dict() for v in full.verdicts]
    assert [head["name"] for head in data["heads"]] == [head.name for head in full.heads]


def test_csv_has_one_row_for_each_verdict(full, folder):
    with open(folder / "report.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(full.verdicts)
    for row, v in zip(rows, full.verdicts, strict=True):
        assert (row["name"], row["family"], row["verdict"], row["outcome"]) == (v.name, v.family, v.verdict, outcome(v))
        assert float(row["ratio_largest"]) == v.ratios.max()
        assert row["detectable"] == ("" if v.detectable is None else str(v.detectable))


def test_every_section_has_a_place_to_jump_to(full, folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    for number in range(1, len(full.sections()) + 1):
        assert page.count(f'href="#section-{number}"') == page.count(f'id="section-{number}"') == 1
    assert "<code>hyperattention verify</code>" in page


def test_page_stands_alone(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    for outside in ("http:", "https:", "<script ", "<link", "url(", "@import", "file:"):
        assert outside not in page
    sources = re.findall(r'src="([^"]*)"', page)
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    assert images == [(folder / f"{name}.png").read_bytes() for name in PLOTS]


def test_page_shows_every_verdict_and_head(full, folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r'<td class="values">(.*?)</tr>', page, flags=re.DOTALL)
    assert len(rows) == len(full.verdicts)
    shown = [re.split(r"[,\n<]", row)[0] for row in rows]
    assert sorted(shown) == sorted(v.family.split(",")[0] for v in full.verdicts)
    for head in full.heads:
        assert page.count(f"<b>{head.name}</b>") == 2


def test_long_lists_stay_out_of_the_page(full, folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "slope = " in page
    assert "errors = " not in page


def test_page_typesets_formulas_and_escapes_text(full):
    hostile = verdict(statement="‖P_W‖_op ≤ n^(1+o(1)) - 2^r e^U[0,5]", family="<script>alert(1)</script>")
    page = page_of(with_verdicts(full, hostile))
    expected = "‖P<sub>W</sub>‖<sub>op</sub> ≤ n<sup>1+o(1)</sup> − 2<sup>r</sup> e<sup>U[0,5]</sup>"
    assert expected in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


def test_page_tells_an_unexpected_outcome(full):
    page = page_of(with_verdicts(full, verdict(left=2.0)))
    assert "fails, expected: holds" in page
    assert "1 of 1 outcomes are not as expected" in page
    assert 'class="verdict bad"' in page


def test_a_report_without_the_plotted_checks_has_the_other_plots(full, tmp_path):
    odd = [verdict(x) for x in (-1.0, 0.0, math.inf, math.nan)]
    write_report(with_verdicts(full, *odd, verdict(1.0, right=0.0)), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"ratios.png", "sample_heads.png"}


def test_a_report_without_verdicts_says_so(full, tmp_path):
    empty = with_verdicts(full)
    assert not empty.as_expected
    assert "Nothing was checked" in empty.summary
    write_report(empty, tmp_path)
    assert not (tmp_path / "ratios.png").exists()
