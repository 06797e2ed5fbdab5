"""Drawn rows of an output against float64, within the tolerance rule of page "numerics".

A row of attention is attention with a single query, so that a few rows can be computed in float64 at any n, and have
the same bounds as a whole head: gate A, the rounding analysis of `error_bound`, and gate B, four times the largest
error of the blocked NumPy backend on the same rows.

Tensor cores that take bfloat16 round every weight of the softmax to it, and the output. For them gate A also has
1.1 * 2^-8 (sum p |v| + |out|), see page "gpu_cuda". Gate B compares with rows of NumPy that have the same two
roundings, in units of what random signs add up to, 1.1 * 2^-8 (sqrt(sum p^2 v^2) + |out|): at large n, where
gate A alone would allow an error as large as the output, that is a hundredth of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance.error_bound import error_bounds, head_terms
from hyperattention_ref.backends.reference import softmax_average
from hyperattention_ref.bench.cases import Heads
from hyperattention_ref.foundation.bfloat16 import bfloat16_bits, from_bfloat16_bits
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.attention_rows import draw_rows
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

ROWS = 64
"""Rows that are drawn for each head."""
PANEL = 8
"""Rows at a time; a panel takes a dozen arrays of PANEL x n float64."""
MULTIPLE = 4
"""Gate B, in errors of the blocked NumPy backend."""
U_BFLOAT = 2.0**-8
"""Unit roundoff of bfloat16."""


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

    def check(self, rows: np.ndarray) -> Check:
        """Judge these rows of an output, (heads, rows, d_v); a NaN is wrong."""
        worst = float(np.max(np.abs(rows - self.out) / self.allowed))
        return Check(bool(worst <= 1), worst)

    def relative_error(self, rows: np.ndarray) -> float:
        """||rows - out||_F / ||out||_F, over all heads."""
        return float(np.linalg.norm(rows - self.out) / np.linalg.norm(self.out))


@dataclass(frozen=True, repr=False)
class Check(Result):
    """Whether an output is right.

    Attributes
    ----------
    is_right : whether every drawn row is within what is allowed, and the output has no flaw.
    worst : the largest error in units of what is allowed; None for an approximation that has no exact rows.
    flaw : what is wrong with the output as an array, such as its shape, or None.
    """

    is_right: bool
    worst: float | None = None
    flaw: str | None = None


class Piece(NamedTuple):
    """Some queries with all the keys that they meet; `plan` is None where attention to them is exact."""

    queries: np.ndarray
    keys: np.ndarray
    plan: HeadPlan | None = None
    merges: int = 0
    is_causal: bool = False


def true_rows(
    heads: Heads, plan: Plan | None = None, *, seed: int, is_bfloat: bool = False, workers: int = 1
) -> DrawnRows:
    """Rows of exact attention, at O(rows n d) for each head, or of that of a plan, at O(rows (n + keys met d)).

    `heads` may be any sequences of heads, each of which NumPy can take. With `is_bfloat` their numbers are those of
    bfloat16, and so is the output to be checked. `workers` heads are computed at a time.
    """
    drawn = draw_rows(seed, heads.n, min(ROWS, heads.n), len(heads.query))

    def one_head(h: int) -> list[tuple]:
        q, k, v = (np.asarray(x[h]) for x in heads.arrays)
        pieces = _exact_pieces(heads, drawn[h]) if plan is None else (_planned_row(plan.heads[h], i) for i in drawn[h])
        return [_piece(q, k, v, heads.scale, piece, is_bfloat) for piece in pieces]

    with ThreadPoolExecutor(workers) as pool:
        parts = [part for head in pool.map(one_head, range(len(drawn))) for part in head]
    out, bound, unit, floor, numpy_out = (np.concatenate(x) for x in zip(*parts, strict=True))
    worst = np.max(np.abs(numpy_out - out) / unit)
    allowed = np.minimum(bound, MULTIPLE * worst * unit + floor)
    shape = (len(drawn), -1, out.shape[-1])
    return DrawnRows(drawn, out.reshape(shape), allowed.reshape(shape))


def bfloat(x) -> np.ndarray:
    """The nearest numbers of bfloat16, ties to even, as float32."""
    return from_bfloat16_bits(bfloat16_bits(x))


def mean_of_values(heads: Heads) -> np.ndarray:
    """The baseline that looks at no query: the mean of V, with causal attention of V_0 .. V_i."""
    if heads.is_causal:
        return np.cumsum(heads.value, axis=1, dtype=np.float64) / np.arange(1, heads.n + 1)[:, None]
    return np.broadcast_to(heads.value.mean(axis=1, keepdims=True, dtype=np.float64), heads.value.shape)


def _exact_pieces(heads: Heads, rows: np.ndarray) -> Iterator[Piece]:
    for panel in np.split(rows, range(PANEL, len(rows), PANEL)):
        keys = np.arange(panel[-1] + 1 if heads.is_causal else heads.n)
        yield Piece(panel, keys, is_causal=heads.is_causal)


def _planned_row(head: HeadPlan, row: int) -> Piece:
    """One row of a plan as the plan of one query and the keys that it meets."""
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
    parts = sum(a <= row < c for a, c in head.leaves) + (head.lists is not None)
    parts += sum(len(r.views) + bool(r.exact_keys.size) + bool(r.sampled_keys.size) for r in met)
    return Piece(np.array([row]), keys, HeadPlan(1, len(keys), (rectangle,)), max(parts - 1, 0))


def _piece(q, k, v, scale: float, piece: Piece, is_bfloat: bool) -> tuple:
    """For the queries of a piece: out; gate A; for gate B its unit, what random signs allow, and what NumPy gives."""
    q, k, v, dtype = q[piece.queries], k[piece.keys], v[piece.keys], v.dtype
    terms = head_terms(q, k, scale, head_plan=piece.plan)
    if piece.is_causal:
        terms.logits[piece.keys > piece.queries[:, None]] = -np.inf
    terms = replace(terms, merges=np.full(len(q), piece.merges))
    values = v[terms.keys].astype(np.float64)
    out, lse = softmax_average(terms.logits, values)
    bound, _ = error_bounds(terms, v, out, lse, dtype, dtype)
    floor, _ = error_bounds(terms, v, out, lse, dtype, dtype, random_walk=True)
    if not is_bfloat:
        return out, bound, bound, floor, _blocked_numpy(q, k, v, scale, piece)
    weights = np.exp(terms.logits - lse[:, None])
    walk = 1.1 * U_BFLOAT * (np.sqrt(weights**2 @ values**2) + np.abs(out))
    bound += 1.1 * U_BFLOAT * (weights @ np.abs(values) + np.abs(out))
    return out, bound, walk, floor + walk, bfloat(bfloat(weights) @ values)


def _blocked_numpy(q, k, v, scale: float, piece: Piece) -> np.ndarray:
    """What the blocked NumPy backend gives for the queries of a piece."""
    backend = BlockedNumpy()
    if piece.plan is not None:
        return backend.planned_attention(q, k, v, Plan((), (piece.plan,)), scale=scale)[0]
    if not piece.is_causal:
        return backend.exact_attention(q, k, v, scale=scale, is_causal=False)[0]
    rows = []
    for i, row in enumerate(piece.queries):
        met = slice(row + 1)
        out, _ = backend.exact_attention(q[i : i + 1], k[met], v[met], scale=scale, is_causal=False)
        rows.append(out)
    return np.concatenate(rows)
