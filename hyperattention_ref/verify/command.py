"""`hyperattention verify`: its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer

import hyperattention_ref as hr
from hyperattention_ref.pages.command import BAD_INPUT, command_line, console, interruptible, refuse

FULL, QUICK = (1024, 20), (256, 5)
"""Default n and trials, without and with --quick."""


def _known(families: list[str] | None) -> list[str] | None:
    unknown = sorted(set(families or ()) - set(hr.synthetic.FAMILIES))
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(hr.synthetic.FAMILIES)}")
    return families


def _at_least(low: int) -> Callable:
    def check(x: int | None) -> int | None:
        if x is not None and x < low:
            raise typer.BadParameter(f"{x} is too small; it must be at least {low}")
        return x

    return check


def _in_range(epsilon: float) -> float:
    if not 0 < epsilon <= 1:
        raise typer.BadParameter(f"{epsilon:g} is out of range; it must be 0 < epsilon <= 1")
    return epsilon


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot hold the report ({error.strerror}); name another folder") from None
    return out


_QUICK = typer.Option("--quick", help="n = 256 and 5 trials, where these are not given: seconds, not minutes.")
_N = typer.Option(callback=_at_least(64), help="Tokens of the larger problems, from 64; default 1024.")
_FAMILY = typer.Option(callback=_known, help="Family of inputs; may be repeated. Default: each statement's own.")
_EPSILON = typer.Option(callback=_in_range, help="The error aimed at, 0 < epsilon <= 1; time grows as 1/epsilon^2.")
_TRIALS = typer.Option(callback=_at_least(1), help="Trials of the larger problems; default 20.")
_SEED = typer.Option(callback=_at_least(0), help="Seed of everything random, from 0.")
_POWER = typer.Option(help="Choose the trials so that they detect this failure probability, from 0.0001 and below 1.")
_ONLY = typer.Option(metavar="STATEMENT", help="Check this statement only, such as lemma_2; may be repeated.")
_MATRIX = typer.Option(
    help="Check a matrix of your own instead of synthetic ones: a .npz file with query, key and value of one head, and "
    "perhaps mask, scale and is_causal."
)
_OUT = typer.Option(callback=_folder, help="Folder of the report, its data and its plots.")


def verify(
    context: typer.Context,
    quick: Annotated[bool, _QUICK] = False,
    n: Annotated[int | None, _N] = None,
    family: Annotated[list[str] | None, _FAMILY] = None,
    epsilon: Annotated[float, _EPSILON] = 0.5,
    trials: Annotated[int | None, _TRIALS] = None,
    seed: Annotated[int, _SEED] = 0,
    power: Annotated[float | None, _POWER] = None,
    only: Annotated[list[str] | None, _ONLY] = None,
    matrix: Annotated[Path | None, _MATRIX] = None,
    out: Annotated[Path, _OUT] = Path("report"),
) -> None:
    """Check the paper, statement by statement, and write a report.

    Exit code 1 when something that should hold fails, or a counterexample does not.
    """
    from hyperattention_ref.proofs_checks import Settings, chosen_statements
    from hyperattention_ref.verify.console import Job, run
    from hyperattention_ref.verify.matrix_file import read_matrix

    default_n, default_trials = QUICK if quick else FULL
    families = tuple(family) if family else None
    if matrix and (n or families):
        refuse("--matrix brings its own n and is the only input; leave out --n and --family")
    try:
        settings = Settings(n or default_n, families, epsilon, trials or default_trials, seed, power)
        dense = read_matrix(matrix) if matrix else None
        if dense:
            settings = replace(settings, n=dense.n)
        job = Job(settings, chosen_statements(tuple(only) if only else None, dense), dense, command_line(context))
        with interruptible("nothing is saved before the end; --quick takes seconds"):
            as_expected = run(job, out, console(160))
    except BAD_INPUT as error:
        refuse(error)
    if not as_expected:
        raise typer.Exit(1)


def add_to(cli: typer.Typer) -> None:
    """Add the command."""
    cli.command()(verify)
