"""The report of `measure` on disk: one HTML page that stands alone, plots as PNG files, the data as JSON and CSV."""

from __future__ import annotations

from pathlib import Path

from hyperattention_ref.pages import files
from hyperattention_ref.pages.wording import label, number, power_of_ten, span
from hyperattention_ref.surveys import comparison
from hyperattention_ref.surveys.figures import draw_figures
from hyperattention_ref.surveys.report import (
    VERDICTS,
    SurveyReport,
    cost,
    error_number,
    error_words,
    kind,
    limits,
    overflows,
    table,
)

NAMES = {
    "cost": cost,
    "error_number": error_number,
    "error_words": error_words,
    "kind": kind,
    "label": label,
    "limits": limits,
    "number": number,
    "overflows": overflows,
    "power_of_ten": power_of_ten,
    "span": span,
    "verdicts": VERDICTS,
}
"""What the page's template uses beside the report and its plots."""
COMPARISON = "comparison.csv"


def write_report(report: SurveyReport, folder: Path) -> None:
    """Write measures.json, measures.csv, the plots as PNG and report.html to a folder, each whole or not at all.

    With a comparison also comparison.csv; without one, a file of that name is from another run, and removed.
    """
    files.write_csv(folder / "measures.csv", list(table(report)))
    if report.comparison and report.comparison.heads:
        files.write_csv(folder / COMPARISON, list(comparison.table(report.comparison)))
    else:
        (folder / COMPARISON).unlink(missing_ok=True)
    files.write_report(folder, "measures.json", report, draw_figures(report), "surveys/page.html.j2", **NAMES)
