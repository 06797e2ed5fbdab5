"""The measures of one head; `to_dict()` is the head's JSON, which page "surveys" explains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.error_bounds import MEAN, ErrorBounds


@dataclass(frozen=True, repr=False)
class CausalRectangle(Result):
    """Hardness of one rectangle of the causal recursion.

    Attributes
    ----------
    range : start, split and stop; queries from split to stop, keys from start to split.
    alpha, log_kappa : as in `Hardness`.
    """

    range: tuple[int, int, int]
    alpha: float
    log_kappa: float


@dataclass(frozen=True, repr=False)
class HeadHardness(Result):
    """Exact hardness of a head; names as in `Hardness` unless described here.

    Attributes
    ----------
    op_norm, op_norm_high, stable_rank : None where the settings leave them out.
    overflows : by type, whether exp of the largest logit overflows it.
    heavy_columns : the 32 heaviest keys, the heaviest first.
    alpha_left_out : alpha by the number of heaviest columns left out: 0, 1, 4, 32 and n // 16, where the head has more.
    perplexity : effective keys of a row, by the quantile over the rows: "10 %", "50 %" and "90 %".
    log_kappa_shifted : ln kappa at the best key shift; None beyond 8192 tokens.
    rectangles : of the causal recursion; None, and absent from `to_dict()`, for heads that are not causal.
    """

    alpha: float
    log_kappa: float
    log_kappa_rescaled: float
    frobenius_norm: float
    op_norm: float | None
    op_norm_high: float | None
    stable_rank: float | None
    overflows: dict[str, bool]
    logit_min: float
    logit_max: float
    heavy_columns: tuple[int, ...]
    alpha_left_out: dict[int, float]
    perplexity: dict[str, float]
    log_kappa_shifted: float | None
    rectangles: tuple[CausalRectangle, ...] | None = None

    def to_dict(self) -> dict:
        fields = super().to_dict()
        if self.rectangles is None:
            del fields["rectangles"]
        return fields


@dataclass(frozen=True, repr=False)
class GrowthPoint(Result):
    """A prefix of n tokens; `alpha_sixteenth` is alpha without the n // 16 heaviest columns."""

    n: int
    alpha: float
    alpha_sixteenth: float
    log_kappa: float


@dataclass(frozen=True, repr=False)
class HeadErrors(ErrorBounds):
    """The `ErrorBounds` of one head, which are numbers and can be compared."""


@dataclass(frozen=True, repr=False)
class Mass(Result):
    """Softmax mass in a recipe's exact pairs: from the drawn rows, with bounds on both sides."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, repr=False)
class RecipeMeasures(HeadErrors):
    """What a recipe finds, costs, and how wrong its output is.

    Attributes
    ----------
    mass : in the pairs that are computed exactly.
    keys_per_query : of the recipe, its budget.
    logits_per_query : of the head, preparation included; see `Recipe.logits_per_query`.
    """

    mass: Mass
    keys_per_query: int
    logits_per_query: float


@dataclass(frozen=True, repr=False)
class HeadMeasures(Result):
    """What `measure_head` returns.

    Attributes
    ----------
    name, layer, head, model, source, scale, is_causal : as in `AttentionMap`.
    n, d : tokens, coordinates.
    rows : exact rows for the errors; with n of them the errors are exact.
    mass_rows : exact rows for masses and the picture.
    hardness : exact, of the whole head.
    growth : alpha and kappa of halved prefixes, the shortest first.
    recipes : by name.
    baselines : the errors of zero and of the mean of V, from the same rows.
    picture : mean attention of a band of queries to a band of keys.
    verdict, rule : whether the head can be replaced, and the rule that says so.
    rows_to_decide : about so many rows would decide what is undecided; None where the verdict is decided.
    """

    name: str
    layer: int
    head: int
    model: str
    source: str
    scale: float
    is_causal: bool
    n: int
    d: int
    rows: int
    mass_rows: int
    hardness: HeadHardness
    growth: tuple[GrowthPoint, ...]
    recipes: dict[str, RecipeMeasures]
    baselines: dict[str, HeadErrors]
    picture: tuple[tuple[float, ...], ...]
    verdict: str
    rule: str
    rows_to_decide: int | None

    def errors(self, name: str) -> HeadErrors:
        """Of a recipe or a baseline."""
        return self.recipes.get(name) or self.baselines[name]

    def is_useful(self, name: str) -> bool:
        """Whether a recipe is closer to attention than the mean of V, in the drawn rows."""
        return self.errors(name).relative_frobenius_estimate < self.baselines[MEAN].relative_frobenius_estimate

    @property
    def best_recipe(self) -> str:
        """The recipe of least bounded error."""
        return min(self.recipes, key=lambda name: self.recipes[name].relative_frobenius)

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """n and a field of `GrowthPoint`, for the prefixes and the whole head."""
        h = self.hardness
        points = (*self.growth, GrowthPoint(self.n, h.alpha, h.alpha_left_out[self.n // 16], h.log_kappa))
        return np.array([point.n for point in points]), np.array([getattr(point, name) for point in points])

    def exponent(self, name: str) -> float:
        """The slope of ln alpha, ln alpha_sixteenth or ln kappa over ln n, by least squares; NaN without prefixes."""
        if not self.growth:
            return math.nan
        n, x = self.curve(name)
        return float(np.polyfit(np.log(n), x if name == "log_kappa" else np.log(x), 1)[0])
