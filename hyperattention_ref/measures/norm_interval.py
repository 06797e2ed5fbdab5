"""The operator norm of a nonnegative matrix as an interval, from few products, whatever its spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

GROUPS = 8
"""Columns of the first block."""
ROUNDS = 12
TOLERANCE = 5e-4
"""Relative width of the interval at which the method stops: three digits are certain."""
TRIALS = np.array([0.6, 2.4, 9.6]) * 2 * TOLERANCE
"""How far above the lower bound of ||P||_op^2 upper bounds are tried; the first is within the tolerance."""


def norm_interval(gram: Callable[[np.ndarray], np.ndarray], column_squares: np.ndarray) -> tuple[float, float]:
    """Bounds on both sides of the operator norm of a matrix P with nonnegative entries.

    Derived: page "theory", 9.7. The lower bound is the largest Ritz value of G = P^T P in a block Krylov space that
    starts from groups of columns. The upper bound is the least max_i (G w)_i / w_i over positive vectors w
    (Collatz-Wielandt); w approximates (t - G)^-1 1, which is positive with a ratio below t for every t > ||P||_op^2,
    so that the bound needs no gap between singular values.

    Parameters
    ----------
    gram : from float64 (n, c) X to G X, float64.
    column_squares : (n,) the squared norms of the columns of P, not all 0.

    Returns
    -------
    low, high : low <= ||P||_op <= high up to the rounding of the products. high / low - 1 is at most 5e-4, or what
        12 rounds have reached.

    Cost: 1 to 12 products with 3 to 11 columns, and O(n) per round; 200 vectors (n,) at most.
    """
    n, high = len(column_squares), float(column_squares.sum())
    basis = products = np.empty((n, 0))
    block, trials = _groups(column_squares), np.ones((n, 1))
    for _ in range(ROUNDS):
        new, tried = np.hsplit(gram(np.hstack([block, trials])), [block.shape[1]])
        high = min(high, float((tried / trials).max(axis=0).min()))
        basis, products = np.hstack([basis, block]), np.hstack([products, new])
        values, vectors = np.linalg.eigh(basis.T @ products)
        low = float(values[-1])
        if high <= low * (1 + TOLERANCE) ** 2:
            break
        t = low * (1 + TRIALS)
        solutions = vectors @ ((vectors.T @ basis.sum(axis=0))[:, None] / (t - values[:, None]))
        trials = (1 + np.maximum(products @ solutions, 0)) / t  # (t - G) w = 1, so w = (1 + G w) / t >= 1 / t
        block = _orthonormal(new / low, basis)
    return math.sqrt(low), math.sqrt(max(low, high))


def _groups(column_squares: np.ndarray) -> np.ndarray:
    """(n, g) orthonormal: the heaviest column, the next 2, the next 4, ..., all the others; they span 1."""
    heavy = np.argsort(-column_squares, kind="stable")
    ends = [end for end in (2**g - 1 for g in range(1, GROUPS)) if end < len(heavy)]
    groups = np.zeros((len(heavy), len(ends) + 1))
    for g, columns in enumerate(np.split(heavy, ends)):
        groups[columns, g] = len(columns) ** -0.5
    return groups


def _orthonormal(x: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What the columns of x, which are O(1), add to the span of an orthonormal basis; (n, 0) if it is nothing."""
    for _ in range(2):  # the first time leaves rounding errors
        x = x - basis @ (basis.T @ x)
        x, sizes, _ = np.linalg.svd(x, full_matrices=False)
        x = x[:, sizes > 1e-10]
    return x
