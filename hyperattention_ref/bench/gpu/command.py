"""`hyperattention bench-gpu`: its options, and what the terminal shows."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hyperattention_ref.bench.command import BlockSize, HeadCount, Lengths, MinSeqLen, Out, Repeats, SampleSize, Seed
from hyperattention_ref.bench.gpu.cases import GpuSettings, obstacles
from hyperattention_ref.foundation.inputs import positive
from hyperattention_ref.pages.command import BAD_INPUT, console, refuse

LENGTHS, DIMS, BACKENDS = list(GpuSettings.n), list(GpuSettings.dims), list(GpuSettings.backends)


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("bench-gpu")(bench_gpu)


def bench_gpu(
    n: Lengths = LENGTHS,
    heads: HeadCount = GpuSettings.heads,
    dim: Annotated[list[int], Option(help="Head dimension; may be repeated, the most important first.")] = DIMS,
    causal: Annotated[bool, Option("--causal", help="Causal attention only; by default both kinds.")] = False,
    backend: Annotated[list[str], Option(help="Backend: cupy or numba-cuda.")] = BACKENDS,
    block_size: BlockSize = GpuSettings.block_size,
    sample_size: SampleSize = GpuSettings.sample_size,
    min_seq_len: MinSeqLen = GpuSettings.min_seq_len,
    repeats: Repeats = GpuSettings.repeats,
    seed: Seed = GpuSettings.seed,
    minutes: Annotated[float, Option(help="What would end later is left out, and named.")] = 8.0,
    out: Out = Path("bench-gpu"),
) -> None:
    """Time the GPU backends on this machine's GPU beside PyTorch's SDPA, every answer checked first.

    Exit code 1 when an answer is wrong, the conformance suite finds a violation, or a call of this library breaks.
    """
    try:
        settings = GpuSettings(
            n=tuple(n),
            heads=heads,
            dims=tuple(dim),
            causal=(True,) if causal else GpuSettings.causal,
            backends=tuple(backend),
            block_size=block_size,
            sample_size=sample_size,
            min_seq_len=min_seq_len,
            repeats=repeats,
            seed=seed,
        )
        is_right = run(out, settings, positive("minutes", minutes), shlex.join(["hyperattention", *sys.argv[1:]]))
    except BAD_INPUT as error:
        refuse(error)
    if not is_right:
        raise typer.Exit(1)


def run(out: Path, settings: GpuSettings, minutes: float, command: str) -> bool:
    """Benchmark, show, write gpu.json and results.md; return whether every answer was right and nothing broke.

    Raises
    ------
    ValueError : there is no GPU, or none of the backends can use it; nothing is written.
    """
    from hyperattention_ref.bench.console import print_report
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
    with progress_bar(terminal) as step:
        report = benchmark_gpu(Gpu(), settings, out, step, minutes=minutes, command=command)
    write_report(report, out)
    print_report(terminal, overviews(report), report, report.absent)
    terminal.print("Every number is in", out / "results.md", "and", out / "gpu.json", highlight=False, soft_wrap=True)
    return report.is_right
