"""The usable version of Lemma 1: a sufficient m from the variances of the rows."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import HOLDS

FAMILIES = ("sphere", "gaussian", "planted_clusters")
DELTA = 0.01
N = 64


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=N):
        yield from check_matrix(settings, dense)


def samples_asked(dense: Dense, epsilon: float, delta: float = DELTA) -> int:
    """m = max_i 2 ln(2n/δ) (v_i + B_i t D_ii / 3) / (t D_ii)², with t = (ε/2)/(1 + ε/2).

    In units of D_ii: U = (1-M)∘P, v_i = n Σ_j U_ij² - (Σ_j U_ij)², B_i = n max_j U_ij.
    """
    t = (epsilon / 2) / (1 + epsilon / 2)
    u = np.where(dense.mask, 0, dense.p)
    n_q, n_k = u.shape
    variance = n_k * (u**2).sum(axis=1) - u.sum(axis=1) ** 2
    bound = n_k * u.max(axis=1)
    return max(1, math.ceil(np.max(2 * math.log(2 * n_q / delta) * (variance + bound * t / 3) / t**2)))


def check_matrix(settings: Settings, dense: Dense):
    """Both conclusions on one matrix, at the m asked if that many keys can be drawn."""
    rng = settings.rng("lemma 1, usable", dense.family)
    t = (settings.epsilon / 2) / (1 + settings.epsilon / 2)
    asked = samples_asked(dense, settings.epsilon)
    m = dense.feasible(asked)
    rows, norms = [], []
    for _ in range(settings.trials_for(DELTA, dense.times(m, most=70))):
        result = dense.approx_d(epsilon=settings.epsilon, m=m, cap_constant=math.inf, rng=rng)
        rows.append(np.max(np.abs(np.expm1(result.log_d - dense.log_d))))
        norms.append(dense.diagonal_error(result.log_d))
    verdict = partial(
        dense.verdict,
        paper="Lemma 1, usable version (9.1, derived)",
        hypothesis="no cap; m at least the bound computed from the row variances",
        claim=DELTA,
        expected=HOLDS if m >= asked else None,
        m_asked=asked,
        m_used=m,
        measured=dense.hardness(),
    )
    yield verdict(
        name="Lemma 1, usable: every row",
        statement=f"|d̃_i - D_ii| ≤ t D_ii for all rows, t = (ε/2)/(1 + ε/2), with probability {1 - DELTA}.",
        left=rows,
        right=t * (1 + ROUNDING),
    )
    yield verdict(
        name="Lemma 1, usable: the norm",
        statement=f"(6): ‖(D̃⁻¹ - D⁻¹)A‖_op ≤ (ε/2) ‖D⁻¹A‖_op, with probability {1 - DELTA}.",
        left=norms,
        right=settings.epsilon / 2 * (1 + ROUNDING),
    )
