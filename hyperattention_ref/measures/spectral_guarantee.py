"""The error of the paper's guarantee, with two trivial baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_matrix import attention_logits, row_softmax
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
    q, k, v, scale, is_causal : as in `exact_attention`.
    estimate : (..., n_q, d_v) array, finite; its type may differ from the others'. All is computed in float64.

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

    def measure(head) -> SpectralError:
        p = row_softmax(attention_logits(q[head], k[head], scale, is_causal))
        attention = p @ v[head]
        op_scale, frobenius_scale = operator_norm(p) * operator_norm(v[head]), frobenius_norm(attention)

        def errors(output):
            difference = attention - output
            return quotient(operator_norm(difference), op_scale), quotient(frobenius_norm(difference), frobenius_scale)

        mean = mean_of_values(v[head], len(p), is_causal)
        return SpectralError(*errors(estimate[head]), *errors(0.0), *errors(mean))

    return per_head(measure, q.shape[:-2])


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
