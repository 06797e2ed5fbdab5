"""How far rounding can take the far part of a rectangle with landmarks, and with it the attention.

Derived (page "numerics"). u and t are as in `error_bound`, u₂ the unit roundoff of float64, in which pilots, K and the
r x r solve are computed. Absolute values stand for sums without cancellation:

    Y_l = |s| (|k_l| + mean over landmarks of |k|)ᵀ |F|,    X_c = |μ| + |F| Y_c,
    G_cl = |s| (X_c + |μ|)ᵀ |k_l| + 2 |Y_c + Y_l|²,         g = γ_{2(d + m + r) + 10}(u₂), twice: both sides have it.

- A pilot's logit is wrong by η_cl = η of `error_bound` + u |s| |x_c|ᵀ|k_l| + 2 g G_cl, so its lse by λ_c, its sums of
  shares by ε_c = Σ_l P_cl (e^{η_cl + λ_c + 4u |x_cl - L_c|} - 1), and b_c by β_c = λ_c + 2 g G_cc.
- K + λI is wrong by at most Δ_cj = 2 (g |Y_c + Y_j|² K_cj + 6 r² u₂), so R by |δR| ≤ (I - N)⁻¹ N |R|, where
  N = |(K + λI)⁻¹| Δ.
- E_ij is wrong by η_ij, that of a logit s q·k_j + ℓ_j. It multiplies what the landmark stands for after the exact pairs
  have left, H_ij = Σ_l (R P_l)_j [1, v_l - centre] over the other far keys; an error of pilot c multiplies u_ic.
- With h_j = Σ_l (R P_l)_j over all far keys, t_ic the shares of pilot c in the K_i pairs taken out, A_i = E_i |R| and
  σ = 8u (r + 2), the far denominator is wrong by

      δD = Σ_j E_ij ((e^{η_ij} - 1) |H_ij| + σ |h_j| + Σ_c (|δR_jc| + 4 r u₂ |R_jc|))
           + Σ_c |u_ic| (e^{β_c} - 1 + ε_c) + Σ_c t_ic (σ A_ic + (σ + 8u K_i) |u_ic|),

  and the numerator by the same with the vectors H and h, times |v - centre| for what has neither, and 3 |v| times
  Σ_c |u_ic| (e^{β_c} - 1 + ε_c + 2u) for the pilots; |v| stands for the largest entry of a column.

Where D exceeds its floor by more than δD the far part is there on both sides, its mean N/D is wrong by
(δN + |N/D| δD)/(D - δD), in norm where the ball may cut it, and its lse by -ln(1 - δD/D). Where D is within δD of its
floor the far part is in doubt: each side has it or not, with a weight up to D + δD and any mean in the ball.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.landmarks import FLOOR, RIDGE, Landmarks

from .error_bound import Rounding, head_terms

U2 = float(np.finfo(np.float64).eps) / 2


class FarError(NamedTuple):
    """The far part of some queries in float64, and what rounding may do to it.

    Attributes
    ----------
    rows : the queries in their head.
    out, lse : (n, d_v) and (n,); lse is -inf where the far part is not certain to be there.
    out_error, lse_error : (n, d_v) and (n,), where it is certain.
    most : (n,) log of the largest weight that it may have where it is in doubt; -inf where it is certain, or certainly
        not there.
    centre, radius : (d_v,) and a number: the ball of the far values.
    """

    rows: slice
    out: np.ndarray
    lse: np.ndarray
    out_error: np.ndarray
    lse_error: np.ndarray
    most: np.ndarray
    centre: np.ndarray
    radius: float


def far_error(
    q, k, v, rectangle: Rectangle, listed, scale: float, dtype, *, random_walk: bool = False
) -> FarError | None:
    """For one rectangle, whose q, k, v and listed pairs (n_q, n_k) are given; None if it has no far part.

    With `random_walk` what is in doubt stays as it is without: a decision is right or wrong.
    """
    landmarks = rectangle.landmarks
    if landmarks is None or rectangle.exact_keys.size == rectangle.n_k:
        return None
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    strict = _far_error(q, k, v, rectangle, landmarks, listed, scale, Rounding.of(dtype))
    if not random_walk:
        return strict
    usual = _far_error(q, k, v, rectangle, landmarks, listed, scale, Rounding.of(dtype, random_walk=True))
    return usual._replace(lse=np.where(np.isneginf(strict.lse), -np.inf, usual.lse), most=strict.most)


def _far_error(
    q, k, v, rectangle: Rectangle, landmarks: Landmarks, listed, scale: float, rounding: Rounding
) -> FarError:
    far, u = np.flatnonzero(~rectangle.is_exact), rounding.u
    fit = _fit(k, far, landmarks, scale, rounding)
    terms = head_terms(q, k[landmarks.keys], scale)
    rows = terms.logits + fit.log_weights
    shift = rows.max(axis=1)
    weights = np.exp(rows - shift[:, None])
    n_landmarks = float(rounding.count(landmarks.keys.size))
    steps = 4 * np.abs(fit.log_weights) + 3 * (shift[:, None] - rows) + 8 * (n_landmarks + 1)
    errors = weights * np.expm1(1.05 * (terms.of_logits(rounding) + u * steps) + fit.own)
    taken = (rectangle.toarray() | listed)[:, far]
    centre = v[far].mean(axis=0)
    columns = np.column_stack([np.ones(far.size), v[far] - centre])  # the denominator, then the numerator

    per_key, sigma = fit.mix @ fit.shares, 8 * u * (n_landmarks + 2)
    combination, sizes = np.abs(weights @ fit.mix), weights @ np.abs(fit.mix)
    mass = taken @ fit.shares.T
    counts = 8 * u * rounding.count(taken.sum(axis=1))
    rest = np.sum(mass * (sigma * sizes + (sigma + counts[:, None]) * combination), axis=1)
    rest += weights @ (fit.mix_error.sum(axis=1) + 4 * len(fit.mix) * U2 * np.abs(fit.mix).sum(axis=1))
    of_pilots = np.expm1(fit.lse_error + fit.own) + fit.share_error
    sums, sums_error = np.empty((len(q), columns.shape[1])), np.empty((len(q), columns.shape[1]))
    for e, column in enumerate(columns.T):
        whole = per_key @ column
        left = whole - (taken * column) @ per_key.T
        sums[:, e] = np.sum(weights * left, axis=1)
        sums_error[:, e] = np.sum(errors * np.abs(left), axis=1) + sigma * weights @ np.abs(whole)
        sums_error[:, e] += rest * np.abs(column).max()
        largest = 3 * np.abs(v[far, e - 1]).max() if e else 1
        sums_error[:, e] += largest * combination @ (of_pilots + (2 * u if e else 0))
    load = np.abs(fit.mix.sum(axis=1))
    floor = FLOOR * weights @ load
    total_error = sums_error[:, 0] + FLOOR * (errors @ load + sizes @ of_pilots + rest)
    result = _Sums(shift, sums[:, 0], floor, sums[:, 1:], total_error, sums_error[:, 1:])
    return _judged(rectangle.rows_and_keys[0], result, centre, columns[:, 1:], rounding)


class _Fit(NamedTuple):
    """The fit in float64, and errors: lse_error λ, share_error ε, own 2 g G_cc, all (r,); mix_error |δR| (r, r)."""

    log_weights: np.ndarray
    mix: np.ndarray
    shares: np.ndarray
    lse_error: np.ndarray
    share_error: np.ndarray
    own: np.ndarray
    mix_error: np.ndarray


def _fit(k, far, landmarks: Landmarks, scale: float, rounding: Rounding) -> _Fit:
    r, u = landmarks.keys.size, rounding.u
    geometry = landmarks.geometry(k, scale)
    absolute, spread = _absolute(k, landmarks, scale)
    pilots = head_terms(geometry.pilots, k[far], scale)
    top = pilots.logits.max(axis=1, keepdims=True)
    lse = (top + np.log(np.exp(pilots.logits - top).sum(axis=1, keepdims=True)))[:, 0]
    below = pilots.logits - lse[:, None]
    shares = np.exp(below)
    log_weights, mix = geometry.fit(lse)
    eta = pilots.eta(rounding) + u * pilots.sizes + absolute[:, far]
    lse_error = np.log1p((shares * np.expm1(eta)).sum(axis=1)) + rounding.of_log(far.size, lse)
    eta += lse_error[:, None] + 4 * u * np.abs(below)
    share_error = (shares * np.expm1(eta)).sum(axis=1) + 4 * far.size * rounding.t
    solve = np.abs(np.linalg.inv(geometry.correlations + RIDGE * np.eye(r)))
    relative = solve @ (spread * geometry.correlations + 12 * r * r * U2)
    is_solved = relative.sum(axis=1).max() < 1
    mix_error = np.linalg.solve(np.eye(r) - relative, relative @ np.abs(mix)) if is_solved else np.full((r, r), np.inf)
    own = absolute[np.arange(r), landmarks.keys]
    return _Fit(log_weights, mix, shares, lse_error, share_error, own, mix_error)


def _absolute(k, landmarks: Landmarks, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """2 g G (r, n_k), and 2 g |Y_c + Y_j|² (r, r)."""
    n_steps = 2 * (landmarks.d + landmarks.factor.shape[1] + landmarks.keys.size) + 10
    g = n_steps * U2 / (1 - n_steps * U2)
    k, factor, mean = np.abs(k), np.abs(landmarks.factor), np.abs(landmarks.mean)
    y = abs(scale) * (k + k[landmarks.keys].mean(axis=0)) @ factor
    x = 2 * mean + y[landmarks.keys] @ factor.T
    squares = np.stack([np.sum((y + y[c]) ** 2, axis=1) for c in landmarks.keys])
    return 2 * g * (abs(scale) * x @ k.T + 2 * squares), 2 * g * squares[:, landmarks.keys]


class _Sums(NamedTuple):
    """The far sums of all queries, relative to e^shift, and their errors; `values` is relative to the centre."""

    shift: np.ndarray
    total: np.ndarray
    floor: np.ndarray
    values: np.ndarray
    total_error: np.ndarray
    values_error: np.ndarray


def _judged(rows: slice, sums: _Sums, centre, values, rounding: Rounding) -> FarError:
    """Whether the far part of each query is there, and its error."""
    shift, u = sums.shift, rounding.u
    is_certain = sums.total - sums.floor > sums.total_error
    total = np.where(is_certain, sums.total, 1)
    left = np.where(is_certain, sums.total - sums.total_error, 1)
    out = sums.values / total[:, None]
    out_error = (sums.values_error + np.abs(out) * sums.total_error[:, None]) / left[:, None]
    size, radius = np.linalg.norm(out, axis=1), float(np.linalg.norm(values, axis=1).max())
    reach = np.linalg.norm(out_error, axis=1)
    out *= np.where(size > radius, radius / np.where(size > radius, size, 1), 1)[:, None]
    cut_error = np.minimum(reach, 2 * radius) + u * (len(centre) + 8) * (radius + np.abs(values).max())
    out_error = np.where((size + reach >= radius * (1 - 1e-3))[:, None], cut_error[:, None], out_error)
    out_error += 8 * u * (np.abs(out) + np.abs(centre))
    lse = shift + np.log(total)
    lse_error = np.log(total / left) + rounding.of_log(1, np.abs(shift) + np.abs(lse))
    most = sums.total + sums.total_error
    may_be = ~is_certain & (most > sums.floor)
    most = np.where(may_be, shift + np.log(np.where(may_be, most, 1)), -np.inf)
    return FarError(rows, out + centre, np.where(is_certain, lse, -np.inf), out_error, lse_error, most, centre, radius)


def with_far_parts(exact, bounds, fars: list[FarError], rounding: Rounding, out_dtype):
    """Bounds (n_q, d_v) and (n_q,) of the merge of the exact part with far parts.

    `exact` is (out, lse) of everything but far parts, `bounds` are theirs. With w_p the share of part p, and o the
    result of the parts that are certain: Σ_p w_p (δo_p + (e^{δL_p} - 1) |o_p - o|) / (1 - Σ_p w_p (e^{δL_p} - 1)). A
    part in doubt moves each side by its largest share times the distance of o from the far end of its ball.
    """
    out, lse = (x.copy() for x in exact)
    total = lse.copy()
    for far in fars:
        total[far.rows] = np.logaddexp(total[far.rows], far.lse)
    has_part = np.isfinite(total)
    total[~has_part] = 0  # all shares are 0 there
    parts = [(slice(None), out, lse, *bounds, None)]
    parts += [(f.rows, f.out, f.lse, f.out_error, f.lse_error, f) for f in fars]
    result = np.zeros_like(out)
    for rows, o, log, *_ in parts:
        result[rows] += np.exp(log - total[rows])[:, None] * o
    merging = np.zeros(len(lse))
    for far in fars:
        largest = np.abs(total[far.rows]) + np.where(np.isfinite(far.lse), np.abs(far.lse), 0) + np.abs(lse[far.rows])
        merging[far.rows] += rounding.u * (9 + 12 * largest)
    out_error, log_error, doubt = np.zeros_like(out), np.zeros(len(lse)), np.zeros(len(lse))
    for rows, o, log, o_error, l_error, far in parts:
        share = np.exp(log - total[rows])
        if far is not None:
            may_be_all = ~has_part[rows] & np.isfinite(far.most)
            excess = np.where(may_be_all, 600, np.clip(far.most - total[rows], -600, 600))
            doubt[rows] += np.where(np.isfinite(far.most), np.exp(excess), 0)
            reach = np.abs(far.centre - result[rows]) + far.radius
            out_error[rows] += 2 / (1 + np.exp(-excess))[:, None] * reach
        grow = share * np.expm1(l_error + merging[rows])
        out_error[rows] += share[:, None] * o_error + grow[:, None] * np.abs(o - result[rows])
        log_error[rows] += grow
    out_error /= (1 - np.minimum(log_error, 0.999))[:, None]
    bound_lse = np.where(log_error < 0.999, -np.log1p(-np.minimum(log_error, 0.999)), np.inf) + np.log1p(doubt)
    bound_out = rounding.of_result(result, out_error, out_dtype)
    bound_lse = np.where(has_part | (doubt == 0), bound_lse + rounding.of_log(1 + len(fars), total), np.inf)
    is_empty = ~has_part & (doubt == 0)
    bound_out[is_empty], bound_lse[is_empty] = 0, 0
    return bound_out, bound_lse
