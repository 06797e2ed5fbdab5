"""Lemma 2: the product A V from m rows of V, drawn by their squared norms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.paper.row_sums import draws_met
from hyperattention_ref.plan.plan import Plan

LOG_LARGEST = 600.0
"""Natural logarithm of the largest row sum of D̃^{-1} A S^T S that is computed with; products with V then stay finite.
"""


@dataclass(frozen=True, eq=False, repr=False)
class RowNormSample(Result):
    """The sampling matrix S (m x n): row r has the one entry `weights[r]` in column `indices[r]`.

    Paper: Lemma 2, S_r = ‖V‖_F / (√m ‖V_{ℓ_r}‖) e_{ℓ_r}^T, so that E[S^T S] = I on the rows with V_j ≠ 0.
    """

    indices: np.ndarray
    weights: np.ndarray
    n: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.indices.size, self.n

    def toarray(self) -> np.ndarray:
        """S as a dense (m, n) float64 array."""
        dense = np.zeros(self.shape)
        dense[np.arange(self.indices.size), self.indices] = self.weights
        return dense

    def as_linear_operator(self):
        """S as a scipy.sparse.linalg.LinearOperator, with S x, S^T y and both on matrices in O(m) per column."""
        from scipy.sparse import csr_array
        from scipy.sparse.linalg import aslinearoperator

        m = self.indices.size
        return aslinearoperator(csr_array((self.weights, self.indices, np.arange(m + 1)), shape=self.shape))


def row_norm_sample(v, m: int, rng=None) -> RowNormSample:
    """Draw m rows of V i.i.d. with probability p_j = ‖V_j‖² / ‖V‖_F².

    Paper: Lemma 2; Algorithm 3 uses it for the product.

    Parameters
    ----------
    v : (n, d_v) float array. If it is all zero every row is drawn alike, with weight 0: the product is 0 exactly.
    m : number of draws, with replacement; may exceed n.
    rng : None, seed or numpy.random.Generator.

    Returns
    -------
    RowNormSample. Cost O(n d_v + m log n).
    """
    return row_norm_sample_core(inputs.head("value", v), inputs.count("m", m), generator(rng))


def row_norm_sample_core(v: np.ndarray, m: int, rng: np.random.Generator) -> RowNormSample:
    """Lemma 2's sample for checked arguments."""
    top = np.abs(v).max()
    norms = np.linalg.norm(v / (top or 1.0), axis=1)  # divided by the largest entry, so that no square overflows
    total = np.linalg.norm(norms)
    p = (norms / total) ** 2 if total else np.full(len(v), 1 / len(v))
    indices = rng.choice(len(v), size=m, p=p / p.sum())
    weights = total / (np.sqrt(m) * norms[indices]) if total else np.zeros(m)
    return RowNormSample(indices, weights, len(v))


def sampled_product(x, v, sample: RowNormSample) -> np.ndarray:
    """X S^T S V, the estimate of X V that touches m columns of X and m rows of V only.

    Paper: Lemma 2. Derived (page "theory"): unbiased where V is not zero, with
    E‖XV - X S^T S V‖_F² = (‖V‖_F² Σ_j ‖X e_j‖² - ‖XV‖_F²) / m, the sum over the rows with V_j ≠ 0.

    Parameters
    ----------
    x : (n_q, n) float array.
    v : (n, d_v) float array.
    sample : what `row_norm_sample(v, m)` returned.

    Returns
    -------
    (n_q, d_v) float64. Cost O(n_q m d_v).
    """
    x = inputs.head("x", x)
    v = inputs.value(v, x.shape[1])
    if not isinstance(sample, RowNormSample):
        raise TypeError(
            f"sample is a {type(sample).__name__}; it must be a RowNormSample from row_norm_sample(value, m)"
        )
    if sample.n != len(v):
        raise ValueError(f"sample was drawn from {sample.n} rows and value has {len(v)}; draw it from this value")
    x_st = x[:, sample.indices] * sample.weights
    s_v = sample.weights[:, None] * v[sample.indices]
    return x_st @ s_v


def sampled_attention(q, k, v, log_d, sample: RowNormSample, *, scale: float, is_causal: bool, backend) -> np.ndarray:
    """D̃^{-1} A S^T S V, the estimate of attention, A = exp(scale Q K^T); causal: the pairs j > i have A_ij = 0.

    Derived: with w the weights of S, row i is Σ_r w_r² A_{i,ℓ_r} V_{ℓ_r} / d̃_i. That is e^{lse_i} / d̃_i times the
    attention of query i to the drawn keys with log-weights 2 ln w_r, which any backend computes for any logits. Causal:
    one call serves all queries that meet the same draws.

    Parameters
    ----------
    q, k, v : (n_q, d), (n_k, d) and (n_k, d_v) float64 arrays, in the memory of the backend.
    log_d : (n_q,) log d̃.
    sample : what `row_norm_sample(v, m)` returned.
    scale, is_causal : as above; causal needs n_q == n_k.
    backend : a Backend.

    Returns
    -------
    (n_q, d_v) float64 host array. Cost O(n_q m (d + d_v)).

    Raises
    ------
    ValueError : a row sum of D̃^{-1} A S^T S is too large for float64. That takes an estimate d̃_i smaller than a drawn
        entry of the row by a factor of 1e260, as only a kappa far too large can give.
    """
    memory = memory_of(backend)
    out, lse = np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf)
    if not sample.weights.any():  # V is zero, and so is the product
        return out
    log_weights = 2 * np.log(sample.weights)
    for rows, met in draws_met(sample.indices, len(q), is_causal):
        shape = rows.stop - rows.start, len(k)
        plan = Plan.from_views([], shape=shape, sampled_keys=sample.indices[met], log_weights=log_weights[met])
        part = backend.planned_attention(q[rows], k, v, plan, scale=scale)
        out[rows], lse[rows] = map(memory.to_host, part)
    log_sums = lse - log_d
    if not log_sums.max() <= LOG_LARGEST:
        raise ValueError(
            f"D̃^-1 A S^T S has a row sum e^{log_sums.max():.0f}, too large for float64: an estimated row sum is far "
            "too small; pass a smaller kappa, or more samples"
        )
    return np.exp(log_sums)[:, None] * out
