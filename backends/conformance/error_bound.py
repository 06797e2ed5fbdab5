"""How far rounding can take attention from its exact value: the first gate of the conformance suite.

Derived (page "numerics"). Let u be the unit roundoff and t the smallest normal number of the working type (float32 for
float16), γ_n = n u / (1 - n u). Query i meets K terms; a term has the exact logit x = s q·k + w (w = 0 unless the key
is sampled) and the share p = e^{x - L} of the denominator e^L. Its computed weight is e^x (1 + θ), |log(1 + θ)| ≤ η:

    η / 1.05 = γ_{d+5} |s| |q|ᵀ|k|        the dot product, the scale, a factor log2 e, adding w
             + 4 u |w|                    rounding the log-weight, a factor log2 e, adding it
             + 3 u (x_max - x)            subtracting the maximum; one that rises in steps costs the same in all
             + 8 u (K + 1)                an exponential (3 ulp), a product and a sum for each of at most K rescalings
             + u R (9 + 12 (X + ln K))    R merges through rounded log-sum-exps, |x| ≤ X for every term
             + 2 t (1 + |s|)(|q|₁ + |k|₁ + d)    underflow inside the dot product, unless all products are 0.

Logarithms of factors 1 + δ add up; the 1.05 covers what the computed x differ from the exact ones above, while η stays
below 0.03, and the rounding of this formula. Numerator and denominator sum the same weights in orders of their own,
with errors θ and θ', so that exactly

    ô - o = Σ p (θ v - θ' o) / (1 + Σ p θ'),   hence
    |ô - o| ≤ (Σ p (e^η - 1) |v| + |o| Σ p (e^η - 1)) / Σ p e^{-η} + 4 K t (1 + max |v|),
    |L̂ - L| ≤ ln Σ p e^η + u (6 + 6 ln K + 3 |L|) + 4 K t        (by Cauchy-Schwarz, -ln Σ p e^{-η} ≤ ln Σ p e^η).

Division and rounding to the output type add (u + u_out)(|o| + error) and one subnormal number of that type. R is the
number of parts that the query belongs to (leaf, block list, views, exact keys, sampled keys) minus one. A pair that
two parts hold is one term; a key drawn twice is two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np


class Rounding(NamedTuple):
    """What the bounds need to know of the arithmetic: u, t, and whether roundings count as a random walk."""

    u: float
    t: float
    random_walk: bool

    @classmethod
    def of(cls, dtype, random_walk: bool = False) -> Rounding:
        """The working type of inputs of this dtype, with the u of float64 added, for the reference's own rounding.

        The bounds are linear or convex in u, so that they cover both errors together. With `random_walk` the lengths
        d, K and n of sums count as their square roots, for roundings of random sign add up to that: the floor below
        which no backend can be blamed.
        """
        working = np.finfo(np.promote_types(dtype, np.float32))
        u = (float(working.eps) + float(np.finfo(np.float64).eps)) / 2
        return cls(u, float(working.smallest_normal), random_walk)

    def count(self, n):
        """`n`, or its square root if roundings count as steps of a random walk."""
        return np.sqrt(n) if self.random_walk else n

    def of_log(self, k_terms, log) -> np.ndarray:
        """u (6 + 6 ln K + 3 |L|): the logarithm of a sum of K terms relative to the largest, added to that."""
        return self.u * (6 + 6 * np.log(k_terms) + 3 * np.abs(log))

    def of_result(self, x, error, dtype) -> np.ndarray:
        """`error` and the rounding to `dtype` of a result near x."""
        final = np.finfo(dtype)
        return error + (self.u + float(final.eps) / 2) * (np.abs(x) + error) + float(final.smallest_subnormal)


@dataclass(frozen=True, eq=False)
class Terms:
    """Everything that one head sums: N columns of terms for every query.

    Attributes
    ----------
    logits : (n_q, N) x = s q·k + w; -inf where query and term do not meet.
    sizes : (n_q, N) |s| |q|ᵀ|k|.
    underflow : (n_q, N) 2 (1 + |s|)(|q|₁ + |k|₁ + d), or 0 where all products are 0.
    log_weights : (N,) w.
    keys : (N,) the key of each term.
    merges : (n_q,) R.
    d : coordinates of a query.
    """

    logits: np.ndarray
    sizes: np.ndarray
    underflow: np.ndarray
    log_weights: np.ndarray
    keys: np.ndarray
    merges: np.ndarray
    d: int

    def of(self, queries) -> Terms:
        """The terms of some of the queries."""
        rows = {name: getattr(self, name)[queries] for name in ("logits", "sizes", "underflow", "merges")}
        return replace(self, **rows)

    def k_terms(self, rounding: Rounding) -> np.ndarray:
        """(n_q,) K."""
        return rounding.count(np.isfinite(self.logits).sum(axis=1))

    def eta(self, rounding: Rounding) -> np.ndarray:
        """(n_q, N) η; every query must have a term."""
        here = np.isfinite(self.logits)
        x = np.where(here, self.logits, 0)
        largest, top = np.abs(x).max(axis=1), self.logits.max(axis=1, keepdims=True)
        k_terms = self.k_terms(rounding)
        eta = self.of_logits(rounding) + rounding.u * (4 * np.abs(self.log_weights) + 3 * (top - x))
        rows = 8 * (k_terms + 1) + self.merges * (9 + 12 * (largest + np.log(k_terms)))
        return np.where(here, 1.05 * (eta + rounding.u * rows[:, None]), 0)

    def of_logits(self, rounding: Rounding) -> np.ndarray:
        """(n_q, N) the part of η / 1.05 that a logit brings along: the dot product, the scale, underflow."""
        steps = (float(rounding.count(self.d)) + 5) * rounding.u
        return steps / (1 - steps) * self.sizes + rounding.t * self.underflow


def head_terms(q, k, scale: float, *, is_causal: bool = False, head_plan=None) -> Terms:
    """The terms of one head, q (n_q, d) and k (n_k, d): of exact attention, or of a HeadPlan."""
    q, k = q.astype(np.float64), k.astype(np.float64)
    n_q, n_k, d = len(q), len(k), q.shape[1]
    if head_plan is None:
        exact = np.tri(n_q, n_k, dtype=bool) if is_causal else np.ones((n_q, n_k), dtype=bool)
        parts, drawn = np.ones(n_q), []
    else:
        exact, parts, drawn = _planned(head_plan)
    keys = np.concatenate([np.arange(n_k), *(keys for keys, _, _ in drawn)])
    log_weights = np.concatenate([np.zeros(n_k), *(weights for _, weights, _ in drawn)])
    meets = np.hstack([exact, *(met for _, _, met in drawn)])
    k = k[keys]
    sums = np.abs(q).sum(axis=1)[:, None] + np.abs(k).sum(axis=1) + d
    return Terms(
        logits=np.where(meets, scale * q @ k.T + log_weights, -np.inf),
        sizes=abs(scale) * np.abs(q) @ np.abs(k).T,
        underflow=np.where(scale != 0 and _any_product(q, k), 2 * (1 + abs(scale)) * sums, 0),
        log_weights=log_weights,
        keys=keys,
        merges=np.maximum(parts - 1, 0),
        d=d,
    )


def _any_product(q, k) -> np.ndarray:
    """(n_q, N) whether any q_c k_c differs from 0; where none does, nothing is rounded and nothing underflows."""
    return (q != 0).astype(np.float64) @ (k != 0).T > 0


def _planned(head_plan):
    """Exact pairs (n_q, n_k), parts of each query, and per rectangle (keys, log-weights, (n_q, m) who meets them)."""
    exact, parts, drawn = np.zeros((head_plan.n_q, head_plan.n_k), dtype=bool), np.zeros(head_plan.n_q), []
    for a, c in head_plan.leaves:
        exact[a:c, a:c] = np.tri(c - a, dtype=bool)
        parts[a:c] += 1
    if head_plan.lists is not None:
        exact |= head_plan.lists.toarray()
        parts += 1
    for r in head_plan.rectangles:
        rows, keys = r.rows_and_keys
        exact[rows, keys] |= r.toarray()
        meets = np.zeros((head_plan.n_q, r.sampled_keys.size), dtype=bool)
        meets[rows] = ~exact[rows, keys][:, r.sampled_keys]
        drawn.append((r.sampled_keys + r.key_start, r.log_weights, meets))
        parts[rows] += len(r.views) + bool(r.exact_keys.size) + bool(r.sampled_keys.size)
    return exact, parts, drawn


def without_far_parts(head: Terms, v) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of the terms alone, in float64."""
    top = head.logits.max(axis=1, initial=-np.inf)
    weights = np.exp(head.logits - np.where(np.isfinite(top), top, 0)[:, None])
    total = weights.sum(axis=1)
    met = total > 0
    lse = np.where(met, top + np.log(np.where(met, total, 1)), -np.inf)
    return weights @ v[head.keys].astype(np.float64) / np.where(met, total, 1)[:, None], lse


