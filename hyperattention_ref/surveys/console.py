"""A survey in the terminal: a progress bar while it runs and a table of the heads at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from hyperattention_ref.measures.error_bounds import MEAN, ZERO
from hyperattention_ref.pages.progress import progress_bar
from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.surveys.head_measures import HeadMeasures
from hyperattention_ref.surveys.page import write_report
from hyperattention_ref.surveys.report import KAPPAS, SurveyReport, keys, label
from hyperattention_ref.surveys.settings import SurveySettings
from hyperattention_ref.surveys.survey import survey

PAPER = "paper"


def run(path, out: Path, settings: SurveySettings, console: Console, *, layers, heads, n_jobs: int) -> None:
    """Survey, write the report, show."""
    with progress_bar() as step:
        results = survey(path, out, settings, layers=layers, heads=heads, n_jobs=n_jobs, progress=step)
        step("drawing", len(results), len(results))
        report = SurveyReport(Path(path).name, settings, tuple(results))
        write_report(report, out)
    console.print(heads_table(report))
    console.print("", *report.findings, "", sep="\n")
    console.print(report.summary, style="bold")
    console.print("The report is", out / "report.html", soft_wrap=True)


def heads_table(report: SurveyReport) -> Table:
    """One line for each head: hardness, the paper's recipe (or the first), the best one, the baselines, the verdict."""
    recipes = report.settings.recipes
    of_first_head = report.heads[0].recipes
    compared = PAPER if PAPER in recipes else recipes[0]
    hardness = ("n", "α", "α w/o 1", "w/o 32", "log₁₀ κ", "rescaled", "κ*", "stable\nrank", "perplexity")
    errors = ("best recipe\nmass, error ≤", "zero\nerror ≤", "mean of V\nerror ≤")
    titles = (*hardness, f"{label(compared)}\n{keys(of_first_head[compared])} keys\nmass, error ≤", *errors)
    columns = (Column(title, justify="right") for title in titles)
    table = Table("head", *columns, "verdict", box=None, pad_edge=False)
    for head in report.heads:
        table.add_row(*_cells(head, compared))
    pilots = {label(name): recipe.pilot_rows for name, recipe in of_first_head.items() if recipe.pilot_rows}
    if pilots:
        table.caption = (
            f"Budget {report.settings.budget} keys for each query; the pilot of {', '.join(pilots)} costs as much as "
            f"{max(pilots.values())} more."
        )
    return table


def _cells(head: HeadMeasures, compared: str) -> Iterator[str]:
    h = head.hardness
    yield from (head.name, str(head.n))
    yield from (number(x) for x in (h.alpha, h.alpha_left_out.get(1), h.alpha_left_out.get(32)))
    logs = (getattr(h, name) for name in KAPPAS)
    yield from ("–" if x is None else power_of_ten(x).removeprefix("10^") for x in logs)
    yield from (number(h.stable_rank), number(h.perplexity["50 %"]))
    yield _mass_and_error(head, compared)
    yield f"{label(head.best_recipe)} {_mass_and_error(head, head.best_recipe)}"
    yield from (f"{head.baselines[name].relative_frobenius:.2f}" for name in (ZERO, MEAN))
    yield head.verdict


def _mass_and_error(head: HeadMeasures, name: str) -> str:
    recipe = head.recipes[name]
    return f"{recipe.mass.estimate:.0%} {recipe.relative_frobenius:.2f}"
