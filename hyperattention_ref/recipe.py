"""Recipes: ways of finding the large entries of a head and of sampling the others, each of which yields a Plan."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hyperattention_ref import backends, inputs
from hyperattention_ref.block_mask import BlockMask
from hyperattention_ref.definition_1 import MAX_BITS
from hyperattention_ref.draw import Draw, head_streams
from hyperattention_ref.measures.pilot import pilot_column_masses
from hyperattention_ref.memory import memory_of
from hyperattention_ref.plan import HeadPlan, Plan, Rectangle, causal_tiling
from hyperattention_ref.results import Result

VIEWS = ("sort_lsh", "centred_sort_lsh", "random", "local")
SAMPLINGS = ("uniform", "importance")
DEFAULT_BUDGET = 512
"""Keys per query of a recipe that is given by its name alone: the paper's 256 in a block and 256 samples."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(Result):
    """How a Plan is made: which pairs are exact and how keys are sampled for all the others.

    Derived: the default is the paper's practical algorithm, everything else is ours. A recipe holds for every
    rectangle: the whole head, or each rectangle of the causal recursion by itself. Its parts add up, and a pair that
    several of them find counts once.

    Parameters
    ----------
    views : which blocks of queries and keys are exact, any of

        - "sort_lsh": Algorithm 1;
        - "centred_sort_lsh": Algorithm 1 with queries and keys each less their own mean before hashing, on the same
          hyperplanes. The mean hides what tells rows apart when queries and keys live in different cones;
        - "random": both sides in random order, what blocks find without looking;
        - "local": both sides in their own order. In a causal rectangle, whose keys all come before its queries, the
          nearest keys of every query are the last ones: they become exact keys, so that leaves and rectangles
          together hold the sliding window of `block_size` keys.
    block_size : b, keys in a block of each view.
    lsh_bits : r, hyperplanes of the hash.
    first_keys : exact keys at the start of the sequence ("attention sinks"); a causal rectangle that does not start
        there has none.
    heavy_columns : exact keys, those of largest column norm of P (the rectangle's own) in the pilot.
    pilot_rows : random query rows that the pilot computes exactly. There is a pilot only for heavy columns and for
        importance sampling; its pilot_rows n_k logits for each rectangle are not in `keys_per_query`.
    sample_size : m, keys drawn with replacement among those that are not exact keys, the same for all queries.
    sampling : "uniform", or "importance": p_j = (s_j / sum(s) + 1 / (n_k - h)) / 2 with s_j^2 the pilot's estimate of
        the mean of P_ij^2 and h the number of exact keys.

    Notes
    -----
    Importance: leaving views aside, the variances of the estimated row sums, each relative to D_ii^2, add up to
    (sum_j c_j / p_j - const) / m, c_j = sum_i P_ij^2, the sum over sampled keys: least for p_j proportional to
    sqrt(c_j). The half that is uniform makes p_j > 0, as rule 6 of the Plan needs, and keeps that sum of c_j / p_j
    within twice its value for the uniform law, however wrong the pilot; if the pilot is right, within twice the least
    value too.
    """

    views: tuple[str, ...] = ("sort_lsh",)
    block_size: int = 256
    lsh_bits: int = 8
    first_keys: int = 0
    heavy_columns: int = 0
    pilot_rows: int = 32
    sample_size: int = 256
    sampling: str = "uniform"

    def __post_init__(self):
        if not isinstance(self.views, tuple | list):
            raise TypeError(f"views is {self.views!r}; it must be a tuple of any of {', '.join(VIEWS)}")
        object.__setattr__(self, "views", tuple(self.views))
        if any(view not in VIEWS for view in self.views) or len(set(self.views)) < len(self.views):
            raise ValueError(f"views is {self.views}; it must be any of {', '.join(VIEWS)}, each once")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {self.sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
        for name, most in (("block_size", None), ("lsh_bits", MAX_BITS), ("pilot_rows", None)):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name), most=most))
        for name in ("first_keys", "heavy_columns", "sample_size"):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name), least=0))
        if self.keys_per_query == 0:
            raise ValueError("the recipe finds no key at all; name a view, exact keys or a sample_size")

    @property
    def keys_per_query(self) -> int:
        """Logits for each query of a rectangle: blocks, exact keys and samples; the pilot not counted."""
        return len(self.views) * self.block_size + self.first_keys + self.heavy_columns + self.sample_size

    @property
    def is_plain(self) -> bool:
        """Whether it is the paper's own, with any parameters: one sortLSH view and uniform samples, nothing else."""
        usual = replace(self, block_size=1, lsh_bits=1, sample_size=1, pilot_rows=1)
        return usual == Recipe(block_size=1, lsh_bits=1, sample_size=1, pilot_rows=1)

    @property
    def needs_pilot(self) -> bool:
        """Whether some query rows must be computed exactly first."""
        return bool(self.heavy_columns or (self.sampling == "importance" and self.sample_size))


