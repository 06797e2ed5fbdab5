"""Operator norm, Frobenius norm and stable rank of a dense matrix with entries of any scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from hyperattention_ref.foundation import inputs

SMALL = 128  # up to this many rows or columns, all eigenvalues of the Gram matrix cost less than Lanczos


def operator_norm(x) -> float:
    """The largest singular value of a dense real matrix.

    Paper: the norm of (1), of Lemma 1 and of Lemma 2. It is the square root of the largest eigenvalue of the smaller
    Gram matrix: all its eigenvalues when min(n, m) <= 128, else the Lanczos method (ARPACK). Its start vector is fixed
    and pseudo-random, so that no structured matrix has a top singular vector orthogonal to it. If Lanczos does not
    converge quickly, the dense SVD is used.

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

    Cost: n m min(n, m) operations for a small side, else n m per Lanczos step, usually 20 to 100 steps.
    """
    x, exponent = _scaled(_matrix(x))
    if not x.any():
        return 0.0
    if x.shape[0] < x.shape[1]:
        x = x.T
    norm = float(np.linalg.eigvalsh(x.T @ x)[-1]) ** 0.5 if x.shape[1] <= SMALL else _large_norm(x)
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


def gram_norm(gram: Callable[[np.ndarray], np.ndarray], n: int, tolerance: float) -> tuple[float, float]:
    """The operator norm of a matrix X, from the products u -> X^T X u alone, and its residual.

    Derived: a Rayleigh quotient and the residual of its vector; the vector comes from Lanczos (ARPACK).

    Parameters
    ----------
    gram : from a float64 vector (n,) to X^T X times it.
    n : number of columns of X.
    tolerance : relative accuracy of the products, where Lanczos stops.

    Returns
    -------
    norm : sqrt(u^T X^T X u) for a unit vector u: at most ||X||_op.
    residual : ||X^T X u - norm^2 u||: some squared singular value of X lies within this distance of norm^2.

    Raises
    ------
    RuntimeError : ARPACK does not converge in 300 restarts.

    Cost: usually 10 to 50 products.
    """
    _, vectors = _lanczos(gram, n, tol=tolerance, maxiter=300)
    u = vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    product = gram(u)
    square = float(u @ product)
    return math.sqrt(square), float(np.linalg.norm(product - square * u))


def _matrix(x) -> np.ndarray:
    x = inputs.floating("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x has shape {x.shape}; it must be one matrix (n, m) with n, m >= 1: pass one at a time")
    return x.astype(np.float64)


def _scaled(x: np.ndarray) -> tuple[np.ndarray, int]:
    """`x` times a power of two, exactly, with largest entry in [1/2, 1), and the exponent that reverts it."""
    exponent = math.frexp(max(x.max(), -x.min()))[1]
    return np.ldexp(x, -exponent), exponent


def _large_norm(x: np.ndarray) -> float:
    from scipy.sparse.linalg import ArpackError

    try:
        # 50 restarts cost about as much as the dense SVD of a square matrix with a thousand rows.
        (eigenvalue,) = _lanczos(lambda u: x.T @ (x @ u), x.shape[1], tol=1e-12, maxiter=50, return_eigenvectors=False)
    except ArpackError:
        return float(np.linalg.norm(x, 2))
    return float(eigenvalue) ** 0.5


def _lanczos(gram, n: int, **options):
    """The largest eigenvalue of u -> X^T X u, (n,), from a fixed pseudo-random start: the result of `eigsh`."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator((n, n), matvec=lambda u: gram(u.ravel()), dtype=np.float64)
    return eigsh(operator, k=1, which="LA", v0=np.random.default_rng(0).standard_normal(n), **options)
