"""The choice of landmarks: a law of the queries from some of them, and keys by randomly pivoted Cholesky."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.plan.landmarks import Landmarks

TILT = 0.5
"""τ, the law's share of the queries' covariance, for a Gaussian of all of it overrates what only its tails want."""
STATISTIC_ROWS = 512
"""Queries whose mean and covariance are taken, at most."""
CANDIDATES = 8
"""Keys among which a landmark is chosen, so many for each."""
NO_RESIDUAL = 1e-12
"""A share of a key's function that rounding leaves when the pivots span all of it."""


def choose_landmarks(q, k, keys: np.ndarray, count: int, scale: float, rng: np.random.Generator, backend) -> Landmarks:
    """Landmarks among some of the keys of a rectangle, for its queries.

    Derived: page "theory", section 9.8. The law of the queries has the mean μ and τ times the covariance of some of
    them. Under it the functions e^{s q·k} have the weights e^{w} and the correlations K. Candidates are drawn by e^{w},
    without replacement; among them randomly pivoted Cholesky draws each landmark by the mean square e^{2w} (K's Schur
    diagonal) of what the former ones miss of its function.

    Parameters
    ----------
    q : (n_q, d) array in the memory of the backend.
    k : (n_k, d) array, likewise.
    keys : key indices to choose from, at least one.
    count : r, how many, or fewer if these span the functions of all candidates, or if there are fewer keys.
    scale : multiplies the logits.
    rng : a stream of its own.
    backend : whose memory q and k are in.

    Returns
    -------
    Landmarks, with ascending keys. Cost O(n_k d² + r³), on the host in float64, and a float64 copy of k.
    """
    memory = memory_of(backend)
    chosen = rng.choice(len(q), size=min(STATISTIC_ROWS, len(q)), replace=False)
    drawn = memory.to_host(memory.copy(q, "float64", rows=np.sort(chosen)))
    k = memory.to_host(memory.copy(k, "float64"))
    mean, factor = _law(drawn)
    y = scale * (k - k.mean(axis=0)) @ factor
    log_weights = (scale * k @ mean + np.sum(y**2, axis=1) / 2)[keys]
    candidates = np.argsort(-(log_weights + rng.gumbel(size=keys.size)), kind="stable")[: CANDIDATES * count]
    pivots = keys[candidates[random_pivots(y[keys[candidates]], log_weights[candidates], count, rng)]]
    # the Plan measures from the mean of the landmarks, which y above does from the mean of all keys
    shift = scale * factor @ (factor.T @ (k[pivots].mean(axis=0) - k.mean(axis=0)))
    return Landmarks(np.sort(pivots), mean + shift, factor)


def _law(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and factor (d, d) of the law, factor factorᵀ = τ Cov(q)."""
    mean = q.mean(axis=0)
    variances, axes = np.linalg.eigh(TILT * (q - mean).T @ (q - mean) / len(q))
    return mean, axes * np.sqrt(np.maximum(variances, 0))


def random_pivots(y: np.ndarray, log_weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices by randomly pivoted Cholesky of e^{w_l + w_l'} e^{-|y_l - y_l'|²/2}, in the order of the draws.

    The largest of log(p) + a Gumbel variable is a draw by p: weights that differ by e^500 need no exponential.
    """
    n = len(y)
    residual, rows, pivots = np.ones(n), np.empty((min(count, n), n)), np.empty(0, np.int64)
    for i in range(len(rows)):
        with np.errstate(divide="ignore"):
            j = np.argmax(2 * log_weights + np.log(residual) + rng.gumbel(size=n))
        if residual[j] == 0:
            break
        rows[i] = np.exp(-cdist(y[j : j + 1], y, "sqeuclidean")[0] / 2) - rows[:i, j] @ rows[:i]
        rows[i] /= np.sqrt(residual[j])
        residual -= rows[i] ** 2
        pivots = np.append(pivots, j)
        residual[pivots] = 0
        residual[residual < NO_RESIDUAL] = 0
    return pivots
