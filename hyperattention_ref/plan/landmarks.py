"""Landmarks: exact keys of a rectangle that also stand for its far keys, those that are exact for nobody as a whole.

Rule 4 of the Plan (docs, page "theory"). The Plan fixes the landmarks and a Gaussian law of the queries; with the
inputs these make virtual queries, the *pilots*, and the far part of every query is interpolated from what exact
attention to the far keys gives at the pilots.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from hyperattention_ref.foundation.host_arrays import host_array
from hyperattention_ref.plan.block_mask import index_array

RIDGE = 1e-3
"""λ, added to the diagonal of K. It bounds the condition of K by (r + λ)/λ, and costs a share of λ/r of the far part
where all keys or all queries are equal."""
FLOOR = 1e-3
"""The far weight of a query counts if it exceeds this share of the sum of its landmarks' parts in absolute value."""


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Which keys stand for the far keys of a rectangle, and the law of queries for which they do it best.

    Derived: page "theory", section 9.8. With q = mean + factor z, z ~ N(0, I), and the landmarks k_1 .. k_r:

        y_c = scale factorᵀ (k_c - mean of the landmarks),  x_c = mean + factor y_c,   the pilots,
        w_c = scale meanᵀ k_c + |y_c|²/2,                   K_cj = e^{-|y_c - y_j|²/2},
        e^{scale q·k} ≈ Σ_j e^{scale q·k_j - w_j} Σ_c (K + λI)⁻¹_jc e^{w_c - scale x_c·k_c} e^{scale x_c·k}.

    K is the correlation of the functions q ↦ e^{scale q·k_j} under the law, up to weights; for λ = 0 the sum is exact
    at the pilots: it interpolates.

    Parameters
    ----------
    keys : (r,) key indices, r >= 1, each once; a Rectangle needs them among its exact keys.
    mean : (d,) finite float64, the mean of the queries, in their units.
    factor : (d, m) finite float64, m >= 1; factor factorᵀ is the covariance of the queries.
    """

    keys: np.ndarray
    mean: np.ndarray
    factor: np.ndarray

    def __post_init__(self):
        keys = index_array("keys", self.keys)
        if keys.size == 0 or np.unique(keys).size < keys.size:
            raise ValueError(f"landmarks have {keys.size} keys; they need at least one, each once")
        object.__setattr__(self, "keys", keys)
        for name in ("mean", "factor"):
            x = host_array(name, getattr(self, name)).astype(np.float64)
            if not np.all(np.isfinite(x)):
                raise ValueError(f"{name} of the landmarks has non-finite entries; all must be finite")
            x.setflags(write=False)
            object.__setattr__(self, name, x)
        if (
            self.mean.ndim != 1
            or self.factor.ndim != 2
            or self.factor.shape[0] != self.mean.size
            or not self.factor.size
        ):
            raise ValueError(
                f"mean has shape {self.mean.shape} and factor {self.factor.shape}; they must be (d,) and (d, m), m >= 1"
            )

    def __reduce__(self):
        # A copy and unpickled landmarks are made anew, so that they are checked, and as immutable as these.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @property
    def d(self) -> int:
        return self.mean.size

    def largest_pilot(self, scale: float, largest_key: float) -> float:
        """A bound of the entries of the pilots, from that of the keys."""
        with np.errstate(over="ignore"):
            rows = np.abs(self.factor).sum(axis=1).max() * np.abs(self.factor).max()
            return float(np.abs(self.mean).max() + abs(scale) * 2 * self.d * largest_key * rows)

    def geometry(self, k, scale: float) -> Geometry:
        """Pilots, weights and correlations, from the keys k (n_k, d) of the rectangle. Cost O(r (r + d) m), float64."""
        k = k[self.keys].astype(np.float64)
        y = scale * (k - k.mean(axis=0)) @ self.factor
        squares = cdist(y, y, "sqeuclidean")
        weights = scale * k @ self.mean + np.sum(y**2, axis=1) / 2
        pilots = self.mean + y @ self.factor.T
        return Geometry(pilots, weights, np.exp(-squares / 2), weights - scale * np.sum(pilots * k, axis=1))


class Geometry(NamedTuple):
    """What landmarks and their law make of the keys, all float64.

    Attributes
    ----------
    pilots : (r, d) x_c.
    weights : (r,) w_c.
    correlations : (r, r) K.
    offsets : (r,) w_c - scale x_c·k_c.
    """

    pilots: np.ndarray
    weights: np.ndarray
    correlations: np.ndarray
    offsets: np.ndarray

    def fit(self, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How the far part is interpolated, given the log-sum-exps (r,) of the pilots over the far keys.

        Returns
        -------
        log_weights : (r,) ℓ_j = B - w_j, B the largest b_c = offset_c + lse_c.
        mix : (r, r) R = (K + λI)⁻¹ diag(e^{b - B}); e^{scale q·k} ≈ Σ_j e^{scale q·k_j + ℓ_j} Σ_c R_jc P_c(k), with
            P_c the softmax of pilot c over the far keys.
        """
        b = self.offsets + lse
        ridged = self.correlations + RIDGE * np.eye(len(b))
        return b.max() - self.weights, np.linalg.solve(ridged, np.diag(np.exp(b - b.max())))
