"""kappa*: the smallest kappa over all shifts of the keys, and the shift that attains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.host_arrays import host_array
from hyperattention_ref.foundation.results import Result

MOST_ROWS = 8192
TOLERANCE = 1e-7
"""Of a constraint, as in HiGHS."""


@dataclass(frozen=True, eq=False, repr=False)
class KeyShift(Result):
    """The best key shift of one head.

    Attributes
    ----------
    log_kappa : ln kappa*, the spread of log R_i + scale <q_i, shift>.
    shift : (d,) the vector to add to every key.
    """

    log_kappa: float
    shift: np.ndarray


def best_key_shift(q, log_unmasked, *, scale=None) -> KeyShift:
    """Minimise kappa over all vectors added to every key, which leave attention unchanged.

    Derived: page "theory", 9.2. Adding c to every key multiplies row i of A by exp(scale <q_i, c>), so ln kappa* is
    the value of the linear program min u - l subject to l <= log R_i + scale <q_i, c> <= u.

    Parameters
    ----------
    q : (n_q, d) float array, n_q <= 8192.
    log_unmasked : (n_q,) log R_i; rows with -inf (covered by the mask) are left out.
    scale : factor of the logits; None means 1 / sqrt(d).

    Returns
    -------
    KeyShift. Cost: some five to ten linear programs (HiGHS) in d + 2 variables, with 4 (d + 2) to 20 (d + 2)
    constraints rather than all 2 n_q, and n_q d^2 operations.

    Raises
    ------
    ValueError : wrong shapes, more than 8192 rows, or a program that HiGHS cannot solve.
    """
    q = inputs.head("query", q)
    scale = inputs.resolve_scale(scale, q.shape[1])
    log_unmasked = host_array("log_unmasked", log_unmasked).astype(np.float64)
    if log_unmasked.shape != (len(q),) or np.isnan(log_unmasked).any():
        raise ValueError(
            f"log_unmasked has shape {log_unmasked.shape}; it must be one log R_i for each of {len(q)} rows, not NaN"
        )
    if len(q) > MOST_ROWS:
        raise ValueError(
            f"query has {len(q)} rows; the linear program takes at most {MOST_ROWS}: pass some of the rows"
        )
    rows = np.isfinite(log_unmasked)
    if not rows.any():
        return KeyShift(0.0, np.zeros(q.shape[1]))
    # In an orthonormal basis of the queries the solver meets no coordinates that are nearly parallel.
    x, r = scale * q[rows].astype(np.float64), log_unmasked[rows]
    coordinates, sizes, basis = np.linalg.svd(x, full_matrices=False)
    kept = sizes > 1e-10 * sizes[0]
    shift = basis[kept].T @ (_least_spread(r, coordinates[:, kept]) / sizes[kept])
    return KeyShift(float(np.ptp(r + x @ shift)), shift)


def _least_spread(r: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The c that minimises max(r + x c) - min(r + x c), by constraint generation.

    The program of some rows has a value that the one of all rows cannot undercut; the rows outside its range join it
    until there is none.
    """
    chosen, step = np.zeros(len(r), dtype=bool), x.shape[1] + 2
    chosen[:: -(-len(r) // (2 * step))] = True
    while True:
        c, low, high = _solve(r[chosen], x[chosen])
        moved = r + x @ c
        outside = np.where(chosen, 0, np.maximum(moved - high, low - moved))
        worst = np.argsort(-outside)[:step]
        worst = worst[outside[worst] > TOLERANCE]
        if not worst.size:
            return c
        chosen[worst] = True


def _solve(r: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, float, float]:
    """c, l and u of the program with all rows of x."""
    from scipy.optimize import linprog

    unit = np.abs(x).max(initial=0) or 1.0  # the solver needs coefficients near 1
    one, zero = np.ones((len(x), 1)), np.zeros((len(x), 1))
    upper = np.hstack([x / unit, -one, zero])  #   log R_i + <x_i, c> <= u
    lower = np.hstack([-x / unit, zero, one])  #   l <= log R_i + <x_i, c>
    cost = np.r_[np.zeros(x.shape[1]), 1.0, -1.0]
    result = linprog(cost, A_ub=np.vstack([upper, lower]), b_ub=np.r_[-r, r], bounds=(None, None), method="highs")
    if not result.success:
        raise ValueError(
            f"the linear program for the key shift was not solved ({result.message}): pass other queries, or fewer"
        )
    *c, high, low = result.x
    return np.array(c) / unit, low, high
