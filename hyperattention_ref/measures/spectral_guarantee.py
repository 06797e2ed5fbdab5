"""The error of the paper's guarantee, with two trivial baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_matrix import attention_probabilities
from hyperattention_ref.measures.norms import frobenius_norm, operator_norm
from hyperattention_ref.measures.per_head import per_head


@dataclass(frozen=True, eq=False, repr=False)
class SpectralError(Result):
    """Errors of an estimate of Att = P V and of two estimates that ignore the queries: zero, and the mean of V.

    Numbers for one head, arrays of the leading shape otherwise. If the denominator is 0, the error 0 gives 0.0 and any
    other error infinity.

    Attributes
    ----------
    ratio : ||Att - estimate||_op / (||P||_op ||V||_op), the epsilon of inequality (1).
    relative_frobenius : ||Att - estimate||_F / ||Att||_F.
    ratio_zero, relative_frobenius_zero : the same for the zero matrix; the latter is 1 unless Att = 0.
    ratio_mean, relative_frobenius_mean : the same for the mean of V's rows in every row; with causal attention row i
        is the mean of V_0 .. V_i. This is the output of flat attention (equal logits).
    """

    ratio: PerHead
    relative_frobenius: PerHead
    ratio_zero: PerHead
    relative_frobenius_zero: PerHead
    ratio_mean: PerHead
    relative_frobenius_mean: PerHead


def spectral_error(q, k, v, estimate, *, scale=None, is_causal: bool = False) -> SpectralError:
    """Measure an attention output, however computed, against exact attention.

    Paper: inequality (1). Derived: the baselines. A matrix with one column that takes all the attention has
    ||P||_op = sqrt(n_q), which makes `ratio` small for any output; an estimate is useful if it beats the baselines.

    Parameters
    ----------
    q : (..., n_q, d) array, query.
    k : (..., n_k, d) array, key.
    v : (..., n_k, d_v) array, value.
    estimate : (..., n_q, d_v) array, finite; its type may differ from the others'. All is computed in float64.
    scale : factor of the logits; None means 1 / sqrt(d).
    is_causal : pairs j > i do not exist.

    Returns
    -------
    SpectralError

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; causal with n_q != n_k; logits that may overflow float64.

    Cost: n_q n_k (d + d_v + some 40) operations and n_q n_k memory per head.
    """
    q, k, v = (x.astype(np.float64) for x in inputs.heads(q, k, v, is_causal=is_causal))
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, v)
    estimate = inputs.floating("estimate", estimate).astype(np.float64)
    shape = (*q.shape[:-1], v.shape[-1])
    if estimate.shape != shape:
        raise ValueError(f"estimate has shape {estimate.shape}; it must be (..., n_q, d_v) = {shape}")

    def measure(head):
        p = attention_probabilities(q[head], k[head], scale=scale, is_causal=is_causal)
        return _one_head(p, v[head], estimate[head], is_causal)

    return per_head(measure, q.shape[:-2])


def _one_head(p: np.ndarray, v: np.ndarray, estimate: np.ndarray, is_causal: bool) -> SpectralError:
    attention = p @ v
    op_scale, frobenius_scale = operator_norm(p) * operator_norm(v), frobenius_norm(attention)

    def errors(output):
        difference = attention - output
        return quotient(operator_norm(difference), op_scale), quotient(frobenius_norm(difference), frobenius_scale)

    return SpectralError(*errors(estimate), *errors(0.0), *errors(mean_of_values(v, len(p), is_causal)))


def mean_of_values(v: np.ndarray, n_q: int, is_causal: bool) -> np.ndarray:
    """(n_q, d_v): the mean of V's rows in every row; with causal attention row i is the mean of V_0 .. V_i."""
    if is_causal:
        return np.cumsum(v, axis=0) / np.arange(1, n_q + 1)[:, None]
    return np.broadcast_to(v.mean(axis=0), (n_q, v.shape[1]))


def quotient(error: float, size: float) -> float:
    """error / size, with 0 / 0 = 0 and x / 0 infinite."""
    if error == 0:
        return 0.0
    return error / size if size else math.inf