def error_bounds(head: Terms, v, out, lse, dtype, out_dtype, *, random_walk: bool = False):
    """Bounds of |ô - out| (n_q, d_v) and |L̂ - lse| (n_q,) for inputs of `dtype` and an output of `out_dtype`.

    `out` and `lse` are the reference's. The bounds of a query without any term are 0: it must get the neutral element
    exactly. For `random_walk` see `Rounding`, here and below.
    """
    rounding = Rounding.of(dtype, random_walk)
    met = np.isfinite(lse)
    bound_out, bound_lse = np.zeros((met.size, v.shape[1])), np.zeros(met.size)
    head, out, lse = head.of(met), out[met], lse[met]
    k_terms, eta = head.k_terms(rounding), head.eta(rounding)
    v, gone = np.abs(v[head.keys].astype(np.float64)), 4 * k_terms * rounding.t
    p = np.exp(head.logits - lse[:, None])
    grow, shrink = p * np.expm1(eta), -p * np.expm1(-eta)
    error = (grow @ v + np.abs(out) * grow.sum(axis=1, keepdims=True)) / (1 - shrink.sum(axis=1, keepdims=True))
    bound_out[met] = rounding.of_result(out, error + gone[:, None] * (1 + v.max()), out_dtype)
    bound_lse[met] = np.log1p(grow.sum(axis=1)) + rounding.of_log(k_terms, lse) + gone
    return bound_out, bound_lse


