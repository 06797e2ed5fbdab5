"""Counterexamples: each check repeated without one ingredient must fail, which shows that the check can fail."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref import synthetic

from . import definition_1, lemma_1, lemma_2
from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import FAILS, HOLDS, Verdict

N, M = 384, 64
NO_FLOOR = 1e300
"""A kappa so large that tau / kappa is negligible. Without mask the cap is proportional to gamma tau / kappa, so an
equally large cap constant gives the same caps as kappa = 1."""


def check(settings: Settings):
    yield from cap_and_floor(settings)
    yield kappa_too_small(settings)
    yield zero_padded_key(settings)
    yield uniform_draws(settings)
    yield from wrong_hashes(settings)


def _renamed(verdict: Verdict, name: str, without: str) -> Verdict:
    return replace(verdict, name=name, hypothesis=without)


def cap_and_floor(settings: Settings):
    """The permutation and the needle family: exact with cap and floor, wrong without either."""
    for family in ("permutation", "needle"):
        dense = Dense.of(synthetic.FAMILIES[family](N, rng=settings.rng("counterexample", family)))
        trials = max(40, 3 * settings.trials)  # without the cap needles fail only where one is drawn: half of the time
        both = lemma_1.at_m(settings, dense, M, HOLDS, trials=trials)
        yield _renamed(both, f"{family}, cap and floor", "cap constant 1 and true κ: nothing dropped")
        no_cap = lemma_1.at_m(settings, dense, M, FAILS, gamma=math.inf, trials=trials)
        yield _renamed(no_cap, f"{family}, without the cap", "DROPPED: the cap (γ = ∞)")
        no_floor = lemma_1.at_m(settings, dense, M, FAILS, gamma=NO_FLOOR, kappa=NO_FLOOR, trials=trials)
        yield _renamed(no_floor, f"{family}, without the floor", "DROPPED: the floor (κ = 1e300, caps unchanged)")


def kappa_too_small(settings: Settings) -> Verdict:
    """Rows of very different scale with kappa = 1: the floor makes the small rows far too large."""
    problem = synthetic.row_scales(N, 64, 5.0, rng=settings.rng("counterexample, kappa"))
    verdict = lemma_1.at_m(settings, Dense.of(problem), M, FAILS, kappa=1.0, trials=5)
    return _renamed(verdict, "κ passed too small", "DROPPED: κ bounds max R_i / min R_i (true κ = e⁵, passed 1)")


def zero_padded_key(settings: Settings) -> Verdict:
    """Keys padded with zero rows to a multiple of the block that count: each adds exp(0) = 1 to every row sum."""
    problem = synthetic.cones(N - 1, axis_angle=math.pi, rng=settings.rng("counterexample, padding"))
    padded = [np.vstack([x, np.zeros((1, x.shape[1]))]) for x in (problem.key, problem.value)]
    out = hr.exact_attention(problem.query, *padded, scale=problem.scale)
    right = hr.exact_attention(problem.query, problem.key, problem.value, scale=problem.scale)
    return Verdict(
        name="a zero-padded key counted",
        paper="Algorithm 4; section 6",
        statement="Attention over the padded keys is attention over the keys; left is the relative Frobenius error.",
        hypothesis="DROPPED: no padding row contributes",
        family="cones at 180°",
        left=np.linalg.norm(out - right) / np.linalg.norm(right),
        right=ROUNDING,
        expected=FAILS,
        n=N,
    )


def uniform_draws(settings: Settings) -> Verdict:
    """Rows drawn uniformly but weighted as if drawn by norm."""

    def draw(v, m, rng):
        norms = np.linalg.norm(v, axis=1)
        indices = rng.integers(len(v), size=m)
        return hr.RowNormSample(indices, np.linalg.norm(norms) / (math.sqrt(m) * norms[indices]), len(v))

    delta, n = lemma_2.CASES[0]
    problem = synthetic.gaussian(n, rng=settings.rng("counterexample, uniform"))
    dense = Dense.of(problem, value=lemma_2.uneven_values(settings, n))
    at_one = replace(settings, trials=1, epsilon=1.0)  # the least m, and so many trials
    verdict = lemma_2.product_error(at_one, dense, delta, draw, FAILS)
    return _renamed(verdict, "uniform draws, not re-weighted", "DROPPED: rows drawn by their squared norms")


def wrong_hashes(settings: Settings):
    """Plain binary order, the inverse Gray table, and the paper's neighbour formula at r = 1."""

    def binary(x, planes):
        return (x @ planes.T > 0) @ (1 << np.arange(len(planes))[::-1])

    def inverse_gray(x, planes):
        pattern = binary(x, planes)
        return pattern ^ (pattern >> 1)

    settings = replace(settings, trials=max(100, settings.trials))  # 10 000 pairs show the inverse table's defect
    case = (7, math.pi / 8)
    for label, hash_rows in (("plain binary order", binary), ("the inverse Gray table", inverse_gray)):
        verdicts = definition_1.check(settings, hash_rows, FAILS, cases=[case])
        (neighbour,) = [verdict for verdict in verdicts if "neighbour" in verdict.name]
        yield _renamed(neighbour, f"hash in {label}", "DROPPED: buckets in Gray order")
    angle = math.pi / 3
    hits = definition_1.bucket_distances(settings, hr.hamming_sorted_lsh, 1, angle) == 1
    verdict = definition_1.probability_verdict(1, angle, "neighbour", 2 * angle / math.pi, hits, FAILS)
    verdict = replace(verdict, statement="Pr[H(x) and H(y) in neighbour buckets] = 2θ/π, as the general formula gives.")
    yield _renamed(verdict, "neighbour formula 2θ/π at r = 1", "DROPPED: r ≥ 2 (for r = 1 the probability is θ/π)")
