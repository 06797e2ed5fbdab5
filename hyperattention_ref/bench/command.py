"""`hyperattention bench`: its options, of which `bench-gpu` has some, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer import Option

from hyperattention_ref.bench.cases import BenchSettings
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.command import BAD_INPUT, console, interruptible, refuse
from hyperattention_ref.pages.threads import available_cores

Lengths = Annotated[list[int], Option("--n", help="Tokens; may be repeated.")]
HeadCount = Annotated[int, Option(help="Heads, one as large as the other.")]
BlockSize = Annotated[int, Option(help="Keys in a block.")]
SampleSize = Annotated[int, Option(help="Sampled keys.")]
MinSeqLen = Annotated[int, Option(help="Causal ranges up to this length are exact.")]
Repeats = Annotated[int, Option(help="Timed runs of each call.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Out = Annotated[Path, Option(help="Folder of the results; a benchmark that was interrupted resumes there.")]

SomeSettings = TypeVar("SomeSettings", bound=Result)
LENGTHS, BACKENDS, FAMILIES = list(BenchSettings.n), list(BenchSettings.backends), list(BenchSettings.families)
AGAINST = ",".join(BenchSettings.against)
BACKEND = "Backend; may be repeated. All is compared with the first."
FAMILY = "Inputs for error against time; may be repeated."
PATIENCE = "A call that has taken so many seconds in all stops at three runs, or where it is."


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command()(bench)


def bench(
    context: typer.Context,
    n: Lengths = LENGTHS,
    heads: HeadCount = BenchSettings.heads,
    dim: Annotated[int, Option(help="Coordinates of a query.")] = BenchSettings.dim,
    value_dim: Annotated[int | None, Option(help="Coordinates of a value; default as of a query.")] = None,
    is_causal: Annotated[bool, Option("--causal", help="Causal attention.")] = False,
    backends: Annotated[list[str], Option("--backend", help=BACKEND)] = BACKENDS,
    against: Annotated[str, Option(help="Other packages, separated by commas, or none; extra “bench”.")] = AGAINST,
    families: Annotated[list[str], Option("--family", help=FAMILY)] = FAMILIES,
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
    rivals = () if against == "none" else tuple(name.strip() for name in against.split(","))
    cores = available_cores() if threads is None else threads
    finish(lambda: run(out, settings_of(BenchSettings, context, against=rivals, threads=cores)), out)


def settings_of(kind: type[SomeSettings], context: typer.Context, **others: Any) -> SomeSettings:
    """The settings from the options that are called as their fields, and from others."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: x for name, x in context.params.items() if name in names} | others)


def finish(run: Callable[[], bool], out: Path) -> None:
    """Run a benchmark; exit code 2 where it refuses its input, 1 where it says that something was wrong."""
    try:
        with interruptible(f"finished cases are in {out}; the same command goes on there"):
            is_right = run()
    except BAD_INPUT as error:
        refuse(error)
    if not is_right:
        raise typer.Exit(1)


def run(out: Path, settings: BenchSettings) -> bool:
    """Benchmark, write the report, show; return whether every answer was right."""
    from hyperattention_ref.bench.report import wording
    from hyperattention_ref.bench.run import benchmark
    from hyperattention_ref.bench.tables import grids, write_report
    from hyperattention_ref.pages.progress import progress_bar

    terminal = console(150)
    with progress_bar() as step:
        report = benchmark(settings, out, lambda name, *counts: step(wording(name), *counts))
        step("drawing", 1, 1)
        write_report(report, out)
    show(terminal, grids(report), report, [f"{reason}." for reason in report.left_out])
    terminal.print("The report is", out / "report.html", soft_wrap=True)
    return report.is_right


def show(terminal, grids, report, left_out: list[str]) -> None:
    """Show tables, findings, what was left out, and the summary."""
    for grid in grids:
        terminal.print(grid.table(), "")
    terminal.print(*report.findings, *(f"Left out: {reason}" for reason in left_out), sep="\n")
    terminal.print("", report.summary, style="bold" if report.is_right else "bold red")
