"""The sums over rows that Algorithm 2 is made of, by any backend, without an n x n array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperattention_ref.foundation.memory import Memory, memory_of
from hyperattention_ref.plan.block_mask import BlockMask, dense_mask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

if TYPE_CHECKING:
    from hyperattention_ref.foundation.backend import Backend


@dataclass(frozen=True, eq=False)
class RowSums:
    """The masked, the unmasked and the capped sums of E A, A = exp(scale Q K^T), E = diag(exp(-log_pilot)).

    Every result is a natural logarithm, float64, -inf for an empty sum. Scaling the rows of A only shifts logarithms.

    Attributes
    ----------
    backend : does the arithmetic.
    q, k : (n_q, d) and (n_k, d) float64 arrays, in the memory of the backend.
    mask : M, what `large_entries` returned.
    scale : multiplies the logits.
    log_pilot : (n_q,) float64 array.
    """

    backend: Backend
    q: Any
    k: Any
    mask: Rectangle | np.ndarray
    scale: float
    log_pilot: np.ndarray

    def masked(self) -> np.ndarray:
        """(n_q,) H_i = Σ_j M_ij (E A)_ij, in O(d nnz(M)) if M is a Rectangle and O(n_q n_k d) if it is dense."""
        if isinstance(self.mask, Rectangle):
            n_q, n_k = self.mask.n_q, self.mask.n_k
            plan = Plan((), (HeadPlan(n_q, n_k, (self.mask,)),))
            no_values = self.memory.from_host(np.zeros((n_k, 1)), like=self.k)
            _, log_h = self.backend.planned_attention(self.q, self.k, no_values, plan, scale=self.scale)
            log_h = self.memory.to_host(log_h)
        else:
            log_h = self._outside(~self.mask, self.q)
        return log_h - self.log_pilot

    def unmasked(self, rows) -> np.ndarray:
        """(t,) R_i = Σ_j (1 - M_ij) (E A)_ij of these rows, in O(t n_k d)."""
        if rows.size == 0:
            return np.empty(0)
        queries = self.memory.copy(self.q, "float64", rows=rows)
        return self._outside(mask_of_rows(self.mask, rows), queries) - self.log_pilot[rows]

    def capped(self, keys, log_caps) -> tuple[np.ndarray, np.ndarray]:
        """(n_q,) Σ_r (1 - M_{i,keys_r}) min((E A)_{i,keys_r}, C_i), and how many of these entries exceed C_i.

        O(n_q m d) for m keys, repeated ones counted each time.
        """
        log_sums, n_capped = self.backend.capped_sums(
            self.q, self.k, self.mask, keys, log_caps + self.log_pilot, scale=self.scale
        )
        return self.memory.to_host(log_sums) - self.log_pilot, self.memory.to_host(n_capped)

    @property
    def memory(self) -> Memory:
        return memory_of(self.backend)

    def _outside(self, marked, queries) -> np.ndarray:
        """The sums over what `marked` does not mark, of the rows of A that belong to these queries."""
        sums = self.backend.attention_sums(queries, self.k, marked, scale=self.scale, is_causal=False)
        return self.memory.to_host(sums.log_unmasked)


def large_entries(mask, n_q: int, n_k: int) -> Rectangle | np.ndarray:
    """The mask M of large entries as backends take it: a Rectangle without sampled keys, or a dense boolean array.

    Parameters
    ----------
    mask : BlockMask, Rectangle (its sampled keys play no part), (n_q, n_k) boolean array, SciPy sparse matrix, or None
        for no mark at all. The array and the sparse matrix become dense.
    n_q, n_k : the shape that is needed.
    """
    if mask is None:
        return Rectangle(n_q, n_k)
    if isinstance(mask, BlockMask):
        mask = Rectangle(*mask.shape, views=(mask,))
    if not isinstance(mask, Rectangle):
        return dense_mask(mask, n_q, n_k)
    if (mask.n_q, mask.n_k) != (n_q, n_k):
        raise ValueError(f"mask has shape {(mask.n_q, mask.n_k)}; it must be (n_q, n_k) = {(n_q, n_k)}")
    return Rectangle(n_q, n_k, mask.views, mask.exact_keys)


def mask_of_rows(mask, rows) -> Rectangle | np.ndarray | None:
    """These rows of a mask, as a mask; None, the empty mask, stays None."""
    if not isinstance(mask, Rectangle):
        return None if mask is None else mask[rows]
    views = []
    for view in mask.views:
        blocks = view.query_blocks()[rows]
        order = np.argsort(blocks, kind="stable")
        offsets = np.searchsorted(blocks[order], np.arange(view.n_blocks + 1))
        views.append(BlockMask(order, view.key_order, offsets, view.key_offsets))
    return Rectangle(rows.size, mask.n_k, tuple(views), mask.exact_keys)


def covered_rows(mask) -> np.ndarray:
    """(n_q,) which rows M marks completely; `mask` is what `large_entries` returned. Cost O(n_q + nnz(M))."""
    if not isinstance(mask, Rectangle):
        return mask.all(axis=1)
    marks = np.full(mask.n_q, mask.exact_keys.size)
    for view in mask.views:
        marks += np.diff(view.key_offsets)[view.query_blocks()]
    covered = marks >= mask.n_k
    for i in np.flatnonzero(covered):  # a pair in several views was counted by each: check the row itself
        covered[i] = mask.rows([i]).all()
    return covered


def draws_met(drawn: np.ndarray, n_q: int, is_causal: bool) -> Iterator[tuple[slice, np.ndarray]]:
    """Queries, and the numbers of the draws that they meet: all, or if causal those of keys up to the query itself.

    Derived: the causal queries between two neighbouring drawn keys meet the same draws, so one call of a backend serves
    them all. Queries that meet none are left out.
    """
    order = np.argsort(drawn, kind="stable")
    if not is_causal:
        yield slice(0, n_q), order
        return
    starts = np.unique(drawn)
    counts = np.searchsorted(drawn[order], starts, side="right")
    for a, c, m in zip(starts.tolist(), [*starts[1:].tolist(), n_q], counts.tolist(), strict=True):
        yield slice(a, c), order[:m]
