"""The report of `measure` on disk: one HTML page that stands alone, plots as PNG files, the data as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from hyperattention_ref.pages.files import render, write_plots, write_whole
from hyperattention_ref.pages.wording import span
from hyperattention_ref.surveys.figures import draw_figures
from hyperattention_ref.surveys.report import (
    SurveyReport,
    alpha_without,
    best_recipe,
    estimated_error,
    exponent,
    is_useful,
    keys,
    relative_error,
    shown,
    table,
)


def write_report(report: SurveyReport, folder: Path) -> None:
    """Write measures.json, measures.csv, the plots as PNG and report.html; every file appears whole or not at all.

    Parameters
    ----------
    report : what to write.
    folder : an existing directory; files of the same names are replaced.
    """
    text = json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False)
    write_whole(folder / "measures.json", text.encode())
    rows, lines = list(table(report)), io.StringIO()
    writer = csv.DictWriter(lines, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "measures.csv", lines.getvalue().encode())
    plots = write_plots(draw_figures(report), folder)
    functions = (relative_error, estimated_error, is_useful, best_recipe, alpha_without, shown, keys, exponent, span)
    page = render(
        "surveys/page.html.j2", report=report, plots=plots, **{function.__name__: function for function in functions}
    )
    write_whole(folder / "report.html", page.encode())
