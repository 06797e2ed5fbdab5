"""Algorithm 1: sortLSH, the mask of large entries."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.paper.definition_1_sorted_lsh import hyperplanes
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.noise import MAX_BITS


def sort_lsh(q, k, block_size: int, *, lsh_bits: int = 8, planes=None, rng=None, backend=None) -> BlockMask:
    """Mask of the large entries found by sorting hash buckets.

    Paper: Algorithm 1. M_ij = 1 iff floor(P_Q(i) / b) = floor(P_K(j) / b), P the positions after a stable sort by
    bucket. For n_q != n_k see `BlockMask.from_orders`.

    Parameters
    ----------
    q : (n_q, d) float array.
    k : (n_k, d) float array.
    block_size : b, the number of keys in a block; the last block may be smaller.
    lsh_bits : r, the number of hyperplanes, when `planes` is not given.
    planes : (r, d) float array, optional; then `rng` must be None.
    rng : None, seed or numpy.random.Generator that draws the planes.
    backend : computes the hash codes, a name or an instance, see `backends.select`; None means `reference`.

    Returns
    -------
    BlockMask, which keeps both orders. Cost O(n (r d + log n)).
    """
    chosen = select(backend, q, default="reference")
    q, k = inputs.query_key(q, k, memory_of(chosen))
    block_size = inputs.count("block_size", block_size)
    if planes is None:
        lsh_bits = inputs.count("lsh_bits", lsh_bits, most=MAX_BITS)
        planes = generator(rng).standard_normal((lsh_bits, q.shape[1]))
    elif rng is not None:
        raise ValueError("planes and rng are both given; pass planes to fix the hash or rng to draw it")
    planes = hyperplanes(planes)
    if planes.shape[1] != q.shape[1]:
        raise ValueError(f"planes have d = {planes.shape[1]} and query d = {q.shape[1]}; they must be equal")
    return sort_lsh_core(q, k, planes, block_size, chosen)


def sort_lsh_core(q, k, planes, block_size: int, backend: Backend) -> BlockMask:
    """Algorithm 1 for checked arguments, its arrays in the memory of the backend."""
    memory = memory_of(backend)
    # line 1: the same H for both sides
    query_codes, key_codes = (memory.to_host(backend.hash_codes(x, planes)) for x in (q, k))
    # line 2: P_Q and P_K, the positions after a stable sort
    query_order, key_order = (np.argsort(codes, kind="stable") for codes in (query_codes, key_codes))
    # line 3: M
    return BlockMask.from_orders(query_order, key_order, block_size)
