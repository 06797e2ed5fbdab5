"""`hyperattention backends`, `warmup` and `check-backend`: which backends there are, ready and right."""

from __future__ import annotations

import sys
import time
from importlib.metadata import EntryPoint
from typing import Annotated

import typer
from rich.text import Text

import hyperattention_ref as hr
from hyperattention_ref.foundation.inputs import count
from hyperattention_ref.foundation.registry import ENTRY_POINT_GROUP, get_backend, select
from hyperattention_ref.pages.command import BAD_INPUT, console, interruptible, refuse
from hyperattention_ref.pages.progress import progress_bar
from hyperattention_ref.pages.wording import number

_NAME = typer.Argument(help="A known backend, see `hyperattention backends`, or a class of yours, as in module:Class.")
_EXAMPLES = typer.Option(help="Examples of each operation.")
_SEED = typer.Option(help="The same seed makes the same examples.")


def backends() -> None:
    """List the known backends and say of each whether it can run here."""
    for name, reason in hr.backend_status().items():
        status = ("can run here", "green") if reason is None else ("cannot run here", "yellow")
        line = Text.assemble((name, "bold"), "  ", status, f": {reason}" if reason else "")
        console(80).print(line, soft_wrap=True)


def warmup() -> None:
    """Compile the kernels of the numba backend for float32 and float64, so that no call has to."""
    try:
        get_backend("numba")
    except ValueError as error:
        refuse(error)
    from hyperattention_ref.backends.numba_cpu import kernels
    from hyperattention_ref.backends.numba_cpu.warmup import warm_up

    start = time.perf_counter()
    with interruptible("what was compiled is kept; the same command goes on there"):
        for step, seconds in warm_up():
            print(f"{step}: {seconds:.1f} s", flush=True)
    folder = kernels.exact_rows.stats.cache_path
    kept = f"kept in {folder}" if folder else "not kept: no folder can be written"
    print(f"ready after {time.perf_counter() - start:.0f} s; the compiled code is {kept}")


def check_backend(
    name: Annotated[str, _NAME],
    examples: Annotated[int, _EXAMPLES] = 100,
    seed: Annotated[int, _SEED] = 0,
) -> None:
    """Check a backend with the conformance suite: every operation, arrays and plans of every kind.

    Exit code 1 when the backend fails, with the smallest example that was found.
    """
    try:
        from hyperattention_ref.backends.conformance import check_backend as check

        backend = select(_own(name) if ":" in name else name, None)
        examples, seed = count("examples", examples), count("seed", seed, least=0)
    except BAD_INPUT as error:
        refuse(error)
    start = time.perf_counter()
    with interruptible("nothing is saved; fewer --examples take less time"), progress_bar() as step:
        try:
            result = check(backend, max_examples=examples, seed=seed, progress=step)
        except AssertionError as violation:
            print(f"hyperattention: {violation}", file=sys.stderr)
            raise typer.Exit(1) from None
    print(f"backend {result.backend!r} passed {result.examples} examples in {time.perf_counter() - start:.0f} s")
    print(f"operations: {', '.join(result.operations)}")
    print(f"largest error: {number(result.worst_ratio)} of what rounding allows")


def _own(name: str):
    """An instance of module:Class, which no entry point names yet."""
    try:
        return EntryPoint(name, name, ENTRY_POINT_GROUP).load()()
    except Exception as error:  # whatever the module or the class raises
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name} gives no backend ({reason}); it must be module:Class, a class without arguments"
        ) from None


def add_to(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command()(backends)
    cli.command()(warmup)
    cli.command()(check_backend)
