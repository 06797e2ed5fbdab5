"""The command line: `hyperattention`, or `python -m hyperattention_ref`.

The console script exists in every installation; its libraries come with the extra `report`, and nothing of them is
imported before it is known that all are there.
"""

# No `from __future__ import annotations`: Typer reads the annotations of functions that are defined inside `app`.

import io
import os
import sys
from importlib.util import find_spec
from typing import Annotated

from hyperattention_ref.foundation.extras import install

NEEDED = ("typer", "rich", "matplotlib", "jinja2", "joblib", "threadpoolctl", "pydantic")
USAGE = """\
usage: hyperattention [-h] [--version] COMMAND [OPTIONS]

  verify         check the paper, statement by statement, and write a report
  measure        measure real attention maps, of a file or of a model
  capture        keep the queries, keys and values of a model
  perplexity     replace a model's attention: its loss and its time
  bench          time HyperAttention on this machine
  bench-heads    time each recipe to an error on real heads
  bench-gpu      time the GPU backends on this machine's GPU
  backends       list the known backends and say of each whether it can run here
  warmup         compile the kernels of the numba backend, so that no call has to
  check-backend  check a backend with the conformance suite

hyperattention COMMAND -h shows the options of a command.
"""
"""What -h prints where the extra `report` is missing."""


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal or the file cannot show must not end a run: a ? stands for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SystemExit(without_extra(sys.argv[1:], missing))
    # The matrices are small: more BLAS threads gain little, cost much on a busy machine, and change the last bits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, inherited, may not be installed here
    try:
        app()(prog_name="hyperattention")
    except KeyboardInterrupt:  # before a command has begun
        raise SystemExit(130) from None


def without_extra(arguments: list[str], missing: list[str]) -> int:
    """What little the console script can do without the extra `report`; the exit code."""
    if "--version" in arguments:
        print_version()
    elif {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
    else:
        lacks = f"the command line needs {', '.join(missing)}, which this installation lacks"
        print(f"hyperattention: {lacks}; install it with: {install('report')}", file=sys.stderr)
        return 2
    return 0


def print_version() -> None:
    """Print name and version."""
    from importlib.metadata import version

    print(f"hyperattention-ref {version('hyperattention-ref')}")


def app():
    """The Typer application."""
    import typer

    from hyperattention_ref.backend_tools import command as backend_tools
    from hyperattention_ref.bench import command as bench
    from hyperattention_ref.bench.gpu import command as bench_gpu
    from hyperattention_ref.bench.heads import command as bench_heads
    from hyperattention_ref.perplexity import command as perplexity
    from hyperattention_ref.surveys import command as measure
    from hyperattention_ref.verify import command as verify

    about = "The numerical reference for HyperAttention."
    both = {"help_option_names": ["-h", "--help"]}  # of every command
    cli = typer.Typer(
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=about, context_settings=both
    )

    def show(wanted: bool) -> None:
        if wanted:
            print_version()
            raise typer.Exit

    show_version = typer.Option("--version", callback=show, is_eager=True, help="Print the version.")

    @cli.callback()
    def options(version: Annotated[bool, show_version] = False) -> None:
        pass

    verify.add_to(cli)
    measure.add_to(cli)
    perplexity.add_to(cli)
    bench.add_to(cli)
    bench_heads.add_to(cli)
    bench_gpu.add_to(cli)
    backend_tools.add_to(cli)
    return cli
