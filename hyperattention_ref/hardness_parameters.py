"""The hardness parameters alpha and kappa of an attention matrix, and what surrounds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref import inputs
from hyperattention_ref.block_mask import dense_mask
from hyperattention_ref.norms import frobenius_norm, operator_norm
from hyperattention_ref.per_head import per_head
from hyperattention_ref.results import Result
from hyperattention_ref.row_rescaling import PILOT_SIZE, pilot_log_row_sums


@dataclass(frozen=True, eq=False, repr=False)
class Hardness(Result):
    """What `hardness` measures; every field has the leading shape of the input in front.

    A = exp(scale * Q K^T), P = D^-1 A its row-normalised form, R_i the unmasked part of row sum i of A. All fields
    but the kappas and the logits are functions of P alone.

    Attributes
    ----------
    alpha : n_k^2 / n_q times the largest squared column norm of P; from 1 (P flat) to n_k^2 (one column takes all).
    alpha_curve : (..., n_k); entry k is alpha with the k heaviest columns left out.
    heavy_columns : (..., n_k) the columns (keys) in descending order of norm, equal ones in ascending order of index.
    log_kappa : ln(max R_i / min R_i) over the rows with R_i > 0; 0.0 when there is none.
    log_kappa_rescaled : the same for E A, with 1 / E_ii a pilot estimate of R_i.
    stable_rank : ||P||_F^2 / ||P||_op^2, at most alpha.
    op_norm : ||P||_op, at least sqrt(n_q / n_k).
    frobenius_norm : ||P||_F, at most sqrt(alpha n_q / n_k).
    logit_min, logit_max : the range of scale * Q K^T, with causal attention over the pairs j <= i.
    """

    alpha: float | np.ndarray
    alpha_curve: np.ndarray
    heavy_columns: np.ndarray
    log_kappa: float | np.ndarray
    log_kappa_rescaled: float | np.ndarray
    stable_rank: float | np.ndarray
    op_norm: float | np.ndarray
    frobenius_norm: float | np.ndarray
    logit_min: float | np.ndarray
    logit_max: float | np.ndarray


def hardness(q, k, mask=None, *, scale=None, is_causal: bool = False, rng=None) -> Hardness:
    """Measure how hard an attention matrix is for HyperAttention, exactly, from the dense matrix.

    Paper: alpha and kappa of section 2, the hypotheses of Lemma 1 and Theorem 1. Derived: the rectangular alpha, the
    curve, and kappa after row rescaling (page "theory"). Row sums of exp(Q K^T) differ by factors that have nothing
    to do with attention, so kappa alone says little; kappa after rescaling says what rescaling leaves.

    Parameters
    ----------
    q : (..., n_q, d) array, query.
    k : (..., n_k, d) array, key.
    mask : one mask of large entries for all heads: BlockMask, boolean (n_q, n_k) array, SciPy sparse matrix or None.
        Only the kappas depend on it.
    scale : factor of the logits; None means 1 / sqrt(d).
    is_causal : pairs j > i do not exist (A_ij = 0). P_11 = 1 then, so alpha >= n whatever the input; flat causal
        attention has alpha near pi^2 / 6 n and kappa = n. Most pilot keys of the first rows do not exist, so
        rescaling serves these rows poorly.
    rng : None, int or Generator for the 128 pilot keys of each head (uniform, with replacement); the heads draw from
        it in order. Only `log_kappa_rescaled` depends on it.

    Returns
    -------
    Hardness, its fields floats and one-dimensional arrays for one head, with the leading shape in front otherwise.

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; causal with n_q != n_k; logits that may overflow float64.

    Cost: n_q n_k (d + some 40) operations per head and a few n_q x n_k float64 matrices.
    """
    q, k, scale = _checked(q, k, scale, is_causal)
    dense = dense_mask(mask, q.shape[-2], k.shape[-2])
    rng = inputs.generator(rng)
    return per_head(lambda head: _one_head(_log_a(q[head], k[head], scale, is_causal), dense, rng), q.shape[:-2])


def attention_probabilities(q, k, *, scale=None, is_causal: bool = False) -> np.ndarray:
    """The dense row-stochastic attention matrix P = D^-1 A, A = exp(scale * Q K^T), in float64.

    Paper: section 2, the matrix D^-1 A. With `is_causal` the pairs j > i do not exist: A_ij = 0.

    Parameters
    ----------
    q : (..., n_q, d) array, query.
    k : (..., n_k, d) array, key.
    scale : factor of the logits; None means 1 / sqrt(d).

    Returns
    -------
    (..., n_q, n_k) float64 array whose rows sum to 1.

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; causal with n_q != n_k; logits that may overflow float64.

    Cost: n_q n_k d operations and n_q n_k memory per head.
    """
    q, k, scale = _checked(q, k, scale, is_causal)
    return _softmax(_log_a(q, k, scale, is_causal))


def _checked(q, k, scale, is_causal: bool) -> tuple[np.ndarray, np.ndarray, float]:
    q, k, _ = inputs.heads(q, k, is_causal=is_causal)
    q, k = q.astype(np.float64), k.astype(np.float64)
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale)
    return q, k, scale


def _log_a(q: np.ndarray, k: np.ndarray, scale: float, is_causal: bool) -> np.ndarray:
    """log A, with -inf where a pair does not exist."""
    log_a = scale * (q @ k.swapaxes(-1, -2))
    if is_causal:
        log_a[..., np.triu(np.ones(log_a.shape[-2:], dtype=bool), 1)] = -np.inf
    return log_a


def _softmax(log_a: np.ndarray) -> np.ndarray:
    p = np.exp(log_a - log_a.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def _one_head(log_a: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Hardness:
    from scipy.special import logsumexp

    n_q, n_k = log_a.shape
    p = _softmax(log_a)
    columns = (p**2).sum(axis=0)
    heavy = np.argsort(-columns, kind="stable")
    curve = n_k**2 / n_q * columns[heavy]
    log_r = logsumexp(np.where(mask, -np.inf, log_a), axis=1)
    op, frobenius = operator_norm(p), frobenius_norm(p)
    logits = log_a[np.isfinite(log_a)]
    return Hardness(
        alpha=float(curve[0]),
        alpha_curve=curve,
        heavy_columns=heavy,
        log_kappa=_spread(log_r),
        log_kappa_rescaled=_spread(log_r - pilot_log_row_sums(log_a, mask, PILOT_SIZE, rng)),
        stable_rank=(frobenius / op) ** 2,
        op_norm=op,
        frobenius_norm=frobenius,
        logit_min=float(logits.min()),
        logit_max=float(logits.max()),
    )


def _spread(log_r: np.ndarray) -> float:
    """max - min over the rows with R_i > 0: a row that the mask covers completely is exact and has no part in kappa."""
    finite = log_r[np.isfinite(log_r)]
    return float(np.ptp(finite)) if finite.size else 0.0
