"""Algorithm 1: size and invariance of the sortLSH mask."""

from __future__ import annotations

from functools import partial

import numpy as np

import hyperattention_ref as hr

from .settings import Settings
from .verdict import Verdict

verdict = partial(Verdict, paper="Algorithm 1", family="gaussian, n and b random", right=0)


def check(settings: Settings):
    yield nonzeros(settings)
    yield permutation_invariance(settings)
    yield equal_pairs(settings)


def nonzeros(settings: Settings) -> Verdict:
    """nnz(M) counted in the dense matrix."""
    rng = settings.rng("algorithm 1, nnz")
    left = []
    for _ in range(settings.trials_for()):
        n, b = (int(x) for x in rng.integers(1, 200, size=2))
        q, k = rng.standard_normal((2, n, 8))
        left.append(abs(int(hr.sort_lsh(q, k, b, rng=rng).toarray().sum()) - ((n // b) * b**2 + (n % b) ** 2)))
    return verdict(
        name="Algorithm 1, size of the mask",
        statement="nnz(M) = ⌊n/b⌋ b² + (n mod b)²; left is the difference.",
        hypothesis="any n and b",
        left=left,
    )


def permutation_invariance(settings: Settings) -> Verdict:
    """M must not depend on the order of queries and keys."""
    rng = settings.rng("algorithm 1, permutation")
    left, ties = [], 0
    for _ in range(settings.trials_for()):
        n, b = (int(x) for x in rng.integers(1, 200, size=2))
        q, k = rng.standard_normal((2, n, 8))
        planes = rng.standard_normal((60, 8))  # so many that no two vectors share a bucket
        ties += sum(n - np.unique(hr.hamming_sorted_lsh(x, planes)).size for x in (q, k))
        sigma, pi = rng.permutation(n), rng.permutation(n)
        mask = hr.sort_lsh(q, k, b, planes=planes).toarray()
        left.append(np.sum(hr.sort_lsh(q[sigma], k[pi], b, planes=planes).toarray() != mask[np.ix_(sigma, pi)]))
    return verdict(
        name="Algorithm 1, permutation invariance",
        statement="Permuting queries and keys permutes M and changes nothing else; left counts the differing entries.",
        hypothesis="no two queries and no two keys share a bucket (a stable sort keeps ties in input order)",
        left=left,
        measured={"ties": ties},
    )


def equal_pairs(settings: Settings) -> Verdict:
    """Queries and keys are hashed by the same planes, so that equal ones are sorted alike."""
    rng = settings.rng("algorithm 1, equal pairs")
    left = []
    for _ in range(settings.trials_for()):
        n, b = (int(x) for x in rng.integers(1, 200, size=2))
        q = rng.standard_normal((n, 8))
        left.append(n - np.trace(hr.sort_lsh(q, q, b, rng=rng).toarray()))
    return verdict(
        name="Algorithm 1, equal pairs meet",
        statement="With K = Q every query shares a block with its own copy; left counts those that do not.",
        hypothesis="K = Q",
        left=left,
    )
