"""Lemma 2: the sampled product, with its explicit constant."""

from __future__ import annotations

import math

import numpy as np

import hyperattention_ref as hr

from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import HOLDS, Verdict

FAMILIES = ("gaussian", "sink", "cones")
CASES = ((0.01, 64), (0.1, 1024))
"""(δ, n): the paper's 0.99, and 0.9, whose m is feasible for some families at n tokens."""
D_V = 4


def check(settings: Settings):
    for delta, n in CASES:
        for dense in settings.heads(FAMILIES, n=n, value=uneven_values(settings, n)):
            asked = samples_asked(dense.p, dense.value, settings.epsilon, delta)
            if dense.feasible(asked) == asked:  # the statement is the same for every X
                yield product_error(settings, dense, delta, hr.row_norm_sample, HOLDS)


def check_matrix(settings: Settings, dense: Dense):
    """With the values that come with the matrix, at the m asked if so many rows can be drawn."""
    for delta, _ in CASES:
        yield product_error(settings, dense, delta, hr.row_norm_sample, HOLDS)


def uneven_values(settings: Settings, n: int) -> np.ndarray:
    """(n, D_V) values whose row norms spread over three powers of ten, so that the sampling distribution matters."""
    rng = settings.rng("lemma 2, values", n)
    return rng.standard_normal((n, D_V)) * 10 ** rng.uniform(-2, 1, size=(n, 1))


def samples_asked(x: np.ndarray, v: np.ndarray, epsilon: float, delta: float) -> int:
    """m = 4 srank(X) srank(V) / (δ ε²): second moment and Markov's inequality (derived)."""
    return math.ceil(4 * hr.stable_rank(x) * hr.stable_rank(v) / (delta * epsilon**2))


def product_error(settings: Settings, dense: Dense, delta: float, draw, expected: str) -> Verdict:
    """X = D^{-1}A; `draw(v, m, rng)` is the sampling matrix under test."""
    rng = settings.rng("lemma 2", dense.family, delta)
    x, v = dense.p, dense.value
    asked = samples_asked(x, v, settings.epsilon, delta)
    m = dense.feasible(asked)
    exact, left = x @ v, []
    for _ in range(settings.trials_for(delta, dense.times(m, most=70))):
        left.append(hr.operator_norm(exact - hr.sampled_product(x, v, draw(v, m, rng))))
    return dense.verdict(
        name=f"Lemma 2, δ = {delta}",
        paper="Lemma 2",
        statement=f"‖XV - X SᵀS V‖_op ≤ (ε/2) ‖X‖_op ‖V‖_op with probability {1 - delta}; over ‖X‖_op ‖V‖_op.",
        hypothesis="m ≥ 4 srank(X) srank(V) / (δ ε²)",
        left=np.array(left) / (dense.op_norm * dense.value_norm),
        right=settings.epsilon / 2 * (1 + ROUNDING),
        claim=delta,
        expected=expected if m >= asked else None,
        m_asked=asked,
        m_used=m,
        measured={"srank(X)": hr.stable_rank(x), "srank(V)": hr.stable_rank(v)},
    )
