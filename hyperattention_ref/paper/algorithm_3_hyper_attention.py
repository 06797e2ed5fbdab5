"""Algorithm 3 (HyperAttention), as the theorem states it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.paper.algorithm_2_approx_d import ApproxDResult, Parameters, approx_d_core
from hyperattention_ref.paper.lemma_2_sampled_product import RowNormSample, row_norm_sample_core, sampled_attention
from hyperattention_ref.paper.row_sums import large_entries


@dataclass(frozen=True, eq=False, repr=False)
class LiteralHyperAttention(Result):
    """What Algorithm 3 returns, (D̃, S), and the attention estimate D̃^{-1} A S^T S V made from them.

    Attributes
    ----------
    diagonal : the ApproxDResult that holds log D̃.
    sample : the RowNormSample S.
    estimate : (n_q, d_v) float64.
    """

    diagonal: ApproxDResult
    sample: RowNormSample
    estimate: np.ndarray


def literal_hyper_attention(
    q,
    k,
    v,
    mask,
    *,
    kappa: float,
    epsilon: float,
    m: int,
    alpha: float | None = None,
    scale: float = 1.0,
    cap_constant: float = 1.0,
    rescale_rows: bool = False,
    rng=None,
    backend=None,
) -> LiteralHyperAttention:
    """Approximate attention with the spectral guarantee (1).

    Paper: Algorithm 3 and Theorem 1. With probability at least 0.98
    ‖Att - D̃^{-1} A S^T S V‖_op ≤ ε ‖D^{-1}A‖_op ‖V‖_op, when m is large enough for Lemmas 1 and 2.

    Parameters
    ----------
    q : (n_q, d) float array.
    k : (n_k, d) float array.
    v : (n_k, d_v) float array.
    m : the samples of ApproxD and, drawn anew, of the product.
    mask, kappa, epsilon, alpha, scale, cap_constant, rescale_rows, rng, backend : as in `approx_d`.

    Returns
    -------
    LiteralHyperAttention. Cost that of `approx_d` and O(n_q m (d + d_v)) for the product.
    """
    chosen = select(backend, q, default="reference")
    memory = memory_of(chosen)
    q, k = inputs.query_key(q, k, memory)
    v = inputs.value(v, len(k), memory)
    parameters = Parameters(kappa, epsilon, m, alpha, scale, cap_constant, rescale_rows)
    inputs.logit_range(q, k, parameters.scale, memory=memory)
    mask, rng = large_entries(mask, len(q), len(k)), generator(rng)
    # line 1: D̃ from ApproxD
    diagonal = approx_d_core(q, k, mask, parameters, rng, chosen)
    # line 2: S from the row norms of V
    sample = row_norm_sample_core(memory.to_host(v), parameters.m, rng)
    # line 3: return (D̃, S); the estimate follows from both
    log_d, scale = diagonal.log_d, parameters.scale
    estimate = sampled_attention(q, k, v, log_d, sample, scale=scale, is_causal=False, backend=chosen)
    return LiteralHyperAttention(diagonal, sample, estimate)
