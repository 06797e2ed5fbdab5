"""A survey in the terminal: a progress bar while it runs and a table of the heads at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.surveys.head import SurveySettings
from hyperattention_ref.surveys.page import write_report
from hyperattention_ref.surveys.report import (
    MEAN,
    ZERO,
    SurveyReport,
    alpha_without,
    best_recipe,
    keys,
    relative_error,
    shown,
)
from hyperattention_ref.surveys.survey import survey

PAPER = "paper"


def run(path, out: Path, settings: SurveySettings, console: Console, *, layers, heads, n_jobs: int) -> None:
    """Survey, show, write the report."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def step(name: str, finished: int, total: int) -> None:
            bar.update(task, completed=finished, total=total, description=name)

        results = survey(path, out, settings, layers=layers, heads=heads, n_jobs=n_jobs, progress=step)
        bar.update(task, description="drawing")
        report = SurveyReport(Path(path).name, settings, tuple(results))
        write_report(report, out)
    console.print(heads_table(report))
    console.print("", *report.findings, "", sep="\n", highlight=False)
    console.print(report.summary, style="bold", highlight=False)
    console.print("The report is", out / "report.html", highlight=False, soft_wrap=True)


def heads_table(report: SurveyReport) -> Table:
    """One line for each head: hardness, the paper's recipe (or the first), the best one, the baselines, the verdict."""
    recipes = report.settings.recipes
    first = PAPER if PAPER in recipes else recipes[0]
    table = Table(box=None, title_justify="left", pad_edge=False)
    named = {name: f"{shown(name)}\n{keys(report.heads[0], name)} keys" for name in recipes}
    for title in ("head", "n", "α", "α w/o 1", "w/o 32", "log₁₀ κ", "rescaled", "κ*", "stable\nrank", "perplexity"):
        table.add_column(title, justify="left" if title == "head" else "right")
    table.add_column(f"{named[first]}\nmass, error ≤", justify="right")
    table.add_column("best recipe\nmass, error ≤", justify="right")
    for title in ("zero\nerror ≤", "mean of V\nerror ≤"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for head in report.heads:
        h, best = head["hardness"], best_recipe(head)
        logs = (h["log_kappa"], h["log_kappa_rescaled"], h["log_kappa_shifted"])
        table.add_row(
            head["name"],
            str(head["n"]),
            *(number(x) for x in (h["alpha"], alpha_without(head, 1), alpha_without(head, 32))),
            *("–" if x is None else power_of_ten(x).removeprefix("10^") for x in logs),
            number(h["stable_rank"]),
            number(h["perplexity"]["50 %"]),
            _mass_and_error(head, first),
            f"{shown(best)} {_mass_and_error(head, best)}",
            *(f"{relative_error(head, name):.2f}" for name in (ZERO, MEAN)),
            head["verdict"],
        )
    pilots = [shown(name) for name in recipes if report.heads[0]["recipes"][name]["pilot_rows"]]
    if pilots:
        rows = max(recipe["pilot_rows"] for recipe in report.heads[0]["recipes"].values())
        table.caption = (
            f"Budget {report.settings.budget} keys for each query; the pilot of {', '.join(pilots)} costs as much as "
            f"{rows} more."
        )
    return table


def _mass_and_error(head: dict, name: str) -> str:
    return f"{head['recipes'][name]['mass']['estimate']:.0%} {relative_error(head, name):.2f}"
