"""Confidence bounds for the error of an attention output, from a few exact rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_rows import attention_rows, draw_rows, number_of_rows
from hyperattention_ref.measures.kl_bounds import failure_probability, mean_lower, mean_upper
from hyperattention_ref.measures.norms import operator_norm
from hyperattention_ref.measures.per_head import per_head
from hyperattention_ref.measures.row_estimates import op_norm_lower
from hyperattention_ref.measures.spectral_guarantee import mean_of_values, quotient


@dataclass(frozen=True, eq=False, repr=False)
class ErrorBounds(Result):
    """Error bounds of one output, E = Att - output, from the drawn rows; numbers, or arrays of the leading shape.

    Attributes
    ----------
    frobenius : an upper bound of ||E||_F.
    op_norm : an upper bound of ||E||_op.
    ratio : an upper bound of ||E||_op / (||P||_op ||V||_op), the epsilon of inequality (1).
    relative_frobenius : an upper bound of ||E||_F / ||Att||_F.
    frobenius_estimate, op_norm_estimate, ratio_estimate, relative_frobenius_estimate : the same quantities with the
        sample in place of all rows, without guarantee.
    limit : `frobenius` and `op_norm` if no drawn row has any error: the least that this number of rows can certify.
    relative_limit : the same for `relative_frobenius`.
    """

    frobenius: PerHead
    op_norm: PerHead
    ratio: PerHead
    relative_frobenius: PerHead
    frobenius_estimate: PerHead
    op_norm_estimate: PerHead
    ratio_estimate: PerHead
    relative_frobenius_estimate: PerHead
    limit: PerHead
    relative_limit: PerHead


@dataclass(frozen=True, eq=False, repr=False)
class Sizes(Result):
    """Sizes to which the errors are compared.

    Attributes
    ----------
    p_op_norm_low, p_op_norm_estimate : a lower bound of ||P||_op, and an estimate of one, ||P^T 1|| / sqrt(n_q).
    v_op_norm : ||V||_op, exact.
    attention_frobenius_low, attention_frobenius_estimate : a lower bound and an estimate of ||Att||_F.
    """

    p_op_norm_low: PerHead
    p_op_norm_estimate: PerHead
    v_op_norm: PerHead
    attention_frobenius_low: PerHead
    attention_frobenius_estimate: PerHead


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Result):
    """The result of `certify`.

    Each upper bound in `output`, `zero` and `mean` individually holds with probability at least `confidence` over the
    draw of the rows; not jointly. The lower bounds in `sizes` enter `ratio` and `relative_frobenius` and hold with
    probability at least (1 + confidence) / 2 each.

    Attributes
    ----------
    output : bounds for the given output.
    zero : bounds for the output 0, from the same rows; its relative error is 1, so this shows how loose the bounds are.
    mean : bounds for the mean of V's rows in every row (of V_0 .. V_i with causal attention), which is flat attention.
    sizes : the denominators.
    rows : s, the number of drawn rows for each head.
    confidence : the argument of `certify`.
    """

    output: ErrorBounds
    zero: ErrorBounds
    mean: ErrorBounds
    sizes: Sizes
    rows: int = 0
    confidence: float = 0.0


def certify(
    q, k, v, output, *, rows=None, confidence: float = 0.95, scale=None, is_causal: bool = False, rng=None
) -> Certificate:
    """Bound the error of an attention output, however computed, at about rows / n_q of the cost of exact attention.

    Derived: page "theory", certificates after the fact; page "estimators" lists the assumptions and limits of the
    bounds. `spectral_error` computes the exact errors from the dense matrix.

    Parameters
    ----------
    q, k, v, scale, is_causal : as in `exact_attention`.
    output : (..., n_q, d_v) array, finite, fixed before the rows are drawn; its type may differ from the others'.
    rows : s, exact rows for each head, drawn without replacement; None means 1024, or all if there are fewer.
    confidence : of each individual bound, in (0, 1).
    rng : None, int or Generator for the rows. The output must not depend on them; the output of `hyper_attention` does
        not, not even with the same integer seed.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; more rows than n_q; causal with n_q != n_k; logits that may
        overflow the type.

    Cost: s n_k (d + d_v + some 20) + (n_q + n_k) d_v^2 operations per head; memory O((n_q + n_k) d_v) and a few panels
    of 32 x n_k numbers. Rows of Att are computed in the dtype of the inputs (float32 for float16): bounds hold up to
    its rounding.
    """
    q, k, v = inputs.heads(q, k, v, is_causal=is_causal)
    lead, n_q = q.shape[:-2], q.shape[-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, v)
    output = inputs.floating("output", output)
    output_shape = (*q.shape[:-1], v.shape[-1])
    if output.shape != output_shape:
        raise ValueError(f"output has shape {output.shape}; it must be (..., n_q, d_v) = {output_shape}")
    rows, delta = number_of_rows(rows, n_q), failure_probability(confidence)
    row_sets = draw_rows(rng, n_q, rows, math.prod(lead))
    q, k, v = (x.astype(np.promote_types(x.dtype, np.float32), copy=False) for x in (q, k, v))
    rows_of = dict(zip(np.ndindex(lead), row_sets, strict=True))

    def measure(head) -> Certificate:
        return _one_head(q[head], k[head], v[head], output[head], rows_of[head], scale, is_causal, delta)

    return replace(per_head(measure, lead), rows=rows, confidence=float(confidence))


def _one_head(q, k, v, output, rows, scale: float, is_causal: bool, delta: float) -> Certificate:
    attention, p_low, p_estimate = _exact_rows(q, k, v, rows, scale, is_causal, delta)
    v, output = v.astype(np.float64), output.astype(np.float64)
    # In units of a power of two near the largest entry: exact, and no square overflows or underflows.
    unit = 2.0 ** (math.frexp(max(v.max(), -v.min(), output.max(), -output.min()))[1] - 1)
    for x in (v, output, attention):
        x /= unit

    center = v.mean(axis=0)
    radius = _max_distance(v, center)
    sizes = _sizes(attention, v, p_low, p_estimate, len(q), delta)

    def bounds(output_rows, distance: float) -> ErrorBounds:
        result = _bounds(attention - output_rows, distance + radius, sizes, len(q), delta)
        return _times(unit, result, "frobenius", "op_norm", "frobenius_estimate", "op_norm_estimate", "limit")

    mean = mean_of_values(v, len(q), is_causal)
    return Certificate(
        output=bounds(output[rows], _max_distance(output, center)),
        zero=bounds(0.0, float(np.linalg.norm(center))),
        mean=bounds(mean[rows], _max_distance(mean, center)),
        sizes=_times(unit, sizes, "v_op_norm", "attention_frobenius_low", "attention_frobenius_estimate"),
    )


def _exact_rows(q, k, v, rows, scale, is_causal, delta) -> tuple[np.ndarray, float, float]:
    """The drawn rows of Att in float64, a lower bound of ||P||_op (at delta / 2), and an estimate of it."""
    s, n_q, n_k = len(rows), len(q), len(k)
    attention, sums, squares = [], np.zeros(n_k), np.zeros(n_k)
    for panel in attention_rows(q, k, rows, scale=scale, is_causal=is_causal):
        p = panel.probabilities
        attention.append((p @ v).astype(np.float64))
        sums += p.sum(axis=0)
        squares += np.einsum("ij,ij->j", p, p)
    # ||P^T 1||^2 / n_q, from the mean squared norm of a row and the mean product of two different rows.
    square = squares.sum() / s
    product = (sums @ sums - squares.sum()) / (s * (s - 1)) if s > 1 else 0.0
    estimate = math.sqrt(max(n_q / n_k, (n_q - 1) * product + square))
    return np.concatenate(attention), op_norm_lower(sums, squares, s, n_q, delta / 2), estimate


def _sizes(attention, v, p_low: float, p_estimate: float, n_q: int, delta: float) -> Sizes:
    largest = _max_distance(v, 0.0) ** 2
    mean = _mean_square(attention) / (largest or 1.0)
    low = largest * float(mean_lower(mean, delta / 2, len(attention), n_q))
    return Sizes(p_low, p_estimate, operator_norm(v), math.sqrt(n_q * low), math.sqrt(n_q * largest * mean))


def _bounds(error, max_norm: float, sizes: Sizes, n_q: int, delta: float) -> ErrorBounds:
    """The bounds from the drawn rows of E, where no row of E has a norm above `max_norm`."""
    b, s = max_norm**2, len(error)
    mean, top = _mean_square(error), operator_norm(error) ** 2 / s
    # In a quotient of two bounds, the numerator gets half of delta.
    deltas = np.array([delta, delta, delta, delta / 2, delta / 2, delta / 2])
    upper = mean_upper(np.array([mean, top, 0, mean, top, 0]) / (b or 1.0), deltas, s, n_q)
    frobenius, op, limit, frobenius_half, op_half, limit_half = np.sqrt(n_q * b * upper).tolist()
    frobenius_estimate, op_estimate = math.sqrt(n_q * mean), math.sqrt(n_q * top)
    low, estimate = float(sizes.attention_frobenius_low), float(sizes.attention_frobenius_estimate)
    return ErrorBounds(
        frobenius=frobenius,
        op_norm=op,
        ratio=quotient(op_half, float(sizes.p_op_norm_low * sizes.v_op_norm)),
        relative_frobenius=quotient(frobenius_half, low),
        frobenius_estimate=frobenius_estimate,
        op_norm_estimate=op_estimate,
        ratio_estimate=quotient(op_estimate, float(sizes.p_op_norm_estimate * sizes.v_op_norm)),
        relative_frobenius_estimate=quotient(frobenius_estimate, estimate),
        limit=limit,
        relative_limit=quotient(limit_half, low),
    )


def _times(unit: float, result, *names: str):
    return replace(result, **{name: unit * getattr(result, name) for name in names})


def _max_distance(x: np.ndarray, center) -> float:
    """The largest distance of a row from `center`."""
    x = x - center
    return math.sqrt(np.einsum("ij,ij->i", x, x).max())


def _mean_square(x: np.ndarray) -> float:
    return float(np.linalg.norm(x)) ** 2 / len(x)
