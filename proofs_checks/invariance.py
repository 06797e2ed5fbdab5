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
    """P entry by entry, and what is computed from it, the norm exactly; log kappa before and after is recorded."""
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
    pairs = [
        (before.alpha, after.alpha),
        (before.frobenius_norm, after.frobenius_norm),
        (dense.op_norm, changed.op_norm),
    ]
    pairs.append(tuple(frobenius**2 / norm**2 for frobenius, norm in zip(*pairs[1:], strict=True)))  # srank
    yield verdict(
        name=f"α and srank are invariant under {transformation}",
        statement="α, srank(P), ‖P‖_op and ‖P‖_F stay; left is the largest relative difference.",
        left=[abs(y / x - 1) for x, y in pairs],
        right=ROUNDING,
        measured=measured,
    )
