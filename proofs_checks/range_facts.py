"""The range facts of alpha, kappa and the norms of P."""

from __future__ import annotations

import math
from functools import partial

import hyperattention_ref as hr
from hyperattention_ref import synthetic

from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import Verdict


def check(settings: Settings):
    """Every fact on every family, with the values of `hardness`."""
    n = min(settings.n, 256)
    facts: dict[str, list[tuple[float, float]]] = {}
    for dense in settings.heads(tuple(synthetic.FAMILIES), n=n):
        for fact, pair in sides(dense).items():
            facts.setdefault(fact, []).append(pair)
    for fact, pairs in facts.items():
        yield _verdict(fact, "every family" if settings.families is None else ", ".join(settings.families), pairs, n)
    yield from limits(settings, n)


def check_matrix(settings: Settings, dense: Dense):
    for fact, pair in sides(dense).items():
        yield _verdict(fact, dense.family, [pair], len(dense.key))


def sides(dense: Dense) -> dict[str, tuple[float, float]]:
    """Both sides of every fact."""
    (n_q, n_k), h = dense.log_a.shape, dense.measured_hardness()
    return {
        "1 ≤ α": (1, h.alpha),
        "α ≤ n_k²": (h.alpha, n_k**2),
        "1 ≤ κ": (0, h.log_kappa),
        "√(n_q/n_k) ≤ ‖P‖_op": (math.sqrt(n_q / n_k), h.op_norm),
        "‖P‖_F² ≤ α n_q/n_k": (h.frobenius_norm**2, h.alpha * n_q / n_k),
        "srank(P) ≤ α": (h.stable_rank, h.alpha),
    }


def limits(settings: Settings, n: int):
    """The two ends of the range of alpha."""
    rng = settings.rng("range facts, limits")
    for fact, generate, limit, tolerance in (
        ("α = 1 for flat P", synthetic.flat, 1, ROUNDING),
        ("α → n for a permutation matrix", partial(synthetic.permutation, strength=60.0), n, n * math.exp(-50)),
        ("α → n² for one key that takes all", partial(synthetic.sink, mass=1 - 1e-12), n**2, ROUNDING),
    ):
        problem = generate(n, rng=rng)
        alpha = hr.hardness(problem.query, problem.key, scale=problem.scale, rng=rng).alpha
        yield _verdict(fact, problem.name, [(abs(alpha / limit - 1), tolerance)], n)


def _verdict(fact: str, family: str, pairs, n: int) -> Verdict:
    left, right = zip(*pairs, strict=True)
    return Verdict(
        name=f"Range: {fact}",
        paper="Section 1; derived",
        statement=fact,
        hypothesis="any attention matrix",
        family=family,
        left=left,
        right=[x * (1 + ROUNDING) for x in right],
        n=n,
    )
