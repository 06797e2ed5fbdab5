"""The sums over rows that Algorithm 2 is made of, by any backend, none of which needs an n x n array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hyperattention_ref.block_mask import BlockMask, dense_mask
from hyperattention_ref.plan import HeadPlan, Plan, Rectangle

if TYPE_CHECKING:
    from hyperattention_ref.backends import Backend


@dataclass(frozen=True, eq=False)
class RowSums:
    """The masked, the unmasked and the capped sums of E A, A = exp(scale Q K^T), E = diag(exp(-log_pilot)).

    Every result is a natural logarithm, float64, -inf for an empty sum. Scaling the rows of A only shifts logarithms.

    Attributes
    ----------
    backend : does the arithmetic.
    q, k : (n_q, d) and (n_k, d) float64 arrays.
    mask : M, what `large_entries` returned.
    scale : multiplies the logits.
    log_pilot : (n_q,) float64 array.
    """

    backend: Backend
    q: np.ndarray
    k: np.ndarray
    mask: Rectangle | np.ndarray
    scale: float
    log_pilot: np.ndarray

    def masked(self) -> np.ndarray:
        """(n_q,) H_i = Σ_j M_ij (E A)_ij, in O(d nnz(M)) if M is a Rectangle and O(n_q n_k d) if it is dense."""
        if isinstance(self.mask, Rectangle):
            n_q, n_k = self.mask.n_q, self.mask.n_k
            plan = Plan((), (HeadPlan(n_q, n_k, (self.mask,)),))
            _, log_h = self.backend.planned_attention(self.q, self.k, np.zeros((n_k, 1)), plan, scale=self.scale)
        else:
            log_h = self._outside(~self.mask, slice(None))
        return log_h - self.log_pilot

    def unmasked(self, rows) -> np.ndarray:
        """(t,) R_i = Σ_j (1 - M_ij) (E A)_ij of these rows, in O(t n_k d)."""
        if rows.size == 0:
            return np.empty(0)
        return self._outside(_rows(self.mask, rows), rows) - self.log_pilot[rows]

    def capped(self, keys, log_caps) -> tuple[np.ndarray, np.ndarray]:
        """(n_q,) Σ_r (1 - M_{i,keys_r}) min((E A)_{i,keys_r}, C_i), and how many of these entries exceed C_i.

        O(n_q m d) for m keys, repeated ones counted each time.
        """
        log_sums, n_capped = self.backend.capped_sums(
            self.q, self.k, self.mask, keys, log_caps + self.log_pilot, scale=self.scale
        )
        return log_sums - self.log_pilot, n_capped

    def _outside(self, marked, rows) -> np.ndarray:
        """The sums of these rows of A over what `marked` does not mark."""
        sums = self.backend.attention_sums(self.q[rows], self.k, marked, scale=self.scale, is_causal=False)
        return sums.log_unmasked


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


def _rows(mask, rows) -> Rectangle | np.ndarray:
    """These rows of a mask, as a mask."""
    if not isinstance(mask, Rectangle):
        return mask[rows]
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
    for i in np.flatnonzero(covered):  # a pair that several views hold was counted by each: look at the row itself
        covered[i] = mask.rows([i]).all()
    return covered
