"""Two surveys beside each other: heads are matched, and what changed is named."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.surveys.comparison import compare
from hyperattention_ref.surveys.survey import load_survey

from .small_maps import OPTIONS, arrays

RECORD = {"file": "maps.npz", "sha256": "0", "settings": hr.SurveySettings().to_dict()}


def test_a_survey_beside_itself_has_no_change(heads):
    comparison = compare("same", (RECORD, heads), (RECORD, heads))
    assert comparison.changed == []
    assert comparison.settings == {}
    assert comparison.findings == ["Against same: 0 of 4 heads changed, 0 of them in their verdict."]


def test_heads_are_matched_by_layer_and_head_and_what_changed_is_named(heads):
    first, second, third, fourth = heads
    recipe = replace(second.recipes["paper"], relative_frobenius_estimate=0.5, relative_frobenius=0.75)
    changed = replace(second, verdict="replace", recipes=second.recipes | {"paper": recipe})
    other = {**RECORD, "file": "others.npz", "settings": hr.SurveySettings(budget=32).to_dict()}
    comparison = compare("other", (RECORD, [fourth, second, first]), (other, [first, changed, third]))
    assert [head.name for head in comparison.heads] == [first.name, second.name]
    (head,) = comparison.changed
    assert (head.verdict.before, head.verdict.after) == (second.verdict, "replace")
    before = second.recipes["paper"]
    assert vars(head.errors["paper"]) == {"before": before.relative_frobenius_estimate, "after": 0.5}
    assert vars(head.bounds["paper"]) == {"before": before.relative_frobenius, "after": 0.75}
    assert not head.errors["heavy"].is_real
    assert (comparison.only_before, comparison.only_after) == ((fourth.name,), (third.name,))
    assert comparison.findings == [
        "Against other: 1 of 2 heads changed, 1 of them in their verdict.",
        "What was surveyed differs: file maps.npz → others.npz; budget 64 → 32.",
        f"Only there: {fourth.name}.",
        f"Only here: {third.name}.",
    ]


@pytest.fixture
def maps(tmp_path):
    np.savez(tmp_path / "maps.npz", **arrays())
    return tmp_path / "maps.npz"


def test_the_command_shows_what_changed_in_every_file(invoke, surveyed, heads, maps, tmp_path):
    _, before = surveyed
    options = (*OPTIONS, "--layers", 0, "--seed", 1, "--out", tmp_path / "out")
    result = invoke("measure", maps, *options, "--against", before)
    assert result.exit_code == 0, result.output
    (now, _), (then, *_) = load_survey(tmp_path / "out")[1], heads
    assert "Against out: 2 of 2 heads changed" in result.output
    assert "Only there: L3H0, L3H1." in result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="what-changed">' in page
    data = json.loads((tmp_path / "out" / "measures.json").read_text())["comparison"]
    errors = [x.recipes["paper"].relative_frobenius_estimate for x in (then, now)]
    assert data["heads"][0]["errors"]["paper"] == dict(zip(("before", "after"), errors, strict=True))
    with (tmp_path / "out" / "comparison.csv").open(encoding="utf-8", newline="") as file:
        row, _ = csv.DictReader(file)
    assert [float(row["error_paper_before"]), float(row["error_paper_after"])] == errors
    assert row["verdict_before"] == then.verdict
    assert invoke("measure", maps, *options).exit_code == 0
    assert not (tmp_path / "out" / "comparison.csv").exists()


def test_a_folder_that_is_no_survey_is_refused_before_anything_is_measured(invoke, surveyed, maps, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = tmp_path / "unfinished"
    shutil.copytree(surveyed[1], unfinished, ignore=lambda *_: ["L0H0.json", "L0H1.json", "L3H0.json", "L3H1.json"])
    damaged = tmp_path / "damaged"
    shutil.copytree(surveyed[1], damaged)
    (damaged / "survey.json").write_text("{}")
    for folder, words in (
        (empty, "is no survey: it has no survey.json; name the --out folder of another run"),
        (unfinished, "has no finished head"),
        (damaged, "survey.json"),
    ):
        result = invoke("measure", maps, "--out", tmp_path / "out", "--against", folder)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.splitlines()
        assert str(folder) in line
        assert words in line
        assert not (tmp_path / "out").exists()
