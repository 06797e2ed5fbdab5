"""Lemma 2: the law of the draw, its weights, and the exact moments of the sampled product."""

from __future__ import annotations

from functools import partial

import numpy as np

import hyperattention_ref as hr

from .dense import ROUNDING, Dense
from .lemma_2 import uneven_values
from .settings import Settings
from .verdict import clopper_pearson

N = 128


def check(settings: Settings):
    values = uneven_values(settings, N)
    values[::7] = 0  # rows that are never drawn
    for dense in settings.heads(("gaussian", "sink"), n=N, value=values):
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    yield from draws(settings, dense)
    yield from moments(dense)


def draws(settings: Settings, dense: Dense):
    """Frequencies and weights of one long sample."""
    squares = (dense.value**2).sum(axis=1)
    m = 5000 * settings.trials
    sample = hr.row_norm_sample(dense.value, m, settings.rng("lemma 2, law", dense.family))
    limits = np.array([clopper_pearson(int(hits), m) for hits in np.bincount(sample.indices, minlength=len(squares))])
    verdict = partial(dense.verdict, paper="Lemma 2", hypothesis="any values", m_used=m)
    yield verdict(
        name="Lemma 2, law of the draw",
        statement="Pr[ℓ = j] = ‖V_j‖²/‖V‖_F² for every row: the exact limits of its frequency contain it.",
        left=np.abs(squares / squares.sum() - limits.mean(axis=1)),
        right=np.diff(limits, axis=1)[:, 0] / 2,
        provable=False,
    )
    yield verdict(
        name="Lemma 2, weights",
        statement="The entry of row r of S is ‖V‖_F / (√m ‖V_ℓ‖); left is the relative difference.",
        left=np.abs(sample.weights * np.sqrt(m * squares[sample.indices] / squares.sum()) - 1).max(),
        right=ROUNDING,
    )


def moments(dense: Dense):
    """Both moments of `sampled_product`, summed over all outcomes of a single draw (m = 1)."""
    x, v = dense.p, dense.value
    squares = (v**2).sum(axis=1)
    support = np.flatnonzero(squares)
    p = squares[support] / squares.sum()
    exact = x @ v
    mean, second = np.zeros_like(exact), 0.0
    for j, pj in zip(support, p, strict=True):
        outcome = hr.sampled_product(x, v, hr.RowNormSample(np.array([j]), np.array([1 / np.sqrt(pj)]), len(v)))
        mean += pj * outcome
        second += float(pj * np.sum((outcome - exact) ** 2))
    size = float(squares.sum() * np.sum(x[:, support] ** 2))
    formula = size - float(np.sum(exact**2))
    verdict = partial(dense.verdict, paper="Lemma 2; derived", hypothesis="m = 1, all outcomes summed")
    yield verdict(
        name="Lemma 2, unbiased",
        statement="E[X SᵀS V] = X V; left is the largest entry of the difference.",
        left=np.abs(mean - exact).max(),
        right=ROUNDING * np.abs(v).max(),
    )
    yield verdict(
        name="Lemma 2, second moment",
        statement="E‖XV - X SᵀS V‖_F² = (‖V‖_F² Σ_{V_j ≠ 0} ‖X e_j‖² - ‖XV‖_F²)/m; left over the first term.",
        left=abs(second - formula) / size,
        right=ROUNDING,
        measured={"summed": second, "formula": formula},
    )
