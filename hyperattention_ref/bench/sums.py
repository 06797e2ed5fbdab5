"""The time of the exact measures, beside a pass of exact attention: the sums of alpha and kappa, a Lanczos step."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.bench.cases import BenchSettings, Heads, planned
from hyperattention_ref.bench.timing import take_turns
from hyperattention_ref.foundation.registry import get_backend

PASSES = {
    "exact attention": "`exact_attention` of one head, the unit",
    "sums": "`attention_sums`: α, the row sums and the entropy",
    "sums with the plan": "the same with the plan's blocks as the mask: κ",
    "Lanczos step": "P x and Pᵀ y for one vector, as for ‖P‖_op",
}
"""What is timed, on the first head."""


def measure_sums(settings: BenchSettings, heads: Heads, backend: str) -> dict[str, float]:
    """Median seconds of each of PASSES; a causal plan, which these sums do not take as a mask, is left out."""
    engine = get_backend(backend)
    q, k, v = (x[0] for x in heads.arrays)
    x = np.random.default_rng(settings.seed).standard_normal((len(k), 1)).astype(k.dtype)
    lse = engine.attention_sums(q, k, None, **heads.options).log_total

    def lanczos_step():
        y, _ = engine.exact_attention(q, k, x, **heads.options)
        engine.transposed_attention(q, k, y, lse, **heads.options)

    calls = {
        "exact attention": lambda: engine.exact_attention(q, k, v, **heads.options),
        "sums": lambda: engine.attention_sums(q, k, None, **heads.options),
        "Lanczos step": lanczos_step,
    }
    if not heads.is_causal:
        (rectangle,) = planned(settings, heads, backend).heads[0].rectangles
        calls["sums with the plan"] = lambda: engine.attention_sums(q, k, rectangle, **heads.options)
    for call in calls.values():
        call()
    times = take_turns(calls, settings.repeats, settings.seconds)
    return {name: times[name].median for name in PASSES if name in times}
