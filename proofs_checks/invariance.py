"""P does not change under row scaling and key shift; kappa does."""

from __future__ import annotations

from functools import partial

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref import synthetic

from .dense import ROUNDING
from .settings import Settings
from .verdict import Verdict

FAMILIES = ("gaussian", "sink", "cones")
SHIFT = 3.0


def check(settings: Settings):
    for problem in settings.problems(FAMILIES, n=min(settings.n, 256)):
        rng = settings.rng("invariance", problem.name)
        factors = rng.uniform(0, 20, size=len(problem.query))
        scaled = synthetic.scale_rows(problem, factors)
        shift = SHIFT / abs(problem.scale) * rng.standard_normal(problem.key.shape[1])
        yield from unchanged("row scaling", "rows of A times e^U[0,20]", problem, scaled.query, scaled.key)
        shifted = problem.key + shift
        yield from unchanged("key shift", "one vector added to every key", problem, problem.query, shifted)


def unchanged(transformation: str, hypothesis: str, problem, query, key):
    """P entry by entry, and all that `hardness` computes from it; log kappa before and after is recorded."""
    before = hr.hardness(problem.query, problem.key, problem.mask, scale=problem.scale, rng=0)
    after = hr.hardness(query, key, problem.mask, scale=problem.scale, rng=0)
    p = hr.attention_probabilities(problem.query, problem.key, scale=problem.scale)
    verdict = partial(Verdict, paper="9.2, derived", hypothesis=hypothesis, family=problem.name, n=len(query))
    measured = {"log kappa before": before.log_kappa, "log kappa after": after.log_kappa}
    yield verdict(
        name=f"P is invariant under {transformation}",
        statement="Every entry of P stays; left is the largest difference.",
        left=np.abs(hr.attention_probabilities(query, key, scale=problem.scale) - p).max(),
        right=ROUNDING,
        measured=measured,
    )
    names = ("alpha", "stable_rank", "op_norm", "frobenius_norm")
    yield verdict(
        name=f"α and srank are invariant under {transformation}",
        statement="α, srank(P), ‖P‖_op and ‖P‖_F stay; left is the largest relative difference.",
        left=[abs(getattr(after, name) / getattr(before, name) - 1) for name in names],
        right=ROUNDING,
        measured=measured,
    )
