"""`hyperattention bench`: its options, of which `bench-gpu` has some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hyperattention_ref.bench.cases import BenchSettings, available_cores
from hyperattention_ref.pages.command import BAD_INPUT, console, refuse

Lengths = Annotated[list[int], Option("--n", help="Tokens; may be repeated.")]
HeadCount = Annotated[int, Option(help="Heads, one as large as the other.")]
BlockSize = Annotated[int, Option(help="Keys in a block.")]
SampleSize = Annotated[int, Option(help="Sampled keys.")]
MinSeqLen = Annotated[int, Option(help="Causal ranges up to this length are exact.")]
Repeats = Annotated[int, Option(help="Timed runs of each call.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Out = Annotated[Path, Option(help="Folder of the results; a benchmark that was interrupted resumes there.")]

LENGTHS, BACKENDS, FAMILIES = list(BenchSettings.n), list(BenchSettings.backends), list(BenchSettings.families)
AGAINST = ",".join(BenchSettings.against)
PATIENCE = "A call that has taken so many seconds in all stops at three runs, or where it is."


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command()(bench)


def bench(
    n: Lengths = LENGTHS,
    heads: HeadCount = BenchSettings.heads,
    dim: Annotated[int, Option(help="Coordinates of a query.")] = BenchSettings.dim,
    value_dim: Annotated[int | None, Option(help="Coordinates of a value; default as of a query.")] = None,
    causal: Annotated[bool, Option("--causal", help="Causal attention.")] = False,
    backend: Annotated[list[str], Option(help="Backend; may be repeated. All is compared with the first.")] = BACKENDS,
    against: Annotated[str, Option(help="Other packages, separated by commas, or none; extra “bench”.")] = AGAINST,
    family: Annotated[list[str], Option(help="Inputs for error against time; may be repeated.")] = FAMILIES,
    block_size: BlockSize = BenchSettings.block_size,
    sample_size: SampleSize = BenchSettings.sample_size,
    min_seq_len: MinSeqLen = BenchSettings.min_seq_len,
    dtype: Annotated[str, Option(help="Type of the inputs: float32 or float64.")] = BenchSettings.dtype,
    repeats: Repeats = BenchSettings.repeats,
    seconds: Annotated[float, Option(help=PATIENCE)] = BenchSettings.seconds,
    measure: Annotated[bool, Option("--measure", help="Also time exact measures: α, κ, a step towards ‖P‖.")] = False,
    threads: Annotated[int | None, Option(help="Threads of every library; default: all usable cores.")] = None,
    seed: Seed = BenchSettings.seed,
    out: Out = Path("bench"),
    gpu: Annotated[bool, Option("--gpu", hidden=True)] = False,
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
