"""Pure noise: everything random that practical HyperAttention uses, before any data is seen.

A `Draw` depends on shapes and a seed only. A `Plan` turns it, with the inputs, into decisions; a backend does the
arithmetic. Keeping the three apart is what makes results comparable across backends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_BITS = 62
"""Hyperplanes of a hash, at most: bucket numbers are int64."""


@dataclass(frozen=True, eq=False)
class Draw:
    """The noise for one rectangle of one head, or for several ones, which are then the first dimension.

    Parameters
    ----------
    planes : (..., r, d) float64, the normals of r Gaussian hyperplanes (Definition 1).
    uniforms : (..., m) float64 in [0, 1), one for each sampled key.
    """

    planes: np.ndarray
    uniforms: np.ndarray

    @classmethod
    def sample(cls, rng: np.random.Generator, rectangles: int, *, d: int, lsh_bits: int, sample_size: int) -> Draw:
        """The noise for the rectangles of one head: all planes first, then all uniforms, from one stream."""
        return cls(rng.standard_normal((rectangles, lsh_bits, d)), rng.random((rectangles, sample_size)))

    def __iter__(self) -> Iterator[Draw]:
        """The draw of each rectangle."""
        return (Draw(*one) for one in zip(self.planes, self.uniforms, strict=True))

    def keys(self, n_k: int | np.ndarray) -> np.ndarray:
        """(..., m) key indices, i.i.d. uniform in 0 .. n_k - 1: floor(u n_k)."""
        return np.minimum((self.uniforms * n_k).astype(np.int64), np.asarray(n_k) - 1)
