"""A pilot estimate of every unmasked row sum, by which rows are rescaled to bring kappa down."""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.paper.row_sums import draws_met, mask_of_rows

PILOT_SIZE = 128


def pilot_log_row_sums(q, k, mask, keys, *, scale: float, is_causal: bool = False, backend) -> np.ndarray:
    """Estimate log R_i of every row from the same few keys, drawn uniformly with replacement.

    Derived: page "theory", row rescaling. With pilot keys r_1 .. r_p row i gets the logarithm of
    (n_k / p) sum_s (1 - M_{i, r_s}) A_{i, r_s}, an unbiased estimate of R_i = sum_j (1 - M_ij) A_ij. Taking it for
    1/E_ii leaves P = D^-1 A as it is and makes the row sums of (1 - M) o (E A) nearly equal, so kappa(E A) is small.

    Parameters
    ----------
    q, k : (n_q, d) and (n_k, d) arrays in the memory of the backend.
    mask : M, as `row_sums.large_entries` returns it, or None; a large entry has no part in R.
    keys : (p,) pilot keys, from a stream of their own; the draws must not be used for anything else.
    scale : multiplies the logits.
    is_causal : pairs j > i do not exist.
    backend : does the arithmetic.

    Returns
    -------
    (n_q,) host array, of the working dtype or float64. Rows do not depend on each other, but for those whose pilot keys
    are all masked or absent: they get the median of the others, or 0.0 if there is none. Such a row may be
    scaled by any positive factor; a typical one changes kappa least.

    Cost: n_q p d operations.
    """
    memory = memory_of(backend)
    log_sums = np.full(len(q), -np.inf)
    for rows, met in draws_met(keys, len(q), is_causal):
        marked = mask_of_rows(mask, np.arange(rows.start, rows.stop)) if is_causal else mask
        no_caps = np.full(rows.stop - rows.start, np.inf)
        sums, _ = backend.capped_sums(q[rows], k, marked, keys[met], no_caps, scale=scale)
        log_sums[rows] = memory.to_host(sums)
    log_sums += math.log(len(k) / len(keys))
    informed = np.isfinite(log_sums)
    return np.where(informed, log_sums, np.median(log_sums[informed]) if informed.any() else 0.0)
