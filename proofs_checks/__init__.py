"""The paper's statements as executable checks, one statement per file.

Each module has `check(settings)`, which yields `Verdict`s about synthetic matrices; a statement that speaks of any
given matrix has `check_matrix(settings, dense)`, too. `run_checks` goes through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module

from .dense import Dense
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
    "landmarks",
    "pages",
    "counterexamples",
)
"""Module names, in the order of the paper."""

OF_A_MATRIX = {
    "range_facts": {"square", "rectangular", "causal"},
    "lemma_1_tau": {"square", "rectangular"},
    "lemma_1_concentration": {"square", "rectangular"},
    "lemma_1_truncation": {"square", "rectangular"},
    "lemma_1_row_sets": {"square", "rectangular", "causal"},
    "lemma_1": {"square"},
    "lemma_1_usable": {"square", "rectangular"},
    "lemma_1_rate": {"square"},
    "row_rescaling": {"square", "rectangular"},
    "lemma_2": {"square", "rectangular", "causal"},
    "lemma_2_expectation": {"square", "rectangular", "causal"},
    "theorem_1": {"square"},
    "algorithm_4": {"causal"},
    "invariance": {"square", "rectangular", "causal"},
    "practical": {"square"},
}
"""The statements that speak of a given matrix, and of which kinds; their modules have `check_matrix`."""

__all__ = ["OF_A_MATRIX", "STATEMENTS", "Settings", "Verdict", "run_checks"]


def statements_of(kind: str | None) -> tuple[str, ...]:
    """The statements about a matrix of a kind: "square", "rectangular" or "causal"; all statements for None."""
    return tuple(name for name in STATEMENTS if kind is None or kind in OF_A_MATRIX.get(name, ()))


def run_checks(
    settings: Settings | None = None,
    only: tuple[str, ...] | None = None,
    progress: Callable[[str], None] | None = None,
    matrix=None,
) -> Iterator[Verdict]:
    """Yield the verdicts of all statements, or only of those in `only`.

    Parameters
    ----------
    settings : Settings; the defaults take about a minute on two cores.
    only : names from `STATEMENTS`; with a matrix, those that speak of its kind.
    progress : called with the name of each statement before it is checked.
    matrix : None for synthetic matrices, or one of your own: any object with float arrays `query` (n_q, d), `key`
        (n_k, d) and `value` (n_k, d_v), 2 to 4096 queries and keys, and optionally `mask` (large entries: boolean
        (n_q, n_k), BlockMask or sparse), `scale` (None: 1/sqrt(d)), `is_causal` and `name`. Its n replaces the
        settings', which must name no families.

    Raises
    ------
    TypeError, ValueError : an unknown statement, one that says nothing of such a matrix, or a bad matrix.
    """
    settings = settings or Settings()
    dense = None if matrix is None else Dense.of_matrix(matrix)
    only = chosen_statements(only, dense)
    if dense is not None:
        if settings.families is not None:
            raise ValueError(f"families is {settings.families} beside a matrix; the matrix is the only input then")
        settings = replace(settings, n=dense.n)
    return _verdicts(settings, only, progress, dense)


def chosen_statements(only: tuple[str, ...] | None, dense: Dense | None) -> tuple[str, ...]:
    """The names in `only`, each once, in the order of the paper; or all that speak of the matrix."""
    kind = None if dense is None else dense.kind
    known = statements_of(kind)
    if only is None:
        return known
    if unknown := sorted(set(only) - set(STATEMENTS)):
        raise ValueError(f"unknown statements: {', '.join(unknown)}; known: {', '.join(STATEMENTS)}")
    if silent := sorted(set(only) - set(known)):
        raise ValueError(
            f"{', '.join(silent)} cannot be checked on a given {kind} matrix; these can: {', '.join(known)}"
        )
    return tuple(name for name in known if name in only)


def _verdicts(settings, only, progress, dense) -> Iterator[Verdict]:
    for name in only:
        if progress:
            progress(name)
        module = import_module(f"{__name__}.{name}")
        yield from module.check(settings) if dense is None else module.check_matrix(settings, dense)
