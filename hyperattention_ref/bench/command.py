"""`hyperattention bench`: its options, of which `bench-gpu` has some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperattention_ref.bench.cases import BenchSettings, available_cores
from hyperattention_ref.pages.command import BAD_INPUT, console, refuse

Lengths = Annotated[list[int], typer.Option("--n", help="Tokens; may be repeated.")]
HeadCount = Annotated[int, typer.Option(help="Heads, one as large as the other.")]
BlockSize = Annotated[int, typer.Option(help="Keys in a block.")]
SampleSize = Annotated[int, typer.Option(help="Sampled keys.")]
MinSeqLen = Annotated[int, typer.Option(help="Causal ranges up to this length are exact.")]
Repeats = Annotated[int, typer.Option(help="Timed runs of each call.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Out = Annotated[Path, typer.Option(help="Folder of the results; a benchmark that was interrupted resumes there.")]

LENGTHS, BACKENDS, FAMILIES = list(BenchSettings.n), list(BenchSettings.backends), list(BenchSettings.families)
AGAINST = ",".join(BenchSettings.against)
PATIENCE = "A call that has taken so many seconds in all stops at three runs, or where it is."


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command()(bench)


def bench(
    n: Lengths = LENGTHS,
    heads: HeadCount = BenchSettings.heads,
    dim: Annotated[int, typer.Option(help="Coordinates of a query.")] = BenchSettings.dim,
    value_dim: Annotated[int | None, typer.Option(help="Coordinates of a value; default as of a query.")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Causal attention.")] = False,
    backend: Annotated[
        list[str], typer.Option(help="Backend; may be repeated. All is compared with the first.")
    ] = BACKENDS,
    against: Annotated[
        str, typer.Option(help="Attention of other packages, separated by commas, or none; extra “bench”.")
    ] = AGAINST,
    family: Annotated[list[str], typer.Option(help="Inputs for error against time; may be repeated.")] = FAMILIES,
    block_size: BlockSize = BenchSettings.block_size,
    sample_size: SampleSize = BenchSettings.sample_size,
    min_seq_len: MinSeqLen = BenchSettings.min_seq_len,
    dtype: Annotated[str, typer.Option(help="Type of the inputs: float32 or float64.")] = BenchSettings.dtype,
    repeats: Repeats = BenchSettings.repeats,
    seconds: Annotated[float, typer.Option(help=PATIENCE)] = BenchSettings.seconds,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time the exact measures: α, κ and a step towards ‖P‖.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads of every library alike; default: all cores that may be used.")
    ] = None,
    seed: Seed = BenchSettings.seed,
    out: Out = Path("bench"),
    gpu: Annotated[bool, typer.Option("--gpu", hidden=True)] = False,
) -> None:
    """Time HyperAttention on this machine beside exact attention and other packages, every answer checked first.

    Exit code 1 when an answer is wrong; it is not timed.
    """
    if gpu:
        refuse("the benchmark on a GPU is a command of its own: hyperattention bench-gpu")
    from hyperattention_ref.bench.console import run

    try:
        settings = BenchSettings(
            n=tuple(n),
            heads=heads,
            dim=dim,
            value_dim=value_dim,
            is_causal=causal,
            backends=tuple(backend),
            against=() if against == "none" else tuple(name.strip() for name in against.split(",")),
            families=tuple(family),
            block_size=block_size,
            sample_size=sample_size,
            min_seq_len=min_seq_len,
            dtype=dtype,
            repeats=repeats,
            seconds=seconds,
            measure=measure,
            threads=available_cores() if threads is None else threads,
            seed=seed,
        )
        is_right = run(out, settings, console(150))
    except BAD_INPUT as error:
        refuse(error)
    if not is_right:
        raise typer.Exit(1)
