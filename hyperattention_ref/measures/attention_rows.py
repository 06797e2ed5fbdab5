"""Exact rows of an attention matrix, in panels: the input of every estimate from randomly drawn rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.plan.block_mask import BlockMask, dense_mask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

PANEL = 32
"""Rows in a panel: 16 MB of float32 logits at 131072 keys."""

DEFAULT_ROWS = 1024
ROWS = 0x726F7773  # the purpose of these streams, "rows" in ASCII; no other stream of a state has it

MaskRows = Callable[[np.ndarray], np.ndarray]
"""A function from r query indices to these rows of a mask, (r, n_k) boolean."""


class RowPanel(NamedTuple):
    """Rows of A and of P = D^-1 A.

    Attributes
    ----------
    rows : (r,) the query indices.
    logits : (r, n_k) log A, of the dtype of the inputs; -inf where a pair does not exist.
    log_sums : (r,) float64, log D_ii.
    probabilities : (r, n_k) rows of P, of the dtype of the inputs.
    """

    rows: np.ndarray
    logits: np.ndarray
    log_sums: np.ndarray
    probabilities: np.ndarray


def attention_rows(q, k, rows, *, scale: float, is_causal: bool = False) -> Iterator[RowPanel]:
    """Yield exact rows of the attention matrix of one head, at most 32 at a time.

    Derived: page "estimators". Logits are computed in the dtype of the inputs, row sums in float64; the largest logit
    of a row is subtracted before exp, so that exp cannot overflow.

    Parameters
    ----------
    q : (n_q, d) float32 or float64 array, checked.
    k : (n_k, d) array of the same dtype.
    rows : (s,) integer array of query indices, in any order.
    scale : factor of the logits.
    is_causal : pairs j > i do not exist.

    Yields
    ------
    RowPanel, in the order of `rows`. Together s n_k d operations; memory for three panels of 32 x n_k.
    """
    columns = np.arange(len(k))
    for start in range(0, len(rows), PANEL):
        panel = rows[start : start + PANEL]
        logits = (q[panel] * q.dtype.type(scale)) @ k.T
        if is_causal:
            logits[columns > panel[:, None]] = -np.inf
        row_max = logits.max(axis=1)
        p = logits - row_max[:, None]
        np.exp(p, out=p)
        sums = p.sum(axis=1, dtype=np.float64)
        p /= sums[:, None].astype(p.dtype)
        yield RowPanel(panel, logits, row_max + np.log(sums), p)


def draw_rows(rng, n_q: int, rows: int, heads: int) -> list[np.ndarray]:
    """For each head `rows` distinct query indices, uniform, in ascending order.

    Derived: page "estimators". A statement about an output needs rows that are independent of it, so they come from
    separate streams: no draw of `make_plan` shares them, not even with the same integer seed. A Generator passed twice
    gives different rows each time.

    Cost O(n_q) for each head.
    """
    row_streams = streams(rng, heads, purpose=ROWS)
    return [np.sort(stream.choice(n_q, rows, replace=False)) for stream in row_streams]


def number_of_rows(rows, n_q: int) -> int:
    """`rows`, checked to be at most n_q; None means 1024, or all rows if there are fewer."""
    if rows is None:
        return min(DEFAULT_ROWS, n_q)
    return inputs.count("rows", rows, most=n_q)


def mask_rows(mask, n_q: int, n_k: int) -> MaskRows | None:
    """A function from r query indices to these rows of a mask, (r, n_k) boolean; None for the empty mask.

    `mask` is a HeadPlan or the Plan of one head (its causal leaves are exact), a Rectangle, a BlockMask, a boolean
    array, a SciPy sparse matrix or None. No dense mask is formed from the other types.
    """
    if mask is None:
        return None
    if isinstance(mask, Plan):
        if len(mask.heads) > 1:
            raise ValueError(f"mask is {mask!r}; it must be the plan of one head")
        mask = mask.heads[0]
    is_plan, is_sparse = isinstance(mask, HeadPlan | Rectangle | BlockMask), hasattr(mask, "tocsr")
    if not is_plan and not is_sparse:
        return dense_mask(mask, n_q, n_k).__getitem__
    shape = (mask.n_q, mask.n_k) if is_plan else mask.shape
    if shape != (n_q, n_k):
        raise ValueError(f"mask has shape {shape}; it must be (n_q, n_k) = {(n_q, n_k)}")
    if is_plan:
        return mask.rows
    sparse = mask.tocsr()
    return lambda rows: sparse[rows].toarray() != 0


def head_masks(mask, lead: tuple[int, ...], n_q: int, n_k: int, is_causal: bool) -> list:
    """The function that `mask_rows` returns, for each head in row-major order of `lead`.

    `mask` is a Plan for all heads, a boolean array `(*lead, n_q, n_k)`, or one argument of `mask_rows` for every head.
    """
    if isinstance(mask, Plan):
        mask.check_fits(lead, n_q, n_k, is_causal)
        return [head.rows for head in mask.heads]
    if isinstance(mask, np.ndarray) and lead and mask.ndim > 2:
        if mask.shape != (*lead, n_q, n_k):
            raise ValueError(f"mask has shape {mask.shape}; it must be {(n_q, n_k)} or {(*lead, n_q, n_k)}")
        return [mask_rows(head_mask, n_q, n_k) for head_mask in mask.reshape(-1, n_q, n_k)]
    return [mask_rows(mask, n_q, n_k)] * math.prod(lead)
