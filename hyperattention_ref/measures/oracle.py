"""The oracle: the best that a recipe could reach if it knew the attention map. Dense, for small n only."""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref.backends.reference import softmax_average
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.measures.attention_matrix import attention_logits


def oracle_mask(q, k, keys_per_query: int, *, scale=None, is_causal: bool = False, enable_gqa: bool = False):
    """The mask of the keys with the largest logits of each query.

    Derived: no mask with as many keys per query captures more softmax mass, so its `captured_mass` is an upper bound
    for every recipe. It is not a Plan, because each query has different keys.

    Parameters
    ----------
    q, k, scale, is_causal, enable_gqa : as in `exact_attention`; with `is_causal` the first queries have fewer keys.
    keys_per_query : number of keys; all keys if there are fewer. Ties go to the smaller index.

    Returns
    -------
    (..., n_q, n_k) boolean array. Cost n_q n_k (d + log n_k) operations for each head; memory that array and a few
    float64 matrices n_q by n_k.
    """
    caller = q
    q, k, _ = inputs.heads(caller, k, is_causal=is_causal, enable_gqa=enable_gqa)
    lead = np.shape(caller)[:-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale)
    keys_per_query = inputs.count("keys_per_query", keys_per_query)
    masks = [_largest(attention_logits(q[i], k[i], scale, is_causal), keys_per_query) for i in np.ndindex(q.shape[:-2])]
    return np.stack(masks).reshape(*lead, q.shape[-2], k.shape[-2])


def oracle_attention(
    q, k, v, budget: int = 512, *, scale=None, is_causal: bool = False, rng=None, enable_gqa: bool = False
):
    """Attention in which half of the budget goes to each query's largest logits, half to uniform samples.

    Derived: the reference for recipes at equal budget. The mask is `oracle_mask` with budget // 2 keys. The rest of the
    budget are keys drawn uniformly with replacement, the same for all queries of a head, each with log-weight
    log(n_k/m) and left out where the mask has it. Causal attention is not split into rectangles.

    Parameters
    ----------
    q, k, v, scale, is_causal, enable_gqa : as in `exact_attention`.
    budget : keys per query, at least 2.
    rng : None, seed or numpy.random.Generator. Each head has its own stream.

    Returns
    -------
    out : (..., n_q, d_v) float64 array. Cost and memory: dense exact attention.
    """
    caller = q
    q, k, v = inputs.heads(caller, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    lead = np.shape(caller)[:-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, v)
    if inputs.count("budget", budget) < 2:
        raise ValueError(f"budget is {budget}; it must be at least 2, one key for the mask and one sample")
    indices = list(np.ndindex(q.shape[:-2]))
    pairs = zip(indices, streams(rng, len(indices)), strict=True)
    heads = [_one_head(q[i], k[i], v[i], budget, scale, is_causal, stream) for i, stream in pairs]
    return np.stack(heads).reshape(*lead, q.shape[-2], v.shape[-1])


def _one_head(q, k, v, budget: int, scale: float, is_causal: bool, rng: np.random.Generator) -> np.ndarray:
    logits = attention_logits(q, k, scale, is_causal)
    mask = _largest(logits, budget // 2)
    m = budget - budget // 2
    samples = rng.integers(len(k), size=m)
    masked_logits = np.where(mask, logits, -np.inf)
    sampled_logits = np.where(mask[:, samples], -np.inf, logits[:, samples] + math.log(len(k) / m))
    v = v.astype(np.float64)
    out, _ = softmax_average(np.hstack([masked_logits, sampled_logits]), np.vstack([v, v[samples]]))
    return out


def _largest(logits: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest finite entries of each row."""
    mask = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(-logits, axis=1, kind="stable")[:, :count], True, axis=1)
    return mask & np.isfinite(logits)
