"""The progress of every command, on standard error: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Step = Callable[[str, int, int], None]
"""Called with the part that runs or was finished, the number of finished parts, and the number of all parts."""
PAUSE = 5.0
"""Seconds between two lines about the same part."""


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Step]:
    """Show every call of the yielded Step: by a bar that is gone afterwards, or by lines where there is no terminal."""
    console = console or Console(file=sys.stderr)
    if not console.is_interactive:
        yield _lines(console.file)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def step(name: str, finished: int, total: int) -> None:
            bar.update(task, completed=finished, total=total, description=name)

        yield step


def _lines(file: IO[str]) -> Step:
    """A Step that writes a line for each new part, and now and then one for a part that goes on."""
    last_name, last_time = "", -math.inf

    def step(name: str, finished: int, total: int) -> None:
        nonlocal last_name, last_time
        if name != last_name or time.monotonic() - last_time >= PAUSE:
            print(f"{finished}/{total}  {name}", file=file, flush=True)
            last_name, last_time = name, time.monotonic()

    return step
