"""The report of `bench` on disk: one HTML page that needs no other file, plots as PNG files, everything as JSON."""

from __future__ import annotations

from pathlib import Path

from hyperattention_ref.bench.figures import draw_figures
from hyperattention_ref.bench.report import BenchReport, middle_half, seconds, setting_words, wording
from hyperattention_ref.bench.rivals import RIVALS
from hyperattention_ref.bench.stages import STAGES
from hyperattention_ref.bench.sums import PASSES
from hyperattention_ref.pages import files


def write_report(report: BenchReport, folder: Path) -> None:
    """Write bench.json, the plots and report.html into an existing folder."""
    names: dict = {"rivals": RIVALS, "stages": STAGES, "passes": PASSES}
    names |= {function.__name__: function for function in (middle_half, seconds, setting_words, wording)}
    files.write_report(folder, "bench.json", report, draw_figures(report), "bench/page.html.j2", **names)
