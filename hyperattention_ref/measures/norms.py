"""Operator norm, Frobenius norm and stable rank of a dense matrix with entries of any scale."""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref.foundation import inputs

SMALL = 128  # up to this many rows or columns, all eigenvalues of the Gram matrix cost less than Lanczos
RESTARTS = 20  # of ten products each, after which all eigenvalues cost about as much as going on


def operator_norm(x) -> float:
    """The largest singular value of a dense real matrix.

    Paper: the norm of (1), of Lemma 1 and of Lemma 2. It is the square root of the largest eigenvalue of the smaller
    Gram matrix: all its eigenvalues when min(n, m) <= 128, else the Lanczos method (ARPACK). Its start vector is fixed
    and pseudo-random, so that no structured matrix has a top singular vector orthogonal to it. If Lanczos does not
    converge in 20 restarts, all eigenvalues are computed here, too.

    Parameters
    ----------
    x : (n, m) float16, float32 or float64 array with entries of any scale; computed in float64.

    Returns
    -------
    float, correct to about 1e-12 relative; the same bits on repetition with the same number of threads.

    Raises
    ------
    TypeError, ValueError : `x` is not a finite floating-point matrix.
    OverflowError : the norm itself exceeds the largest float64.

    Cost: n m per Lanczos step, 20 to 220 steps; for a small side, or where Lanczos gives up, n m min(n, m).
    """
    x, exponent = _scaled(_matrix(x))
    if not x.any():
        return 0.0
    if x.shape[0] < x.shape[1]:
        x = x.T
    norm = _gram_norm(x) if x.shape[1] <= SMALL else _lanczos_norm(x)
    return math.ldexp(norm, exponent)


def frobenius_norm(x) -> float:
    """The square root of the sum of squared entries, without the overflow or underflow of the squares.

    Parameters, errors and cost (n m) as for `operator_norm`.
    """
    x, exponent = _scaled(_matrix(x))
    return math.ldexp(float(np.linalg.norm(x)), exponent)


def stable_rank(x) -> float:
    """The stable rank ||x||_F^2 / ||x||_op^2 of a dense real matrix; 0.0 for a zero matrix.

    Paper: srank of Lemma 2. It lies between 1 and the rank. Parameters, errors and cost as for `operator_norm`.
    """
    x, _ = _scaled(_matrix(x))
    norm = operator_norm(x)
    return (frobenius_norm(x) / norm) ** 2 if norm else 0.0


def _matrix(x) -> np.ndarray:
    x = inputs.floating("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x has shape {x.shape}; it must be one matrix (n, m) with n, m >= 1: pass one at a time")
    return x.astype(np.float64)


def _scaled(x: np.ndarray) -> tuple[np.ndarray, int]:
    """`x` times a power of two, exactly, with largest entry in [1/2, 1), and the exponent that reverts it."""
    exponent = math.frexp(max(x.max(), -x.min()))[1]
    return np.ldexp(x, -exponent), exponent


def _gram_norm(x: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(x.T @ x)[-1]) ** 0.5


def _lanczos_norm(x: np.ndarray) -> float:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    m = x.shape[1]
    gram = LinearOperator((m, m), matvec=lambda u: x.T @ (x @ u.ravel()), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(m)
    try:
        (square,) = eigsh(gram, 1, which="LA", v0=start, tol=1e-12, maxiter=RESTARTS, return_eigenvectors=False)
    except ArpackNoConvergence:
        return _gram_norm(x)
    return float(square) ** 0.5
