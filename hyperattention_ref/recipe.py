"""The paper's recipe for a Plan: one sortLSH view and m uniform sampled keys."""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref import backends, inputs
from hyperattention_ref.block_mask import BlockMask
from hyperattention_ref.definition_1 import MAX_BITS
from hyperattention_ref.draw import Draw, head_streams
from hyperattention_ref.plan import HeadPlan, Plan, Rectangle, causal_tiling


def make_plan(
    q,
    k,
    *,
    is_causal: bool = False,
    block_size: int = 256,
    sample_size: int = 256,
    lsh_bits: int = 8,
    min_seq_len: int = 4096,
    rng=None,
    backend=None,
    enable_gqa: bool = False,
) -> Plan:
    """Decide, for every head, which pairs are exact and which keys are sampled.

    Paper: the practical algorithm, steps 1 and 2; Algorithm 1 for the view; Algorithm 4 for the causal recursion.

    Parameters
    ----------
    q : (..., n_q, d) float array.
    k : (..., n_k, d) float array of the same dtype and leading shape (see `enable_gqa`).
    is_causal : plan the recursion of Algorithm 4; needs n_q == n_k.
    block_size : b, keys in a block of the sortLSH view.
    sample_size : m, keys drawn uniformly with replacement, the same for all queries of a head, each of log-weight
        log(n_k / m).
    lsh_bits : r, hyperplanes of the hash.
    min_seq_len : causal ranges up to this length are exact leaves.
    rng : None, seed or numpy.random.Generator. Each head has a stream of its own.
    backend : computes the hash codes; see `backends.select`. Rounding may flip a hash bit, so two backends may make
        different plans from one seed: hand the same plan to both to compare them.
    enable_gqa : query heads share key heads, as in grouped-query attention; every query head gets a plan.

    Returns
    -------
    Plan with the leading shape of `q`. Cost O(n (r d + log n)) for each head.
    """
    chosen = backends.select(backend, q)
    lead = np.shape(q)[:-2]
    q, k, _ = inputs.heads(q, k, is_causal=is_causal, enable_gqa=enable_gqa)
    recipe = {
        "block_size": inputs.count("block_size", block_size),
        "sample_size": inputs.count("sample_size", sample_size),
        "lsh_bits": inputs.count("lsh_bits", lsh_bits, most=MAX_BITS),
        "backend": chosen,
    }
    min_seq_len = inputs.count("min_seq_len", min_seq_len)
    n_q, n_k = q.shape[-2], k.shape[-2]

    def one_head(q, k, rng) -> HeadPlan:
        if not is_causal:
            return HeadPlan(n_q, n_k, (_rectangle(q, k, rng, **recipe),))
        leaves, triples = causal_tiling(n_q, min_seq_len)
        return HeadPlan(
            n_q,
            n_k,
            tuple(_rectangle(q[s:c], k[a:s], rng, **recipe, query_start=s, key_start=a) for a, s, c in triples),
            leaves,
        )

    indices = list(np.ndindex(q.shape[:-2]))
    streams = head_streams(rng, len(indices))
    return Plan(lead, tuple(one_head(q[i], k[i], stream) for i, stream in zip(indices, streams, strict=True)))


def _rectangle(q, k, rng, *, block_size, sample_size, lsh_bits, backend, query_start=0, key_start=0) -> Rectangle:
    draw = Draw.sample(rng, d=q.shape[-1], lsh_bits=lsh_bits, sample_size=sample_size)
    query_order, key_order = (np.argsort(backend.hash_codes(x, draw.planes), kind="stable") for x in (q, k))
    n_k = k.shape[-2]
    return Rectangle(
        q.shape[-2],
        n_k,
        (BlockMask.from_orders(query_order, key_order, block_size),),
        sampled_keys=draw.keys(n_k),
        log_weights=np.full(sample_size, math.log(n_k / sample_size)),
        query_start=query_start,
        key_start=key_start,
    )
