"""Algorithm 4 (CausalApproxD) and Algorithm 3 for causal attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.paper.algorithm_1 import sort_lsh
from hyperattention_ref.paper.algorithm_2 import ApproxDResult, approx_d, checked
from hyperattention_ref.paper.lemma_2 import RowNormSample, row_norm_sample, sampled_attention
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
    memory = memory_of(chosen)
    q, k = inputs.query_key(q, k, memory)
    inputs.causal_lengths(len(q), len(k))
    given = checked(kappa=kappa, epsilon=epsilon, m=m, alpha=alpha, scale=scale, cap_constant=cap_constant)
    inputs.logit_range(q, k, given["scale"], largest=inputs.Extremes(memory, {"query": q, "key": k}))
    rng = inputs.generator(rng)
    leaves, rectangles = causal_tiling(len(q), min_seq_len)
    log_d, parts = np.empty(len(q)), []
    # the recursion ends: a leaf is computed exactly
    for a, c in leaves:
        nothing = memory.from_host(np.zeros((c - a, 1)), like=q)
        _, lse = chosen.exact_attention(q[a:c], k[a:c], nothing, scale=given["scale"], is_causal=True)
        log_d[a:c] = memory.to_host(lse)
    for a, split, c in rectangles:
        # D̃_21 from Algorithm 2 on the rectangle A_21 = exp(Q_2 K_1^T)
        q2, k1 = q[split:c], k[a:split]
        mask = None if block_size is None else sort_lsh(q2, k1, block_size, lsh_bits=lsh_bits, rng=rng, backend=chosen)
        part = approx_d(q2, k1, mask, **given, rescale_rows=rescale_rows, rng=rng, backend=chosen)
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
    q, k, v, *, kappa: float, epsilon: float, m: int, scale: float = 1.0, rng=None, backend=None, **options
) -> CausalLiteralHyperAttention:
    """Algorithm 3 for causal attention.

    Paper: section on causal masking, Algorithm 4 for the diagonal; one S, drawn by the row norms of V, serves the
    whole M^C ∘ A. No causal theorem is stated; Lemma 2 holds for X = D̃^{-1} (M^C ∘ A) unchanged.

    Parameters
    ----------
    q, k : (n, d) float arrays.
    v : (n, d_v) float array.
    m : the samples of every ApproxD and, drawn anew, of the product.
    kappa, epsilon, scale, rng, backend, **options : as in `causal_approx_d`.
    """
    chosen = select(backend, q, default="reference")
    memory = memory_of(chosen)
    q, k = inputs.query_key(q, k, memory)
    v = inputs.value(v, len(k), memory)
    rng = inputs.generator(rng)
    common: dict[str, Any] = {"scale": scale, "backend": chosen}
    diagonal = causal_approx_d(q, k, kappa=kappa, epsilon=epsilon, m=m, rng=rng, **common, **options)
    sample = row_norm_sample(memory.to_host(v), m, rng)
    estimate = sampled_attention(q, k, v, diagonal.log_d, sample, is_causal=True, **common)
    return CausalLiteralHyperAttention(diagonal, sample, estimate)
