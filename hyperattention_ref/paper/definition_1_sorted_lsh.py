"""Definition 1: Hamming-sorted LSH."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.plan.noise import MAX_BITS


def hamming_sorted_lsh(x, planes) -> np.ndarray:
    """Bucket numbers of vectors, ordered so that neighbouring buckets differ in one hyperplane.

    Paper: Definition 1. With theta the angle of x and y,
    Pr[H(x) = H(y)] = (1 - theta/pi)^r and Pr[H(x) = H(y) +- 1 (mod 2^r)] = (2 theta/pi) (1 - theta/pi)^{r-1}.
    Differs from the paper: for r = 1 the two neighbours are one bucket, and the second probability is theta/pi.

    Parameters
    ----------
    x : (..., n, d) float array, the rows to hash.
    planes : (r, d) float array, normals of r hyperplanes, 1 <= r <= 62. Gaussian i.i.d. entries give Definition 1.

    Returns
    -------
    (..., n) int64 in 0 .. 2^r - 1. Cost O(n r d).
    """
    x, planes = inputs.floating("x", x), hyperplanes(planes)
    if x.ndim < 2 or x.shape[-1] != planes.shape[1]:
        raise ValueError(f"x has shape {x.shape}; it must be (..., n, d) with d = {planes.shape[1]} as planes have")
    bits = scaled_rows(x.astype(np.float64)) @ scaled_rows(planes).T > 0  # the zero vector has no bit set
    return gray_rank(bits)


def scaled_rows(x) -> np.ndarray:
    """Each row times a power of two that brings its largest entry into [1/2, 1): no dot product leaves the range.

    Hashing asks for signs only, and this keeps them; a row of zeros stays.
    """
    _, exponent = np.frexp(np.abs(x).max(axis=-1, keepdims=True))
    return np.ldexp(x, -exponent)


def gray_rank(bits) -> np.ndarray:
    """The rank of a bit pattern in the Gray sequence.

    Ranks k and k + 1 (cyclically) have patterns that differ in exactly one bit. `bits` is (..., r) boolean, the first
    bit the most significant; the result is (...,) int64. Bit p of the rank is the exclusive or of pattern bits 0 .. p.
    """
    rank_bits = np.bitwise_xor.accumulate(bits.astype(np.int64), axis=-1)
    powers = 1 << np.arange(rank_bits.shape[-1] - 1, -1, -1)
    return rank_bits @ powers


def hyperplanes(planes) -> np.ndarray:
    """The caller's hyperplanes `(r, d)`, checked, as float64."""
    planes = inputs.floating("planes", planes)
    if planes.ndim != 2 or not 1 <= planes.shape[0] <= MAX_BITS:
        raise ValueError(f"planes have shape {planes.shape}; they must be (r, d) with 1 <= r <= {MAX_BITS}")
    return planes.astype(np.float64)
