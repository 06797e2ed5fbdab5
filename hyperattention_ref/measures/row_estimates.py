"""Estimates of the hardness of a head from a few of its rows, with confidence intervals."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.host_arrays import host_array
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_rows import (
    MaskRows,
    RowPanel,
    attention_rows,
    draw_rows,
    head_masks,
    number_of_rows,
)
from hyperattention_ref.measures.kl_bounds import failure_probability, mean_lower, mean_upper
from hyperattention_ref.measures.per_head import per_head

OUTSIDE = 0.01
"""The fraction of rows with R_i > 0 that may lie outside the interval of log R, if the drawn rows suffice for it."""


@dataclass(frozen=True, eq=False, repr=False)
class HardnessEstimate(Result):
    """The result of `estimate_hardness`; every field but the last three has the leading shape of the input in front.

    Each interval [low, high] and each one-sided bound individually contains the true value with probability at least
    `confidence`. The notation is that of `Hardness`.

    Attributes
    ----------
    alpha, alpha_low, alpha_high : (len(left_out),) alpha with the k heaviest columns left out. The upper end is of
        order n_k^2 / rows and uninformative for large n_k.
    mean_square, mean_square_low, mean_square_high : ||P||_F^2 / n_q, the mean of the rows' squared norms.
    mask_mass, mask_mass_low, mask_mass_high : the mean over rows of the attention that the mask captures.
    perplexity, perplexity_low, perplexity_high : the geometric mean over rows of exp(entropy of the row), its effective
        number of keys. The logarithm is averaged because its range, ln n_k, is short.
    op_norm_low : a lower bound of ||P||_op.
    log_r_low, log_r_high, log_r_outside : with that confidence at most the fraction `log_r_outside` of the rows has
        ln R_i outside [log_r_low, log_r_high]; rows that the mask covers (R_i = 0) count as inside.
    log_kappa_quantile : log_r_high - log_r_low, which is ln kappa of the rows inside. It is not a bound of ln kappa.
    log_kappa_low : ln(max R_i / min R_i) over the drawn rows: a certain lower bound of ln kappa.
    logit_min, logit_max : the range of the logits in the drawn rows.
    left_out : the k of `alpha`.
    rows, confidence : as used.
    """

    alpha: np.ndarray
    alpha_low: np.ndarray
    alpha_high: np.ndarray
    mean_square: PerHead
    mean_square_low: PerHead
    mean_square_high: PerHead
    mask_mass: PerHead
    mask_mass_low: PerHead
    mask_mass_high: PerHead
    perplexity: PerHead
    perplexity_low: PerHead
    perplexity_high: PerHead
    op_norm_low: PerHead
    log_r_low: PerHead
    log_r_high: PerHead
    log_r_outside: PerHead
    log_kappa_quantile: PerHead
    log_kappa_low: PerHead
    logit_min: PerHead
    logit_max: PerHead
    left_out: tuple[int, ...] = ()
    rows: int = 0
    confidence: float = 0.0


def estimate_hardness(
    q,
    k,
    mask=None,
    *,
    rows=None,
    confidence: float = 0.95,
    scale=None,
    is_causal: bool = False,
    left_out=(0, 1, 4, 32),
    rng=None,
) -> HardnessEstimate:
    """Estimate how hard an attention matrix is for HyperAttention from some of its rows, drawn at random.

    Derived: page "theory", certificates after the fact; page "estimators" lists the assumptions and limits of each
    interval. `hardness` computes the exact values.

    Parameters
    ----------
    q, k, rows, confidence, scale, is_causal : as in `certify`.
    mask : the large entries: a Plan for these heads, whose causal leaves count; or, for all heads, one Rectangle,
        BlockMask, boolean (n_q, n_k) array, SciPy sparse matrix or None.
    left_out : numbers of heaviest columns to leave out of alpha, which is 0 from n_k on.
    rng : None, int or Generator for the rows. The mask must not depend on these rows; the plans of `make_plan` do not.

    Returns
    -------
    HardnessEstimate

    Errors as in `certify`.

    Cost: s n_k (d + some 40) operations per head; a few panels of 32 x n_k numbers. Logits and P are of the dtype of
    the inputs (float32 for float16), and exact up to its rounding.
    """
    q, k, _ = inputs.heads(q, k, is_causal=is_causal)
    lead, n_q, n_k = q.shape[:-2], q.shape[-2], k.shape[-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale)
    rows, delta, left_out = number_of_rows(rows, n_q), failure_probability(confidence), _left_out(left_out)
    masks = head_masks(mask, lead, n_q, n_k, is_causal)
    row_sets = draw_rows(rng, n_q, rows, math.prod(lead))
    q, k = (x.astype(np.promote_types(x.dtype, np.float32), copy=False) for x in (q, k))

    def measure(head):
        h = np.ravel_multi_index(head, lead) if lead else 0
        panels = attention_rows(q[head], k[head], row_sets[h], scale=scale, is_causal=is_causal)
        return _one_head(_collect(panels, masks[h], n_k), n_q, n_k, left_out, delta)

    return replace(per_head(measure, lead), left_out=left_out, rows=rows, confidence=float(confidence))


def op_norm_lower(sums, squares, sample_size: int, n_q: int, delta: float) -> float:
    """A lower bound of ||P||_op, wrong with probability at most `delta`, from column sums over drawn rows.

    Derived: ||P||_op is at least each of sqrt(n_q / n_k), since P 1 = 1; ||P_T^T 1|| / sqrt(s) for the drawn rows T, a
    lower bound of ||P_T||_op; and the largest column norm, sqrt(n_q c_j), bounded by (H) for all n_k columns at once.
    Only the last can fail.

    Parameters
    ----------
    sums, squares : (n_k,) float64, sums over the drawn rows of P_ij and of P_ij^2.
    sample_size, n_q : numbers of drawn rows and of all rows.
    """
    n_k = len(sums)
    column = mean_lower(squares.max() / sample_size, delta / n_k, sample_size, n_q)
    return math.sqrt(max(n_q / n_k, float(sums @ sums) / sample_size, n_q * float(column)))


class _Sample(NamedTuple):
    """Statistics of the drawn rows: column sums of P and of its squares, values for each row, and the logit range."""

    sums: np.ndarray
    squares: np.ndarray
    log_r: np.ndarray
    captured: np.ndarray
    entropy: np.ndarray
    logits: tuple[float, float]


def _collect(panels: Iterable[RowPanel], mask_rows: MaskRows | None, n_k: int) -> _Sample:
    sums, squares = np.zeros(n_k), np.zeros(n_k)
    row_values = []
    low, high = math.inf, -math.inf
    for rows, logits, log_sums, p in panels:
        sums += p.sum(axis=0)
        squares += np.einsum("ij,ij->j", p, p)
        low = min(low, float(logits.min(where=np.isfinite(logits), initial=np.inf)))
        high = max(high, float(logits.max()))
        mask = None if mask_rows is None else mask_rows(rows)
        captured = np.zeros(len(rows)) if mask is None else p.sum(axis=1, dtype=np.float64, where=mask)
        log_r = log_sums if mask is None else _log_sums(np.where(mask, -np.inf, logits))
        row_values.append((log_r, captured, _entropy(logits, log_sums, p)))
    log_r, captured, entropy = np.concatenate(row_values, axis=1)
    return _Sample(sums, squares, log_r, captured, entropy, (low, high))


def _one_head(sample: _Sample, n_q: int, n_k: int, left_out, delta: float) -> HardnessEstimate:
    s, max_entropy = len(sample.log_r), math.log(n_k)  # 0 for a single key
    square, mass, entropy = sample.squares.sum() / s, sample.captured.mean(), sample.entropy.mean() / (max_entropy or 1)
    means = np.array([square, mass, entropy])
    low, high = mean_lower(means, delta / 2, s, n_q), mean_upper(means, delta / 2, s, n_q)
    alpha, alpha_low, alpha_high = _alpha(sample.squares / s, s, n_q, left_out, delta)
    log_r = sample.log_r[np.isfinite(sample.log_r)]
    log_r_low, log_r_high, outside = _central_interval(log_r, n_q - (s - log_r.size), n_q, delta)
    return HardnessEstimate(
        alpha=alpha,
        alpha_low=alpha_low,
        alpha_high=alpha_high,
        mean_square=float(square),
        mean_square_low=float(low[0]),
        mean_square_high=float(high[0]),
        mask_mass=float(mass),
        mask_mass_low=float(low[1]),
        mask_mass_high=float(high[1]),
        perplexity=math.exp(max_entropy * entropy),
        perplexity_low=math.exp(max_entropy * low[2]),
        perplexity_high=math.exp(max_entropy * high[2]),
        op_norm_low=op_norm_lower(sample.sums, sample.squares, s, n_q, delta),
        log_r_low=log_r_low,
        log_r_high=log_r_high,
        log_r_outside=outside,
        log_kappa_quantile=log_r_high - log_r_low,
        log_kappa_low=float(np.ptp(log_r)) if log_r.size else 0.0,
        logit_min=sample.logits[0],
        logit_max=sample.logits[1],
    )


def _alpha(c, sample_size: int, n_q: int, left_out, delta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The estimate and both ends of alpha_k; see the proof on page "theory"."""
    n_k, k = len(c), np.array(left_out)
    heaviest = -np.sort(-c)
    c = np.where(k < n_k, heaviest[np.minimum(k, n_k - 1)], 0.0)
    low = mean_lower(c, delta / (2 * n_k), sample_size, n_q)
    high = np.where(k < n_k, mean_upper(c, delta / (2 * (k + 1)), sample_size, n_q), 0.0)
    low = np.maximum(n_k**2 * low, k == 0)  # alpha itself is never below 1
    return n_k**2 * c, low, n_k**2 * high


