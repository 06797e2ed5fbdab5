"""The command line: `hyperattention verify`, `measure`, `capture`, `bench`, `bench-gpu`, `backends`, `--version`.

The console script exists in every installation; its libraries come with the extra `report`, and nothing of them is
imported before it is known that all are there.
"""

# No `from __future__ import annotations`: Typer reads the annotations of functions that are defined inside `app`.

import io
import os
import sys
from importlib.util import find_spec
from typing import Annotated

NEEDED = ("typer", "rich", "matplotlib", "jinja2", "joblib", "threadpoolctl", "pydantic")


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal or the file cannot show must not end a run: a ? stands for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"hyperattention: the command line needs {', '.join(missing)}, which this installation lacks; "
            'install the extra "report": pip install "hyperattention-ref[report]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    # The matrices are small: more BLAS threads gain little, cost much on a busy machine, and change the last bits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, inherited, may not be installed here
    app()(prog_name="hyperattention")


def app():
    """The Typer application."""
    import typer
    from rich.console import Console
    from rich.markup import escape

    import hyperattention_ref as hr
    from hyperattention_ref.bench import command as bench
    from hyperattention_ref.bench.gpu import command as bench_gpu
    from hyperattention_ref.surveys import command as measure
    from hyperattention_ref.verify import command as verify

    about = "The numerical reference for HyperAttention."
    cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=about)

    def print_version(wanted: bool) -> None:
        if wanted:
            print(f"hyperattention-ref {hr.__version__}")
            raise typer.Exit

    show_version = typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")

    @cli.callback()
    def options(version: Annotated[bool, show_version] = False) -> None:
        pass

    @cli.command()
    def backends() -> None:
        """List the known backends and say of each whether it can run here."""
        console = Console(highlight=False, soft_wrap=True)
        for name, reason in hr.backend_status().items():
            status = "[green]can run here[/]" if reason is None else f"[yellow]cannot run here[/]: {escape(reason)}"
            console.print(f"[bold]{escape(name)}[/]  {status}")

    verify.add_to(cli)
    measure.add_to(cli)
    bench.add_to(cli)
    bench_gpu.add_to(cli)
    return cli
