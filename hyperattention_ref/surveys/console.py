"""A survey in the terminal: a progress bar while it runs, and tables at its end that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from hyperattention_ref.measures.error_bounds import MEAN
from hyperattention_ref.pages.progress import progress_bar
from hyperattention_ref.pages.wording import label, number, power_of_ten
from hyperattention_ref.surveys.comparison import Change, Comparison
from hyperattention_ref.surveys.head_measures import HeadMeasures
from hyperattention_ref.surveys.page import write_report
from hyperattention_ref.surveys.report import (
    KAPPAS,
    PAPER,
    SurveyReport,
    cost,
    error_number,
    error_words,
    limits,
)
from hyperattention_ref.surveys.settings import SurveySettings
from hyperattention_ref.surveys.survey import survey

GAP = 2
"""Blanks between two columns."""
SHORT = 14
"""Characters of a text that is not broken into lines."""


class Column(NamedTuple):
    """A column of a table.

    Attributes
    ----------
    title : its lines are separated by newlines.
    cells : one for each row.
    rank : columns of a higher rank are the first to be left out.
    is_text : whether it stands to the left, and may take several lines.
    """

    title: str
    cells: list[str]
    rank: int
    is_text: bool = False

    @property
    def full_width(self) -> int:
        """The number of characters at which every cell has one line."""
        return max(map(cell_len, (*self.title.split("\n"), *self.cells)))

    @property
    def least_width(self) -> int:
        """The number of characters that cuts no number and no word, and breaks no short text."""
        if not self.is_text:
            return self.full_width
        words = (word for text in (self.title, *self.cells) for word in text.split())
        return max(*map(cell_len, words), min(self.full_width, SHORT))


def measure_file(path: Path, out: Path, settings: SurveySettings, *, layers, heads, n_jobs: int) -> list[HeadMeasures]:
    """Survey with a progress bar."""
    with progress_bar() as step:
        return survey(path, out, settings, layers=layers, heads=heads, n_jobs=n_jobs, progress=step)


def show(report: SurveyReport, out: Path, console: Console) -> None:
    """Write the report; print its tables, findings and summary."""
    with progress_bar() as step:
        step("drawing", len(report.heads), len(report.heads))
        write_report(report, out)
    console.print(heads_table(report, console.width))
    console.print("", *report.findings, "", sep="\n")
    if report.comparison:
        if report.comparison.changed:
            console.print(changes_table(report.comparison, console.width))
        console.print("", *report.comparison.findings, "", sep="\n")
    console.print(report.summary, style="bold")
    console.print("The report is", out / "report.html", soft_wrap=True)


def heads_table(report: SurveyReport, width: int) -> Table:
    """One line for each head: hardness, errors of the best recipe and the paper's, the mean of V, and the verdict."""
    recipes, first = report.settings.recipes, report.heads[0].recipes
    compared = PAPER if PAPER in recipes else recipes[0]

    def column(title: str, rank: int, cell: Callable[[HeadMeasures], str], is_text: bool = False) -> Column:
        return Column(title, [cell(head) for head in report.heads], rank, is_text)

    def alpha(left_out: int) -> Callable[[HeadMeasures], str]:
        return lambda head: number(head.hardness.alpha_left_out.get(left_out))

    def mass(head: HeadMeasures, name: str) -> str:
        return f"{head.recipes[name].mass.estimate:.0%}"

    kappas = zip(KAPPAS, ("log₁₀ κ", "rescaled", "log₁₀ κ*"), (4, 7, 8), strict=True)
    return fitted_table(
        [
            column("head", 0, lambda head: head.name, is_text=True),
            column("n", 5, lambda head: str(head.n)),
            column("α", 3, alpha(0)),
            column("α w/o 1", 6, alpha(1)),
            column("w/o 32", 9, alpha(32)),
            *(column(title, rank, _kappa(name)) for name, title, rank in kappas),
            column("stable\nrank", 10, lambda head: number(head.hardness.stable_rank)),
            column("effective\nkeys", 11, lambda head: number(head.hardness.perplexity["50 %"])),
            column(f"{label(compared)},\n{cost(first[compared])}", 4, lambda head: error_words(head, compared)),
            column("mass", 12, lambda head: mass(head, compared)),
            column("best recipe", 1, lambda head: label(head.best_recipe), is_text=True),
            column("its\nlogits", 5, lambda head: number(head.recipes[head.best_recipe].logits_per_query)),
            column("its\nerror", 0, lambda head: error_words(head, head.best_recipe)),
            column("mass", 12, lambda head: mass(head, head.best_recipe)),
            column("mean\nof V", 2, lambda head: error_number(head.errors(MEAN).relative_frobenius_estimate)),
            column("verdict", 0, lambda head: head.verdict, is_text=True),
        ],
        width,
        _how_to_read(report),
    )


def changes_table(comparison: Comparison, width: int) -> Table:
    """One line for each head that changed: its verdict, the estimated error of each recipe, alpha and kappa."""
    heads = comparison.changed
    errors = (
        Column(label(name), [_arrow(head.errors[name], error_number) for head in heads], 3 + rank)
        for rank, name in enumerate(comparison.recipes)
    )
    columns = [
        Column("head", [head.name for head in heads], 0, is_text=True),
        Column("α", [_arrow(head.alpha, number) for head in heads], 1),
        Column("κ", [_arrow(head.log_kappa, power_of_ten) for head in heads], 2),
        *errors,
        Column("verdict", [_arrow(head.verdict, str) for head in heads], 0, is_text=True),
    ]
    return fitted_table(columns, width)


def fitted_table(columns: Sequence[Column], width: int, caption: str = "") -> Table:
    """A table of as many columns as the width has room for, those of low rank first; its caption names the others."""
    shown: list[Column] = []
    for rank in sorted({column.rank for column in columns}):
        wanted = [column for column in columns if column.rank == rank or column in shown]
        spare = width - sum(column.least_width + GAP for column in wanted) + GAP
        if rank and spare < 0:
            break
        shown = wanted
    spare = max(0, width - sum(column.least_width + GAP for column in shown) + GAP)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), caption_justify="left")
    for column in shown:
        wider = min(spare, column.full_width - column.least_width)
        spare -= wider
        justify: Literal["left", "right"] = "left" if column.is_text else "right"
        table.add_column(column.title, justify=justify, width=column.least_width + wider, overflow="fold")
    for cells in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*cells)
    left_out = dict.fromkeys(" ".join(column.title.split()) for column in columns if column not in shown)
    others = f"In a wider terminal, and in the report: {', '.join(left_out)}." if left_out else ""
    table.caption = f"{caption} {others}".strip() or None
    return table


def _how_to_read(report: SurveyReport) -> str:
    """What the numbers of the table are."""
    sentences = [f"Budget {report.settings.budget} keys for each query; logits count preparation, too."]
    if report.sampled:
        sentences.append(
            f"Errors: estimate ± standard error ≤ bound at {report.settings.confidence:.0%} confidence; "
            f"these rows cannot certify less than {limits(report.sampled)}."
        )
    return " ".join(sentences)


def _kappa(name: str) -> Callable[[HeadMeasures], str]:
    def cell(head: HeadMeasures) -> str:
        log = getattr(head.hardness, name)
        return "–" if log is None else power_of_ten(log).removeprefix("10^")

    return cell


def _arrow(change: Change, form: Callable) -> str:
    before, after = form(change.before), form(change.after)
    return f"{before} → {after}" if before != after else before
