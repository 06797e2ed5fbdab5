"""The report of `verify` on disk: one HTML page that stands alone, its plots as PNG files, and the data as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hyperattention_ref.pages.files import render, write_plots, write_whole
from hyperattention_ref.verify.figures import draw_figures
from hyperattention_ref.verify.report import OUTCOMES, Report, hypothesis_values, limit, outcome, statements


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, the plots as PNG and report.html; every file appears whole or not at all.

    Parameters
    ----------
    report : what to write.
    folder : an existing directory; files of the same names are replaced.
    """
    text = json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False)
    write_whole(folder / "report.json", text.encode())
    plots = write_plots(draw_figures(report), folder)
    write_whole(folder / "report.html", render_page(report, plots).encode())


def render_page(report: Report, plots) -> str:
    """The HTML page; `plots` are pairs of a Plot and its PNG in base64."""
    return render(
        "verify/page.html.j2",
        report=report,
        plots=plots,
        outcome=outcome,
        outcomes=OUTCOMES,
        limit=limit,
        hypothesis_values=hypothesis_values,
        statements=statements,
        median=lambda x: float(np.median(x)),
    )
