"""What a survey means in words follows its numbers."""

from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.surveys.report import SurveyReport, keys, table


@pytest.fixture
def report(heads):
    return SurveyReport("maps.npz", hr.SurveySettings(recipes=tuple(heads[0].recipes), budget=16), tuple(heads))


def test_the_summary_counts_the_verdicts(report):
    first, *others = report.heads
    heads = (replace(first, verdict="replace"), *(replace(head, verdict="keep exact") for head in others))
    report = replace(report, heads=heads)
    assert report.verdicts == {"keep exact": 3, "replace": 1}
    assert report.summary.startswith("4 heads. At 16 keys for each query")
    assert report.summary.endswith("keep exact: 3, replace: 1.")


def test_the_sentences_follow_the_numbers(report):
    text = " ".join(report.findings)
    assert f"window + sinks {np.median(report.masses('window_sinks')):.1%}" in text
    assert f"of the mean of V {np.median(report.errors('mean')):.2f}" in text
    assert f"heavy {sum(head.is_useful('heavy') for head in report.heads)}" in report.findings[-1]
    hardness = [replace(h.hardness, heavy_columns=(7,), log_kappa_shifted=None) for h in report.heads]
    heads = tuple(replace(head, hardness=h) for head, h in zip(report.heads, hardness, strict=True))
    text = " ".join(replace(report, heads=heads).findings)
    assert "The heaviest column is key 7 on 4 of 4 heads" in text
    assert "best key shift" not in text


def test_keys_of_a_recipe_name_its_pilot(heads):
    assert keys(heads[0].recipes["heavy"]) == "16 + 32 pilot"
    assert keys(heads[0].recipes["paper"]) == "16"


def test_the_table_has_a_row_for_each_head_with_one_set_of_columns(report):
    rows = list(table(report))
    assert [row["name"] for row in rows] == [head.name for head in report.heads]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
