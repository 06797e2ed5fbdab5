"""The command `hyperattention bench-gpu`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hyperattention_ref.bench.command import (
    BlockSize,
    HeadCount,
    Lengths,
    MinSeqLen,
    Out,
    Repeats,
    SampleSize,
    Seed,
)
from hyperattention_ref.bench.gpu.cases import GpuSettings
from hyperattention_ref.pages.command import BAD_INPUT, console, refuse

Dims = Annotated[list[int], typer.Option("--dim", help="Head dimension; may be repeated, the most important first.")]
Causal = Annotated[bool, typer.Option("--causal", help="Causal attention only; by default both kinds.")]
Backends = Annotated[list[str], typer.Option("--backend", help="Backend: cupy or numba-cuda; may be repeated.")]
Minutes = Annotated[float, typer.Option(help="What would end later is left out, and named.")]

LENGTHS, DIMS, BACKENDS = list(GpuSettings.n), list(GpuSettings.dims), list(GpuSettings.backends)


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("bench-gpu")(bench_gpu)


def bench_gpu(
    n: Lengths = LENGTHS,
    heads: HeadCount = GpuSettings.heads,
    dim: Dims = DIMS,
    causal: Causal = False,
    backend: Backends = BACKENDS,
    block_size: BlockSize = GpuSettings.block_size,
    sample_size: SampleSize = GpuSettings.sample_size,
    min_seq_len: MinSeqLen = GpuSettings.min_seq_len,
    repeats: Repeats = GpuSettings.repeats,
    seed: Seed = GpuSettings.seed,
    minutes: Minutes = 8.0,
    out: Out = Path("bench-gpu"),
) -> None:
    """Time the GPU backends on this machine's GPU beside PyTorch's SDPA, every answer checked first.

    Exit code 1 when an answer is wrong, the conformance suite finds a violation, or a call of this library breaks.
    """
    from hyperattention_ref.bench.gpu.console import run

    try:
        settings = GpuSettings(
            n=tuple(n),
            dims=tuple(dim),
            causal=(True,) if causal else GpuSettings.causal,
            heads=heads,
            backends=tuple(backend),
            block_size=block_size,
            sample_size=sample_size,
            min_seq_len=min_seq_len,
            repeats=repeats,
            seed=seed,
        )
        is_right = run(out, settings, minutes, shlex.join(["hyperattention", *sys.argv[1:]]), console(150))
    except BAD_INPUT as error:
        refuse(error)
    if not is_right:
        raise typer.Exit(1)
