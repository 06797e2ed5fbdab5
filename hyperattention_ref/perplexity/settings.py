"""What `perplexity` compares: recipes, numbers of replaced layers, and the text."""

from __future__ import annotations

from dataclasses import dataclass

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.plan.recipe import RECIPES, preset

TEXTS = ("original", "repeated", "shuffled")
"""The kinds of texts, see `texts`."""
LEAST_SCORED = 32
"""Tokens; fewer have no standard error that means anything."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PerplexitySettings(Result):
    """What is compared.

    Attributes
    ----------
    n : tokens from the start of the text.
    layers : how many of the last layers are replaced, one number after the other; None for a third and all.
    recipes : names from `RECIPES`, compared at equal budget.
    budget : keys per query.
    min_seq_len : causal ranges up to this length are exact.
    last : only so many tokens at the end are scored; None for all.
    retrieval : one of `TEXTS`: the text as it is, or a stretch of it repeated, or repeated in shuffled pieces.
    beyond_context : whether n may be more than the model was trained for.
    seed : of every draw.
    """

    n: int = 4096
    layers: tuple[int, ...] | None = None
    recipes: tuple[str, ...] = tuple(RECIPES)
    budget: int = 128
    min_seq_len: int = 512
    last: int | None = None
    retrieval: str = "original"
    beyond_context: bool = False
    seed: int = 0

    def __post_init__(self):
        inputs.count("n", self.n, least=2 * LEAST_SCORED)
        inputs.count("min_seq_len", self.min_seq_len)
        if self.n <= self.min_seq_len:
            raise ValueError(
                f"n is {self.n} and min_seq_len {self.min_seq_len}, so that nothing is replaced; take more tokens or a "
                "smaller min_seq_len"
            )
        if self.layers is not None:
            layers = tuple(sorted({inputs.count("layers", x, least=0) for x in self.layers} - {0}))
            object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "recipes", tuple(dict.fromkeys(self.recipes)))
        if not self.recipes:
            raise ValueError(f"recipes is empty; name at least one of {', '.join(RECIPES)}")
        for name in self.recipes:
            preset(name, inputs.count("budget", self.budget))
        if self.budget >= self.n:
            raise ValueError(f"budget is {self.budget} keys for each query, and n is {self.n}; take fewer keys")
        if self.last is not None:
            inputs.count("last", self.last, least=LEAST_SCORED, most=self.n - 1)
        if self.retrieval not in TEXTS:
            raise ValueError(f"retrieval is {self.retrieval!r}; it must be one of {', '.join(TEXTS)}")
        inputs.boolean("beyond_context", self.beyond_context)
        inputs.count("seed", self.seed, least=0)
