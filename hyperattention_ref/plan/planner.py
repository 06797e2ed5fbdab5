"""The planner: applies a recipe to heads, with noise from a seed, and so makes their Plan."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.plan.block_lists import BlockLists
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.landmark_choice import choose_landmarks
from hyperattention_ref.plan.landmarks import Landmarks
from hyperattention_ref.plan.noise import Draw
from hyperattention_ref.plan.pages import page_lists
from hyperattention_ref.plan.pilot import pilot_column_masses
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.recipe import Recipe, as_recipe
from hyperattention_ref.plan.views import view_orders


def make_plan(
    q,
    k,
    *,
    is_causal: bool = False,
    recipe=None,
    block_size: int = 256,
    sample_size: int = 256,
    lsh_bits: int = 8,
    min_seq_len: int = 4096,
    scale=None,
    rng=None,
    backend=None,
    enable_gqa: bool = False,
) -> Plan:
    """Decide, for every head, which pairs are exact and which keys are sampled.

    Paper: the practical algorithm, steps 1 and 2; Algorithm 1 for the view; Algorithm 4 for the causal recursion.
    Derived: every other recipe.

    Parameters
    ----------
    q : (..., n_q, d) float array.
    k : (..., n_k, d) float array of the same dtype and leading shape (see `enable_gqa`).
    is_causal : plan the recursion of Algorithm 4; needs n_q == n_k.
    recipe : None for the paper's with the next three arguments; a `Recipe`; or the name of a preset, made for 512 keys
        per query (`preset` makes it for other budgets). It then replaces the next three.
    block_size : b, keys in a block of the sortLSH view.
    sample_size : m, keys drawn uniformly with replacement, the same for all queries of a head, each of log-weight
        log(n_k / m).
    lsh_bits : r, hyperplanes of the hash.
    min_seq_len : causal ranges up to this length are exact leaves; with a window or pages, heads up to this length are
        exact, and there are no other leaves.
    scale : multiplies the logits; None means 1/sqrt(d). Recipes with a pilot, pages or landmarks look at it.
    rng : None, seed or numpy.random.Generator. Each head has a stream of its own for planes and samples, and one each
        for random orders, for the pilot and for landmarks, so one seed gives all recipes of one sample_size and
        lsh_bits the same noise.
    backend : computes the hash codes and a pilot; see `backends.select`. Rounding may flip a hash bit, so two backends
        may make different plans from one seed: hand the same plan to both to compare them.
    enable_gqa : query heads share key heads, as in grouped-query attention; every query head gets a plan.

    Returns
    -------
    Plan with the leading shape of `q`. Cost O(n (r d + log n)) for each head; a pilot adds pilot_rows n_k d, and
    landmarks n_k d² + landmarks³, times (log2 n) / 2 at most when causal. To the memory a pilot adds one panel of
    pilot_rows (at most 32) by n_k float64, and landmarks two float64 copies of the keys.
    """
    chosen = select(backend, q)
    caller, memory = q, memory_of(chosen)
    q, k, _, largest = inputs.measured_heads(q, k, is_causal=is_causal, enable_gqa=enable_gqa, memory=memory)
    _ = largest.values
    scale = inputs.resolve_scale(scale, q.shape[-1])
    planner = Planner.of(
        q,
        k,
        is_causal=is_causal,
        recipe=recipe,
        block_size=block_size,
        sample_size=sample_size,
        lsh_bits=lsh_bits,
        min_seq_len=min_seq_len,
        scale=scale,
        backend=chosen,
    )
    if planner.recipe.needs_pilot or planner.recipe.landmarks:
        inputs.logit_range(q, k, scale, largest=largest)
    return planner.plan(q, k, tuple(np.shape(caller)[:-2]), rng)


@dataclass(frozen=True)
class Planner:
    """How the heads of one call are planned; its arguments have been checked.

    Attributes
    ----------
    recipe, scale, is_causal, backend : as in `make_plan`, resolved.
    leaves : ranges (a, c) of a causal head that are exact.
    places : (query_start, query_stop, key_start, key_stop) of each rectangle of a head.
    """

    recipe: Recipe
    scale: float
    is_causal: bool
    backend: Backend
    leaves: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, q, k, *, is_causal, scale, backend, recipe, min_seq_len, **paper) -> Planner:
        """From checked arrays, a number as scale, a Backend, and the other arguments of `make_plan`."""
        recipe, min_seq_len = _resolve(recipe, paper), inputs.count("min_seq_len", min_seq_len)
        tiling = recipe.tiling(q.shape[-2], k.shape[-2], is_causal=is_causal, min_seq_len=min_seq_len)
        return cls(recipe, scale, is_causal, backend, *tiling)

    @property
    def most_draws(self) -> int:
        """The most sampled keys that one query can meet."""
        return self.recipe.sample_size * len(self.places)

    def noise(self, rng, heads: int, d: int) -> Draw:
        """The noise of all heads, (heads, rectangles, ...), the same that `plan` uses."""
        draws = [self._draw(stream, d) for stream in streams(rng, heads)]
        return Draw(np.stack([x.planes for x in draws]), np.stack([x.uniforms for x in draws]))

    def plan(self, q, k, lead: tuple[int, ...], rng) -> Plan:
        """The Plan of all heads; `lead` is the leading shape of the caller's query."""
        indices = list(np.ndindex(q.shape[:-2]))
        pairs = zip(indices, streams(rng, len(indices)), strict=True)
        return Plan(lead, tuple(self._head(q[i], k[i], stream) for i, stream in pairs))

    def _head(self, q, k, rng: np.random.Generator) -> HeadPlan:
        decide = _Decisions(self, rng)
        draws = self._draw(rng, q.shape[-1])
        rectangles = [decide.rectangle(q, k, *one) for one in zip(self.places, draws, strict=True)]
        lists = decide.lists(q, k) if self.recipe.has_lists and not self.leaves else None
        return HeadPlan(len(q), len(k), tuple(rectangles), self.leaves, lists)

    def _draw(self, rng: np.random.Generator, d: int) -> Draw:
        recipe = self.recipe
        return Draw.sample(rng, len(self.places), d=d, lsh_bits=recipe.lsh_bits, sample_size=recipe.sample_size)