def sums_bounds(head: Terms, marked, sums, dtype, *, random_walk: bool = False) -> dict[str, np.ndarray]:
    """Bounds for the fields of AttentionSums: `sums` holds the reference's by name, `marked` is the dense mask.

    Derived. The logarithm x - L of a probability is wrong by at most η_P = η + |L̂ - L| + 3 u (L - x), and a sum over
    the n_q rows adds 8 u (n_q + 1). So column sums are wrong by Σ p (e^{η_P} - 1), column squares by
    Σ p² (e^{2 η_P} - 1), the entropy Σ p (L - x) by Σ p ((e^{η_P} - 1)(L - x) + e^{η_P} η_P).
    """
    rounding = Rounding.of(dtype, random_walk)
    x, lse, k_terms, eta = head.logits, sums["log_total"], head.k_terms(rounding), head.eta(rounding)
    u, gone, left = rounding.u, 4 * k_terms * rounding.t, np.isfinite(sums["log_unmasked"])
    p, below = np.exp(x - lse[:, None]), np.where(np.isfinite(x), lse[:, None] - x, 0)
    log_total = np.log1p((p * np.expm1(eta)).sum(axis=1)) + rounding.of_log(k_terms, lse) + gone
    eta_p = eta + log_total[:, None] + 3 * u * below + _over_rows(len(p), rounding)
    entropy = (p * (np.expm1(eta_p) * below + np.exp(eta_p) * eta_p)).sum(axis=1)
    log_r = sums["log_unmasked"][left]
    share = np.exp(np.where(marked, -np.inf, x)[left] - log_r[:, None])
    log_unmasked = np.zeros(len(p))
    log_unmasked[left] = np.log1p((share * np.expm1(eta[left])).sum(axis=1))
    log_unmasked[left] += rounding.of_log(k_terms[left], np.abs(log_r) + np.abs(x[left].max(axis=1)))
    logits = np.max(eta + u * np.abs(np.where(np.isfinite(x), x, 0)))
    return {
        "log_total": log_total,
        "log_unmasked": log_unmasked,
        "column_sums": (p * np.expm1(eta_p)).sum(axis=0) + gone.sum(),
        "column_squares": (p**2 * np.expm1(2 * eta_p)).sum(axis=0) + gone.sum(),
        "entropy": entropy + rounding.of_log(k_terms, sums["entropy"]) + gone * (1 + below.max(axis=1)),
        "logit_min": logits,
        "logit_max": logits,
    }


