"""The tables of `bench`, and the files of its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hyperattention_ref.bench.figures import draw_figures
from hyperattention_ref.bench.report import BenchReport, megabytes, middle_half, setting_words
from hyperattention_ref.bench.results import HostContestantResult, LengthResult
from hyperattention_ref.bench.rivals import RIVALS
from hyperattention_ref.bench.stages import PASSES, STAGES
from hyperattention_ref.pages import files
from hyperattention_ref.pages.grid import Grid
from hyperattention_ref.pages.wording import number, seconds

HEADINGS = [
    "", "median", "middle half", "runs", "first run", "HyperAttentions", "peak MB", "GFLOP/s", "of ceilings", "error",
]  # fmt: skip


def write_report(report: BenchReport, folder: Path) -> None:
    """Write bench.json, the plots and report.html, which needs no other file, into an existing folder."""
    names: dict = {"rivals": RIVALS, "stages": STAGES, "passes": PASSES, "headings": HEADINGS}
    names |= {function.__name__: function for function in (cells, setting_words)}
    files.write_report(folder, "bench.json", report, draw_figures(report), "bench/page.html.j2", **names)


def grids(report: BenchReport) -> Iterator[Grid]:
    """One table for each length, one for the stages and one for the measures, where there are any."""
    for case in report.lengths:
        yield Grid(
            f"n = {case.n}, inputs {megabytes(case.input_bytes)} MB, output {megabytes(case.output_bytes)} MB",
            HEADINGS,
            [[x.name, *(cells(report, case, x) or ["WRONG, not timed"])] for x in case.contestants],
            f"Error on Gaussian inputs; of zero 1, of the mean of V {number(case.baselines['mean'])}.",
        )
    for kind, title in (("stages", "Stages of the whole call, ms"), ("sums", "Exact measures of one head, ms")):
        rows = [(name, case.n, parts) for case in report.lengths for name, parts in getattr(case, kind).items()]
        if rows:
            lines = [[name, str(n), *(number(1e3 * t) for t in parts.values())] for name, n, parts in rows]
            yield Grid(title, ["backend", "n", *rows[0][2]], lines)


def cells(report: BenchReport, case: LengthResult, x: HostContestantResult) -> list[str]:
    """What is in a contestant's line under HEADINGS, but for its name; nothing if it was wrong."""
    if not x.is_right:
        return []
    flops, share = report.flops(x), report.share_of_ceilings(x)
    return [
        seconds(x.median),
        middle_half(x),
        str(len(x.seconds or ())),
        seconds(x.first_seconds),
        number(report.times_hyper(case, x)),
        megabytes(x.peak_bytes),
        number(flops / x.median / 1e9 if flops and x.median else None),
        "–" if share is None else f"{share:.0%}",
        number(x.relative_error),
    ]
