"""The merge of partial attentions is a commutative monoid and gives softmax over the union."""

from __future__ import annotations

import numpy as np

import hyperattention_ref as hr

from .settings import Settings
from .verdict import Verdict

# exp of a difference of numbers up to 1000, rounded: 1000 units each, in at most 4 exponentials and 8 sums
ROUNDING = 5000 * np.finfo(np.float64).eps / 2


def check(settings: Settings):
    """Each law on random parts; about a third of the log-sum-exps are minus infinity, the rest within ±500."""
    rng = settings.rng("merge")
    trials = [[_part(rng) for _ in range(3)] for _ in range(settings.trials_for(times=10))]
    for law, (statement, difference, right) in LAWS.items():
        yield Verdict(
            name=f"merge: {law}",
            paper="Section 7, step 3",
            statement=statement,
            hypothesis="log-sum-exps between -500 and 500, or -∞",
            family="random parts",
            left=[difference(*parts) for parts in trials],
            right=right,
        )


def _part(rng):
    lse = np.where(rng.random(6) < 0.3, -np.inf, rng.uniform(-500, 500) + rng.standard_normal(6))
    return np.where(np.isfinite(lse)[:, None], rng.uniform(-1, 1, (6, 3)), 0.0), lse


def _distance(first, second) -> float:
    """Largest difference of outputs (entries at most 1) and relative difference of log-sum-exps; NaN stays NaN."""
    (out_1, lse_1), (out_2, lse_2) = first, second
    same = lse_1 == lse_2
    gap = np.abs(np.where(same, 0.0, lse_1) - np.where(same, 0.0, lse_2))
    return float(max(np.abs(out_1 - out_2).max(), (gap / np.maximum(1, np.where(same, 1, np.abs(lse_1)))).max()))


def _commutative(a, b, c):
    return _distance(hr.merge_attention(a, b), hr.merge_attention(b, a))


def _neutral(a, b, c):
    return _distance(hr.merge_attention(hr.NEUTRAL, a), a)


def _associative(a, b, c):
    left = hr.merge_attention(hr.merge_attention(a, b), c)
    return _distance(left, hr.merge_attention(a, hr.merge_attention(b, c)))


def _union(a, b, c):
    """Each part is one key per query, whose value is the part's output."""
    logits = np.stack([part[1] for part in (a, b, c)])
    top = logits.max(axis=0)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=0)
    out = sum(w[:, None] * part[0] for w, part in zip(weights, (a, b, c), strict=True))
    out = out / np.where(total > 0, total, 1)[:, None]
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    return _distance(hr.merge_attention(hr.merge_attention(a, b), c), (out, lse))


LAWS = {
    "commutative": ("a ∘ b = b ∘ a, bit for bit.", _commutative, 0),
    "neutral element": ("(0, -∞) ∘ a = a, bit for bit.", _neutral, 0),
    "associative": ("(a ∘ b) ∘ c = a ∘ (b ∘ c) within rounding.", _associative, ROUNDING),
    "union": (
        "Merging attention over disjoint keys gives attention over their union, within rounding.", _union, ROUNDING,
    ),
}  # fmt: skip
