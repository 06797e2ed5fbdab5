"""Recipes: ways of finding the large entries of a head and of sampling the others; `planner` applies them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.plan.noise import MAX_BITS
from hyperattention_ref.plan.pages import Paging
from hyperattention_ref.plan.tiling import causal_tiling
from hyperattention_ref.plan.views import VIEWS

PAGE_SIZE = 8
"""Keys in a page, and queries in a block: what was best in a decoder, of 4, 8 and 16."""
SAMPLINGS = ("uniform", "importance")
DEFAULT_BUDGET = 512
"""Keys per query of a recipe that is given by its name alone: the paper's 256 in a block and 256 samples."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe(Result):
    """How a Plan is made: which pairs are exact and how keys are sampled for all the others.

    Derived: the default is the paper's practical algorithm, everything else is ours. A recipe holds for every
    rectangle: the whole head, or each rectangle of the causal recursion by itself. Its parts add up, and a pair that
    several of them find counts once. Window and pages belong to the whole head, causal or not: pages compete over the
    whole past of their block.

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
        there has none. Beside a window or pages: the whole pages that hold them.
    window : keys around each block of `page_size` queries, before them if causal, in whole pages: the near pages.
    pages : far pages that each block picks, those that it wants more than others do; see `page_lists`.
    page_size : keys in a page, and queries in a block.
    lift : how far pages that all blocks want must stand back, from 0, not at all, to 1.
    heavy_columns : exact keys, those of largest column norm of P (the rectangle's own) in the pilot.
    pilot_rows : random query rows that the pilot computes exactly. There is a pilot only for heavy columns and for
        importance sampling; its pilot_rows n_k logits for each rectangle are not in `keys_per_query`.
    sample_size : m, keys drawn with replacement among those that are not exact keys, the same for all queries.
    sampling : "uniform", or "importance": p_j = (s_j / sum(s) + 1 / (n_k - h)) / 2 with s_j^2 the pilot's estimate of
        the mean of P_ij^2 and h the number of exact keys.

    landmarks : r, exact keys that also stand for all the others, as `Landmarks` says; sample_size must be 0 then. Fewer
        where the rectangle has fewer keys, or where these span the functions of all of them. Their pilots compute
        r n_k logits for each rectangle, which are not in `keys_per_query`.

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
    window: int = 0
    pages: int = 0
    page_size: int = PAGE_SIZE
    lift: float = 0.8
    heavy_columns: int = 0
    pilot_rows: int = 32
    sample_size: int = 256
    sampling: str = "uniform"
    landmarks: int = 0

    def __post_init__(self):
        if not isinstance(self.views, tuple | list):
            raise TypeError(f"views is {self.views!r}; it must be a tuple of any of {', '.join(VIEWS)}")
        object.__setattr__(self, "views", tuple(self.views))
        if any(view not in VIEWS for view in self.views) or len(set(self.views)) < len(self.views):
            raise ValueError(f"views is {self.views}; it must be any of {', '.join(VIEWS)}, each once")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {self.sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
        for name, most in (("block_size", None), ("lsh_bits", MAX_BITS), ("pilot_rows", None), ("page_size", None)):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name), most=most))
        for name in ("first_keys", "window", "pages", "heavy_columns", "landmarks", "sample_size"):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name), least=0))
        if not 0 <= inputs.finite("lift", self.lift) <= 1:
            raise ValueError(f"lift is {self.lift}; it must be within 0 and 1")
        if self.keys_per_query == 0:
            raise ValueError("the recipe finds no key at all; name a view, exact keys, landmarks or a sample_size")
        if self.landmarks and self.sample_size:
            raise ValueError(
                f"landmarks is {self.landmarks} and sample_size {self.sample_size}, and both stand for the keys that "
                "are not exact: make one of them 0"
            )

    @property
    def keys_per_query(self) -> int:
        """Logits for each query of a rectangle, those of pilots and scores, which prepare it, not counted."""
        shared = self.first_keys + self.heavy_columns + self.landmarks + self.sample_size
        return len(self.views) * self.block_size + self.window + self.pages * self.page_size + shared

    @property
    def has_lists(self) -> bool:
        """Whether it has near or picked pages, which belong to the whole head."""
        return bool(self.window or self.pages)

    @property
    def has_rectangles(self) -> bool:
        """Whether it does anything rectangle by rectangle."""
        first_keys = 0 if self.has_lists else self.first_keys
        return bool(self.views or first_keys or self.heavy_columns or self.landmarks or self.sample_size)

    def logits_per_query(self, n_q: int, n_k: int, *, is_causal: bool = False, min_seq_len: int = 4096) -> float:
        """Logits for each query of a head, preparation included: pilots, and page scores, count like logits.

        What several parts find is counted for each of them, and a block or a page as if it were full.
        """
        leaves, places = self.tiling(n_q, n_k, is_causal=is_causal, min_seq_len=min_seq_len)
        total = sum(math.comb(c - a + 1, 2) for a, c in leaves)
        if self.has_lists and not leaves:
            total += self.paging(n_q, n_k, is_causal=is_causal).n_logits(self.pages)
        for first, stop, key_first, key_stop in places:
            n_keys = key_stop - key_first
            first_keys = self.first_keys if key_first == 0 and not self.has_lists else 0
            shared = first_keys + self.heavy_columns + self.landmarks + self.sample_size
            blocks = len(self.views) * min(self.block_size, n_keys)
            pilots = self.landmarks + (self.pilot_rows if self.needs_pilot else 0)
            total += (stop - first) * (blocks + shared) + pilots * n_keys
        return total / n_q

    def tiling(self, n_q: int, n_k: int, *, is_causal: bool, min_seq_len: int):
        """How a head is tiled: leaves (a, c), and places (query_start, query_stop, key_start, key_stop) of rectangles.

        A causal head without leaves has the lists of this recipe. Ranges of up to twice their window have no rectangle
        there: what is in no page is dropped, and rectangles so small cost more than they bring.
        """
        if not is_causal:
            return (), ((0, n_q, 0, n_k),) if self.has_rectangles else ()
        is_listed = self.has_lists and n_q > min_seq_len
        leaves, triples = causal_tiling(n_q, max(1, 2 * self.window) if is_listed else min_seq_len)
        places = tuple((split, stop, start, split) for start, split, stop in triples)
        if not is_listed:
            return leaves, places
        return (), places if self.has_rectangles else ()

    def paging(self, n_q: int, n_k: int, *, is_causal: bool) -> Paging:
        """The pages of a head."""
        return Paging(n_q, n_k, self.page_size, is_causal, self.window, self.first_keys)

    @property
    def is_plain(self) -> bool:
        """Whether it is the paper's own, with any parameters: one sortLSH view and uniform samples, nothing else."""
        sizes = {name: getattr(self, name) for name in ("block_size", "lsh_bits", "sample_size", "pilot_rows")}
        return self == Recipe(**sizes)

    @property
    def needs_pilot(self) -> bool:
        """Whether some query rows must be computed exactly first."""
        return bool(self.heavy_columns or (self.sampling == "importance" and self.sample_size))


