"""A benchmark on a GPU in the terminal: refused where it cannot run, a progress bar, tables and files at its end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hyperattention_ref.bench.console import print_report
from hyperattention_ref.bench.gpu.cases import GpuSettings, obstacles
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.gpu.report import GpuReport
from hyperattention_ref.bench.gpu.run import benchmark_gpu
from hyperattention_ref.bench.gpu.tables import markdown, overviews
from hyperattention_ref.bench.page import write_json
from hyperattention_ref.foundation.inputs import positive
from hyperattention_ref.pages.files import write_whole
from hyperattention_ref.pages.progress import progress_bar


def run(out: Path, settings: GpuSettings, minutes: float, command: str, console: Console) -> bool:
    """Benchmark, show, write gpu.json and results.md; return whether every answer was right and nothing broke.

    Raises
    ------
    ValueError : there is no GPU, or none of the backends can use it; nothing is written.
    """
    minutes = positive("minutes", minutes)
    _refuse_without_a_gpu(settings)
    with progress_bar(console) as step:
        report = benchmark_gpu(Gpu(), settings, out, minutes=minutes, command=command, progress=step)
    write_report(report, out)
    print_report(console, overviews(report), report, report.absent)
    console.print("Every number is in", out / "results.md", "and", out / "gpu.json", highlight=False, soft_wrap=True)
    return report.is_right


def write_report(report: GpuReport, folder: Path) -> None:
    """Write gpu.json and results.md; each appears whole or not at all."""
    write_json(folder / "gpu.json", report)
    write_whole(folder / "results.md", markdown(report).encode())


def _refuse_without_a_gpu(settings: GpuSettings) -> None:
    """A ValueError with the reason and the remedy where nothing could run."""
    unusable = obstacles(settings)
    reason = Gpu.obstacle()
    if reason is None and len(unusable) == len(settings.backends):
        reason = "; ".join(f"{name}: {words}" for name, words in unusable.items())
    if reason:
        raise ValueError(f"bench-gpu cannot run here: {reason}")
