"""Views: orders of queries and keys that bring large entries of A into blocks."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.foundation.memory import memory_of

VIEWS = ("sort_lsh", "centred_sort_lsh", "random", "local")
"""The kinds of views; `Recipe` says what each is."""


def view_orders(
    kind: str, q, k, planes: np.ndarray, rng: np.random.Generator, backend: Backend
) -> tuple[np.ndarray, np.ndarray]:
    """The orders of the queries and of the keys, for `BlockMask.from_orders`.

    Paper: "sort_lsh" is Algorithm 1, lines 1 and 2. Derived: all others.

    Parameters
    ----------
    kind : one of `VIEWS`.
    q, k : (n_q, d) and (n_k, d) arrays in the memory of the backend.
    planes : (r, d) hyperplanes; only hashing uses them.
    rng : only "random" uses it.
    backend : computes the hash codes.

    Returns
    -------
    (n_q,) and (n_k,) int64 permutations. Cost O(n (r d + log n)) with hashing, else O(n).
    """
    if kind == "local":
        return np.arange(len(q)), np.arange(len(k))
    if kind == "random":
        return rng.permutation(len(q)), rng.permutation(len(k))
    memory = memory_of(backend)
    sides = (q, k) if kind == "sort_lsh" else (memory.centred(q), memory.centred(k))
    query_codes, key_codes = (memory.to_host(backend.hash_codes(x, planes)) for x in sides)
    if len(planes) <= 16:  # NumPy sorts integers of 16 bits by counting, in linear time
        query_codes, key_codes = query_codes.astype(np.uint16), key_codes.astype(np.uint16)
    return np.argsort(query_codes, kind="stable"), np.argsort(key_codes, kind="stable")
