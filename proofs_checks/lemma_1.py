"""Lemma 1, inequality (6): at the m that it requires, and at an m of practical size."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import HOLDS, Verdict

FAMILIES = ("gaussian", "sphere", "cones", "flat", "sink", "low_rank", "row_scales")
GAMMA = 1 / 2048
"""The cap constant of the proof, the only one for which the lemma's own m is known."""
SMALL_N = 6
M = 256
"""An m of practical size, at which nothing is promised."""


def check(settings: Settings):
    # With the lemma's own constants, cap constant 1/2048 and ε = 1, possible for tiny n of these families only.
    at_one = replace(settings, epsilon=1.0, families=None)
    for dense in at_one.heads(("gaussian", "sphere"), n=SMALL_N, mask_given=None):
        asked = samples_asked(dense.n, dense.kappa, dense.alpha, at_one.epsilon, dense.op_norm)
        yield at_m(at_one, dense, math.ceil(asked), HOLDS, gamma=GAMMA)
    for dense in settings.heads(FAMILIES):
        yield at_m(settings, dense, M, None)


def check_matrix(settings: Settings, dense: Dense):
    """At an m of practical size and, if so many keys can be drawn, at the m asked."""
    yield at_m(settings, dense, M, None)
    m = math.ceil(samples_asked(dense.n, dense.kappa, dense.alpha, settings.epsilon, dense.op_norm))
    if dense.feasible(m) == m:
        yield at_m(settings, dense, m, HOLDS, gamma=GAMMA)


def samples_asked(n: int, kappa: float, alpha: float, epsilon: float, op_norm: float) -> float:
    """min(m_1, m_2) of the page "theory", 9.1: m with which (6) holds with probability 1 - 3/n².

    m_1 = ([45.3 α √(κ ln n)/ε (4.28 + 1.42 (κ-1)²) + (κ²-1)² √(2 α ln n)] / (0.2295 ε² ‖P‖_op²))², and with
    m_2 = max(n, 2048 κ n ln n / ε²) nothing is ever capped.
    """
    log_n, kappa = math.log(max(n, 2)), np.float64(kappa)
    with np.errstate(over="ignore"):
        return float(min(_m_1(log_n, kappa, alpha, epsilon, op_norm), max(n, 2048 * kappa * n * log_n / epsilon**2)))


def _m_1(log_n, kappa, alpha, epsilon, op_norm):
    spread = 45.3 * alpha * math.sqrt(kappa * log_n) / epsilon * (4.28 + 1.42 * (kappa - 1) ** 2)
    rest = (kappa**2 - 1) ** 2 * math.sqrt(2 * alpha * log_n)
    return ((spread + rest) / (0.2295 * epsilon**2 * op_norm**2)) ** 2


def at_m(settings: Settings, dense: Dense, m: int, expected: str | None, gamma=1.0, kappa=None, trials=None) -> Verdict:
    """Inequality (6) in many runs of ApproxD; the claim is the failure probability 3/n² of the explicit lemma."""
    rng = settings.rng("lemma 1", dense.family, dense.n, m, gamma, kappa)
    epsilon, claim = settings.epsilon, 3 / dense.n**2
    asked = samples_asked(dense.n, dense.kappa, dense.alpha, epsilon, dense.op_norm)
    enough = m >= asked and gamma == GAMMA
    trials = trials or settings.trials_for(claim, dense.times(m, most=20 if enough else 1))
    left, capped, floored = [], [], []
    for _ in range(trials):
        options = {} if kappa is None else {"kappa": kappa}
        result = dense.approx_d(epsilon=epsilon, m=m, cap_constant=gamma, rng=rng, **options)
        left.append(dense.diagonal_error(result.log_d))
        capped.append(result.n_capped)
        floored.append(result.n_floored)
    counts = {"mean entries capped": float(np.mean(capped)), "mean rows floored": float(np.mean(floored))}
    return dense.verdict(
        name="Lemma 1, at the m asked" if enough else "Lemma 1, at a usual m",
        paper="Lemma 1, (6)",
        statement="‖(D̃⁻¹ - D⁻¹)A‖_op ≤ (ε/2) ‖D⁻¹A‖_op, except with probability 3/n²; both sides over ‖D⁻¹A‖_op.",
        hypothesis=f"κ and α bound the matrix; ε = {epsilon:g}, cap constant {gamma:.3g}",
        left=left,
        right=epsilon / 2 * (1 + ROUNDING),
        claim=claim,
        expected=expected,
        measured=dense.hardness() | counts,
        m_asked=asked,
        m_used=m,
    )
