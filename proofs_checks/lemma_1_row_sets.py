"""Lemma 1, last step of the proof: a small set of rows has a small operator norm."""

from __future__ import annotations

from functools import partial

import numpy as np

import hyperattention_ref as hr

from .dense import ROUNDING, Dense
from .settings import Settings

FAMILIES = ("gaussian", "sink", "permutation", "needle")


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=min(settings.n, 256)):
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    """Random sets of rows, and the rows with the largest entries in the heaviest column."""
    rng = settings.rng("lemma 1, row sets", dense.family)
    heaviest = np.argsort(-dense.p[:, (dense.p**2).sum(axis=0).argmax()])
    left, middle, right = [], [], []
    for trial in range(settings.trials_for()):
        size = int(rng.integers(1, dense.n + 1))
        rows = dense.p[heaviest[:size] if trial % 2 else rng.choice(dense.n, size, replace=False)]
        left.append(hr.operator_norm(rows) ** 2)
        middle.append(np.abs(rows).sum(axis=0).max() * np.abs(rows).sum(axis=1).max())
        right.append(np.sqrt(size * dense.alpha * dense.n) / len(dense.key))
    verdict = partial(
        dense.verdict, paper="Lemma 1, proof (9.1)", hypothesis="W is any set of rows", measured=dense.hardness()
    )
    yield verdict(
        name="‖P_W‖_op by 1- and ∞-norm",
        statement="‖P_W‖_op² ≤ ‖P_W‖_1 ‖P_W‖_∞",
        left=left,
        right=np.array(middle) * (1 + ROUNDING),
    )
    yield verdict(
        name="‖P_W‖_1 ‖P_W‖_∞ by α",
        statement="‖P_W‖_1 ‖P_W‖_∞ ≤ √(|W| α n_q)/n_k",
        left=middle,
        right=np.array(right) * (1 + ROUNDING),
    )
