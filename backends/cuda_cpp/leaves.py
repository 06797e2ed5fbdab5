"""The exact causal leaves of a Plan by an `ExactPrimitive`, and the state of their queries for the CUDA kernels.

The kernels of this library then compute the rectangles only: they take up the state of the leaves like that of any
other sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .torch_attention import ExactPrimitive

LOG2_E = 1 / math.log(2)


def leaves_attention(
    primitive: ExactPrimitive, q, k, v, leaves: Sequence[tuple[int, int]], *, scale: float
) -> tuple[Any, Any]:
    """(out, lse) of exact causal attention inside every leaf.

    Paper: Algorithm 4. Derived: rule 8.

    Leaves of one length go in one call, as heads of their own, where the strides allow it. Otherwise there is one call
    for each leaf, on slices, and its result is copied to its place.

    Parameters
    ----------
    primitive : computes them.
    q, k, v : (..., n, d), (..., n, d) and (..., n, d_v) torch tensors.
    leaves : (a, c) of every leaf, tiling [0, n), the same for all heads.
    scale : multiplies the logits.

    Returns
    -------
    out : (..., n, d_v) of the dtype of the inputs, contiguous.
    lse : (..., n) float32, contiguous.
    """
    import torch

    options: dict[str, Any] = {"scale": scale, "is_causal": True}
    if len({c - a for a, c in leaves}) == 1:
        parts = [x.unflatten(-2, (len(leaves), -1)) for x in (q, k, v)]  # (..., leaves, length, d)
        if primitive.obstacle(*parts, **options) is None:
            out, lse = primitive(*parts, **options)
            return out.flatten(-3, -2), lse.flatten(-2)
        parts = [x.movedim(-3, 0) for x in parts]  # heads that share keys must stay neighbours
        if primitive.obstacle(*parts, **options) is None:
            out, lse = primitive(*parts, **options)
            return out.movedim(0, -3).flatten(-3, -2), lse.movedim(0, -2).flatten(-2)
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    for a, c in leaves:
        out[..., a:c, :], lse[..., a:c] = primitive(*(x[..., a:c, :] for x in (q, k, v)), **options)
    return out, lse


def leaves_obstacle(
    primitive: ExactPrimitive, q, k, v, leaves: Sequence[tuple[int, int]], *, scale: float = 1.0
) -> str | None:
    """Why `leaves_attention` cannot run, or None: one leaf of each length is asked about."""
    for a, c in {c - a: (a, c) for a, c in leaves}.values():
        reason = primitive.obstacle(*(x[..., a:c, :] for x in (q, k, v)), is_causal=True, scale=scale)
        if reason:
            return f"of the leaf [{a}, {c}): {reason}"
    return None


def carried_state(out, lse):
    """The state of finished queries, as the CUDA kernels take it up: float32 (rows, d_v + 2) of sums, top, total.

    Derived. A query with output o and log-sum-exp L is a running softmax with top = L log2 e, total = 1, sums = o:
    sums / total is the output, and top + log2 total the log-sum-exp in base 2. Every query must have met a key (lse
    finite), as every query of a leaf has.

    Rounding: L and its product with log2 e are rounded to float32, which is one merge of the derived bound (page
    "numerics", item 5). o was rounded to the dtype of the inputs, where a state of our own kernels stays float32. With
    u the unit roundoff of that dtype (2^-8 for bfloat16, 2^-11 for float16), o_i of a coordinate, p the shares of the
    *whole* denominator and w = sum of p over the leaf, the output moves by w u |o_i| <= u sum of p |v_i| over the leaf.

    Parameters
    ----------
    out : (..., n, d_v) torch tensor of any floating dtype.
    lse : (..., n) natural logarithms.
    """
    import torch

    d_v = out.shape[-1]
    state = torch.empty((lse.numel(), d_v + 2), dtype=torch.float32, device=out.device)
    state[:, :d_v] = out.reshape(-1, d_v)
    state[:, d_v] = lse.reshape(-1).to(torch.float32) * LOG2_E
    state[:, d_v + 1] = 1
    return state
