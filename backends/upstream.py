"""What the gradients of backends of the host share: what a head gets from upstream, and the iteration over heads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperattention_ref.foundation.backend import each_head


class Upstream(NamedTuple):
    """What some queries of a head bring along: their results, and the gradients of these.

    Attributes
    ----------
    out, lse : (n_q, d_v) and (n_q,), of the whole head.
    dout, dlse : of the same shapes.
    """

    out: np.ndarray
    lse: np.ndarray
    dout: np.ndarray
    dlse: np.ndarray

    def of(self, rows) -> Upstream:
        """Those of some of the queries."""
        return Upstream(*(x[rows] for x in self))

    @property
    def delta(self) -> np.ndarray:
        """(n_q,) δ_i = do_i·o_i - dL_i."""
        return np.einsum("ij,ij->i", self.dout, self.out) - self.dlse

    @property
    def finite_lse(self) -> np.ndarray:
        """(n_q,) L_i, 0 for a query that has met no key and so has nothing to weigh."""
        return np.where(np.isneginf(self.lse), 0, self.lse).astype(self.lse.dtype, copy=False)


def gradients_of_heads(one_head, plan, q, k, v, results, dtype):
    """(dq, dk, dv) in `dtype`, from `one_head(q, k, v, head_plan, upstream)` for one head after another.

    `results` are (out, lse, dout, dlse).
    """
    out, lse, dout, dlse = results
    gradients = tuple(np.empty(x.shape, dtype) for x in (q, k, v))
    for index, head_plan, *arrays in each_head(plan, q, k, v, out, dout):
        q1, k1, v1, out1, dout1 = (x.astype(dtype, copy=False) for x in arrays)
        upstream = Upstream(out1, lse[index].astype(dtype), dout1, dlse[index].astype(dtype))
        for result, x in zip(gradients, one_head(q1, k1, v1, head_plan, upstream), strict=True):
            result[index] = x
    return gradients
