"""The progress bar of every command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Step = Callable[[str, int, int], None]
"""Called with the part that runs or was finished, the number of finished parts, and the number of all parts."""


@contextmanager
def progress_bar(console: Console) -> Iterator[Step]:
    """A bar that the yielded Step moves while the block runs, and that is gone afterwards."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def step(name: str, finished: int, total: int) -> None:
            bar.update(task, completed=finished, total=total, description=name)

        yield step
