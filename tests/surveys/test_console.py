"""The tables of the terminal fit any width, and cut no number and no word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import hyperattention_ref as hr
from hyperattention_ref.pages.wording import label
from hyperattention_ref.surveys.console import Column, fitted_table, heads_table
from hyperattention_ref.surveys.report import SurveyReport, error_words

CELLS = ["1.2·10⁵", "0.46 ± 0.02 ≤ 0.51", "–", "window + sinks suffice", "L0H1"]
COLUMN = st.builds(
    Column,
    st.text("abc ", max_size=12).map(lambda x: f"t{x.strip()}"),
    st.lists(st.sampled_from(CELLS), min_size=3, max_size=3),
    st.integers(1, 4),
    st.booleans(),
)
COLUMNS = st.lists(COLUMN, min_size=1, max_size=6, unique_by=lambda column: column.title)


def printed(table, width):
    console = Console(width=width, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@given(COLUMNS, st.integers(25, 120))
def test_a_table_fits_and_shows_each_chosen_cell_whole(others, width):
    first = Column("head", ["L0H0", "L10H11", "L3H2"], 0, is_text=True)
    table = fitted_table([first, *others], width)
    output = printed(table, width)
    assert "…" not in output
    assert all(len(line) <= width for line in output.splitlines())
    words = output.split()
    for column in [first, *others]:
        if not any(column.title == shown.header for shown in table.columns):
            assert column.title.split()[-1] in str(table.caption)
            continue
        for cell in column.cells:
            for part in cell.split() if column.is_text else [cell]:
                assert part in (words if column.is_text else output)


@given(COLUMNS)
def test_the_lowest_ranks_come_first_and_a_wider_table_has_no_fewer(columns):
    shown = [len(fitted_table(columns, width).columns) for width in range(10, 160, 10)]
    assert shown == sorted(shown)
    for width in range(10, 160, 10):
        kept = fitted_table(columns, width).columns
        ranks = [column.rank for column in columns if column.title in {x.header for x in kept}]
        left_out = [column.rank for column in columns if column.title not in {x.header for x in kept}]
        assert not left_out or not ranks or max(ranks) <= min(left_out)


@pytest.mark.parametrize(("width", "absent"), [(80, 1), (120, 1), (190, 0)])
def test_the_table_of_heads_fits_usual_terminals(heads, width, absent):
    settings = hr.SurveySettings(recipes=tuple(heads[0].recipes), budget=16)
    report = SurveyReport("maps.npz", settings, tuple(heads), "hyperattention measure", {})
    output = printed(heads_table(report, width), width)
    assert "…" not in output
    assert all(len(line) <= width for line in output.splitlines())
    for head in heads:
        (line,) = (line for line in output.splitlines() if line.startswith(head.name))
        assert error_words(head, head.best_recipe) in line
        assert label(head.best_recipe).split()[0] in line
    words = " ".join(output.split())
    assert ("In a wider terminal" in words) == bool(absent)
    assert "estimate ± standard error ≤ bound at 95%" in words


def test_a_short_text_is_not_broken_into_lines():
    assert Column("verdict", ["keep exact"], 0, is_text=True).least_width == len("keep exact")
    assert Column("verdict", ["window + sinks suffice"], 0, is_text=True).least_width == 14
    assert Column("error", ["0.46 ± 0.02 ≤ 0.51"], 0).least_width == 18
