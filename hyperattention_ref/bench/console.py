"""A benchmark in the terminal: a progress bar while it runs, tables at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from hyperattention_ref.bench.cases import BenchSettings
from hyperattention_ref.bench.grid import Grid
from hyperattention_ref.bench.page import write_report
from hyperattention_ref.bench.report import BenchReport, megabytes, middle_half, seconds, wording
from hyperattention_ref.bench.results import HostContestantResult, LengthResult
from hyperattention_ref.bench.run import benchmark
from hyperattention_ref.pages.progress import progress_bar
from hyperattention_ref.pages.wording import number


def run(out: Path, settings: BenchSettings, console: Console) -> bool:
    """Benchmark, show, write the report; return whether every answer was right."""
    with progress_bar(console) as step:
        report = benchmark(settings, out, lambda name, *counts: step(wording(name), *counts))
        step("drawing", 1, 1)
        write_report(report, out)
    print_report(console, grids(report), report, [f"{reason}." for reason in report.left_out])
    console.print("The report is", out / "report.html", highlight=False, soft_wrap=True)
    return report.is_right


def print_report(console: Console, grids: Iterable[Grid], report, left_out: list[str]) -> None:
    """Tables, findings, what was left out, and the summary."""
    for grid in grids:
        console.print(grid.table(), "")
    console.print(*report.findings, *(f"Left out: {reason}" for reason in left_out), sep="\n", highlight=False)
    console.print("", report.summary, style="bold" if report.is_right else "bold red", highlight=False)


def grids(report: BenchReport) -> Iterator[Grid]:
    """One table for each length, one for the stages and one for the measures, where there are any."""
    for case in report.lengths:
        yield contestants_grid(report, case)
    for kind, title in (("stages", "Stages of the whole call, ms"), ("sums", "Exact measures of one head, ms")):
        rows = [(name, case.n, parts) for case in report.lengths for name, parts in getattr(case, kind).items()]
        if rows:
            lines = [[name, str(n), *(number(1e3 * t) for t in parts.values())] for name, n, parts in rows]
            yield Grid(title, ["backend", "n", *rows[0][2]], lines)


def contestants_grid(report: BenchReport, case: LengthResult) -> Grid:
    """One line for each contestant at one length."""
    headings = [
        "", "median", "middle half", "runs", "first run", "HyperAttentions", "peak MB", "GFLOP/s", "of ceilings",
        "error",
    ]  # fmt: skip
    return Grid(
        f"n = {case.n}, inputs {megabytes(case.input_bytes)} MB, output {megabytes(case.output_bytes)} MB",
        headings,
        [_line(report, case, x) for x in case.contestants],
        f"Error on Gaussian inputs; of zero 1, of the mean of V {number(case.baselines['mean'])}.",
    )


def _line(report: BenchReport, case: LengthResult, x: HostContestantResult) -> list[str]:
    if not x.is_right:
        return [x.name, "WRONG, not timed"]
    rate, share = report.flops_per_second(x), report.share_of_ceilings(x)
    return [
        x.name,
        seconds(x.median),
        middle_half(x),
        str(len(x.seconds or ())),
        seconds(x.first_seconds),
        number(report.times_hyper(case, x)),
        megabytes(x.peak_bytes),
        number(None if rate is None else rate / 1e9),
        "–" if share is None else f"{share:.0%}",
        number(x.relative_error),
    ]
