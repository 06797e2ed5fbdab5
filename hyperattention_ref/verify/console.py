"""A run of the checks in the terminal: a progress bar while it runs, tables at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from hyperattention_ref import proofs_checks
from hyperattention_ref.pages.environment import environment
from hyperattention_ref.pages.progress import Step, progress_bar
from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.proofs_checks import Settings, Verdict
from hyperattention_ref.proofs_checks.dense import Dense
from hyperattention_ref.proofs_checks.verdict import HOLDS, NOT_REFUTED
from hyperattention_ref.verify.page import write_report
from hyperattention_ref.verify.report import (
    FAILS_AS_IT_MUST,
    INFORMATION,
    UNEXPECTED,
    MatrixFacts,
    Report,
    limit,
    outcome,
    statements,
)
from hyperattention_ref.verify.sample_head_measures import METHODS, SampleHeadMeasures, measure_sample_heads

PACKAGES = ("hyperattention-ref", "numpy", "scipy")
COLOURS = {
    HOLDS: "green",
    NOT_REFUTED: "yellow",
    FAILS_AS_IT_MUST: "magenta",
    INFORMATION: "blue",
    UNEXPECTED: "bold red",
}

COLUMNS = {
    "m asked": 8,
    "m used": 7,
    "left": 9,
    "right": 9,
    "worst ratio": 11,
    "failures": 10,
    "detects": 8,
    "verdict": 17,
}
"""Columns of fixed width, so that the tables of all sections align."""
LEFT_OUT = ("m used", "left", "right", "detects")
WIDE = 130
"""A narrower terminal gets no columns `LEFT_OUT`."""


@dataclass(frozen=True)
class Job:
    """What is to be checked.

    Attributes
    ----------
    settings : of the run.
    only : the statements.
    matrix : the user's matrix; None for synthetic ones.
    command : the command to repeat it.
    """

    settings: Settings
    only: tuple[str, ...]
    matrix: Dense | None
    command: str

    @property
    def is_whole(self) -> bool:
        """Whether everything is checked, and the real heads measured."""
        return self.matrix is None and self.only == proofs_checks.STATEMENTS


def run(job: Job, out: Path, console: Console) -> bool:
    """Check, write the report, show; return whether every outcome is as expected."""
    start = time.perf_counter()
    with progress_bar() as step:
        verdicts, heads = measure(job, step)
    facts = environment(PACKAGES) | {"threads": os.environ.get("OMP_NUM_THREADS", "not limited")}
    matrix = MatrixFacts.of(job.matrix) if job.matrix else None
    seconds = time.perf_counter() - start
    report = Report(job.settings, verdicts, heads, seconds, facts, job.command, matrix)
    try:
        write_report(report, out)
    finally:  # where the disk is full, the results can be read here
        show(report, console)
    console.print(f"{report.seconds:.0f} s. The report is", out / "report.html", soft_wrap=True)
    return report.as_expected


def show(report: Report, console: Console) -> None:
    """Print the tables, the findings and the summary."""
    for table in (*verdict_tables(report, console.width), *(heads_tables(report) if report.heads else ())):
        console.print(table)
    console.print("", *report.findings, "", sep="\n")
    console.print(report.summary, style="bold" if report.as_expected else "bold red")


def measure(job: Job, step: Step) -> tuple[tuple[Verdict, ...], tuple[SampleHeadMeasures, ...]]:
    """All verdicts, and the real heads if the run is whole."""
    settings = job.settings
    parts = (*job.only, "real heads")
    verdicts: list[Verdict] = []

    def show(part: str) -> None:
        unexpected = sum(not verdict.as_expected for verdict in verdicts)
        step(f"{part}, {unexpected} unexpected so far", parts.index(part), len(parts))

    for verdict in proofs_checks.run_checks(settings, job.only, progress=show, matrix=job.matrix):
        verdicts.append(verdict)
    if not job.is_whole:
        return tuple(verdicts), ()
    show("real heads")
    return tuple(verdicts), measure_sample_heads(epsilon=settings.epsilon, seed=settings.seed)


def verdict_tables(report: Report, width: int) -> Iterator[Table]:
    """One table for each paper item; counterexamples and information at the end."""
    columns = {name: x for name, x in COLUMNS.items() if width >= WIDE or name not in LEFT_OUT}
    sections = report.sections()
    for place, (title, verdicts) in enumerate(sections.items()):
        table = _table(title, Column("statement", ratio=3), Column("inputs", ratio=2))
        table.show_header, table.expand = place == 0, True
        for name, size in columns.items():
            table.add_column(name, justify="left" if name == "verdict" else "right", width=size)
        for group in statements(verdicts):
            for verdict in group:
                cells = _cells(verdict)
                name = verdict.name if verdict is group[0] else ""
                table.add_row(name, verdict.family, *(cells[column] for column in columns))
        if len(columns) < len(COLUMNS) and place == len(sections) - 1:
            table.caption = f"{', '.join(LEFT_OUT)}: in the report, and here in a terminal of {WIDE} columns"
        yield table


def _cells(verdict: Verdict) -> dict[str, str | Text]:
    kind = outcome(verdict)
    detail = {INFORMATION: verdict.verdict, UNEXPECTED: f"{verdict.verdict}: unexpected"}
    return {
        "m asked": _asked(verdict, "\n"),
        "m used": number(verdict.m_used),
        "left": number(float(np.median(verdict.left))),
        "right": number(float(np.median(verdict.right))),
        "worst ratio": number(float(verdict.ratios.max())),
        "failures": f"{verdict.failures}/{verdict.trials}" + (f"\n{limit(verdict)}" if limit(verdict) else ""),
        "detects": number(verdict.detectable),
        "verdict": Text(detail.get(kind, kind), COLOURS[kind]),
    }


def _asked(x: Verdict | SampleHeadMeasures, space: str) -> Text:
    """The samples asked for, and whether that is vacuous."""
    return Text.assemble(number(x.m_asked), (f"{space}vacuous" if x.vacuous else "", "red"))


def heads_tables(report: Report) -> Iterator[Table]:
    """What the theorem asks of the real heads, and what the algorithms achieve there."""
    titles = ("α", "α without 1, 4, 32 columns", "κ", "rows rescaled", "stable rank", "‖P‖_op", "m asked", "usable m")
    asked = _table("Six real heads: what the theorem asks", "head", *(Column(x, justify="right") for x in titles))
    for head in report.heads:
        asked.add_row(
            head.name,
            number(head.alpha[0]),
            ", ".join(number(head.alpha[k]) for k in (1, 4, 32)),
            power_of_ten(head.log_kappa),
            power_of_ten(head.log_kappa_rescaled),
            number(head.stable_rank),
            number(head.op_norm),
            _asked(head, " "),
            number(head.m_usable),
        )
    yield asked
    methods = (Column(method, justify="right") for method in METHODS)
    errors = _table("Six real heads: relative Frobenius error (error in (1))", "head", *methods)
    for head in report.heads:
        cells = (f"{number(e.relative_frobenius)} ({number(e.ratio)})" for e in head.errors.values())
        errors.add_row(head.name, *cells)
    yield errors


def _table(title: str, *columns: Column | str) -> Table:
    return Table(*columns, title=f"\n{title}", title_style="bold", title_justify="left", box=None)
