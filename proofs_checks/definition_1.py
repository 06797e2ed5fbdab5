"""Definition 1: collision and neighbour probabilities of the Hamming-sorted LSH."""

from __future__ import annotations

import math

import numpy as np

import hyperattention_ref as hr

from .settings import Settings
from .verdict import HOLDS, Verdict, clopper_pearson

ANGLES = (math.pi / 8, math.pi / 3, 0.6 * math.pi)
CASES = [(r, angle) for r in (1, 3, 7) for angle in ANGLES]


def check(settings: Settings, hash_rows=hr.hamming_sorted_lsh, expected: str = HOLDS, cases=CASES):
    """Both probabilities for vectors at several angles; `hash_rows` is the hash under test."""
    for r, angle in cases:
        same = (1 - angle / math.pi) ** r
        # r = 1: the two neighbours are one bucket (derived)
        near = angle / math.pi if r == 1 else 2 * angle / math.pi * (1 - angle / math.pi) ** (r - 1)
        distance = bucket_distances(settings, hash_rows, r, angle)
        for which, probability, hits in (("equal", same, distance == 0), ("neighbour", near, distance == 1)):
            yield probability_verdict(r, angle, which, probability, hits, expected)


def bucket_distances(settings: Settings, hash_rows, r: int, angle: float) -> np.ndarray:
    """(trials,) cyclic distance of the buckets of two vectors at that angle, with fresh planes in every trial."""
    rng = settings.rng("definition 1", r, angle)
    d, trials = 8, 100 * settings.trials
    basis = np.linalg.qr(rng.standard_normal((d, 2)))[0]
    pair = np.stack([basis[:, 0], math.cos(angle) * basis[:, 0] + math.sin(angle) * basis[:, 1]])
    codes = np.array([hash_rows(pair, rng.standard_normal((r, d))) for _ in range(trials)])
    gap = np.abs(codes[:, 0] - codes[:, 1])
    return np.minimum(gap, 2**r - gap)


def probability_verdict(r, angle, which, probability, hits, expected) -> Verdict:
    """An equality of probabilities fails when the exact limits exclude it; no number of trials can prove it."""
    low, high = clopper_pearson(int(hits.sum()), hits.size)
    formula = {"equal": "(1 - θ/π)^r", "neighbour": "2θ/π (1 - θ/π)^(r-1)" if r > 1 else "θ/π"}[which]
    return Verdict(
        name=f"Definition 1, {which} bucket, r = {r}",
        paper="Definition 1",
        statement=f"Pr[H(x) and H(y) in {which} buckets] = {formula}: the exact limits of the frequency contain it.",
        hypothesis=f"r = {r} Gaussian hyperplanes, angle θ = {angle / math.pi:.3g} π",
        family=f"pairs at {angle / math.pi:.3g} π",
        left=abs(probability - (low + high) / 2),
        right=(high - low) / 2,
        provable=False,
        expected=expected,
        measured={"probability": probability, "frequency": float(hits.mean()), "draws": hits.size},
    )
