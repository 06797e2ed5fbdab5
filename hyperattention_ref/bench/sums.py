"""What the exact measures cost, in passes of exact attention: the sums behind alpha and kappa, one step of Lanczos."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperattention_ref.bench.cases import BenchSettings, Heads, planned
from hyperattention_ref.bench.timing import median, take_turns
from hyperattention_ref.foundation.registry import get_backend

PASSES = {
    "exact attention": "`exact_attention` of one head, the unit",
    "sums": "`attention_sums`: α, the row sums and the entropy",
    "sums with the plan": "the same with the plan's blocks as the mask: κ",
    "Lanczos step": "P x and Pᵀ y for one vector, as for ‖P‖_op",
}
"""What is timed, on the first head."""


def measure_sums(settings: BenchSettings, heads: Heads, backend: str) -> dict[str, float]:
    """Median seconds of each of PASSES; causal plans are no mask of these sums and are left out."""
    chosen = get_backend(backend)
    q, k, v = (x[0] for x in heads.arrays)
    everyday: dict[str, Any] = {"scale": heads.scale, "is_causal": settings.is_causal}
    x = np.random.default_rng(settings.seed).standard_normal((len(k), 1)).astype(k.dtype)
    lse = chosen.attention_sums(q, k, None, **everyday).log_total

    def lanczos_step():
        y, _ = chosen.exact_attention(q, k, x, **everyday)
        chosen.transposed_attention(q, k, y, lse, **everyday)

    calls = {
        "exact attention": lambda: chosen.exact_attention(q, k, v, **everyday),
        "sums": lambda: chosen.attention_sums(q, k, None, **everyday),
        "Lanczos step": lanczos_step,
    }
    if not settings.is_causal:
        (rectangle,) = planned(settings, heads, backend).heads[0].rectangles
        calls["sums with the plan"] = lambda: chosen.attention_sums(q, k, rectangle, **everyday)
    for call in calls.values():
        call()
    times = take_turns(calls, settings.repeats, settings.seconds)
    return {name: median(times[name]) for name in PASSES if name in times}
