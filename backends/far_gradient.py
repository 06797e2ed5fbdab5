"""The gradient of the far part of a rectangle with landmarks, as backends of the host compute it: back through pilots.

Page "theory", section 9.10. Names are those of `FarPart`; what has r rows only is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from hyperattention_ref.foundation.memory import working_dtype
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.landmarks import RIDGE, Geometry, Landmarks

from .far_part import FarPart
from .reference_gradient import ball_gradient
from .tiles import taken_tiles
from .upstream import Upstream, gradients_of_heads


def gradients_with_far_parts(head_gradient, attention, plan, q, k, v, results, *, scale, is_causal):
    """(dq, dk, dv) of all heads: what `head_gradient` gives, and the far parts; `results` are (out, lse, dout, dlse).

    `head_gradient(q, k, v, upstream, *, head_plan, scale, is_causal)` is the backend's own, without far parts, and
    `attention(q, k, v)` its (out, lse) of exact attention at this scale.
    """
    back = partial(head_gradient, head_plan=None, scale=scale, is_causal=False)

    def one_head(q, k, v, head_plan, upstream):
        found = head_gradient(q, k, v, upstream, head_plan=head_plan, scale=scale, is_causal=is_causal)
        if head_plan is not None:
            add_far_parts(found, q, k, v, head_plan, upstream, scale, attention, back)
        return found

    return gradients_of_heads(one_head, plan, q, k, v, results, working_dtype(q))


def add_far_parts(gradients, q, k, v, head_plan: HeadPlan, upstream: Upstream, scale, attention, back) -> None:
    """Add those of all far parts of a head to `gradients` (dq, dk, dv).

    `attention(q, k, v)` is (out, lse) of exact attention, `back(q, k, v, upstream)` its gradient, both at this scale.
    """
    for rectangle in head_plan.rectangles:
        rows, keys = rectangle.rows_and_keys
        arrays, part = (q[rows], k[keys], v[keys]), upstream.of(rows)
        far = far_gradient(*arrays, rectangle, head_plan.lists, part, scale, attention, back)
        if far is not None:
            for total, place, x in zip(gradients, (rows, keys, keys), far, strict=True):
                total[place] += x


def far_gradient(q, k, v, rectangle: Rectangle, lists, upstream: Upstream, scale, attention: Callable, back: Callable):
    """(dq, dk, dv) of the far part; None if there is none. The plan's numbers and the floor are held constant.

    `lists` are the head's; `attention` and `back` as in `add_far_parts`.
    """
    far = np.flatnonzero(~rectangle.is_exact)
    if rectangle.landmarks is None or far.size == 0:
        return None
    geometry, marks = rectangle.landmarks.geometry(k, scale), rectangle.landmarks.keys
    pilots = geometry.pilots.astype(k.dtype)
    out, lse = attention(pilots, k[far], v[far])
    part = FarPart.fit(k, v, rectangle, scale, lambda *_: (out, lse))
    assert part is not None
    combination, sums, shift = part.sums(q, k, v, scale, taken_tiles(rectangle, lists))
    y, d_values = _of_sums(part, sums, shift, v[far], upstream)

    means = np.column_stack([out - part.centre, np.ones(len(out), out.dtype)])
    d_combination, dk, dv, d_pilots, d_lse = _of_pairs(part, k, v, combination, y, means, scale, rectangle, lists)
    e = np.exp(q.dtype.type(scale) * q @ part.landmarks.T + part.log_weights - shift[:, None])
    d_rows = e * (d_combination @ part.mix.T)  # u = E R
    d_fit = _of_fit(geometry, k[marks], lse, scale, (e.T @ d_combination).astype(np.float64), -d_rows.sum(axis=0))
    d_pilots += d_fit.pilots
    d_out, d_lse = (combination.T @ y)[:, :-1], (d_lse + d_fit.lse).astype(lse.dtype)
    of_pilots, dk_far, dv_far = back(pilots, k[far], v[far], Upstream(out, lse, d_out, d_lse))
    dk[far] += dk_far
    dv[far] += dv_far + d_values
    of_marks = d_fit.marks + _of_geometry(geometry, k[marks], rectangle.landmarks, scale, d_fit, d_pilots + of_pilots)
    dk[marks] += scale * d_rows.T @ q + of_marks
    return q.dtype.type(scale) * d_rows @ k[marks], dk, dv


def _of_sums(part: FarPart, sums, shift, values, upstream: Upstream):
    """y (n_q, d_v + 1), for which da_il = y_i·[v_l - centre, 1], and what the ball gives to the far values."""
    total, is_there = sums[:, -2], sums[:, -2] > sums[:, -1]
    mean = part.centre + sums[:, :-2] / np.where(is_there, total, 1)[:, None]
    scaled = np.where(is_there, np.exp(np.where(is_there, shift - upstream.lse, 0)), 0)  # e^{shift - L}
    through, d_values, moved = ball_gradient(mean, values, upstream.dout, scaled * total)
    delta = np.sum(through * (mean - part.centre), axis=1) - np.sum(upstream.dout * moved, axis=1) + upstream.delta
    return (scaled[:, None] * np.column_stack([through, -delta])).astype(sums.dtype), d_values


def _of_pairs(part: FarPart, k, v, combination, y, means, scale, rectangle, lists):
    """Gradients of u (n_q, r), keys, values, pilots and their lse, of u·[o - centre, 1] less the pairs taken out."""
    d_combination = y @ means.T
    dk, dv = np.zeros(k.shape, k.dtype), np.zeros(v.shape, v.dtype)
    d_pilots, d_lse = np.zeros(part.pilots.shape), np.zeros(len(part.pilots))
    for rows, keys, hidden in taken_tiles(rectangle, lists):
        shares = part.shares(k[keys])
        estimates, slopes = combination[rows] @ shares.T, y[rows] @ part.values(v[keys])[:, :-1].T
        estimates[hidden], slopes[hidden] = 0, 0
        d_combination[rows] -= slopes @ shares  # a_il = u_i·P_l
        d_logits = -shares * (slopes.T @ combination[rows])  # P_lc = e^{s x_c·k_l - L_c}
        dk[keys] += d_logits @ part.pilots
        dv[keys] -= estimates.T @ y[rows, :-1]
        d_pilots += scale * d_logits.T @ k[keys]
        d_lse -= d_logits.sum(axis=0)
    return d_combination, dk, dv, d_pilots, d_lse


class _FitGradient(NamedTuple):
    """What comes back through R and ℓ: to pilots, log-sum-exps, landmarks, weights w and correlations K."""

    pilots: np.ndarray
    lse: np.ndarray
    marks: np.ndarray
    weights: np.ndarray
    correlations: np.ndarray


def _of_fit(geometry: Geometry, marks, lse, scale, d_mix, d_weights) -> _FitGradient:
    """Back through R = (K + λI)⁻¹ diag(e^{b - B}), b_c = w_c - s x_c·k_c + L_c; the sums do not depend on B."""
    _, mix = geometry.fit(lse.astype(np.float64))
    ridged = geometry.correlations + RIDGE * np.eye(len(mix))
    d_b = np.sum(mix * d_mix, axis=0)
    of_products = -scale * d_b[:, None]
    d_correlations = -np.linalg.solve(ridged, d_mix @ mix.T)
    return _FitGradient(of_products * marks, d_b, of_products * geometry.pilots, d_weights + d_b, d_correlations)


def _of_geometry(geometry: Geometry, marks, landmarks: Landmarks, scale, d_fit: _FitGradient, d_pilots):
    """Back to the landmarks' keys (r, d) through x = μ + F y, w = s μ·k + |y|²/2, K = e^{-|y_c - y_j|²/2}, y."""
    y = scale * (marks - marks.mean(axis=0)) @ landmarks.factor
    pull = -d_fit.correlations * geometry.correlations
    pull = pull + pull.T
    dy = d_pilots @ landmarks.factor + d_fit.weights[:, None] * y
    dy += pull.sum(axis=1)[:, None] * y - pull @ y
    return scale * (d_fit.weights[:, None] * landmarks.mean + (dy - dy.mean(axis=0)) @ landmarks.factor.T)
