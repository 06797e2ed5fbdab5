"""Lines, the time to an error, tables and files follow the numbers of the heads."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.bench.check import Check
from hyperattention_ref.bench.heads.page import draw_figures, write_report
from hyperattention_ref.bench.heads.report import Stop, grids, time_to

positive = st.floats(0.1, 10)


def line(errors, times):
    return [Stop("pages", i, 1.0, (e,) * 3, t) for i, (e, t) in enumerate(zip(errors, times, strict=True))]


@given(positive, st.floats(0.2, 3), st.lists(st.floats(0.001, 1), min_size=2, max_size=6, unique=True), st.data())
def test_the_time_to_an_error_is_exact_on_a_power_law(factor, exponent, errors, data):
    errors = sorted(errors, reverse=True)
    target = data.draw(st.floats(errors[-1], errors[0]))
    found = time_to(line(errors, [factor * x**-exponent for x in errors]), target)
    assert found == pytest.approx(factor * target**-exponent, rel=1e-6)


@given(st.lists(st.tuples(st.floats(0.01, 1), positive), min_size=1, max_size=6), st.floats(0.01, 1))
def test_the_time_is_that_of_the_first_budget_within_or_less_than_the_slower_of_it_and_the_one_before(points, target):
    errors, times = zip(*points, strict=True)
    within = [i for i, x in enumerate(errors) if x <= target]
    found = time_to(line(errors, times), target)
    if not within:
        assert found is None
    elif within[0] == 0:
        assert found == times[0]
    else:
        pair = times[within[0] - 1 : within[0] + 1]
        assert min(pair) * (1 - 1e-9) <= found <= max(pair) * (1 + 1e-9)


def test_stops_are_quantiles_over_the_heads(report):
    stop = report.lines["pages"][1]
    errors = [0.2, 0.1, 0.4]
    assert stop.errors == pytest.approx(np.quantile(errors, [0.5, 0.9, 1]))
    assert (stop.budget, stop.seconds) == (4, pytest.approx(0.4))
    assert [x.method for x in report.exact.values()] == ["exact", "sdpa"]


def test_the_summary_names_the_fastest_and_exact_attention(report):
    assert time_to(report.lines["pages"], 0.1) == pytest.approx(0.8)
    assert "pages is the first to reach a median error of 0.1, in 800 ms" in report.summary
    assert "exact attention takes 1 s, 1.25 times as long" in report.summary
    slow = replace(report, heads=tuple(replace(x, points=x.points[:4]) for x in report.heads))
    assert "no approximation reaches a median error of 0.1" in slow.summary


def test_what_is_wrong_is_named_and_has_no_line(report):
    first, *others = report.heads
    points = tuple(
        replace(x, check=Check(False, 9.0), seconds=None, median=None) if x.method == "pages" else x
        for x in first.points
    )
    wrong = replace(report, heads=(replace(first, points=points), *others))
    assert not wrong.is_right
    assert wrong.summary.startswith("WRONG, and not timed: pages, 2 on L0H0; pages, 4 on L0H0")
    assert list(wrong.lines) == ["paper"]


def test_the_tables_have_the_time_to_each_target_and_every_stop(report):
    reached, stops = grids(report)
    assert reached.lines == [
        ["paper", *["–"] * 6],
        ["pages", "400 ms", "2.5", "800 ms", "1.25", "1.6 s", "0.625"],
    ]
    assert len(stops.lines) == len(report.stops) == 7
    assert stops.lines[5] == ["pages", "4", "4", "0.2", "0.36", "0.4", "400 ms", "2.5"]
    loose = replace(report, heads=tuple(replace(x, points=(x.points[0], x.points[-1])) for x in report.heads))
    assert next(grids(loose)).lines == [["pages", *["≤ 3.2 s", "0.312"] * 3]]


def test_the_files_hold_the_numbers_and_the_plot_the_lines(report, tmp_path):
    report = replace(report, heads=(replace(report.heads[0], failures={"flex pages": "no compiler"}),))
    write_report(report, tmp_path)
    data = json.loads((tmp_path / "bench_heads.json").read_text(encoding="utf-8"))
    assert data["seconds_to_error"]["pages"]["0.1"] == pytest.approx(0.8)
    with open(tmp_path / "bench_heads.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["error"]) for row in rows] == [x.error for x in report.heads[0].points]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Left out: FlexAttention, lists of pages: no compiler." in page
    assert page.count("<table") == 2
    (plot,) = draw_figures(report)
    lines = {x.get_label(): x for x in plot.figure.axes[0].lines}
    np.testing.assert_allclose(lines["pages"].get_xdata(), [0.4, 0.2, 0.025])
    np.testing.assert_allclose(lines["pages"].get_ydata(), [200, 400, 3200])
    assert lines["exact attention"].get_ydata()[0] == 1000