class _Decisions:
    """Applies a recipe to the rectangles of one head."""

    def __init__(self, planner: Planner, rng: np.random.Generator):
        self.recipe, self.backend, self.scale = planner.recipe, planner.backend, planner.scale
        self.is_causal = planner.is_causal
        self.orders_rng, self.pilot_rng, self.landmarks_rng = rng.spawn(3)  # the draws of rng itself stay the same

    def lists(self, q, k) -> BlockLists:
        """The near and the picked pages of a head."""
        recipe, memory = self.recipe, memory_of(self.backend)
        paging = recipe.paging(len(q), len(k), is_causal=self.is_causal)
        q, k = memory.to_host(q), memory.to_host(k)
        return page_lists(q, k, paging, top=recipe.pages, lift=recipe.lift, scale=self.scale, backend=self.backend)

    def rectangle(self, q, k, place: tuple[int, int, int, int], draw: Draw) -> Rectangle:
        """The rectangle at this place of a head."""
        query_start, query_stop, key_start, key_stop = place
        q, k = q[query_start:query_stop], k[key_start:key_stop]
        recipe, n_k, views = self.recipe, len(k), []
        is_exact = np.zeros(n_k, dtype=bool)
        for kind in recipe.views:
            if kind == "local" and self.is_causal:
                is_exact[-recipe.block_size :] = True
            else:
                orders = view_orders(kind, q, k, draw.planes, self.orders_rng, self.backend)
                views.append(BlockMask.from_orders(*orders, recipe.block_size))
        if key_start == 0 and not recipe.has_lists:
            is_exact[: recipe.first_keys] = True
        masses = None
        if recipe.needs_pilot:
            masses = pilot_column_masses(q, k, recipe.pilot_rows, self.scale, self.pilot_rng, self.backend)
            by_mass = np.argsort(-masses, kind="stable")
            is_exact[by_mass[~is_exact[by_mass]][: recipe.heavy_columns]] = True
        landmarks = self._landmarks(q, k, is_exact)
        others = np.flatnonzero(~is_exact)
        sampled_keys, log_weights = _sample(draw, others, masses if recipe.sampling == "importance" else None)
        return Rectangle(
            len(q),
            n_k,
            tuple(views),
            exact_keys=np.flatnonzero(is_exact),
            sampled_keys=sampled_keys,
            log_weights=log_weights,
            query_start=query_start,
            key_start=key_start,
            landmarks=landmarks,
        )

    def _landmarks(self, q, k, is_exact: np.ndarray) -> Landmarks | None:
        """Landmarks among the keys that are not exact yet, which they become; None if no key is far then."""
        others = np.flatnonzero(~is_exact)
        if self.recipe.landmarks == 0 or others.size <= self.recipe.landmarks:
            is_exact[others[: self.recipe.landmarks]] = True
            return None
        chosen = choose_landmarks(q, k, others, self.recipe.landmarks, self.scale, self.landmarks_rng, self.backend)
        is_exact[chosen.keys] = True
        return chosen


def _sample(draw: Draw, keys: np.ndarray, masses: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Draw among `keys` with replacement, by importance if masses are given: sampled keys and log-weights -log(m p)."""
    m, n = draw.uniforms.size, keys.size
    if m == 0 or n == 0:
        return np.empty(0, np.int64), np.empty(0)
    roots = np.zeros(n) if masses is None else np.sqrt(masses[keys])
    if not roots.any():
        return keys[draw.keys(n)], np.full(m, math.log(n / m))
    p = (roots / roots.sum() + 1 / n) / 2
    cuts = np.cumsum(p)[:-1]  # without the last, which is 1 up to rounding
    drawn = np.searchsorted(cuts, draw.uniforms, side="right")
    return keys[drawn], -np.log(m * p[drawn])


def _resolve(recipe, paper: dict[str, Any]) -> Recipe:
    """The Recipe that the argument `recipe` and the parameters of the paper's recipe mean."""
    if recipe is None:
        counts: dict[str, Any] = {name: inputs.count(name, x) for name, x in paper.items()}
        return Recipe(**counts)
    parameters = inspect.signature(make_plan).parameters
    given = [name for name, x in paper.items() if x != parameters[name].default]
    if given:
        raise ValueError(f"recipe and {', '.join(given)} are both given; the recipe decides these: pass only one")
    return as_recipe(recipe)