def transposed_bounds(head: Terms, y, lse, out, dtype, out_dtype, *, random_walk: bool = False) -> np.ndarray:
    """Bound (n_k, c) for P^T y: Σ_i p (e^{η_T} - 1) |y| with η_T = η + 3 u (|L| + |L - x|) + 8 u (n_q + 1)."""
    rounding = Rounding.of(dtype, random_walk)
    x, y = head.logits, np.abs(y.astype(np.float64))
    p, below = np.exp(x - lse[:, None]), np.where(np.isfinite(x), np.abs(lse[:, None] - x), 0)
    eta = head.eta(rounding) + 3 * rounding.u * (np.abs(lse)[:, None] + below) + _over_rows(len(p), rounding)
    error = (p * np.expm1(eta)).T @ y + 4 * len(p) * rounding.t * (1 + y.max())
    return rounding.of_result(out, error, out_dtype)


def gradient_bounds(head: Terms, arrays, upstream, expected, dtype, out_dtype, scale: float, *, random_walk=False):
    """Bounds of the errors of (dq, dk, dv) of one head; `arrays` are (q, k, v), `upstream` (out, lse, dout, dlse).

    Derived. x, p = e^{x - L} and a term's gradient dx = p g, g = do·v - δ, are wrong by

        η_p = η_x + u (4 |w| + 3 |x - L| + 3 |L| + 8), η_x that of a logit,
        ε_g = γ_{d_v + 3} (|do|ᵀ|v| + |do|ᵀ|o| + |dL|) + 2 t (|do|₁ + |v|₁ + d_v + 2),
        ε_x = p (e^{η_p} - 1) (|g| + ε_g) + p e^{η_p} ε_g + 4 t (1 + |g| + ε_g),

    and a sum of K such times b, multiplied by s before or after, by Σ (ε_x + γ_{K + 8} (|dx| + ε_x)) |s| |b| and 2 K t
    (1 + |s|)(1 + max |b|). For dq b is k, for dk it is q. For dv it is do, s is 1, and in the place of dx stands p, of
    error p (e^{η_p} - 1) + 4 t.
    """
    rounding = Rounding.of(dtype, random_walk)
    q, k, v, out, lse, dout, dlse = (x.astype(np.float64) for x in (*arrays, *upstream))
    u, t, here = rounding.u, rounding.t, np.isfinite(head.logits)
    log = np.where(np.isfinite(lse), lse, 0)[:, None]
    below = np.where(here, head.logits - log, -np.inf)
    p, steps = np.exp(below), np.where(here, np.abs(below), 0)
    eta = 1.05 * (head.of_logits(rounding) + u * (4 * np.abs(head.log_weights) + 3 * steps + 3 * np.abs(log) + 8))
    values, n_v = v[head.keys], float(rounding.count(v.shape[1]))
    g = dout @ values.T - (np.sum(dout * out, axis=1) - dlse)[:, None]
    sizes = np.abs(dout) @ np.abs(values).T + (np.sum(np.abs(dout * out), axis=1) + np.abs(dlse))[:, None]
    lost = np.abs(dout).sum(axis=1)[:, None] + np.abs(values).sum(axis=1) + np.abs(out).sum(axis=1)[:, None]
    g_error = _gamma(n_v + 3, u) * sizes + 2 * t * (lost + 2 * v.shape[1] + 2)
    p_error = np.where(here, p * np.expm1(eta) + 4 * t, 0)
    dx = p * g
    dx_error = np.where(here, p_error * (np.abs(g) + g_error) + p * g_error + 4 * t, 0)

    def of_sums(terms, errors, b, factor, counts):
        """Bounds of sums over the first axis of `terms`, (N, n), times the rows of b (N, c)."""
        grown = errors + _gamma(rounding.count(counts) + 8, u) * (np.abs(terms) + errors)
        return abs(factor) * grown.T @ np.abs(b) + (2 * t * counts * (1 + abs(factor)) * (1 + np.abs(b).max()))[:, None]

    places = np.zeros((head.keys.size, len(k)))  # which key a term has
    places[np.arange(head.keys.size), head.keys] = 1
    of_queries, of_keys = here.sum(axis=1), here.sum(axis=0) @ places
    errors = (
        of_sums(dx.T, dx_error.T, k[head.keys], scale, of_queries),
        of_sums(np.abs(dx) @ places, dx_error @ places, q, scale, of_keys),
        of_sums(p @ places, p_error @ places, dout, 1.0, of_keys),
    )
    return tuple(rounding.of_result(x, error, out_dtype) for x, error in zip(expected, errors, strict=True))


