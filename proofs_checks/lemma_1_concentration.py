"""Lemma 1, second step of the proof: the capped sum concentrates."""

from __future__ import annotations

import math

import numpy as np

from .dense import Dense
from .lemma_1 import GAMMA
from .settings import Settings

FAMILIES = ("gaussian", "sink", "needle")
N = 8
EPSILON = 1.0  # the largest that the proof allows; m grows like its inverse square


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=N):
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    """The largest |d_i - E d_i| / D_ii of every trial, d_i recomputed from the result of ApproxD."""
    n_q, n_k = dense.p.shape
    n = max(n_q, n_k)
    m = math.ceil(2048 * math.log(n) / EPSILON**2)  # the cap is then about the mean entry and cuts some entries
    rng = settings.rng("lemma 1, concentration", dense.family)
    open_entries = np.where(dense.mask, -np.inf, dense.log_a)
    left, remaining = [], []
    for _ in range(settings.trials_for(claim := 2 / n**2, dense.times(m, most=25))):
        result = dense.approx_d(epsilon=EPSILON, m=m, cap_constant=GAMMA, rng=rng)
        capped = np.exp(np.minimum(open_entries, result.log_caps[:, None]) - dense.log_d[:, None])
        draws = np.bincount(result.samples, minlength=n_k)
        left.append(np.max(np.abs(capped @ (n_k / m * draws - 1))))
        remaining.append(capped.sum(axis=1).mean())
    yield dense.verdict(
        name="capped sums concentrate",
        paper="Lemma 1, proof (9.1)",
        statement="|d_i - E d_i| < (ε/16) D_ii for all rows, except with probability 2/n² (Bernstein: 2/n³ a row).",
        hypothesis="cap constant γ = 1/2048, ε = 1; any m; n = max(n_q, n_k)",
        left=left,
        right=EPSILON / 16,
        claim=claim,
        m_used=m,
        measured=dense.hardness() | {"mean mass left by the caps": float(np.mean(remaining))},
    )
