"""Theorem 1: inequality (1) for Algorithm 3."""

from __future__ import annotations

import math
from dataclasses import replace

import hyperattention_ref as hr

from . import lemma_1, lemma_2
from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import HOLDS, Verdict

FAMILIES = ("gaussian", "sphere", "cones", "sink")
CLAIM = 0.02
SMALL_N = 13  # the least n for which 3/n² leaves room below 0.02
USUAL_M = 1024
"""An m of practical size, at which nothing is promised."""


def check(settings: Settings):
    for problem in replace(settings, families=None).problems(("sphere",), n=SMALL_N):  # others require more
        dense = Dense.of(problem, value=problem.value[:, :2])
        at_one = replace(settings, epsilon=1.0)  # the largest ε that the proof allows
        yield inequality(at_one, dense, samples_asked(dense, 1.0), HOLDS, gamma=lemma_1.GAMMA)
    for dense in settings.heads(FAMILIES):
        yield inequality(settings, dense, USUAL_M, None)


def check_matrix(settings: Settings, dense: Dense):
    """At an m of practical size and, if so many keys can be drawn, at the m asked."""
    yield inequality(settings, dense, USUAL_M, None)
    asked = samples_asked(dense, settings.epsilon)
    if dense.feasible(asked) == asked:
        yield inequality(settings, dense, asked, HOLDS, gamma=lemma_1.GAMMA)


def samples_asked(dense: Dense, epsilon: float) -> int:
    """The diagonal (Lemma 1) gets ε/2, the product (Lemma 2) ε/(1 + ε/2) instead of ε; failures 3/n² + δ = 0.02."""
    for_diagonal = lemma_1.samples_asked(dense.n, dense.kappa, dense.alpha, epsilon, dense.op_norm)
    delta = CLAIM - 3 / dense.n**2
    # ‖X‖_F/‖X‖_op of X = D̃^{-1}A exceeds that of D^{-1}A by at most (1 + ε/2)/(1 - ε/2) on the event of Lemma 1
    spread = ((1 + epsilon / 2) / (1 - epsilon / 2)) ** 2
    for_product = lemma_2.samples_asked(dense.p, dense.value, epsilon / (1 + epsilon / 2), delta) * spread
    return math.ceil(max(for_diagonal, for_product))


def inequality(settings: Settings, dense: Dense, m: int, expected: str | None, gamma=1.0) -> Verdict:
    """(1) in many runs of Algorithm 3."""
    rng = settings.rng("theorem 1", dense.family, dense.n, m)
    asked = samples_asked(dense, settings.epsilon)
    enough = m >= asked and gamma == lemma_1.GAMMA
    left = []
    for _ in range(settings.trials_for(CLAIM, dense.times(m, most=10 if enough else 1))):
        result = dense.literal_attention(epsilon=settings.epsilon, m=m, cap_constant=gamma, rng=rng)
        left.append(dense.error(result.estimate))
    return dense.verdict(
        name="Theorem 1, at the m asked" if enough else "Theorem 1, at a usual m",
        paper="Theorem 1, (1)",
        statement="‖Att - D̃⁻¹A SᵀS V‖_op ≤ ε ‖D⁻¹A‖_op ‖V‖_op with probability 0.98; both sides over ‖D⁻¹A‖_op ‖V‖_op.",
        hypothesis=f"κ and α bound the matrix; ε = {settings.epsilon:g}, cap constant {gamma:.3g}",
        left=left,
        right=settings.epsilon * (1 + ROUNDING),
        claim=CLAIM,
        expected=expected,
        m_asked=asked,
        m_used=m,
        measured=dense.hardness() | {"srank(P)": hr.stable_rank(dense.p), "srank(V)": hr.stable_rank(dense.value)},
    )
