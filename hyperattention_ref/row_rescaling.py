"""A pilot estimate of every unmasked row sum, by which rows are rescaled to bring kappa down."""

from __future__ import annotations

import math

import numpy as np

PILOT_SIZE = 128


def seen_log_row_sums(log_a, mask, n_k: int) -> np.ndarray:
    """Estimate log R_i of every row from the same few keys, drawn uniformly with replacement.

    Derived: page "theory", row rescaling. With pilot keys r_1 .. r_p row i gets the logarithm of
    (n_k / p) sum_s (1 - M_{i, r_s}) A_{i, r_s}, an unbiased estimate of R_i = sum_j (1 - M_ij) A_ij. Taking it for
    1/E_ii leaves P = D^-1 A as it is and makes the row sums of (1 - M) o (E A) nearly equal, so kappa(E A) is small.

    Parameters
    ----------
    log_a : (n_q, p) float64 array, the pilot's columns of log A = scale * Q K^T; -inf where a pair does not exist. The
        keys come from a stream of their own, and the draws must not be used for anything else.
    mask : (n_q, p) boolean array, the same columns of M; True marks a large entry, which has no part in R.
    n_k : number of keys from which the p were drawn.

    Returns
    -------
    (n_q,) float64 array, -inf for a row whose pilot keys are all masked or absent; `with_median` settles these. Rows do
    not depend on each other.

    Cost: n_q p operations.
    """
    from scipy.special import logsumexp

    return logsumexp(np.where(mask, -np.inf, log_a), axis=1) + math.log(n_k / log_a.shape[1])


def with_median(log_sums) -> np.ndarray:
    """`log_sums` with the median of the finite ones, or 0.0, in place of -inf.

    A row of which the pilot saw nothing may be scaled by any positive factor, and a typical one does least harm.
    """
    informed = np.isfinite(log_sums)
    fallback = np.median(log_sums[informed]) if informed.any() else 0.0
    return np.where(informed, log_sums, fallback)
