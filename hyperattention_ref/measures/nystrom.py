"""A Nyström coreset of keys: the baseline of landmarks that look at no query."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from hyperattention_ref.backends.reference import softmax_average
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.measures.attention_matrix import attention_logits
from hyperattention_ref.plan.landmark_choice import random_pivots
from hyperattention_ref.plan.merge import NEUTRAL, merge_attention
from hyperattention_ref.plan.tiling import causal_tiling

TEMPERATURE = 2.0
"""τ²: the kernel of the keys is exp(scale k·k' / τ²). Of 1, 2, 4 and 8 the best on the shipped heads."""
RIDGE = 1e-9
"""Added to the diagonal of G_SS, so that it can be solved."""
FLOOR = 1e-6
"""A denominator below this share of its terms in absolute value has no digit left, and is none."""


def nystrom_attention(
    q, k, v, size: int, *, scale=None, is_causal: bool = False, min_seq_len: int = 4096, rng=None, enable_gqa=False
):
    """Attention to a weighted coreset of keys that was chosen without the queries.

    Derived from: WildCat, arXiv 2602.10056, as a baseline for landmarks. Keys are taken less their mean, which no
    attention sees. Randomly pivoted Cholesky of the kernel h(k, k') = exp(scale k·k' / τ²) draws a coreset S; the
    Nyström weights W = h(S, S)^-1 h(S, K) make

        out = exp(scale q·S) W V / exp(scale q·S) W 1,

    clipped to the range of V, coordinate by coordinate. A causal head is the recursion of Algorithm 4 with exact
    leaves, each rectangle with a coreset of its own, since a coreset of all keys would hold later ones.

    Parameters
    ----------
    q, k, v, scale, is_causal, enable_gqa : as in `exact_attention`; scale must be positive.
    size : r, keys in a coreset; all keys where there are fewer, and fewer where these span the kernel.
    min_seq_len : causal ranges up to this length are exact.
    rng : None, seed or numpy.random.Generator. Each head has its own stream.

    Returns
    -------
    (..., n_q, d_v) float64 array, exact if the coreset is all keys. Cost for each rectangle: r logits for each query, r
    kernel entries for each key, r² n_k and r n_k d_v; memory r n_k.
    """
    caller = q
    q, k, v = inputs.heads(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    scale = inputs.positive("scale", inputs.resolve_scale(scale, q.shape[-1]))
    inputs.logit_range(q, k, scale, v)
    size = inputs.count("size", size)
    indices = list(np.ndindex(q.shape[:-2]))
    tiling = causal_tiling(q.shape[-2], min_seq_len) if is_causal else ((), ())
    pairs = zip(indices, streams(rng, len(indices)), strict=True)
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    heads = [_head(q[i], k[i], v[i], size, scale, tiling, stream) for i, stream in pairs]
    return np.stack(heads).reshape(*np.shape(caller)[:-2], q.shape[-2], v.shape[-1])


def _head(q, k, v, size: int, scale: float, tiling, rng: np.random.Generator) -> np.ndarray:
    leaves, rectangles = tiling
    if not leaves:
        return _rectangle(q, k, v, size, scale, rng)[0]
    out, lse = np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf)
    for a, c in leaves:
        out[a:c], lse[a:c] = softmax_average(attention_logits(q[a:c], k[a:c], scale, True), v[a:c])
    for a, split, c in rectangles:
        part = _rectangle(q[split:c], k[a:split], v[a:split], size, scale, rng)
        out[split:c], lse[split:c] = merge_attention((out[split:c], lse[split:c]), part)
    return out


def _rectangle(q, k, v, size: int, scale: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of all queries over all keys.

    h(k, k') = a a' G with a = exp(|x|^2 / 2), G = exp(-|x - x'|^2 / 2), x = (k - mean) sqrt(scale) / τ. So
    W = diag(1 / a_S) G_SS^-1 G_S diag(a), and nothing overflows.
    """
    mean = k.mean(axis=0)
    x = (k - mean) * np.sqrt(scale / TEMPERATURE)
    log_a = np.sum(x**2, axis=1) / 2
    pivots = random_pivots(x, log_a, size, rng)
    g = np.exp(-cdist(x[pivots], x, "sqeuclidean") / 2)
    ridged = g[:, pivots] + RIDGE * np.eye(len(pivots))
    weights = np.linalg.solve(ridged, g * np.exp(log_a - log_a.max()))
    logits = scale * q @ (k[pivots] - mean).T - log_a[pivots]
    top = logits.max(axis=1, keepdims=True)
    e = np.exp(logits - top)
    w = weights.sum(axis=1)
    denominator = e @ w
    is_some = denominator > FLOOR * (e @ np.abs(w))
    out = e @ (weights @ v) / np.where(is_some, denominator, 1)[:, None]
    out = np.where(is_some[:, None], np.clip(out, v.min(axis=0), v.max(axis=0)), NEUTRAL[0])
    lse = np.log(np.where(is_some, denominator, 1)) + top[:, 0] + log_a.max() + scale * q @ mean
    return out, np.where(is_some, lse, NEUTRAL[1])
