"""P does not change under row scaling and key shift; kappa does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

import hyperattention_ref as hr

from .dense import ROUNDING, Dense
from .settings import Settings

FAMILIES = ("gaussian", "sink", "cones")
SHIFT = 3.0


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=min(settings.n, 256)):
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    rng = settings.rng("invariance", dense.family)
    scaled = dense.with_rows_scaled(rng.uniform(0, 20, size=dense.n))
    yield from unchanged("row scaling", "rows of A times e^U[0,20]", dense, scaled)
    shift = SHIFT / dense.scale * rng.standard_normal(dense.key.shape[1])
    shifted = replace(dense, key=dense.key + shift)
    yield from unchanged("key shift", "one vector added to every key", dense, shifted)


def unchanged(transformation: str, hypothesis: str, dense: Dense, changed: Dense):
    """P entry by entry, and all that `hardness` computes from it; log kappa before and after is recorded."""
    before, after = dense.measured_hardness(), changed.measured_hardness()
    p, p_after = (
        hr.attention_probabilities(x.query, x.key, scale=x.scale, is_causal=x.is_causal) for x in (dense, changed)
    )
    verdict = partial(dense.verdict, paper="9.2, derived", hypothesis=hypothesis)
    measured = {"log kappa before": before.log_kappa, "log kappa after": after.log_kappa}
    yield verdict(
        name=f"P is invariant under {transformation}",
        statement="Every entry of P stays; left is the largest difference.",
        left=np.abs(p_after - p).max(),
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
