"""The report of `measure` on disk: one HTML page that stands alone, plots as PNG files, the data as JSON and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hyperattention_ref.pages import files
from hyperattention_ref.pages.wording import span
from hyperattention_ref.surveys.figures import draw_figures
from hyperattention_ref.surveys.report import SurveyReport, keys, label, table


def write_report(report: SurveyReport, folder: Path) -> None:
    """Write measures.json, measures.csv, the plots as PNG and report.html to a folder, each whole or not at all."""
    rows, lines = list(table(report)), io.StringIO()
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / "measures.csv", lines.getvalue())
    files.write_report(
        folder, "measures.json", report, draw_figures(report), "surveys/page.html.j2", keys=keys, label=label, span=span
    )
