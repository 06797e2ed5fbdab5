"""The gradient of the NumPy backend: the tiles of the forward pass once more, with memory O(n d); page "theory", 9.10.

Every part of a query sees the log-sum-exp of the whole query, so that no merge is differentiated.
"""

from __future__ import annotations

import numpy as np

from .tiles import Tiles, exact_pieces, listed_pieces, rectangle_pieces
from .upstream import Upstream


def head_gradient(q, k, v, upstream: Upstream, *, head_plan, scale, is_causal):
    """(dq, dk, dv) of one head: of exact attention if `head_plan` is None, else of its plan but for far parts."""
    dq, dk, dv = (np.zeros(x.shape, x.dtype) for x in (q, k, v))
    lse, delta = upstream.finite_lse, upstream.delta

    def add(rows, keys, pieces):
        """Add a part, which lies at these slices of the head."""
        queries = lse[rows], delta[rows], upstream.dout[rows]
        _add_part(Tiles(q[rows], k[keys], scale), v[keys], queries, (dq[rows], dk[keys], dv[keys]), pieces)

    if head_plan is None:
        add(slice(None), slice(None), exact_pieces(len(q), len(k), is_causal))
    else:
        add(slice(None), slice(None), listed_pieces(head_plan.lists))
        for a, c in head_plan.leaves:
            add(slice(a, c), slice(a, c), exact_pieces(c - a, c - a, is_causal=True))
        for rectangle in head_plan.rectangles:
            rows, keys = rectangle.rows_and_keys
            add(rows, keys, rectangle_pieces(rectangle, head_plan.lists))
    dq *= dq.dtype.type(scale)
    dk *= dk.dtype.type(scale)
    return dq, dk, dv


def _add_part(tiles, v, queries, gradients, pieces):
    """Add what the pieces of a part give, dq and dk without the scale; `queries` are lse, delta and dout."""
    (lse, delta, dout), (dq, dk, dv) = queries, gradients
    for rows, keys, logits in tiles.of(pieces):
        logits -= lse[rows, None]
        p = np.exp(logits, out=logits)
        ds = dout[rows] @ v[keys].T
        ds -= delta[rows, None]
        ds *= p  # dx = p (do·v - δ)
        dq[rows] += ds @ tiles.k[keys]
        np.add.at(dk, keys, ds.T @ tiles.q[rows])  # repeated draws add up
        np.add.at(dv, keys, p.T @ dout[rows])
