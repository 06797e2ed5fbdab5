"""Algorithm 4 (CausalApproxD) and Algorithm 3 for causal attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.paper.algorithm_1_sort_lsh import sort_lsh_core
from hyperattention_ref.paper.algorithm_2_approx_d import ApproxDResult, Parameters, approx_d_core
from hyperattention_ref.paper.lemma_2_sampled_product import RowNormSample, row_norm_sample_core, sampled_attention
from hyperattention_ref.paper.row_sums import large_entries
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.noise import MAX_BITS
from hyperattention_ref.plan.tiling import causal_tiling


@dataclass(frozen=True, eq=False, repr=False)
class CausalApproxDResult(Result):
    """D̃ of Algorithm 4 and the pieces it was made of.

    Attributes
    ----------
    log_d : (n,) log of the estimated causal row sums.
    leaves : the ranges (a, c) that were computed exactly.
    rectangles : the (a, split, c), queries [split, c) by keys [a, split), smallest first where they share rows.
    parts : for each rectangle its ApproxDResult.
    """

    log_d: np.ndarray
    leaves: tuple[tuple[int, int], ...]
    rectangles: tuple[tuple[int, int, int], ...]
    parts: tuple[ApproxDResult, ...]

    @property
    def d(self) -> np.ndarray:
        """(n,) the estimated row sums; infinite where they exceed float64."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_d)


def causal_approx_d(
    q,
    k,
    *,
    kappa: float,
    epsilon: float,
    m: int,
    alpha: float | None = None,
    scale: float = 1.0,
    cap_constant: float = 1.0,
    rescale_rows: bool = False,
    min_seq_len: int = 64,
    block_size: int | None = None,
    lsh_bits: int = 8,
    rng=None,
    backend=None,
) -> CausalApproxDResult:
    """Estimate the row sums of M^C ∘ A, M^C the lower-triangular mask.

    Paper: Algorithm 4. Q and K are split in halves; the two diagonal blocks are causal problems of half the size, the
    lower-left block is a full rectangle for Algorithm 2, and D̃ = diag(D̃_11, D̃_22 + D̃_21).

    Parameters
    ----------
    q, k : (n, d) float arrays; any n, split at ceil(n/2), no row is ever padded.
    kappa, epsilon, m, alpha, scale, cap_constant, rescale_rows : as in `approx_d`, for every rectangle; kappa must
        bound the ratio of row sums in each of them.
    min_seq_len : ranges up to this length are computed exactly.
    block_size : block size of a sortLSH mask for each rectangle; None for no mask.
    lsh_bits : hash bits of these masks.
    rng : None, seed or numpy.random.Generator, used rectangle by rectangle.
    backend : as in `approx_d`.

    Returns
    -------
    CausalApproxDResult. |d̃_i - D_ii| is at most the sum of the errors of row i's at most log2(n) rectangles.
    """
    chosen = select(backend, q, default="reference")
    q, k = _checked_arrays(q, k, scale, chosen)
    parameters = Parameters(kappa, epsilon, m, alpha, scale, cap_constant, rescale_rows)
    recursion = Recursion(min_seq_len, block_size, lsh_bits)
    return causal_approx_d_core(q, k, parameters, recursion, generator(rng), chosen)


@dataclass(frozen=True)
class Recursion:
    """The parameters of the recursion of Algorithm 4, as in `causal_approx_d`; out of range they are refused."""

    min_seq_len: int
    block_size: int | None
    lsh_bits: int

    def __post_init__(self):
        inputs.count("min_seq_len", self.min_seq_len)
        inputs.count("lsh_bits", self.lsh_bits, most=MAX_BITS)
        if self.block_size is not None:
            inputs.count("block_size", self.block_size)


