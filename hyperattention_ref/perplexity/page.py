"""The report of `perplexity` on disk: one HTML page that stands alone, plots as PNG files, the data as JSON and CSV."""

from __future__ import annotations

from pathlib import Path

from hyperattention_ref.pages import files
from hyperattention_ref.pages.wording import label
from hyperattention_ref.perplexity.figures import draw_figures
from hyperattention_ref.perplexity.report import HEADINGS, PerplexityReport, cells


def write_report(report: PerplexityReport, folder: Path) -> None:
    """Write perplexity.json, perplexity.csv, the plots and report.html to a folder, each whole or not at all."""
    rows = [{name: x for name, x in row.to_dict().items() if name != "by_position"} for row in report.rows]
    files.write_csv(folder / "perplexity.csv", rows)
    names = {"cells": cells, "headings": HEADINGS, "label": label}
    files.write_report(folder, "perplexity.json", report, draw_figures(report), "perplexity/page.html.j2", **names)
