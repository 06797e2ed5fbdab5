"""A benchmark in the terminal: a progress bar while it runs, tables at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hyperattention_ref.bench.cases import BenchSettings
from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.bench.page import write_report
from hyperattention_ref.bench.report import BenchReport, megabytes, right, seconds, wording
from hyperattention_ref.bench.run import benchmark
from hyperattention_ref.pages.wording import number


def run(out: Path, settings: BenchSettings, console: Console) -> bool:
    """Benchmark, show, write the report; return whether every answer was right."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def step(name: str, finished: int, total: int) -> None:
            bar.update(task, completed=finished, total=total, description=wording(name))

        results = benchmark(settings, out, progress=step)
        bar.update(task, description="drawing")
        report = make_report(settings, results)
        write_report(report, out)
    for table in tables(report):
        console.print(table, "")
    console.print(*report.findings, *(f"Left out: {reason}." for reason in report.left_out), sep="\n", highlight=False)
    console.print("", report.summary, style="bold red" if report.wrong else "bold", highlight=False)
    console.print("The report is", out / "report.html", highlight=False, soft_wrap=True)
    return not report.wrong


def make_report(settings: BenchSettings, results: dict) -> BenchReport:
    """The report of what `benchmark` returned."""
    cases = (tuple(results["lengths"]), tuple(results["families"]))
    return BenchReport(settings, results["environment"], Ceilings(**results["ceilings"]), *cases)


def tables(report: BenchReport) -> Iterator[Table]:
    """One table for each length, one for the stages and one for the measures, where there are any."""
    for case in report.lengths:
        yield contestants_table(report, case)
    for kind, title in (("stages", "Stages of the whole call, ms"), ("sums", "Exact measures of one head, ms")):
        if any(case[kind] for case in report.lengths):
            yield parts_table(report, kind, title)


def contestants_table(report: BenchReport, case: dict) -> Table:
    """One line for each contestant at one length."""
    title = f"n = {case['n']}, inputs {megabytes(case['input_bytes'])} MB, output {megabytes(case['output_bytes'])} MB"
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    table.add_column("")
    for heading in (
        "median", "middle half", "runs", "first run", "HyperAttentions", "peak MB", "GFLOP/s", "of ceilings", "error",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for x in case["contestants"]:
        if not right(x):
            table.add_row(x["name"], "WRONG, not timed", style="bold red")
            continue
        rate, share = report.flops_per_second(x), report.share_of_ceilings(x)
        table.add_row(
            x["name"],
            seconds(x["median"]),
            " – ".join(seconds(t) for t in x["quartiles"]),
            str(len(x["seconds"])),
            seconds(x["first_seconds"]),
            number(report.times_hyper(case, x)),
            megabytes(x["peak_bytes"]),
            number(None if rate is None else rate / 1e9),
            "–" if share is None else f"{share:.0%}",
            number(x["relative_error"]),
        )
    table.caption = f"Error on Gaussian inputs; of zero 1, of the mean of V {number(case['baselines']['mean'])}."
    return table


def parts_table(report: BenchReport, kind: str, title: str) -> Table:
    """One line for each backend and length, one column for each part."""
    rows = [(name, case["n"], parts) for case in report.lengths for name, parts in case[kind].items()]
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    table.add_column("backend")
    table.add_column("n", justify="right")
    for part in rows[0][2]:
        table.add_column(part, justify="right")
    for name, n, parts in rows:
        table.add_row(name, str(n), *(number(1e3 * t) for t in parts.values()))
    return table
