"""Lemma 1, third step of the proof: few rows lose much mass to the cap."""

from __future__ import annotations

from functools import partial

import numpy as np

from .dense import ROUNDING, Dense
from .settings import Settings

FAMILIES = ("gaussian", "sink", "permutation", "needle")
M = 256


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=min(settings.n, 256)):
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    """Both inequalities for every row, every dyadic level and every trial; f_i is the mass removed by the cap."""
    rng = settings.rng("lemma 1, truncation", dense.family)
    masses, counts, removed = [], [], []
    for _ in range(settings.trials_for()):
        result = dense.approx_d(epsilon=settings.epsilon, m=M, rng=rng)
        cap = np.exp(result.log_caps - dense.log_d)[:, None]  # C_i / D_ii
        p = np.where(dense.mask, 0, dense.p)
        f = np.maximum(p - cap, 0).sum(axis=1)
        squared = np.where(p > cap, p**2, 0).sum(axis=1)
        masses.append(np.max(f[f > 0] * cap[f > 0, 0] / squared[f > 0], initial=0.0))
        levels = [(f > level, level) for level in 0.5 ** np.arange(1, 12)]
        counts.append(max((rows.sum() * level * cap[rows].min() for rows, level in levels if rows.any()), default=0.0))
        removed.append(float(f.max()))
    measured = dense.hardness() | {"largest f_i": max(removed)}
    verdict = partial(dense.verdict, paper="Lemma 1, proof (9.1)", m_used=M, measured=measured)
    yield verdict(
        name="a truncated row is heavy",
        statement="Row i of P has squared mass at least f_i C_i / D_ii; left is the largest ratio of the two.",
        hypothesis="f_i is the fraction of row i that the cap removes",
        left=masses,
        right=1 + ROUNDING,
    )
    yield verdict(
        name="few rows are truncated",
        statement="#{i : f_i > f} f min C_i/D_ii ≤ ‖P‖_F² ≤ α n_q/n_k for f = 1/2, 1/4, …; left is the largest.",
        hypothesis="α bounds (n_k²/n_q) max_j ‖P e_j‖²",
        left=counts,
        right=dense.alpha * len(dense.query) / len(dense.key) * (1 + ROUNDING),
    )
