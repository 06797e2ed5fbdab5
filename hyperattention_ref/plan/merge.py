"""The merge of partial attentions: a commutative monoid."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperattention_ref.foundation.host_arrays import host_array, in_library_of, like

NEUTRAL = (0.0, -np.inf)
"""The neutral element of `merge_attention`: attention to no key at all, output 0 and log-sum-exp minus infinity."""


def merge_attention(first, second):
    """Attention over the union of two disjoint sets of keys, from the attention over each.

    Paper: the practical algorithm, step 3; Algorithm 4 uses it for the recursion.

    Parameters
    ----------
    first, second : pairs (out, lse)
        out : (..., n, d_v), softmax-weighted mean of the values of a set of keys.
        lse : (..., n), log of the sum of exp(logits) over that set; minus infinity for an empty set.

    Raises
    ------
    TypeError, ValueError : what is no pair, shapes that do not fit, a log-sum-exp that is NaN or plus infinity.

    Returns
    -------
    (out, lse) : lse = log(e^{lse_1} + e^{lse_2}), out = (e^{lse_1} out_1 + e^{lse_2} out_2) / e^{lse}.

    Notes
    -----
    Commutative bit for bit; associative up to rounding; merging with `NEUTRAL` changes nothing. Two empty sets give
    (0, minus infinity), never NaN. Cost O(n d_v).
    """
    (out_1, lse_1), (out_2, lse_2) = _pair("first", first), _pair("second", second)
    if np.ndim(out_1) and np.ndim(out_2) and out_1.shape != out_2.shape:
        raise ValueError(f"out of first has shape {out_1.shape} and of second {out_2.shape}; they must be equal")
    top = np.maximum(lse_1, lse_2)
    top = np.where(np.isneginf(top), 0, top).astype(np.result_type(lse_1, lse_2), copy=False)
    weight_1, weight_2 = np.exp(lse_1 - top), np.exp(lse_2 - top)
    total = weight_1 + weight_2
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    total = np.where(total > 0, total, 1).astype(total.dtype, copy=False)
    out = (weight_1[..., None] * out_1 + weight_2[..., None] * out_2) / total[..., None]
    caller = second[0] if np.ndim(first[0]) == 0 else first[0]  # NEUTRAL is of no library
    return like(caller, out), in_library_of(caller, lse)


def _pair(name: str, pair) -> tuple[Any, Any]:
    """(out, lse) as arrays that fit each other; `NEUTRAL` stays a pair of scalars, which fits all shapes and types."""
    try:
        out, lse = pair
    except (TypeError, ValueError):
        raise TypeError(f"{name} is no pair of arrays; it must be (out, lse)") from None
    out, lse = host_array(f"out of {name}", out), host_array(f"lse of {name}", lse)
    if lse.shape != out.shape[:-1] or (out.ndim == 0 and not np.isneginf(lse)):
        raise ValueError(
            f"{name} has out of shape {out.shape} and lse of shape {lse.shape}; they must be (..., n, d_v) and (..., n)"
        )
    if not np.all(lse < np.inf):
        raise ValueError(f"lse of {name} has NaN or plus infinity; it must be finite, or minus infinity for no key")
    return (out, lse) if out.ndim else NEUTRAL
