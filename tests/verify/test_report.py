"""The report: whole files, valid data, a page that stands alone, and words that follow the outcomes."""

import base64
import json
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest

from hyperattention_ref.pages.wording import heads_where, number, power_of_ten, span
from hyperattention_ref.proofs_checks import Settings, Verdict, run_checks
from hyperattention_ref.verify import sample_head_measures
from hyperattention_ref.verify.page import render_page, write_report
from hyperattention_ref.verify.report import (
    FAILS_AS_IT_MUST,
    INFORMATION,
    UNEXPECTED,
    Report,
    environment,
    limit,
    outcome,
    statements,
)

CHECKS = ("definition_1", "range_facts", "lemma_1_rate", "merge_monoid", "counterexamples")
FILES = {
    "report.html",
    "report.json",
    "error_against_m.png",
    "caps_and_floors.png",
    "ratios.png",
    "sample_heads.png",
}


def verdict(left=0.0, **changes):
    fields = {
        "name": "planted",
        "paper": "Lemma 0",
        "statement": "left ≤ 1",
        "hypothesis": "none",
        "family": "planted",
        "left": left,
        "right": 1.0,
    }
    return Verdict(**(fields | changes))


@pytest.fixture(scope="module")
def full():
    settings = Settings(n=64, trials=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_head_measures, "RUNS", 1)
        heads = sample_head_measures.measure_sample_heads()
    return Report(settings, tuple(run_checks(settings, only=CHECKS)), heads, 12.0, environment())


@pytest.fixture(scope="module")
def folder(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("report")
    write_report(full, path)
    return path


def with_verdicts(full, *verdicts):
    return replace(full, verdicts=verdicts)


def test_every_file_is_there_and_no_temporary_one(folder):
    assert {path.name for path in folder.iterdir()} == FILES


def test_json_is_strict_and_complete(full, folder):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    data = json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert data["settings"] == full.settings.to_dict()
    assert data["seconds"] == 12.0
    assert set(data["environment"]) == {"hyperattention-ref", "Python", "NumPy", "SciPy", "system", "cores", "threads"}
    assert data["as_expected"] is full.as_expected
    assert data["summary"] == full.summary
    assert data["findings"] == full.findings
    assert data["verdicts"] == [v.to_dict() for v in full.verdicts]
    assert [head["name"] for head in data["heads"]] == [head.name for head in full.heads]


def test_page_stands_alone(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    for outside in ("http:", "https:", "<script", "<link", "url(", "@import", "file:"):
        assert outside not in page
    sources = re.findall(r'src="([^"]*)"', page)
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    assert images == [(folder / f"{name}.png").read_bytes() for name in _plots_in_order()]


def _plots_in_order():
    return ["error_against_m", "caps_and_floors", "ratios", "sample_heads"]


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
    page = render_page(with_verdicts(full, hostile), [])
    expected = "‖P<sub>W</sub>‖<sub>op</sub> ≤ n<sup>1+o(1)</sup> − 2<sup>r</sup> e<sup>U[0,5]</sup>"
    assert expected in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_page_tells_an_unexpected_outcome(full):
    page = render_page(with_verdicts(full, verdict(left=2.0)), [])
    assert "fails, expected: holds" in page
    assert "1 of 1 outcomes are not as expected" in page
    assert 'class="verdict bad"' in page


def test_a_failed_write_leaves_the_old_file_and_no_other(full, tmp_path, monkeypatch):
    (tmp_path / "report.json").write_text("old")

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(full, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("left", "expected", "kind"),
    [
        (0.0, "holds", "holds"),
        (2.0, "holds", UNEXPECTED),
        (2.0, "fails", FAILS_AS_IT_MUST),
        (0.0, "fails", UNEXPECTED),
        (0.0, None, INFORMATION),
        (2.0, None, INFORMATION),
        (math.nan, "holds", UNEXPECTED),
    ],
)
def test_outcome_sees_the_verdict_in_the_light_of_what_was_expected(left, expected, kind):
    assert outcome(verdict(left, expected=expected)) == kind


def test_a_random_statement_with_few_trials_is_not_refuted():
    assert outcome(verdict(claim=0.1)) == "not refuted"


def test_counts_and_sections_hold_every_verdict_once(full):
    assert sum(full.counts.values()) == len(full.verdicts)
    sections = full.sections()
    gathered = [v for verdicts in sections.values() for group in statements(verdicts) for v in group]
    assert sorted(map(id, gathered)) == sorted(map(id, full.verdicts))
    assert [title.split(":")[0] for title in sections][-2:] == ["Counterexamples", "For information"]
    assert len(list(sections.values())[-2]) == full.counts[FAILS_AS_IT_MUST]


def test_an_unexpected_counterexample_stays_with_its_paper_item(full):
    sections = with_verdicts(full, verdict(expected="fails")).sections()
    assert list(sections) == ["Lemma 0"]


def test_the_limit_beside_the_count_is_the_one_that_decides():
    assert limit(verdict()) == ""
    clean = verdict([0.0] * 200, claim=0.1)
    assert limit(clean) == f"≤ {number(clean.high)}"
    assert limit(verdict([2.0] * 200, claim=0.1)).startswith("≥ 0.9")


def test_a_report_without_the_plotted_checks_has_the_other_plots(full, tmp_path):
    odd = [verdict(x) for x in (-1.0, 0.0, math.inf, math.nan)]
    write_report(with_verdicts(full, *odd, verdict(1.0, right=0.0)), tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"ratios.png", "sample_heads.png"}


def test_figure_titles_state_the_measured_slopes(full):
    from hyperattention_ref.verify.figures import draw_figures

    titles = {plot.name: plot.title for plot in draw_figures(full)}
    for v in full.verdicts:
        if "slope" in v.measured:
            assert number(v.measured["slope"]) in titles["error_against_m"]
    medians = {v.name: number(float(np.median(v.left))) for v in full.verdicts}
    assert medians["permutation, without the floor"] in titles["caps_and_floors"]


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (256, "256"),
        (1234, "1234"),
        (99999.4, "99999"),
        (0.25, "0.25"),
        (0.0012, "0.0012"),
        (123456, "1.2·10⁵"),
        (-1.5e-7, "−1.5·10⁻⁷"),
        (-0.5, "−0.5"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_as_a_person_writes_them(x, text):
    assert number(x) == text


def test_words_for_powers_spans_and_heads():
    assert power_of_ten(math.log(1e29)) == "10^29.0"
    assert power_of_ten(2000.0) == "10^868.6"
    assert span([3, 1, 2e7]) == "1 to 2.0·10⁷"
    assert heads_where({"a": True, "b": True}) == "all 2 heads"
    assert heads_where({"a": False, "b": False}) == "none of the 2 heads"
    assert heads_where({"a": False, "b": True}) == "1 of the 2 heads (b)"