class _Preset(NamedTuple):
    """A recipe up to its budget: quarters of the budget for heavy columns and samples, the rest for the view."""

    view: str | None
    heavy_quarters: int
    sample_quarters: int
    sampling: str = "uniform"
    most_first_keys: int = 0


RECIPES = {
    "paper": _Preset("sort_lsh", 0, 2),
    "uniform": _Preset(None, 0, 4),
    "centred": _Preset("centred_sort_lsh", 0, 2),
    "random": _Preset("random", 0, 2),
    "local": _Preset("local", 0, 2),
    "heavy": _Preset(None, 2, 2),
    "window_sinks": _Preset("local", 0, 0, most_first_keys=4),
    "local_heavy": _Preset("local", 2, 0),
    "local_heavy_importance": _Preset("local", 1, 2, sampling="importance"),
}
"""The named recipes; `preset` makes them for a budget."""


def preset(name: str, budget: int = DEFAULT_BUDGET) -> Recipe:
    """The named recipe at a budget of so many keys per query.

    Derived: equal budgets make recipes comparable. The pilot of "heavy", "local_heavy" and "local_heavy_importance" is
    not in the budget: its 32 rows cost as many logits as 32 n_k / n_q further keys per query.

    Parameters
    ----------
    name : one of `RECIPES`:

        - "paper": half for sortLSH blocks, half for uniform samples; the default of `hyper_attention`;
        - "uniform": samples only;
        - "centred", "random", "local": as "paper" with other blocks;
        - "heavy": half for heavy columns, half for uniform samples;
        - "window_sinks": the first four keys (fewer if that were more than half), the rest for local blocks, no
          samples: biased whatever the budget;
        - "local_heavy": half for local blocks, half for heavy columns, no samples: biased likewise;
        - "local_heavy_importance": a quarter, a quarter, and half for importance samples.
    budget : keys per query, at least 1. What does not divide goes to the blocks, or to the samples where there are
        none; a part that comes out as nothing is left out.

    Returns
    -------
    Recipe whose `keys_per_query` is `budget`.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; known: {', '.join(RECIPES)}")
    budget = inputs.count("budget", budget)
    kind = RECIPES[name]
    first = min(kind.most_first_keys, budget // 2)
    heavy, samples = budget * kind.heavy_quarters // 4, budget * kind.sample_quarters // 4
    rest = budget - first - heavy - samples
    blocks = {"views": (kind.view,), "block_size": rest} if kind.view and rest else {"views": ()}
    if not kind.view:
        samples += rest
    return Recipe(**blocks, first_keys=first, heavy_columns=heavy, sample_size=samples, sampling=kind.sampling)


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
    min_seq_len : causal ranges up to this length are exact leaves.
    scale : multiplies the logits; None means 1/sqrt(d). Only a recipe with a pilot looks at it.
    rng : None, seed or numpy.random.Generator. Each head has a stream of its own for planes and samples, and one each
        for random orders and for the pilot, so one seed gives all recipes of one sample_size and lsh_bits the same
        noise.
    backend : computes the hash codes and a pilot; see `backends.select`. Rounding may flip a hash bit, so two backends
        may make different plans from one seed: hand the same plan to both to compare them.
    enable_gqa : query heads share key heads, as in grouped-query attention; every query head gets a plan.

    Returns
    -------
    Plan with the leading shape of `q`. Cost O(n (r d + log n)) for each head; a pilot adds pilot_rows n_k d, times
    (log2 n) / 2 at most when causal, and one panel of pilot_rows (at most 32) by n_k float64 to the memory.
    """
    chosen = backends.select(backend, q)
    lead = tuple(np.shape(q)[:-2])
    memory = memory_of(chosen)
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
    if planner.recipe.needs_pilot:
        inputs.logit_range(q, k, scale, largest=largest)
    return planner.plan(q, k, lead, rng)