def causal_approx_d_core(
    q, k, parameters: Parameters, recursion: Recursion, rng: np.random.Generator, backend: Backend
) -> CausalApproxDResult:
    """Algorithm 4 for checked arguments, its arrays in the memory of the backend."""
    memory, scale = memory_of(backend), parameters.scale
    leaves, rectangles = causal_tiling(len(q), recursion.min_seq_len)
    log_d, parts = np.empty(len(q)), []
    # the recursion ends: a leaf is computed exactly
    for a, c in leaves:
        no_values = memory.from_host(np.zeros((c - a, 1)), like=q)
        _, lse = backend.exact_attention(q[a:c], k[a:c], no_values, scale=scale, is_causal=True)
        log_d[a:c] = memory.to_host(lse)
    for a, split, c in rectangles:
        # D̃_21 from Algorithm 2 on the rectangle A_21 = exp(Q_2 K_1^T)
        q2, k1 = q[split:c], k[a:split]
        mask: BlockMask | None = None
        if recursion.block_size is not None:
            planes = rng.standard_normal((recursion.lsh_bits, q.shape[1]))
            mask = sort_lsh_core(q2, k1, planes, recursion.block_size, backend)
        part = approx_d_core(q2, k1, large_entries(mask, c - split, split - a), parameters, rng, backend)
        # D̃ = diag(D̃_11, D̃_22 + D̃_21)
        log_d[split:c] = np.logaddexp(log_d[split:c], part.log_d)
        parts.append(part)
    return CausalApproxDResult(log_d, leaves, rectangles, tuple(parts))


@dataclass(frozen=True, eq=False, repr=False)
class CausalLiteralHyperAttention(Result):
    """(D̃, S) of causal Algorithm 3 and the estimate D̃^{-1} (M^C ∘ A) S^T S V."""

    diagonal: CausalApproxDResult
    sample: RowNormSample
    estimate: np.ndarray


def causal_literal_hyper_attention(
    q,
    k,
    v,
    *,
    kappa: float,
    epsilon: float,
    m: int,
    alpha: float | None = None,
    scale: float = 1.0,
    cap_constant: float = 1.0,
    rescale_rows: bool = False,
    min_seq_len: int = 64,
    block_size: int | None = None,
    lsh_bits: int = 8,
    rng=None,
    backend=None,
) -> CausalLiteralHyperAttention:
    """Algorithm 3 for causal attention.

    Paper: section on causal masking, Algorithm 4 for the diagonal; one S, drawn by the row norms of V, serves the
    whole M^C ∘ A. No causal theorem is stated; Lemma 2 holds for X = D̃^{-1} (M^C ∘ A) unchanged.

    Parameters
    ----------
    q, k : (n, d) float arrays.
    v : (n, d_v) float array.
    m : the samples of every ApproxD and, drawn anew, of the product.
    kappa, epsilon, alpha, scale, cap_constant, rescale_rows, min_seq_len, block_size, lsh_bits, rng, backend : as in
        `causal_approx_d`.
    """
    chosen = select(backend, q, default="reference")
    memory = memory_of(chosen)
    q, k = _checked_arrays(q, k, scale, chosen)
    v, rng = inputs.value(v, len(k), memory), generator(rng)
    parameters = Parameters(kappa, epsilon, m, alpha, scale, cap_constant, rescale_rows)
    diagonal = causal_approx_d_core(q, k, parameters, Recursion(min_seq_len, block_size, lsh_bits), rng, chosen)
    sample = row_norm_sample_core(memory.to_host(v), parameters.m, rng)
    log_d, scale = diagonal.log_d, parameters.scale
    estimate = sampled_attention(q, k, v, log_d, sample, scale=scale, is_causal=True, backend=chosen)
    return CausalLiteralHyperAttention(diagonal, sample, estimate)


def _checked_arrays(q, k, scale, backend: Backend) -> tuple[Any, Any]:
    """The query and the key of one causal head, in the memory of the backend."""
    memory = memory_of(backend)
    q, k = inputs.query_key(q, k, memory)
    inputs.causal_lengths(len(q), len(k))
    inputs.logit_range(q, k, inputs.finite("scale", scale), memory=memory)
    return q, k
