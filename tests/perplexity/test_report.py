"""Rows, sentences, tables, plots and the page, from losses that are known."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from hyperattention_ref.perplexity.figures import draw_figures
from hyperattention_ref.perplexity.methods import LEAVES, WINDOW
from hyperattention_ref.perplexity.page import write_report
from hyperattention_ref.perplexity.report import HEADINGS, STRETCHES, Case, Row, cells, change, grid


def row(report, method, count):
    (found,) = [x for x in report.at(count) if x.method == method]
    return found


def test_a_row_is_what_its_losses_say():
    exact, other = np.linspace(1, 2, 100), np.linspace(1, 2, 100) + np.repeat([0.0, 1.0], 50)
    found = Row.of(Case("paper", 3, 2, 7.0, 0.5, tuple(other)), Case("exact", 0, 0, 0.0, 2.0, tuple(exact)))
    assert (found.loss, found.difference) == (pytest.approx(2.0), pytest.approx(0.5))
    assert found.perplexity == pytest.approx(np.exp(2.0))
    assert found.speed_up == 4
    assert len(found.by_position) == STRETCHES
    assert found.by_position[0] == pytest.approx(0)
    assert found.by_position[-1] == pytest.approx(1)
    assert cells(found)[0] == "2 of 3"


def test_exact_attention_costs_nothing(report):
    exact = report.rows[0]
    assert (exact.difference, exact.difference_error, exact.speed_up) == (0, 0, 1)


def test_sentences_name_the_best_recipe_and_the_baselines(report):
    assert "local + heavy" in report.summary
    assert f"perplexity {row(report, 'local_heavy', 2).perplexity:.2f}" in report.summary
    text = " ".join(report.findings)
    assert text.count("local + heavy costs least") == 2
    assert text.count(f"{WINDOW} +0.") == text.count(f"{LEAVES} +") == 2
    assert f"{WINDOW} {change(row(report, f'{WINDOW}, 40', 2))} at 40" in text
    assert "Last 2 of 2 layers: better than a sliding window of as many keys: local + heavy." in text
    assert "Last 2 of 2 layers: worse than dropping the far keys: paper." in text
    assert "2 s" in text
    assert "stayed exact" not in text


def test_layers_that_stay_exact_are_named(report):
    rows = tuple(replace(x, replaced=x.layers // 2) for x in report.rows)
    assert "Last 2 of 2 layers: 1 of them stayed exact" in " ".join(replace(report, rows=rows).findings)


def test_exact_attention_alone_is_a_report(report, tmp_path):
    alone = replace(report, rows=report.rows[:1])
    assert alone.summary.startswith("Exact attention: ")
    assert alone.findings == list(draw_figures(alone)) == []
    write_report(alone, tmp_path)
    assert "Exact attention: " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_table_has_every_row(report):
    found = grid(report)
    assert found.headings == HEADINGS
    assert [line[0] for line in found.lines[:3]] == ["exact", LEAVES, f"{WINDOW}, 40"]
    assert len(found.lines) == len(report.rows)
    assert all(len(line) == len(HEADINGS) for line in found.lines)


def test_the_files_hold_the_numbers(report, tmp_path):
    write_report(report, tmp_path)
    data = json.loads((tmp_path / "perplexity.json").read_text(encoding="utf-8"))
    assert data["summary"] == report.summary
    assert [x["difference"] for x in data["rows"]] == [x.difference for x in report.rows]
    with open(tmp_path / "perplexity.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(x["loss"]) for x in lines] == [x.loss for x in report.rows]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (report.summary.replace("'", "&#39;"), "a slow one", "hyperattention perplexity", *report.findings):
        assert words in page
    names = {"loss_against_layers", "time_against_layers", "loss_by_position", "time_against_loss"}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    assert page.count("<figure>") == len(names)


def test_lines_of_the_plots_are_the_rows(report):
    losses, times, positions, points = (plot.figure.axes[0] for plot in draw_figures(report))
    for axes, value in ((losses, "difference"), (times, "seconds")):
        drawn = {line.get_label(): line for line in axes.containers}
        best = [report.rows[0], row(report, "local_heavy", 1), row(report, "local_heavy", 2)]
        line = drawn["local + heavy"].lines[0]
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        np.testing.assert_array_equal(line.get_ydata(), [getattr(x, value) for x in best])
    drawn = {line.get_label(): line for line in positions.lines}
    np.testing.assert_array_equal(drawn["paper"].get_ydata(), row(report, "paper", 2).by_position)
    assert len(points.lines) == len(report.rows)
