"""The gradient of the reference backend: dense, float64, literal; page "theory", section 9.10, has the formulas.

A part is one matrix of weights. All parts of a query see the log-sum-exp of the whole query, so that no merge is
differentiated. Memory O(n_q n_k).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperattention_ref.plan.landmarks import FLOOR, RIDGE

from .upstream import Upstream


def head_gradient(q, k, v, head_plan, upstream: Upstream, scale, is_causal):
    """(dq, dk, dv) of one head: of exact attention if `head_plan` is None, else of its plan."""
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for rows, keys, logits in _parts(q, k, head_plan, scale, is_causal):
        part = upstream.of(rows)
        p = np.exp(logits - part.finite_lse[:, None])  # p = e^{x - L}
        ds = p * (part.dout @ v[keys].T - part.delta[:, None])  # dx = p (do·v - δ)
        dq[rows] += scale * ds @ k[keys]  # dq = s Σ dx k
        np.add.at(dk, keys, scale * ds.T @ q[rows])  # dk = s Σ dx q, for repeated keys again and again
        np.add.at(dv, keys, p.T @ part.dout)  # dv = Σ p do
    for rectangle in head_plan.rectangles if head_plan else ():
        if rectangle.landmarks is not None and not rectangle.is_exact.all():
            rows, keys = rectangle.rows_and_keys
            listed = head_plan.listed(rectangle, range(rectangle.n_q), range(rectangle.n_k))
            far = far_gradient(q[rows], k[keys], v[keys], rectangle, listed, upstream.of(rows), scale)
            for total, x in ((dq[rows], far[0]), (dk[keys], far[1]), (dv[keys], far[2])):
                total += x
    return dq, dk, dv


def _parts(q, k, head_plan, scale, is_causal):
    """Yield (rows, keys, logits): queries as a slice, keys of the columns, and x, -inf where they do not meet."""
    if head_plan is None:
        exists = np.tri(len(q), len(k), dtype=bool) if is_causal else True
        yield slice(None), np.arange(len(k)), np.where(exists, scale * q @ k.T, -np.inf)
        return
    if head_plan.lists is not None:
        yield slice(None), np.arange(len(k)), np.where(head_plan.lists.toarray(), scale * q @ k.T, -np.inf)
    for a, c in head_plan.leaves:
        rows = slice(a, c)
        yield rows, np.arange(a, c), np.where(np.tri(c - a, dtype=bool), scale * q[rows] @ k[rows].T, -np.inf)
    for rectangle in head_plan.rectangles:
        rows, keys = rectangle.rows_and_keys
        listed = head_plan.listed(rectangle, range(rectangle.n_q), range(rectangle.n_k))
        logits, columns = rectangle_logits(q[rows], k[keys], rectangle, listed, scale)
        yield rows, columns + rectangle.key_start, logits


def rectangle_logits(q, k, rectangle, listed, scale):
    """Rules 3, 4 and 11 without landmarks: x (n_q, n_k + m), and the keys of its columns, all keys and then the draws.

    It is -inf where a pair does not count: not masked, or drawn and masked, or listed.
    """
    logits = scale * q @ k.T
    mask = rectangle.toarray()
    drawn = rectangle.sampled_keys
    masked = np.where(mask & ~listed, logits, -np.inf)
    sampled = np.where((mask | listed)[:, drawn], -np.inf, logits[:, drawn] + rectangle.log_weights)
    return np.hstack([masked, sampled]), np.concatenate([np.arange(rectangle.n_k), drawn])


class Fit(NamedTuple):
    """What `far_fit` makes of the keys: names as in its code, (n_k, m), (n_k,), (r, n_k) and (r, r), (r, far) twice."""

    y: np.ndarray
    w: np.ndarray
    half_squares: np.ndarray
    ridged: np.ndarray
    columns: np.ndarray
    g: np.ndarray
    top: float


def far_fit(k, landmarks, far, scale) -> Fit:
    """G of rule 4 with landmarks C, up to e^{top}: e^{s q·k_l} ≈ Σ_j e^{s q·k_j - w_j + top} G_jl for far keys l."""
    marks = landmarks.keys
    y = scale * (k - k[marks].mean(axis=0)) @ landmarks.factor  # y_l = s Fᵀ (k_l - mean of the landmarks)
    w = scale * k @ landmarks.mean + np.sum(y**2, axis=1) / 2  # w_l = s μ·k_l + |y_l|²/2
    half_squares = np.stack([np.sum((y - y[c]) ** 2, axis=1) / 2 for c in marks])
    ridged = np.exp(-half_squares[:, marks]) + RIDGE * np.eye(marks.size)  # K_CC + λI
    columns = w[far] - half_squares[:, far]  # log of K_C· e^w
    top = columns.max()
    columns = np.exp(columns - top)
    return Fit(y, w, half_squares, ridged, columns, np.linalg.solve(ridged, columns), top)


def far_gradient(q, k, v, rectangle, listed, upstream: Upstream, scale):
    """(dq, dk, dv) of rule 4 with landmarks: indices, mean and factor of the landmarks, floor and top are constants."""
    landmarks, far = rectangle.landmarks, np.flatnonzero(~rectangle.is_exact)
    marks, values = landmarks.keys, v[far]
    fit = far_fit(k, landmarks, far, scale)
    rows = scale * q @ k[marks].T - fit.w[marks] + fit.top
    shift = rows.max(axis=1)
    e = np.exp(rows - shift[:, None])
    counts = ~(rectangle.toarray() | listed)[:, far]
    estimates = np.where(counts, e @ fit.g, 0)
    total = estimates.sum(axis=1)
    is_there = total > FLOOR * e @ np.abs(fit.g.sum(axis=1))
    scaled = np.where(is_there, np.exp(np.where(is_there, shift - upstream.lse, 0)), 0)  # e^{shift - L}

    mean = estimates @ values / np.where(is_there, total, 1)[:, None]  # N / D
    through, dv, out = ball_gradient(mean, values, upstream.dout, scaled * total)
    delta = np.sum(through * mean, axis=1) - np.sum(upstream.dout * out, axis=1) + upstream.delta
    d_estimates = np.where(counts, scaled[:, None] * (through @ values.T - delta[:, None]), 0)
    dv += (scaled[:, None] * estimates).T @ through  # dv_l = Σ a_il do

    d_rows = e * (d_estimates @ fit.g.T)  # est = E G, E = e^{rows}
    dq = scale * d_rows @ k[marks]
    dk = _fit_gradient(k, landmarks, far, fit, e.T @ d_estimates, -d_rows.sum(axis=0), scale)
    dk[marks] += scale * d_rows.T @ q
    every = np.zeros(v.shape)
    every[far] = dv
    return dq, dk, every


def _fit_gradient(k, landmarks, far, fit: Fit, dg, dw_marks, scale):
    """dk of `far_fit`: from the gradients of G, and of w at the landmarks."""
    marks = landmarks.keys
    d_columns = np.linalg.solve(fit.ridged, dg)  # G = R⁻¹ B: dB = R⁻ᵀ dG
    d_ridged = -d_columns @ fit.g.T  # dR = -dB Gᵀ
    dw, dh = np.zeros(len(k)), np.zeros(fit.half_squares.shape)
    dw[far] = np.sum(d_columns * fit.columns, axis=0)  # B = e^{w - H}
    dw[marks] += dw_marks
    dh[:, far] = -d_columns * fit.columns
    dh[:, marks] -= d_ridged * np.exp(-fit.half_squares[:, marks])  # R = e^{-H} + λI
    dy = dw[:, None] * fit.y  # w = s μ·k + |y|²/2
    for c, mark in enumerate(marks):  # H_cl = |y_l - y_c|²/2
        pull = dh[c][:, None] * (fit.y - fit.y[mark])
        dy += pull
        dy[mark] -= pull.sum(axis=0)
    dk = scale * (dw[:, None] * landmarks.mean + dy @ landmarks.factor.T)  # y = s Fᵀ (k - mean of the landmarks)
    dk[marks] -= scale * dy.sum(axis=0) @ landmarks.factor.T / marks.size
    return dk


def ball_gradient(mean, values, d_out, weights):
    """Back through moving means into the smallest ball around the mean of the values that holds them all.

    Returns the gradient of each mean (inside the ball it is `d_out`), that of the values with the weight of each row,
    and the moved means. A mean on the ball counts as inside; of several farthest values the first counts.
    """
    centre = values.mean(axis=0)
    lengths = np.linalg.norm(values - centre, axis=1)
    farthest, away = np.argmax(lengths), mean - centre
    radius, size = lengths[farthest], np.linalg.norm(away, axis=1)
    is_moved = size > radius
    unit = away / np.where(is_moved, size, 1)[:, None]
    share = np.where(is_moved, radius / np.where(is_moved, size, 1), 1)[:, None]
    along = np.where(is_moved, np.sum(d_out * unit, axis=1), 0)
    d_mean = share * (d_out - along[:, None] * unit)  # out = centre + ρ u/|u|
    d_values = np.zeros(values.shape)
    d_centre = weights @ (d_out - d_mean)
    if radius > 0:
        outward = weights @ along * (values[farthest] - centre) / radius  # ρ = |v_farthest - centre|
        d_values[farthest] += outward
        d_centre -= outward
    d_values += d_centre / len(values)
    return d_mean, d_values, centre + share * away