@dataclass(frozen=True)
class Planner:
    """How the heads of one call are planned, past the door.

    Attributes
    ----------
    recipe, scale, is_causal, backend : as in `make_plan`, resolved.
    leaves : ranges (a, c) of a causal head that are exact.
    places : (query_start, query_stop, key_start, key_stop) of each rectangle of a head.
    """

    recipe: Recipe
    scale: float
    is_causal: bool
    backend: Any
    leaves: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, q, k, *, is_causal, scale, backend, recipe, min_seq_len, **paper) -> Planner:
        """For what `inputs.measured_heads` returned, a number as scale, a backend, and arguments of `make_plan`."""
        recipe, min_seq_len = _resolve(recipe, paper), inputs.count("min_seq_len", min_seq_len)
        n_q, n_k = q.shape[-2], k.shape[-2]
        if not is_causal:
            return cls(recipe, scale, False, backend, (), ((0, n_q, 0, n_k),))
        leaves, triples = causal_tiling(n_q, min_seq_len)
        places = tuple((split, stop, start, split) for start, split, stop in triples)
        return cls(recipe, scale, True, backend, leaves, places)

    @property
    def most_draws(self) -> int:
        """The most sampled keys that one query can meet."""
        return self.recipe.sample_size * len(self.places)

    def noise(self, rng, heads: int, d: int) -> Draw:
        """The noise of all heads, (heads, rectangles, ...), the same that `plan` uses."""
        draws = [self._draw(stream, d) for stream in head_streams(rng, heads)]
        return Draw(np.stack([x.planes for x in draws]), np.stack([x.uniforms for x in draws]))

    def plan(self, q, k, lead: tuple[int, ...], rng) -> Plan:
        """The Plan of heads whose query had the leading shape `lead` at the door."""
        indices = list(np.ndindex(q.shape[:-2]))
        streams = head_streams(rng, len(indices))
        return Plan(lead, tuple(self._head(q[i], k[i], stream) for i, stream in zip(indices, streams, strict=True)))

    def _head(self, q, k, rng: np.random.Generator) -> HeadPlan:
        decide = _Decisions(self, rng)
        draws = self._draw(rng, q.shape[-1])
        rectangles = [decide.rectangle(q, k, *one) for one in zip(self.places, draws, strict=True)]
        return HeadPlan(len(q), len(k), tuple(rectangles), self.leaves)

    def _draw(self, rng: np.random.Generator, d: int) -> Draw:
        recipe = self.recipe
        return Draw.sample(rng, len(self.places), d=d, lsh_bits=recipe.lsh_bits, sample_size=recipe.sample_size)


class _Decisions:
    """Applies a recipe to the rectangles of one head."""

    def __init__(self, planner: Planner, rng: np.random.Generator):
        self.recipe, self.backend, self.scale = planner.recipe, planner.backend, planner.scale
        self.is_causal = planner.is_causal
        self.orders_rng, self.pilot_rng = rng.spawn(2)  # takes nothing out of rng itself

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
                views.append(BlockMask.from_orders(*self._orders(kind, q, k, draw), recipe.block_size))
        if key_start == 0:
            is_exact[: recipe.first_keys] = True
        masses = None
        if recipe.needs_pilot:
            masses = pilot_column_masses(q, k, recipe.pilot_rows, self.scale, self.pilot_rng, self.backend)
            by_mass = np.argsort(-masses, kind="stable")
            is_exact[by_mass[~is_exact[by_mass]][: recipe.heavy_columns]] = True
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
        )

    def _orders(self, kind: str, q, k, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        if kind == "local":
            return np.arange(len(q)), np.arange(len(k))
        if kind == "random":
            return self.orders_rng.permutation(len(q)), self.orders_rng.permutation(len(k))
        memory = memory_of(self.backend)
        sides = (q, k) if kind == "sort_lsh" else (memory.centred(q), memory.centred(k))
        query_codes, key_codes = (self._narrow(memory.to_host(self.backend.hash_codes(x, draw.planes))) for x in sides)
        return np.argsort(query_codes, kind="stable"), np.argsort(key_codes, kind="stable")

    def _narrow(self, codes):
        """The codes as 16-bit integers if they fit: NumPy sorts these by counting, in linear time."""
        return codes.astype(np.uint16) if self.recipe.lsh_bits <= 16 else codes


def _sample(draw: Draw, keys: np.ndarray, masses: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Draw among `keys` with replacement, by importance if masses are given: sampled keys and log-weights -log(m p)."""
    m, n = draw.uniforms.size, keys.size
    if m == 0 or n == 0:
        return np.empty(0, np.int64), np.empty(0)
    roots = np.zeros(n) if masses is None else np.sqrt(masses[keys])
    if not roots.any():
        return keys[draw.keys(n)], np.full(m, math.log(n / m))
    p = (roots / roots.sum() + 1 / n) / 2
    drawn = np.searchsorted(np.cumsum(p)[:-1], draw.uniforms, side="right")  # the last cut is 1, whatever the rounding
    return keys[drawn], -np.log(m * p[drawn])


def _resolve(recipe, paper: dict[str, Any]) -> Recipe:
    """The Recipe that is meant by the argument `recipe` and by the parameters of the paper's."""
    if recipe is None:
        counts: dict[str, Any] = {name: inputs.count(name, x) for name, x in paper.items()}
        return Recipe(**counts)
    parameters = inspect.signature(make_plan).parameters
    given = [name for name, x in paper.items() if x != parameters[name].default]
    if given:
        raise ValueError(f"recipe and {', '.join(given)} are both given; the recipe decides these: pass only one")
    if isinstance(recipe, str):
        return preset(recipe)
    if isinstance(recipe, Recipe):
        return recipe
    raise TypeError(f"recipe is {recipe!r}; it must be None, a Recipe or a name: {', '.join(RECIPES)}")