def _gamma(n, u: float):
    """γ_n."""
    return n * u / (1 - n * u)


def capped_bounds(draws: Terms, marked, log_caps, log_sums, dtype, *, random_walk: bool = False):
    """Bounds (n_q,) for the two results of `capped_sums`: of |log_sums - exact| and of |n_capped - exact|.

    Derived. `draws` holds one term for each draw, as if there were neither mask nor cap; `marked` (n_q, m) are the
    draws that the mask excludes. The smaller of x and c moves no further than x and c do, and a cap is rounded as a
    log-weight is, by 4 u |c|; where c is the larger this counts for 4 u |x| at most. So the term min(x, c) is wrong by
    η with w = min(x, c). A draw is counted wrongly only if |x - c| is within the errors of both; a floor has no part
    in that, for a decision is right or wrong. Without any error, x = c = 0, a tie must be seen as one.
    """
    rounding, c = Rounding.of(dtype, random_walk), np.asarray(log_caps)[:, None]
    capped = replace(draws, logits=np.where(marked, -np.inf, np.minimum(draws.logits, c)))
    met, bound = np.isfinite(log_sums), np.zeros(len(log_sums))
    here, log_sums = capped.of(met), log_sums[met]
    k_terms, p = here.k_terms(rounding), np.exp(here.logits - log_sums[:, None])
    eta = here.eta(rounding) + 1.05 * 4 * rounding.u * np.abs(np.where(p > 0, here.logits, 0))
    bound[met] = np.log1p((p * np.expm1(eta)).sum(axis=1))
    bound[met] += rounding.of_log(k_terms, log_sums) + 4 * k_terms * rounding.t
    decided = Rounding.of(dtype)
    doubt = 1.05 * (draws.of_logits(decided) + 4 * decided.u * np.abs(c))
    is_open = ~marked & np.isfinite(c) & (doubt > 0) & (np.abs(draws.logits - c) <= doubt)
    return bound, np.sum(is_open, axis=1)


def _over_rows(n_q: int, rounding: Rounding) -> float:
    """8 u (n_q + 1): a sum over the rows, with a product and a division for each."""
    return 8 * rounding.u * (float(rounding.count(n_q)) + 1)
