"""Algorithm 4: the causal recursion, and Lemma 2 for the causal product."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

import hyperattention_ref as hr

from . import lemma_2
from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import HOLDS, Verdict

FAMILIES = ("gaussian", "cones")
LEAF, M = 16, 64


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=257, mask_given=None, is_causal=True):  # odd at every level
        yield from check_matrix(settings, dense)


def check_matrix(settings: Settings, dense: Dense):
    """Both statements about one causal matrix."""
    options = {"kappa": 20.0, "epsilon": settings.epsilon, "scale": dense.scale, "min_seq_len": LEAF}
    yield errors_add_up(settings, dense, options)
    yield causal_product(settings, dense, options)


def errors_add_up(settings: Settings, dense: Dense, options: dict) -> Verdict:
    """|d̃_i - D_ii| compared with the errors of row i's rectangles, each relative to the exact sum of its rectangle."""
    rng = settings.rng("algorithm 4", dense.family)
    left, right = [], []
    for _ in range(settings.trials_for()):
        result = hr.causal_approx_d(dense.query, dense.key, m=M, rng=rng, **options)
        parts = np.zeros(dense.n)
        for (a, split, c), part in zip(result.rectangles, result.parts, strict=True):
            exact = logsumexp(dense.log_a[split:c, a:split], axis=1)
            parts[split:c] += np.abs(np.exp(part.log_d - dense.log_d[split:c]) - np.exp(exact - dense.log_d[split:c]))
        error = np.abs(np.expm1(result.log_d - dense.log_d))
        worst = np.argmax(error - parts)
        left.append(error[worst])
        right.append(parts[worst])
    return dense.verdict(
        name="Algorithm 4, errors add up",
        paper="Algorithm 4",
        statement="|d̃_i - D_ii| ≤ the sum of row i's rectangle errors; leaves are exact. Worst row, in units of D_ii.",
        hypothesis="any n",
        family=f"{dense.family}, causal",
        left=left,
        right=np.array(right) + ROUNDING,
        m_used=M,
    )


def causal_product(settings: Settings, dense: Dense, options: dict) -> Verdict:
    """Lemma 2 for X = D̃^{-1}(M^C ∘ A), D̃ from Algorithm 4."""
    rng = settings.rng("algorithm 4, product", dense.family)
    v = dense.value[:, :2]
    first = hr.causal_approx_d(dense.query, dense.key, m=M, rng=rng, **options)
    x = np.exp(dense.log_a - first.log_d[:, None])
    asked = lemma_2.samples_asked(x, v, settings.epsilon, delta := 0.1)
    m = dense.feasible(asked)
    left, right = [], []
    for _ in range(settings.trials_for(delta, dense.times(m, most=5))):
        result = hr.causal_literal_hyper_attention(dense.query, dense.key, v, m=m, rng=rng, **options)
        x = np.exp(dense.log_a - result.diagonal.log_d[:, None])
        left.append(hr.operator_norm(x @ v - result.estimate))
        right.append(settings.epsilon / 2 * hr.operator_norm(x) * hr.operator_norm(v))
    return dense.verdict(
        name="Algorithm 4 with Lemma 2",
        paper="Algorithms 3 and 4, causal",
        statement="‖XV - X SᵀS V‖_op ≤ (ε/2) ‖X‖_op ‖V‖_op for X = D̃⁻¹(M^C∘A), with probability 0.9.",
        hypothesis="m ≥ 4 srank(X) srank(V) / (δ ε²), one S for all rows",
        family=f"{dense.family}, causal",
        left=left,
        right=np.array(right) * (1 + ROUNDING),
        claim=delta,
        expected=HOLDS if m >= asked else None,
        m_asked=asked,
        m_used=m,
    )
