"""The fraction of the softmax mass that a mask of large entries captures."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.measures.attention_rows import MaskRows, attention_rows, head_masks


def captured_mass(q, k, plan_or_mask, *, scale=None, is_causal: bool = False, enable_gqa: bool = False):
    """The fraction of the softmax mass that the exact pairs of a plan or mask capture: mean_i sum_j M_ij P_ij.

    Derived: P = D^-1 A has row sums 1, so each row's masked part is a fraction. Sampled keys capture nothing; a causal
    leaf captures all of its pairs.

    Parameters
    ----------
    q, k, scale, is_causal, enable_gqa : as in `exact_attention`; a plan must be causal, too.
    plan_or_mask : a Plan for these heads; or one mask for all heads (BlockMask, boolean (n_q, n_k) array, SciPy sparse
        matrix, None for no pair); or a boolean array (..., n_q, n_k), one mask for each head.

    Returns
    -------
    float in [0, 1] for one head, else an array of the leading shape of q.

    Cost: n_q n_k (d + some 10) operations for each head, in float64; memory float64 copies of a head's q and k and a
    few panels of 32 rows by n_k.
    """
    caller = q
    q, k, _ = inputs.heads(caller, k, is_causal=is_causal, enable_gqa=enable_gqa)
    lead = np.shape(caller)[:-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale)
    masks = head_masks(plan_or_mask, lead, q.shape[-2], k.shape[-2], is_causal)
    indices = np.ndindex(q.shape[:-2])
    masses = [_one_head(q[i], k[i], mask, scale, is_causal) for i, mask in zip(indices, masks, strict=True)]
    return np.array(masses).reshape(lead) if lead else masses[0]


def _one_head(q, k, mask: MaskRows | None, scale: float, is_causal: bool) -> float:
    if mask is None:
        return 0.0
    q, k, rows = q.astype(np.float64), k.astype(np.float64), np.arange(len(q))
    panels = attention_rows(q, k, rows, scale=scale, is_causal=is_causal)
    mass = sum(float(panel.probabilities.sum(where=mask(panel.rows))) for panel in panels)
    return min(mass / len(q), 1.0)  # rounding may exceed 1
