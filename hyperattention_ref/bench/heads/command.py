"""`hyperattention bench-heads`: its options, and what the terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hyperattention_ref.bench import command as host
from hyperattention_ref.bench.heads.settings import HeadsSettings
from hyperattention_ref.pages.command import command_line, console, numbers, refuse
from hyperattention_ref.pages.threads import available_cores

_MAPS = typer.Argument(metavar="FILE", help="A .npz or .safetensors file of maps, such as `capture` writes.")
_DEMO = Option("--demo", help="The six heads that ship with the package, instead of a file.")
_N = Option(min=1, help="Tokens from the start of every head; default all.")
_LAYERS = Option(help="Layers, as in 0,1; default all.")
_HEADS = Option(help="Heads of every layer, as in 0,3; default all.")
_RECIPES = Option(show_default="all", help="Recipes to compare, separated by commas.")
_BUDGETS = Option(help="Keys for each query, each recipe at each, as in 64,256.")
_AGAINST = Option(help="PyTorch’s sdpa and flex, separated by commas, or none; extra “bench”.")
_THREADS = Option(help="Threads of every library; default: all usable cores.")


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command("bench-heads")(bench_heads)


def bench_heads(
    context: typer.Context,
    maps: Annotated[Path | None, _MAPS] = None,
    demo: Annotated[bool, _DEMO] = False,
    n: Annotated[int | None, _N] = None,
    layers: Annotated[str | None, _LAYERS] = None,
    heads: Annotated[str | None, _HEADS] = None,
    recipes: Annotated[str, _RECIPES] = ",".join(HeadsSettings.recipes),
    budgets: Annotated[str, _BUDGETS] = ",".join(map(str, HeadsSettings.budgets)),
    against: Annotated[str, _AGAINST] = ",".join(HeadsSettings.against),
    min_seq_len: host.MinSeqLen = HeadsSettings.min_seq_len,
    backend: Annotated[str, Option(help="Backend of recipes and of exact attention.")] = HeadsSettings.backend,
    repeats: host.Repeats = HeadsSettings.repeats,
    seconds: Annotated[float, Option(help=host.PATIENCE)] = HeadsSettings.seconds,
    threads: Annotated[int | None, _THREADS] = None,
    seed: host.Seed = HeadsSettings.seed,
    out: Annotated[Path, Option(help="Folder of the results; a run that was interrupted resumes there.")] = Path(
        "bench-heads"
    ),
) -> None:
    """Time each recipe to an error on real heads, beside exact attention and PyTorch’s FlexAttention.

    Exit code 1 when an answer is wrong; it is not timed.
    """
    if demo == (maps is not None):
        refuse("give either a file of maps or --demo")

    def run_all() -> bool:
        chosen = {name: numbers(f"--{name}", x) for name, x in (("layers", layers), ("heads", heads))}
        settings = host.settings_of(
            HeadsSettings,
            context,
            **{name: None if x is None else tuple(x) for name, x in chosen.items()},
            recipes=_words(recipes),
            budgets=tuple(numbers("--budgets", budgets) or ()),
            against=() if against == "none" else _words(against),
            threads=available_cores() if threads is None else threads,
        )
        return run(maps, out, settings, command_line(context))

    host.finish(run_all, out)


def run(maps: Path | None, out: Path, settings: HeadsSettings, command: str) -> bool:
    """Compare, write the report, show; return whether every answer was right."""
    from hyperattention_ref.bench.heads.page import write_report
    from hyperattention_ref.bench.heads.report import grids
    from hyperattention_ref.bench.heads.run import compare
    from hyperattention_ref.pages.progress import progress_bar

    terminal = console(150)
    with progress_bar() as step:
        report = compare(maps, out, settings, command, step)
        step("drawing", len(report.heads), len(report.heads))
        write_report(report, out)
    for grid in grids(report):
        terminal.print(grid.table(), "")
    terminal.print(*(f"Left out: {reason}." for reason in report.left_out), sep="\n")
    terminal.print(report.summary, style="bold" if report.is_right else "bold red")
    terminal.print("The report is", out / "report.html", soft_wrap=True)
    return report.is_right


def _words(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