def _central_interval(log_r: np.ndarray, population: int, n_q: int, delta: float) -> tuple[float, float, float]:
    """An interval of order statistics, and the fraction of all rows that may lie outside it.

    Let X_(1) <= .. <= X_(s) be the finite log R_i of the drawn rows, out of n in the population. The number of rows
    outside [X_(a), X_(s+1-a)] is at most a number distributed as pos_(2a) - 2, where pos_(r) is the rank in the
    population of the r-th smallest drawn one: the s + 1 gaps of a random subset are exchangeable, so the first a and
    the last a of them together are distributed as the first 2a. Hence Pr[more than m outside] <= Pr[H < 2a], H
    hypergeometric, the number of drawn ones among the first m + 2. Smaller n makes H larger, so `population`, n_q
    minus the covered rows in the sample, is conservative.
    """
    from scipy.stats import hypergeom

    x = np.sort(log_r)
    if not x.size:
        return -math.inf, math.inf, 0.0

    def holds(a: int, m: int) -> bool:
        return m + 2 > population or hypergeom.cdf(2 * a - 1, population, m + 2, x.size) <= delta

    target = int(OUTSIDE * population)
    a = max(1, bisect_left(range(1, (x.size + 1) // 2 + 1), True, key=lambda a: not holds(a, target)))
    m = bisect_left(range(max(population - 1, 0)), True, key=lambda m: holds(a, m))
    return float(x[a - 1]), float(x[x.size - a]), m / n_q


def _entropy(logits, log_sums, p) -> np.ndarray:
    """-sum_j P_ij ln P_ij for each row; ln P is clipped where P is 0, which removes pairs that do not exist."""
    log_p = np.maximum(logits - log_sums[:, None].astype(logits.dtype), np.log(np.finfo(p.dtype).tiny))
    return np.maximum(-np.multiply(p, log_p, out=log_p).sum(axis=1, dtype=np.float64), 0.0)


def _log_sums(log_a: np.ndarray) -> np.ndarray:
    """log of the row sums of exp(log_a), in float64; -inf for an empty row."""
    row_max = log_a.max(axis=1)
    base = np.where(np.isneginf(row_max), 0, row_max)
    with np.errstate(divide="ignore"):
        return base + np.log(np.exp(log_a - base[:, None]).sum(axis=1, dtype=np.float64))


def _left_out(left_out) -> tuple[int, ...]:
    numbers = host_array("left_out", left_out)
    if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(f"left_out is {left_out!r}; it must be a non-empty sequence of integers from 0 on")
    return tuple(numbers.tolist())
