"""What a survey means in words follows its numbers."""

from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.pages.wording import label
from hyperattention_ref.surveys.report import (
    VERDICTS,
    SurveyReport,
    cost,
    error_number,
    error_words,
    kind,
    limits,
    table,
)


@pytest.fixture
def report(heads):
    settings = hr.SurveySettings(recipes=tuple(heads[0].recipes), budget=16)
    return SurveyReport("maps.npz", settings, tuple(heads), "hyperattention measure maps.npz", {})


def with_verdicts(report, verdicts):
    heads = tuple(replace(head, verdict=verdict) for head, verdict in zip(report.heads, verdicts, strict=True))
    return replace(report, heads=heads)


def exact(head):
    """The head as if all of its rows had been drawn."""
    return replace(head, rows=head.n)


def test_the_summary_counts_the_verdicts(report):
    report = with_verdicts(report, ["replace", *3 * ["keep exact"]])
    assert report.verdicts == {"keep exact": 3, "replace": 1}
    assert report.summary.startswith("4 heads. At 16 keys for each query")
    assert report.summary.endswith("(bounds at 95% confidence): keep exact: 3, replace: 1.")
    assert "(exact)" in replace(report, heads=tuple(map(exact, report.heads))).summary


def test_every_verdict_has_its_kind(report):
    report = with_verdicts(report, ["replace", "replace, with local_heavy", "replace, with heavy", "undecided"])
    assert report.kinds == {"replace": 1, "replace, with": 2, "undecided": 1}
    assert [kind(name) for name in VERDICTS] == list(VERDICTS)


def test_the_sentences_name_the_best_recipe_and_the_papers(report):
    text = " ".join(report.findings)
    best = report.best_recipe
    assert np.median(report.estimates(best)) == min(np.median(report.estimates(x)) for x in report.settings.recipes)
    errors = [error_number(np.median(report.estimates(name))) for name in (best, "paper", "mean")]
    assert (
        f"Median relative error: {label(best)} {errors[0]}, paper {errors[1]}; mean of V {errors[2]}, zero 1." in text
    )
    assert f"paper on {sum(head.is_useful('paper') for head in report.heads)} of 4 heads" in text
    assert f"come from 80 of 160 rows, which cannot certify less than {limits(report.heads)}" in text
    assert all(len(sentence) < 140 for sentence in report.findings)


def test_the_sentences_follow_the_hardness(report):
    hardness = [replace(h.hardness, heavy_columns=(7,), log_kappa_shifted=None) for h in report.heads]
    hardness = [replace(h, overflows={"float16": h is hardness[0], "float32": False}) for h in hardness]
    heads = [replace(head, hardness=h) for head, h in zip(report.heads, hardness, strict=True)]
    text = " ".join(replace(report, heads=tuple(map(exact, heads))).findings)
    assert "Key 7 is the heaviest on 4 of 4 heads" in text
    assert "best key shift" not in text
    assert "exp overflows float16 on 1 of 4 heads" in text
    assert "cannot certify" not in text


def test_undecided_heads_say_how_many_rows_would_decide(report):
    first, second, *others = report.heads
    heads = (replace(first, rows_to_decide=100), replace(second, rows_to_decide=120), *others)
    assert "2 of 4 heads are undecided; 120 rows would decide." in replace(report, heads=heads).findings
    assert not any("undecided" in sentence for sentence in report.findings)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"),
        (0.123, "0.12"),
        (1.0, "1.00"),
        (0.0346, "0.035"),
        (3.1e-7, "3.1·10⁻⁷"),
        (480.0, "480"),
        (np.inf, "∞"),
    ],
)
def test_errors_have_two_digits(x, text):
    assert error_number(x) == text


def test_an_error_is_a_number_or_an_estimate_with_its_bound(heads):
    recipe = replace(
        heads[0].recipes["paper"],
        relative_frobenius_estimate=0.463,
        relative_frobenius_standard_error=0.0213,
        relative_frobenius=0.512,
    )
    head = replace(heads[0], recipes={"paper": recipe})
    assert error_words(head, "paper") == "0.46 ± 0.02 ≤ 0.51"
    assert error_words(exact(head), "paper") == "0.46"
    assert error_words(head, "zero") == "1.00"


def test_the_cost_of_a_recipe_counts_its_pilot(heads):
    assert cost(heads[0].recipes["heavy"]) == "16 keys, 48 logits"
    assert cost(heads[0].recipes["paper"]) == "16 keys, 16 logits"


def test_the_table_has_a_row_for_each_head_with_one_set_of_columns(report):
    rows = list(table(report))
    assert [row["name"] for row in rows] == [head.name for head in report.heads]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
