"""Correctness before timing: drawn rows of an output against float64, within the tolerance rule of page "numerics".

A row of attention is attention with a single query, so that a few rows can be had in float64 at any n, and judged by
the same bounds as a whole head: gate A, the rounding analysis of `error_bound`, and gate B, four times the largest
error of the blocked NumPy backend on the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.error_bound import error_bounds, head_terms
from hyperattention_ref.backends.reference import softmax_average
from hyperattention_ref.bench.cases import Heads
from hyperattention_ref.measures.attention_rows import draw_rows
from hyperattention_ref.plan import HeadPlan, Plan, Rectangle
from hyperattention_ref.results import Result

ROWS = 64
"""Rows that are drawn for each head."""
PANEL = 8
"""Rows at a time; a panel takes a dozen arrays of PANEL x n float64."""
MULTIPLE = 4
"""Gate B, in errors of the blocked NumPy backend."""


@dataclass(frozen=True, eq=False)
class DrawnRows:
    """What an output should be in the rows that were drawn.

    Attributes
    ----------
    rows : for each head, indices of queries.
    out : (heads, rows, d_v) float64.
    allowed : (heads, rows, d_v), how far an output may be from `out`.
    """

    rows: list[np.ndarray]
    out: np.ndarray
    allowed: np.ndarray

    def of(self, output) -> np.ndarray:
        """The drawn rows of an output."""
        return np.stack([x[rows] for x, rows in zip(output, self.rows, strict=True)]).astype(np.float64)


@dataclass(frozen=True, repr=False)
class Check(Result):
    """Whether an output is right, and its largest error in units of what is allowed."""

    is_right: bool
    worst: float


class Piece(NamedTuple):
    """Some queries with all the keys that they meet; `plan` is None where they meet them exactly."""

    queries: np.ndarray
    keys: np.ndarray
    plan: HeadPlan | None
    merges: int


def exact_rows(heads: Heads, *, is_causal: bool, seed: int) -> DrawnRows:
    """Rows of exact attention. Cost O(rows n d) for each head."""

    def pieces(head: int, rows: np.ndarray) -> Iterator[Piece]:
        for panel in np.split(rows, range(1 if is_causal else PANEL, len(rows), 1 if is_causal else PANEL)):
            yield Piece(panel, np.arange(panel[-1] + 1 if is_causal else heads.n), None, 0)

    return _rows(heads, pieces, seed)


def planned_rows(heads: Heads, plan: Plan, *, seed: int) -> DrawnRows:
    """Rows of the attention of a plan. Cost O(rows (n + keys met d)) for each head."""

    def pieces(head: int, rows: np.ndarray) -> Iterator[Piece]:
        return (_planned_row(plan.heads[head], row) for row in rows)

    return _rows(heads, pieces, seed)


def check(output, truth: DrawnRows) -> Check:
    """Judge an output; a NaN is wrong."""
    error = np.abs(truth.of(output) - truth.out)
    worst = float(np.max(error / truth.allowed))
    return Check(bool(worst <= 1), worst)


def relative_error(output, truth: DrawnRows) -> float:
    """||output - truth||_F / ||truth||_F over the drawn rows of all heads."""
    return float(np.linalg.norm(truth.of(output) - truth.out) / np.linalg.norm(truth.out))


def mean_of_values(heads: Heads, is_causal: bool) -> np.ndarray:
    """The baseline that looks at no query: the mean of V, with causal attention of V_0 .. V_i."""
    if is_causal:
        return np.cumsum(heads.value, axis=1, dtype=np.float64) / np.arange(1, heads.n + 1)[:, None]
    return np.broadcast_to(heads.value.mean(axis=1, keepdims=True, dtype=np.float64), heads.value.shape)


def _planned_row(head: HeadPlan, row: int) -> Piece:
    """One row of a plan as the plan of one query and the keys that it meets, each of its rules kept."""
    met = [r for r in head.rectangles if r.query_start <= row < r.query_start + r.n_q]
    exact = np.flatnonzero(head.rows([row])[0])
    drawn = np.concatenate([np.empty(0, np.int64), *(r.key_start + r.sampled_keys for r in met)])
    keys = np.union1d(exact, drawn)
    rectangle = Rectangle(
        1,
        len(keys),
        exact_keys=np.searchsorted(keys, exact),
        sampled_keys=np.searchsorted(keys, drawn),
        log_weights=np.concatenate([np.empty(0), *(r.log_weights for r in met)]),
    )
    leaves = sum(a <= row < c for a, c in head.leaves)
    parts = leaves + sum(len(r.views) + bool(r.exact_keys.size) + bool(r.sampled_keys.size) for r in met)
    return Piece(np.array([row]), keys, HeadPlan(1, len(keys), (rectangle,)), max(parts - 1, 0))


def _rows(heads: Heads, pieces, seed: int) -> DrawnRows:
    drawn = draw_rows(seed, heads.n, min(ROWS, heads.n), len(heads.query))
    parts = [
        _piece(heads.query[h], heads.key[h], heads.value[h], heads.scale, piece)
        for h, rows in enumerate(drawn)
        for piece in pieces(h, rows)
    ]
    out, bound, floor, usual = (np.concatenate(x) for x in zip(*parts, strict=True))
    worst = np.max(np.abs(usual - out) / bound)
    allowed = np.minimum(bound, MULTIPLE * worst * bound + floor)
    shape = (len(drawn), -1, heads.value.shape[-1])
    return DrawnRows(drawn, out.reshape(shape), allowed.reshape(shape))


def _piece(q, k, v, scale: float, piece: Piece):
    """(out, gate A, gate A for sums of one term, what the NumPy backend gives) for the queries of a piece."""
    q, k, v, dtype = q[piece.queries], k[piece.keys], v[piece.keys], v.dtype
    terms = head_terms(q, k, scale, head_plan=piece.plan)
    terms = replace(terms, merges=np.full(len(q), piece.merges))
    out, lse = softmax_average(terms.logits, v[terms.keys].astype(np.float64))
    bound, _ = error_bounds(terms, v, out, lse, dtype, dtype)
    floor, _ = error_bounds(terms, v, out, lse, dtype, dtype, random_walk=True)
    if piece.plan is None:
        usual, _ = BlockedNumpy().exact_attention(q, k, v, scale=scale, is_causal=False)
    else:
        usual, _ = BlockedNumpy().planned_attention(q, k, v, Plan((), (piece.plan,)), scale=scale)
    return out, bound, floor, usual
