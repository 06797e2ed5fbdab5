"""The far part of a rectangle with landmarks, as backends of the host compute it: interpolated from pilots.

Nothing of the size landmarks x keys is kept: the r pilots attend to the far keys exactly, one r x r solve in float64
says how a query combines their outputs, and pairs that are exact leave the combination one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.landmarks import FLOOR


@dataclass(frozen=True, eq=False)
class FarPart:
    """What the pilots know of the far keys F, in the working type.

    Derived: page "theory", section 9.8. With E_ij = e^{s q_i·k_j + ℓ_j - shift_i} and u_i = E_i R, the far sums of
    query i are, relative to e^{shift_i},

        Σ_j E_ij load_j - Σ (u_i·P_l) [v_l - centre, 1, 0],  over the far keys l that are exact for query i,

    with P_lc = e^{s x_c·k_l - lse_c} the softmax of pilot c.

    Attributes
    ----------
    landmarks : (r, d) their keys.
    log_weights : (r,) ℓ.
    mix : (r, r) R.
    loads : (r, d_v + 2) R [out - centre, 1], out the pilots' outputs, and |R 1| FLOOR: what the far sum must exceed.
    pilots : (r, d) x, times s.
    pilot_lse : (r,) their log-sum-exps over F.
    centre, radius : the mean of the far values, and how far the farthest is from it.
    """

    landmarks: np.ndarray
    log_weights: np.ndarray
    mix: np.ndarray
    loads: np.ndarray
    pilots: np.ndarray
    pilot_lse: np.ndarray
    centre: np.ndarray
    radius: float

    @classmethod
    def fit(cls, k, v, rectangle: Rectangle, scale: float, attention: Callable) -> FarPart | None:
        """The far part of a rectangle; None if it has no landmarks or no far key.

        `attention(q, k, v)` is (out, lse) of exact attention at this scale. Cost r n (d + d_v) and one r x r solve.
        """
        far = np.flatnonzero(~rectangle.is_exact)
        if rectangle.landmarks is None or far.size == 0:
            return None
        work, values = k.dtype, v[far]
        geometry = rectangle.landmarks.geometry(k, scale)
        pilots = geometry.pilots.astype(work)
        out, lse = attention(pilots, k[far], values)
        log_weights, mix = geometry.fit(lse.astype(np.float64))
        centre = values.mean(axis=0, dtype=np.float64)
        loads = mix @ np.column_stack([out - centre, np.ones(len(out))])
        loads = np.column_stack([loads, FLOOR * np.abs(loads[:, -1])])
        radius = np.sqrt(np.max(np.sum((values - centre) ** 2, axis=1)))
        log_weights, mix, loads, centre = (x.astype(work) for x in (log_weights, mix, loads, centre))
        landmarks = k[rectangle.landmarks.keys]
        return cls(landmarks, log_weights, mix, loads, work.type(scale) * pilots, lse, centre, float(radius))

    def combination(self, q, scale) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For queries (n, d): u (n, r), the far sums (n, d_v + 2) of all far keys, and the shift (n,)."""
        logits = q.dtype.type(scale) * q @ self.landmarks.T + self.log_weights
        shift = logits.max(axis=1)
        weights = np.exp(logits - shift[:, None])
        return weights @ self.mix, weights @ self.loads, shift

    def sums(self, q, k, v, scale, taken) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `combination`, less the estimates of pairs that are exact.

        `taken` are tiles (rows, keys, hidden) of such pairs, but for those that are hidden.
        """
        combination, sums, shift = self.combination(q, scale)
        for rows, keys, hidden in taken:
            estimates = combination[rows] @ self.shares(k[keys]).T
            estimates[hidden] = 0
            sums[rows] -= estimates @ self.values(v[keys])
        return combination, sums, shift

    def shares(self, k) -> np.ndarray:
        """P (n, r) of far keys (n, d); other keys get no more than 1 either."""
        logits = k @ self.pilots.T
        logits -= self.pilot_lse
        return np.exp(np.minimum(logits, 0, out=logits), out=logits)

    def values(self, v) -> np.ndarray:
        """[v - centre, 1, 0] (n, d_v + 2) of keys with the values v (n, d_v), what their estimates multiply."""
        return np.column_stack([v - self.centre, np.ones(len(v), v.dtype), np.zeros(len(v), v.dtype)])

    def finish(self, sums, shift) -> tuple[np.ndarray, np.ndarray]:
        """(out, lse) of far sums: dropped at the floor, and in the ball of the far values; `sums` is overwritten."""
        out, total, least = sums[:, :-2], sums[:, -2], sums[:, -1]
        is_there = total > least
        safe = np.where(is_there, total, total.dtype.type(1))
        out /= safe[:, None]
        size = np.sqrt(np.einsum("ij,ij->i", out, out))
        outside = size > self.radius
        out[outside] *= (self.radius / size[outside])[:, None]
        out += self.centre
        out[~is_there] = 0
        return out, np.where(is_there, shift + np.log(safe), -np.inf).astype(total.dtype)
