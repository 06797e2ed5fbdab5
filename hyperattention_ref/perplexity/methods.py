"""Ways of attending that are compared: every recipe, and the baselines that cost nothing to think of.

Exact attention is the model's own. "Leaves only" drops what a recipe approximates, the rectangles of the causal
recursion. A sliding window with the first keys looks at no query, and has as many keys as a recipe; where recipes
differ in their cost, there are several.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from hyperattention_ref.attention import hyper_attention
from hyperattention_ref.models.replacement import Replacement
from hyperattention_ref.perplexity.settings import PerplexitySettings
from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.recipe import preset

EXACT, LEAVES, WINDOW = "exact", "leaves only", "sliding window + sinks"
"""The baselines; behind the last one's name stands its number of keys."""
SINKS = 4
"""First keys of the sliding window, as in the recipe "window_sinks"."""
LARGER = 1.25
"""Times the cost of a recipe that the window beside it may have, so that a few windows do for all recipes."""
ROWS = 256
"""Queries of the sliding window at a time."""


class Method(NamedTuple):
    """A way of attending.

    Attributes
    ----------
    logits_per_query : mean number of logits that it computes for a query, all counted.
    attention : as `Replacement` calls it.
    """

    logits_per_query: float
    attention: Callable


def methods(settings: PerplexitySettings) -> dict[str, Method]:
    """All but exact attention, by name: leaves only, sliding windows, then the recipes."""
    n, least = settings.n, settings.min_seq_len
    recipes = {name: preset(name, settings.budget) for name in settings.recipes}
    costs = {name: x.logits_per_query(n, n, is_causal=True, min_seq_len=least) for name, x in recipes.items()}
    baselines = {
        LEAVES: Method(leaves_plan(n, least, 1).heads[0].n_logits / n, partial(leaves_only, min_seq_len=least))
    }
    for keys in window_sizes(costs.values()):
        width = window_width(n, keys)
        baselines[f"{WINDOW}, {keys:.0f}"] = Method(window_keys(n, width), partial(sliding_window, width=width))
    return baselines | {
        name: Method(costs[name], Replacement.by_recipe(recipe, least, settings.seed).attention)
        for name, recipe in recipes.items()
    }


@lru_cache(maxsize=1)
def leaves_plan(n: int, min_seq_len: int, heads: int) -> Plan:
    """The causal recursion whose rectangles hold nothing."""

    def empty(start: int, split: int, stop: int) -> Rectangle:
        return Rectangle(stop - split, split - start, query_start=split, key_start=start)

    return Plan.stack([Plan.causal(n, min_seq_len, empty)] * heads)


def leaves_only(query, key, value, *, is_causal, scale, layer, min_seq_len: int):
    """Exact attention within the leaves of the causal recursion, and nothing beyond them."""
    plan = leaves_plan(query.shape[1], min_seq_len, query.shape[0])
    return hyper_attention(query, key, value, is_causal=is_causal, scale=scale, plan=plan, enable_gqa=True)


def sliding_window(query, key, value, *, is_causal, scale, layer, width: int):
    """Exact attention of every query to its last `width` keys and the first `SINKS`, by PyTorch."""
    import torch

    n = query.shape[1]
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    for a in range(0, n, ROWS):
        c, low = min(a + ROWS, n), max(0, a - width + 1)
        keys, rows = torch.cat([torch.arange(min(SINKS, low)), torch.arange(low, c)]), torch.arange(a, c)[:, None]
        seen = (keys <= rows) & ((keys > rows - width) | (keys < SINKS))
        out[:, a:c] = torch.nn.functional.scaled_dot_product_attention(
            query[None, :, a:c], key[None, :, keys], value[None, :, keys], attn_mask=seen, scale=scale, enable_gqa=True
        )[0]
    return out


def window_sizes(costs: Iterable[float]) -> list[float]:
    """The fewest of some costs such that each cost has one at least as large, and at most `LARGER` times, beside it."""
    sizes: list[float] = []
    for cost in sorted(costs, reverse=True):
        if not sizes or cost * LARGER < sizes[-1]:
            sizes.append(cost)
    return sizes


def window_keys(n: int, width: int) -> float:
    """Mean number of keys of a query in the sliding window of this width."""
    past = np.arange(1, n + 1)
    return float(np.mean(np.minimum(past, width) + np.clip(past - width, 0, SINKS)))


def window_width(n: int, keys: float) -> int:
    """The least width at which the sliding window has so many keys for each query."""
    return 1 + bisect_left(range(1, n), keys, key=partial(window_keys, n))
