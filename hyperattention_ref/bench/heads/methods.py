"""Ways of attending to one head that `bench-heads` times, each as a call without arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from hyperattention_ref.attention import exact_attention, hyper_attention
from hyperattention_ref.bench.cases import Heads
from hyperattention_ref.bench.heads.flex import flex_attention
from hyperattention_ref.bench.heads.settings import EXACT, FLEX, SDPA, HeadsSettings
from hyperattention_ref.bench.rivals import RIVALS
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.planner import make_plan
from hyperattention_ref.plan.recipe import Recipe, preset

TITLES = {EXACT: "exact attention", SDPA: RIVALS[SDPA].title, FLEX: "FlexAttention, lists of {}"}


class Method(NamedTuple):
    """A way of attending.

    Attributes
    ----------
    name : "exact", "sdpa", the name of a recipe, or "flex" and a recipe's name behind a space.
    budget : of the recipe, or None.
    logits_per_query : all that it computes, preparation included.
    call : gives the output, (heads, n, d_v).
    plan : whose rows the output must agree with; None for exact attention, and for landmarks, which have no such rows.
    """

    name: str
    budget: int | None
    logits_per_query: float
    call: Callable[[], np.ndarray]
    plan: Plan | None = None


def methods(settings: HeadsSettings, heads: Heads) -> Iterator[Method]:
    """Exact attention, SDPA, then every recipe at every budget; beside a recipe of pages alone, FlexAttention."""
    n, (q, k, v) = heads.n, heads.arrays
    logits = (n + 1) / 2 if heads.is_causal else float(n)
    yield Method(EXACT, None, logits, lambda: exact_attention(q, k, v, backend=settings.backend, **heads.options))
    if SDPA in settings.against:
        yield Method(SDPA, None, logits, RIVALS[SDPA].prepare(q, k, v, budget=None, seed=0, **heads.options))
    for name in settings.recipes:
        for budget in (x for x in settings.budgets if x < n):
            yield from _recipe_methods(settings, heads, name, budget)


def _recipe_methods(settings: HeadsSettings, heads: Heads, name: str, budget: int) -> Iterator[Method]:
    recipe, n, (q, k, v) = preset(name, budget), heads.n, heads.arrays
    options: dict[str, Any] = {"recipe": recipe, "min_seq_len": settings.min_seq_len, "rng": settings.seed}
    options |= {"backend": settings.backend, **heads.options}

    def plan() -> Plan:
        return make_plan(q, k, **options)

    def by_flex() -> np.ndarray:
        lists = plan().heads[0].lists
        assert lists is not None  # the recipe has pages, and the head is longer than its exact ranges
        return flex_attention(q, k, v, lists, heads.scale)

    logits = recipe.logits_per_query(n, n, is_causal=heads.is_causal, min_seq_len=settings.min_seq_len)
    planned = None if recipe.landmarks else plan()
    yield Method(name, budget, logits, lambda: hyper_attention(q, k, v, **options), planned)
    if FLEX in settings.against and has_pages_alone(recipe):
        yield Method(f"{FLEX} {name}", budget, logits, by_flex, planned)


def has_pages_alone(recipe: Recipe) -> bool:
    """Whether pages are all that a recipe has, so that FlexAttention can compute it."""
    return recipe.has_lists and not recipe.has_rectangles


def title(name: str) -> str:
    """A method's name in tables."""
    kind, _, recipe = name.partition(" ")
    return TITLES.get(kind, name.replace("_", " + ")).format(recipe)
