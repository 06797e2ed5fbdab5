"""A benchmark on a GPU in the terminal: refusals at the door, a progress bar, tables and files at its end."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.bench.gpu.cases import GpuSettings, obstacles
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.gpu.report import GpuReport, Grid, markdown, overviews
from hyperattention_ref.bench.gpu.run import benchmark_gpu
from hyperattention_ref.foundation.inputs import positive
from hyperattention_ref.pages.files import write_whole


def run(out: Path, settings: GpuSettings, minutes: float, command: str, console: Console) -> bool:
    """Benchmark, show, write gpu.json and results.md; return whether every answer was right and nothing broke.

    Raises
    ------
    ValueError : there is no GPU, or none of the backends can use it; nothing is written.
    """
    minutes = positive("minutes", minutes)
    _refuse_without_a_gpu(settings)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def step(name: str, finished: int, total: int) -> None:
            bar.update(task, completed=finished, total=total, description=name)

        results = benchmark_gpu(Gpu(), settings, out, minutes=minutes, progress=step)
    report = make_report(settings, results, command)
    write_report(report, out)
    for grid in overviews(report):
        console.print(table(grid), "")
    console.print(*report.findings, *(f"Left out: {words}" for words in report.absent), sep="\n", highlight=False)
    console.print("", report.summary, style="bold" if report.is_right else "bold red", highlight=False)
    console.print("Every number is in", out / "results.md", "and", out / "gpu.json", highlight=False, soft_wrap=True)
    return report.is_right


def make_report(settings: GpuSettings, results: dict, command: str) -> GpuReport:
    """The report of what `benchmark_gpu` returned."""
    measured = results["ceilings"]
    ceilings = Ceilings(**{name: measured[name] for name in ("flops", "exponentials", "bytes")}) if measured else None
    others = {name: results[name] for name in ("environment", "conformance", "left_out", "failures")}
    return GpuReport(settings=settings, command=command, ceilings=ceilings, cases=tuple(results["cases"]), **others)


def write_report(report: GpuReport, folder: Path) -> None:
    """Write gpu.json and results.md; each appears whole or not at all."""
    text = json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False)
    write_whole(folder / "gpu.json", text.encode())
    write_whole(folder / "results.md", markdown(report).encode())


def table(grid: Grid) -> Table:
    """A grid for the terminal."""
    shown = Table(title=grid.title, caption=grid.note, box=None, pad_edge=False)
    shown.title_justify = shown.caption_justify = "left"
    for i, heading in enumerate(grid.headings):
        shown.add_column(heading, justify="right" if i else "left")
    for line in grid.lines:
        shown.add_row(*line, style="bold red" if {"WRONG", "FAILED"} & set(line) else None)
    return shown


def _refuse_without_a_gpu(settings: GpuSettings) -> None:
    """A ValueError with the reason and the remedy where nothing could run."""
    if reason := Gpu.obstacle():
        raise ValueError(f"--gpu cannot run here: {reason}")
    unable = obstacles(settings)
    if len(unable) == len(settings.backends):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unable.items())
        raise ValueError(f"--gpu cannot run here: {reasons}")