class _Preset(NamedTuple):
    """A recipe up to its budget: quarters of the budget for each other part, the rest for the view."""

    view: str | None
    heavy_quarters: int
    sample_quarters: int
    sampling: str = "uniform"
    most_first_keys: int = 0
    landmark_quarters: int = 0


class _Paged(NamedTuple):
    """A recipe of whole pages up to its budget: a page of first keys or none, and shares of window and picked pages.

    Landmarks take the rest, if the shares leave any.
    """

    first_pages: int
    window: Fraction
    picked: Fraction

    def recipe(self, budget: int) -> Recipe:
        size = min(PAGE_SIZE, budget)
        pages = budget // size
        picked, first = int(pages * self.picked), min(self.first_pages, pages - 1)
        if self.window + self.picked == 1:
            window, landmarks = pages - picked - first, 0
        else:
            window = int(pages * self.window)
            landmarks = budget - (first + window + picked) * size
        return Recipe(
            views=(),
            sample_size=0,
            first_keys=first * size,
            window=window * size,
            pages=picked,
            page_size=size,
            landmarks=landmarks,
        )


RECIPES: dict[str, _Preset | _Paged] = {
    "paper": _Preset("sort_lsh", 0, 2),
    "uniform": _Preset(None, 0, 4),
    "centred": _Preset("centred_sort_lsh", 0, 2),
    "random": _Preset("random", 0, 2),
    "local": _Preset("local", 0, 2),
    "heavy": _Preset(None, 2, 2),
    "window_sinks": _Preset("local", 0, 0, most_first_keys=4),
    "local_heavy": _Preset("local", 2, 0),
    "local_heavy_importance": _Preset("local", 1, 2, sampling="importance"),
    "pages": _Paged(1, Fraction(1, 6), Fraction(5, 6)),
    "landmarks": _Preset("local", 0, 0, landmark_quarters=3),
    "far_field": _Paged(0, Fraction(1, 3), Fraction(1, 3)),
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
        - "local_heavy_importance": a quarter, a quarter, and half for importance samples;
        - "pages": five sixths for far pages that each block picks, a page of first keys, the rest for the window;
        - "landmarks": a quarter for local blocks, the rest for landmarks. Their pilots cost as many logits as
          landmarks n_k / n_q further keys per query;
        - "far_field": a third for the window, a third for picked pages, the rest for landmarks: the least error on
          real heads, of encoders above all. In a decoder "pages" costs less loss, and less time.
    budget : keys per query, at least 1. What does not divide goes to the blocks, or to the samples where there are
        none; a part of size 0 is left out.

    Returns
    -------
    Recipe whose `keys_per_query` is `budget`, or, where it is made of pages, `budget` rounded down to whole pages.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; known: {', '.join(RECIPES)}")
    budget = inputs.count("budget", budget)
    kind = RECIPES[name]
    if isinstance(kind, _Paged):
        return kind.recipe(budget)
    first = min(kind.most_first_keys, budget // 2)
    heavy, samples = budget * kind.heavy_quarters // 4, budget * kind.sample_quarters // 4
    landmarks = budget * kind.landmark_quarters // 4
    rest = budget - first - heavy - samples - landmarks
    blocks = {"views": (kind.view,), "block_size": rest} if kind.view and rest else {"views": ()}
    if not kind.view:
        samples += rest
    exact_keys = {"first_keys": first, "heavy_columns": heavy, "landmarks": landmarks}
    return Recipe(**blocks | exact_keys, sample_size=samples, sampling=kind.sampling)


def as_recipe(recipe) -> Recipe:
    """The Recipe that an argument means: the paper's for None, a preset for its name, or itself."""
    if recipe is None:
        return Recipe()
    if isinstance(recipe, str):
        return preset(recipe)
    if isinstance(recipe, Recipe):
        return recipe
    raise TypeError(f"recipe is {recipe!r}; it must be None, a Recipe or a name: {', '.join(RECIPES)}")
