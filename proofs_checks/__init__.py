"""The paper's statements as executable checks, one statement per file.

Each module has `check(settings)`, which yields `Verdict`s. `run_checks` goes through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from .settings import Settings
from .verdict import Verdict

STATEMENTS = (
    "definition_1",
    "algorithm_1",
    "range_facts",
    "lemma_1_tau",
    "lemma_1_concentration",
    "lemma_1_truncation",
    "lemma_1_row_sets",
    "lemma_1",
    "lemma_1_usable",
    "lemma_1_rate",
    "row_rescaling",
    "lemma_2",
    "lemma_2_expectation",
    "theorem_1",
    "corollary_1",
    "algorithm_4",
    "invariance",
    "merge_monoid",
    "practical",
    "counterexamples",
)
"""Module names, in the order of the paper."""

__all__ = ["STATEMENTS", "Settings", "Verdict", "run_checks"]


def run_checks(
    settings: Settings | None = None, only: tuple[str, ...] = STATEMENTS, progress: Callable[[str], None] | None = None
) -> Iterator[Verdict]:
    """Yield the verdicts of all statements, or only of those in `only`.

    Parameters
    ----------
    settings : Settings; the defaults take about a minute on two cores.
    only : names from `STATEMENTS`.
    progress : called with the name of each statement before it is checked.
    """
    unknown = set(only) - set(STATEMENTS)
    if unknown:
        raise ValueError(f"unknown statements {sorted(unknown)}; known: {', '.join(STATEMENTS)}")
    settings = settings or Settings()
    for name in only:
        if progress:
            progress(name)
        yield from import_module(f"{__name__}.{name}").check(settings)
