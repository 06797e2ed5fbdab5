"""What the commands share: how they refuse bad input, lists of numbers, and the console."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hyperattention_ref.pages.wording import printable

if TYPE_CHECKING:
    import typer
    from rich.console import Console

BAD_INPUT = (ValueError, TypeError, OSError, ImportError, MemoryError)
"""What the library raises for input that it refuses, or that does not fit."""


def refuse(reason) -> NoReturn:
    """End with exit code 2 and one line that says why."""
    if isinstance(reason, BrokenPipeError):  # who reads the output, such as head, has enough: no fault, and Typer ends
        raise reason
    if isinstance(reason, OSError) and reason.strerror:  # writing to a full disk does not name the file
        reason = f"{reason.filename}: {reason.strerror}" if reason.filename else reason.strerror
    if isinstance(reason, MemoryError):
        reason = f"not enough memory {reason}; take fewer tokens or heads, or fewer --jobs"
    print("hyperattention:", printable(" ".join(str(reason).splitlines())), file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """End with exit code 130 and one line on Ctrl-C; `kept` says what is saved and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"hyperattention: interrupted; {kept}", file=sys.stderr)
        raise SystemExit(130) from None


def numbers(option: str, text: str | None) -> list[int] | None:
    """The numbers from zero of an option, as in 0,1,5; None for None."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} is {text!r}; it must be numbers from zero with commas between them, such as 0,1,5")
    return [int(part) for part in parts]


def command_line(context: typer.Context) -> str:
    """The command as it was given, to repeat it elsewhere: of paths, and of names of what is there, the last part."""
    words = ["hyperattention", *context.command_path.split()[1:]]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        for item in value if isinstance(value, list | tuple) else [value]:
            if parameter.param_type_name == "option":
                words.append(parameter.opts[0])
            if item is not True:
                is_path = isinstance(item, Path) or Path(str(item)).exists()
                words.append(Path(item).name or "." if is_path else str(item))
    return printable(shlex.join(words))


def console(width: int) -> Console:
    """A console as wide as the terminal, or of this width in a pipe or a file, where wide tables need one.

    It prints strings as they are: a name may hold what rich takes for a style or a link. Use `Text` for styles.
    """
    from rich.console import Console

    width_of_terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if width_of_terminal else width, markup=False, emoji=False, highlight=False)
