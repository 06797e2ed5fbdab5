"""`hyperattention bench-gpu`: its options, and what the terminal shows."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hyperattention_ref.bench import command as host
from hyperattention_ref.bench.gpu.cases import GpuSettings, obstacles
from hyperattention_ref.foundation.inputs import positive
from hyperattention_ref.pages.command import console

DIMENSION = "Head dimension; may be repeated, the most important first."
LENGTHS, DIMS, BACKENDS = list(GpuSettings.n), list(GpuSettings.dims), list(GpuSettings.backends)


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("bench-gpu")(bench_gpu)


def bench_gpu(
    context: typer.Context,
    n: host.Lengths = LENGTHS,
    heads: host.HeadCount = GpuSettings.heads,
    dims: Annotated[list[int], Option("--dim", help=DIMENSION)] = DIMS,
    causal: Annotated[bool, Option("--causal", help="Causal attention only; by default both kinds.")] = False,
    backends: Annotated[list[str], Option("--backend", help="Backend: cupy or numba-cuda.")] = BACKENDS,
    block_size: host.BlockSize = GpuSettings.block_size,
    sample_size: host.SampleSize = GpuSettings.sample_size,
    min_seq_len: host.MinSeqLen = GpuSettings.min_seq_len,
    repeats: host.Repeats = GpuSettings.repeats,
    seed: host.Seed = GpuSettings.seed,
    minutes: Annotated[float, Option(help="What would end later is left out, and named.")] = 8.0,
    out: host.Out = Path("bench-gpu"),
) -> None:
    """Time the GPU backends on this machine's GPU beside PyTorch's SDPA, every answer checked first.

    Exit code 1 when an answer is wrong, the conformance suite finds a violation, or a call of this library breaks.
    """
    kinds = (True,) if causal else GpuSettings.causal
    host.finish(
        lambda: run(out, host.settings_of(GpuSettings, context, causal=kinds), positive("minutes", minutes)), out
    )


def run(out: Path, settings: GpuSettings, minutes: float) -> bool:
    """Benchmark, write gpu.json and results.md, show; return whether every answer was right and nothing broke.

    Raises
    ------
    ValueError : there is no GPU, or none of the backends can use it; nothing is written.
    """
    from hyperattention_ref.bench.gpu.device import Gpu
    from hyperattention_ref.bench.gpu.run import benchmark_gpu
    from hyperattention_ref.bench.gpu.tables import overviews, write_report
    from hyperattention_ref.pages.progress import progress_bar

    unusable, obstacle = obstacles(settings), Gpu.obstacle()
    if obstacle is None and len(unusable) == len(settings.backends):
        obstacle = "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
    if obstacle:
        raise ValueError(f"bench-gpu cannot run here: {obstacle}")
    terminal = console(150)
    command = shlex.join(["hyperattention", *sys.argv[1:]])
    with progress_bar() as step:
        report = benchmark_gpu(Gpu(), settings, out, step, minutes=minutes, command=command)
    write_report(report, out)
    host.show(terminal, overviews(report), report, report.absent)
    terminal.print("Every number is in", out / "results.md", "and", out / "gpu.json", soft_wrap=True)
    return report.is_right
