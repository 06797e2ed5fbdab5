"""What one pass over all logits of a head yields: the sums from which alpha, kappa and the norms of P follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hyperattention_ref.results import Result

ARRAYS = ("log_total", "log_unmasked", "column_sums", "column_squares", "entropy")
"""The fields of `AttentionSums` that are arrays, in the memory of the backend; the others are floats."""


@dataclass(frozen=True, eq=False, repr=False)
class AttentionSums(Result):
    """Row and column sums of A = exp(scale Q K^T) and P = D^{-1} A, for one head.

    Derived: every field is a sum or an extreme over rows or columns, so tiles of any shape can be folded into it.

    Attributes
    ----------
    log_total : (n_q,) log D_ii.
    log_unmasked : (n_q,) log R_i, R_i the part of row i that the mask does not mark; -inf for a covered row.
    column_sums : (n_k,) sum_i P_ij.
    column_squares : (n_k,) sum_i P_ij^2.
    entropy : (n_q,) -sum_j P_ij log P_ij in nats; its exponential is the perplexity, the effective support of the row.
    logit_min, logit_max : over the pairs that exist.
    """

    log_total: Any
    log_unmasked: Any
    column_sums: Any
    column_squares: Any
    entropy: Any
    logit_min: float
    logit_max: float
