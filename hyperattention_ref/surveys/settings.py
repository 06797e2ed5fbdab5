"""What a survey measures: recipes, budget, rows, and the limits of the verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.kl_bounds import failure_probability
from hyperattention_ref.plan.recipe import RECIPES, preset


@dataclass(frozen=True, kw_only=True, repr=False)
class SurveySettings(Result):
    """What a survey measures.

    Attributes
    ----------
    n : tokens, a prefix of every head; None for all.
    recipes : names from `RECIPES`, compared at equal budget.
    budget : keys per query.
    rows : exact rows for the errors, as in `certify`: a number, "auto", "all", or None for all rows where that takes
        less than about a minute, else 1024. A number is also that of the rows for masses, else 1024, or all if fewer.
    confidence : of every bound by itself.
    op_norm : whether to compute ||P||_op and the stable rank, which take up to 24 exact passes.
    tolerance : relative Frobenius error up to which a recipe may replace the head.
    min_seq_len : causal ranges up to this length are exact.
    seed : of every draw; all recipes of a head share its noise, other heads have other noise.
    backend : None, or a name; see `backends.select`.
    """

    n: int | None = None
    recipes: tuple[str, ...] = tuple(RECIPES)
    budget: int = 64
    rows: int | Literal["auto", "all"] | None = None
    confidence: float = 0.95
    op_norm: bool = True
    tolerance: float = 0.1
    min_seq_len: int = 4096
    seed: int = 0
    backend: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "recipes", tuple(dict.fromkeys(self.recipes)))
        if not self.recipes:
            raise ValueError(f"recipes is empty; name at least one of {', '.join(RECIPES)}")
        for name in self.recipes:
            preset(name, inputs.count("budget", self.budget))
        if self.n is not None:
            inputs.count("n", self.n)
        if isinstance(self.rows, str) and self.rows not in ("auto", "all"):
            raise ValueError(f'rows is {self.rows!r}; it must be a number, "auto", "all" or None')
        if not (self.rows is None or isinstance(self.rows, str)):
            inputs.count("rows", self.rows)
        inputs.boolean("op_norm", self.op_norm)
        inputs.count("min_seq_len", self.min_seq_len)
        inputs.count("seed", self.seed, least=0)
        inputs.positive("tolerance", self.tolerance)
        failure_probability(self.confidence)
