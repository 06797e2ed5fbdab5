"""Lemma 1, first steps of the proof: the bounds in terms of tau / kappa."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from .dense import ROUNDING, Dense
from .settings import Settings

FAMILIES = ("gaussian", "planted_clusters", "row_scales")
M = 32
DELTA = 0.05


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=min(settings.n, 256)):
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    """All three bounds on one matrix."""
    rng = settings.rng("lemma 1, tau", dense.family)
    allowed = dense.n / M * math.log(1 / DELTA)
    floors, counts, ratios = [], [], []
    for _ in range(settings.trials_for(DELTA, times=15)):
        result = dense.approx_d(epsilon=settings.epsilon, m=M, rng=rng)
        log_base = np.logaddexp(dense.log_h, result.log_floor)  # H_i + τ/κ
        open_rows = np.isfinite(dense.log_r)
        larger = open_rows & (dense.log_r > result.log_tau)
        power = np.where(larger, 2, 1) * dense.log_kappa
        floors.append(np.exp(np.max((log_base - dense.log_d)[open_rows], initial=-math.inf)))
        counts.append(larger.sum())
        ratios.append(np.exp(np.max((dense.log_d - log_base - power)[open_rows], initial=-math.inf)))
    verdict = partial(dense.verdict, paper="Lemma 1, proof (9.1)", m_used=M, measured=dense.hardness())
    hypothesis = "κ bounds max R_i / min R_i"
    yield verdict(
        name="τ/κ is a lower bound",
        statement="H_i + τ/κ ≤ D_ii for every row; left is the largest ratio of the two.",
        hypothesis=hypothesis,
        left=floors,
        right=1 + ROUNDING,
    )
    yield verdict(
        name="few rows exceed τ",
        statement=f"At most (n/m) ln(1/δ) rows have R_i > τ, with probability 1 - δ = {1 - DELTA}.",
        hypothesis="T is a uniformly random set of min(m, n) rows",
        left=counts,
        right=allowed,
        claim=DELTA,
    )
    yield verdict(
        name="H_i + τ/κ is nearly D_ii",
        statement="D_ii ≤ κ (H_i + τ/κ) where R_i ≤ τ, D_ii ≤ κ² (H_i + τ/κ) elsewhere; left is the largest ratio.",
        hypothesis=hypothesis,
        left=ratios,
        right=1 + ROUNDING,
    )
