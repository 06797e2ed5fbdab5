"""The report of `bench` on disk: one HTML page that stands alone, plots as PNG files, everything as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from hyperattention_ref.bench.figures import draw_figures
from hyperattention_ref.bench.report import BenchReport, middle_half, seconds, setting_words, wording
from hyperattention_ref.bench.rivals import RIVALS
from hyperattention_ref.bench.stages import STAGES
from hyperattention_ref.bench.sums import PASSES
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.files import render, write_plots, write_whole


def write_report(report: BenchReport, folder: Path) -> None:
    """Write bench.json, the plots as PNG and report.html; every file appears whole or not at all.

    Parameters
    ----------
    report : what to write.
    folder : an existing directory; files of the same names are replaced.
    """
    write_json(folder / "bench.json", report)
    plots = write_plots(draw_figures(report), folder)
    tables = {"rivals": RIVALS, "stages": STAGES, "passes": PASSES}
    words = {function.__name__: function for function in (middle_half, seconds, setting_words, wording)}
    page = render("bench/page.html.j2", report=report, plots=plots, **tables, **words)
    write_whole(folder / "report.html", page.encode())


def write_json(path: Path, report: Result) -> None:
    """Write a report as JSON."""
    write_whole(path, json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False).encode())
