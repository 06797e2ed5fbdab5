"""A table in words, for the terminal and for a page in Markdown."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table


class Grid(NamedTuple):
    """A table: the first column is left-aligned, the others right."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown, under its title."""
        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [" | ".join(cells) for cells in (self.headings, rule, *self.lines)]
        return "\n".join([f"**{self.title}**", "", *(f"| {line} |" for line in lines), "", self.note]).strip()

    def table(self) -> Table:
        """The table for the terminal, red where an answer was wrong or a call failed."""
        table = Table(title=self.title, caption=self.note, box=None, pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        for i, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if i else "left")
        for line in self.lines:
            is_bad = any(cell.startswith(("WRONG", "FAILED")) for cell in line)
            table.add_row(*line, style="bold red" if is_bad else None)
        return table
