"""Advice: the cheapest recipe whose error on a head, or on several, is within a tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.attention import hyper_attention
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.certificate import certify
from hyperattention_ref.plan.recipe import RECIPES, Recipe, preset

BUDGETS = (32, 64, 128, 256, 512)
ADVICE_ROWS = 256
"""Exact rows of each head that judge a recipe."""


@dataclass(frozen=True)
class Trial(Result):
    """A recipe that was tried.

    Attributes
    ----------
    name, budget : of the preset.
    logits_per_query : of a head, preparation included.
    estimate : of the relative Frobenius error on fresh rows, of the worst head.
    bound : an upper bound of it, of the worst head.
    """

    name: str
    budget: int
    logits_per_query: float
    estimate: float
    bound: float


@dataclass(frozen=True)
class Advice(Result):
    """The result of `advise`.

    Attributes
    ----------
    trial : the cheapest trial within the tolerance, or None: compute these heads exactly.
    tried : all trials, the cheapest first.
    exact_logits_per_query : of exact attention.
    """

    trial: Trial | None
    tried: tuple[Trial, ...]
    exact_logits_per_query: float

    @property
    def recipe(self) -> Recipe | None:
        """The recipe to use; None for exact attention."""
        return None if self.trial is None else preset(self.trial.name, self.trial.budget)


def advise(
    q,
    k,
    v,
    *,
    tolerance: float = 0.1,
    recipes=tuple(RECIPES),
    budgets=BUDGETS,
    is_causal: bool = False,
    scale=None,
    min_seq_len: int = 4096,
    rows: int = ADVICE_ROWS,
    confidence: float = 0.95,
    rng=None,
    backend=None,
) -> Advice:
    """Find the cheapest recipe whose estimated error is within the tolerance on these heads.

    Derived. Recipes are tried in the order of their logits per query, up to exact attention's, until the estimated
    relative Frobenius error ||Att - output||_F / ||Att||_F of every head is within the tolerance. An error that rare
    rows make may escape few rows: look at `bound`, and at `certify` with more rows. What an error costs a model only
    the model tells; see the command `perplexity`.

    Parameters
    ----------
    q, k, v, is_causal, scale : as in `exact_attention`.
    tolerance : for the relative error, positive.
    recipes, budgets : names of presets and budgets to try, each with each.
    min_seq_len : as in `make_plan`.
    rows : exact rows of each head that judge each recipe; all rows if there are fewer.
    confidence : of each bound, in (0, 1).
    rng : None, int or Generator: for plans and rows.
    backend : None, a name or an instance; see `backends.select`.

    Returns
    -------
    Advice. Cost: the trials, and rows n_k (d + d_v) operations for each trial and head.
    """
    tolerance = inputs.positive("tolerance", tolerance)
    shapes = inputs.heads(q, k, v, is_causal=is_causal)
    n_q, n_k = shapes[0].shape[-2], shapes[1].shape[-2]
    rows = min(inputs.count("rows", rows), n_q)
    if not recipes or not budgets:
        raise ValueError("recipes or budgets is empty; name at least one of each")
    exact = (n_q + 1) / 2 if is_causal else float(n_k)
    costs = [(_cost(name, b, n_q, n_k, is_causal, min_seq_len), name, b) for name in recipes for b in budgets]
    common = {"is_causal": is_causal, "scale": scale, "rng": rng, "backend": backend}
    tried: list[Trial] = []
    for cost, name, budget in sorted(costs):
        if cost >= exact:
            break
        out = hyper_attention(q, k, v, recipe=preset(name, budget), min_seq_len=min_seq_len, **common)
        errors = certify(q, k, v, out, rows=rows, confidence=confidence, tolerance=tolerance, **common).output
        estimate, bound = (float(np.max(x)) for x in (errors.relative_frobenius_estimate, errors.relative_frobenius))
        tried.append(Trial(name, budget, cost, estimate, bound))
        if estimate <= tolerance:
            return Advice(tried[-1], tuple(tried), exact)
    return Advice(None, tuple(tried), exact)


def _cost(name: str, budget: int, n_q: int, n_k: int, is_causal: bool, min_seq_len: int) -> float:
    return preset(name, budget).logits_per_query(n_q, n_k, is_causal=is_causal, min_seq_len=min_seq_len)
