"""The dense attention matrix in float64."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation import inputs


def attention_probabilities(q, k, *, scale=None, is_causal: bool = False) -> np.ndarray:
    """The dense row-stochastic attention matrix P = D^-1 A, A = exp(scale * Q K^T), in float64.

    Paper: section 2, the matrix D^-1 A. With `is_causal` the pairs j > i do not exist: A_ij = 0.

    Parameters
    ----------
    q, k, scale, is_causal : as in `exact_attention`.

    Returns
    -------
    (..., n_q, n_k) float64 array whose rows sum to 1.

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; causal with n_q != n_k; logits that may overflow float64.

    Cost: n_q n_k d operations and n_q n_k memory per head.
    """
    q, k, _ = inputs.heads(q, k, is_causal=is_causal)
    q, k = q.astype(np.float64), k.astype(np.float64)
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale)
    return row_softmax(attention_logits(q, k, scale, is_causal))


def attention_logits(q: np.ndarray, k: np.ndarray, scale: float, is_causal: bool) -> np.ndarray:
    """(..., n_q, n_k) log A in float64; -inf where a pair does not exist."""
    logits = scale * (q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2))
    if is_causal:
        logits[..., np.triu(np.ones(logits.shape[-2:], dtype=bool), 1)] = -np.inf
    return logits


def row_softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax of each row."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)
