"""The report of `verify` on disk: a page that stands alone, its plots as PNG files, and the data as JSON and CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hyperattention_ref.pages import files
from hyperattention_ref.verify.figures import draw_figures
from hyperattention_ref.verify.report import OUTCOMES, Report, hypothesis_values, limit, outcome, statements, table

NAMES = {
    "outcome": outcome,
    "outcomes": OUTCOMES,
    "limit": limit,
    "hypothesis_values": hypothesis_values,
    "statements": statements,
    "median": lambda x: float(np.median(x)),
}
"""What the page's template uses beside the report and its plots."""


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.csv, the plots as PNG and report.html to a folder, each whole or not at all."""
    files.write_csv(folder / "report.csv", table(report))
    files.write_report(folder, "report.json", report, draw_figures(report), "verify/page.html.j2", **NAMES)
