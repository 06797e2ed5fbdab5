"""The time of each stage of a HyperAttention call, and of the exact measures of a head, for any backend.

All is found through the public interface alone. Every stage is a call or the difference of two calls on plans that
hold a part of the whole plan. Differences can come out negative, where the noise is larger than the stage or where a
backend does two things at once for less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hyperattention_ref.bench.cases import WHOLE, BenchSettings, Contestant, Heads, planned, prepare
from hyperattention_ref.bench.timing import take_turns
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.registry import get_backend
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.recipe import Recipe

STAGES = {
    "checks": "shapes, types, finite entries, the range of the logits",
    "hash": "hash codes of all queries and keys",
    "sort and plan": "`make_plan` less the hash",
    "set-up and leaves": "the plan with empty rectangles: results are made, causal leaves computed",
    "blocks": "blocks only, in the order of the input, less set-up and leaves",
    "gather": "blocks only, in the order of the plan, less the same in the order of the input",
    "shared keys": "sampled keys only, less set-up and leaves",
    "merge and rest": "the whole call less all of the above",
}
"""Each stage and how its time is obtained."""
PASSES = {
    "exact attention": "`exact_attention` of one head, the unit",
    "sums": "`attention_sums`: α, the row sums and the entropy",
    "sums with the plan": "the same with the plan's blocks as the mask: κ",
    "product with PᵀP": "P x and Pᵀ y for one vector, as for ‖P‖_op",
}
"""The exact measures, on the first head, and what each is."""


def measure_stages(settings: BenchSettings, heads: Heads, backend: str) -> dict[str, float]:
    """Seconds of each stage, from the fastest run of each call, since noise only adds; their sum is the whole call."""
    calls = _calls(settings, heads, backend)
    for call in calls.values():
        call()
    t = {name: min(times.seconds) for name, times in take_turns(calls, settings.repeats, settings.seconds).items()}
    stages = {
        "checks": t["checks"],
        "hash": t["hash"],
        "sort and plan": t["make_plan"] - t["hash"],
        "set-up and leaves": t["empty"],
        "blocks": t["blocks in order"] - t["empty"],
        "gather": t["blocks"] - t["blocks in order"],
        "shared keys": t["samples"] - t["empty"],
    }
    return stages | {"merge and rest": t["whole"] - sum(stages.values())}


def measure_sums(settings: BenchSettings, heads: Heads, backend: str) -> dict[str, float]:
    """Median seconds of each of PASSES; a causal plan, which these sums do not take as a mask, is left out."""
    engine = get_backend(backend)
    q, k, v = (x[0] for x in heads.arrays)
    x = np.random.default_rng(settings.seed).standard_normal((len(k), 1)).astype(k.dtype)
    lse = engine.attention_sums(q, k, None, **heads.options).log_total

    def gram_product():
        y, _ = engine.exact_attention(q, k, x, **heads.options)
        engine.transposed_attention(q, k, y, lse, **heads.options)

    calls = {
        "exact attention": lambda: engine.exact_attention(q, k, v, **heads.options),
        "sums": lambda: engine.attention_sums(q, k, None, **heads.options),
        "product with PᵀP": gram_product,
    }
    if not heads.is_causal:
        (rectangle,) = planned(settings, heads, backend).heads[0].rectangles
        calls["sums with the plan"] = lambda: engine.attention_sums(q, k, rectangle, **heads.options)
    for call in calls.values():
        call()
    times = take_turns(calls, settings.repeats, settings.seconds)
    return {name: times[name].median for name in PASSES if name in times}


def _calls(settings: BenchSettings, heads: Heads, backend: str) -> dict[str, Callable[[], Any]]:
    engine, plan = get_backend(backend), planned(settings, heads, backend)
    q, k, v = heads.arrays

    def checks():
        *_, largest = inputs.measured_heads(q, k, v, is_causal=heads.is_causal)
        plan.check_fits(q.shape[:-2], q.shape[-2], k.shape[-2], heads.is_causal, q.dtype)
        inputs.logit_range(q, k, heads.scale, v, draws=plan.most_draws, largest=largest)

    def attend(change: Callable[[Rectangle], Rectangle]) -> Callable[[], Any]:
        parts = (replace(head, rectangles=tuple(map(change, head.rectangles))) for head in plan.heads)
        part = replace(plan, heads=tuple(parts))
        return lambda: engine.planned_attention(q, k, v, part, scale=heads.scale)

    no_samples: dict[str, Any] = {"sampled_keys": (), "log_weights": ()}
    return {
        "checks": checks,
        "hash": _hash(engine, heads, plan, settings.seed),
        "make_plan": lambda: planned(settings, heads, backend),
        "empty": attend(lambda r: replace(r, views=(), **no_samples)),
        "blocks": attend(lambda r: replace(r, **no_samples)),
        "blocks in order": attend(lambda r: replace(r, views=_in_order(r), **no_samples)),
        "samples": attend(lambda r: replace(r, views=())),
        "whole": prepare(Contestant(backend, WHOLE), settings, heads),
    }


def _hash(backend, heads: Heads, plan: Plan, seed: int) -> Callable[[], None]:
    """Hash what `make_plan` hashes: the queries and keys of every rectangle, on planes of the same shape."""
    q, k = heads.query, heads.key
    planes = np.random.default_rng(seed).standard_normal((Recipe().lsh_bits, q.shape[-1]))

    def run():
        for h, head in enumerate(plan.heads):
            for r in head.rectangles:
                backend.hash_codes(q[h, r.query_start : r.query_start + r.n_q], planes)
                backend.hash_codes(k[h, r.key_start : r.key_start + r.n_k], planes)

    return run


def _in_order(rectangle: Rectangle) -> tuple[BlockMask, ...]:
    """The same blocks of the queries and keys as they come."""
    orders = {"query_order": np.arange(rectangle.n_q), "key_order": np.arange(rectangle.n_k)}
    return tuple(replace(view, **orders) for view in rectangle.views)
