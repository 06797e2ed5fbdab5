"""`hyperattention backends`: which there are, and which can run."""

from __future__ import annotations

import typer
from rich.text import Text

import hyperattention_ref as hr
from hyperattention_ref.pages.command import console


def backends() -> None:
    """List the known backends and say of each whether it can run here."""
    for name, reason in hr.backend_status().items():
        status = ("can run here", "green") if reason is None else ("cannot run here", "yellow")
        line = Text.assemble((name, "bold"), "  ", status, f": {reason}" if reason else "")
        console(80).print(line, soft_wrap=True)


def add_to(cli: typer.Typer) -> None:
    """Add the commands."""
    cli.command()(backends)
