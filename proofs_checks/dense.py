"""The n x n quantities of the paper's section 1, computed from their definitions; every check compares with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

import hyperattention_ref as hr
from hyperattention_ref import synthetic
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.lazy_property import lazy_property
from hyperattention_ref.plan.block_mask import dense_mask

from .verdict import Verdict

ROUNDING = 1e-9
"""Relative tolerance for float64 in deterministic inequalities, where both sides may be equal. The errors of sums of
4096 terms, exponentials of logits up to 100 and norms by Lanczos (1e-12) are two orders of magnitude smaller."""

LARGEST_N = 4096
"""Of a caller's matrix: a few n x n arrays of float64, 134 MB each, are in memory at a time."""
LARGEST_SPREAD = 600.0
"""Of a caller's logits: kappa <= n e^spread is then a float64, whatever the mask."""
LARGEST_WORK = 5 * 10**7
"""Entries of A at drawn keys (400 MB) that a trial may need; where a statement asks for more, m is what fits."""
WORK = 10**8
"""Such entries computed for each of the settings' trials: a large m leaves fewer trials."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A, D, P, H, R, alpha and kappa of one head, for a fixed mask."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    mask_given: object = None
    is_causal: bool = False
    family: str = ""

    @classmethod
    def of(cls, problem, **changes) -> Dense:
        """The dense quantities of a synthetic problem."""
        fields = {name: getattr(problem, name) for name in ("query", "key", "value", "scale")}
        return cls(**(fields | {"mask_given": problem.mask, "family": problem.name} | changes))

    @classmethod
    def of_matrix(cls, matrix) -> Dense:
        """The dense quantities of a caller's matrix, after every check.

        Parameters
        ----------
        matrix : has `query` (n_q, d), `key` (n_k, d) and `value` (n_k, d_v), and may have `mask`, `scale`, `is_causal`
            and `name`; a Problem, an AttentionMap or a SampleHead is one. A Dense is taken as it is.
        """
        if isinstance(matrix, cls):
            return matrix
        missing = [name for name in ("query", "key", "value") if getattr(matrix, name, None) is None]
        if missing:
            raise TypeError(f"the matrix lacks {', '.join(missing)}; it must have query, key and value")
        q, k = inputs.query_key(matrix.query, matrix.key)
        v = inputs.value(matrix.value, len(k))
        check_size(len(q), len(k))
        scale = inputs.positive("scale", inputs.resolve_scale(getattr(matrix, "scale", None), q.shape[1]))
        inputs.logit_range(q, k, scale, v)
        is_causal = inputs.boolean("is_causal", getattr(matrix, "is_causal", False))
        mask = getattr(matrix, "mask", None)
        if is_causal:
            inputs.causal_lengths(len(q), len(k))
        if is_causal and mask is not None:
            raise ValueError("a causal matrix has a mask of large entries; the statements need either: leave one out")
        if mask is not None:
            mask = dense_mask(mask, len(q), len(k))
        if not v.any():
            raise ValueError("value is zero everywhere; every output is exact then: pass other values")
        dense = cls(q, k, v, scale, mask, is_causal, getattr(matrix, "name", "matrix"))
        spread = float(np.ptp(dense.log_a[np.isfinite(dense.log_a)]))
        if spread > LARGEST_SPREAD:
            raise ValueError(
                f"the logits span {spread:.4g}, so that kappa may exceed float64; up to {LARGEST_SPREAD:g} are taken: "
                "scale the queries down"
            )
        return dense

    @property
    def n(self) -> int:
        return len(self.query)

    @property
    def kind(self) -> str:
        """Which statements speak of the matrix: "square", "rectangular" or "causal"."""
        if self.is_causal:
            return "causal"
        return "square" if len(self.query) == len(self.key) else "rectangular"

    def feasible(self, m: int) -> int:
        """`m`, or as many keys as may be drawn in a trial."""
        return min(m, LARGEST_WORK // self.n)

    def times(self, m: int, most: int) -> int:
        """The multiple of the settings' trials that drawing m keys leaves time for, at most `most`."""
        return max(1, min(most, WORK // (m * self.n)))

    @lazy_property
    def log_a(self):
        """log A = scale Q K^T; -inf above the diagonal of causal attention."""
        logits = self.scale * self.query @ self.key.T
        return np.where(np.tri(self.n, dtype=bool), logits, -np.inf) if self.is_causal else logits

    @lazy_property
    def mask(self):
        return dense_mask(self.mask_given, *self.log_a.shape)

    @lazy_property
    def log_d(self):
        return logsumexp(self.log_a, axis=1)

    @lazy_property
    def log_h(self):
        return logsumexp(np.where(self.mask, self.log_a, -np.inf), axis=1)

    @lazy_property
    def log_r(self):
        return logsumexp(np.where(self.mask, -np.inf, self.log_a), axis=1)

    @lazy_property
    def p(self):
        return np.exp(self.log_a - self.log_d[:, None])

    @lazy_property
    def attention(self):
        return self.p @ self.value

    @lazy_property
    def alpha(self) -> float:
        n_q, n_k = self.p.shape
        return float(n_k**2 / n_q * (self.p**2).sum(axis=0).max())

    @lazy_property
    def log_kappa(self) -> float:
        finite = self.log_r[np.isfinite(self.log_r)]
        return float(finite.max() - finite.min()) if finite.size else 0.0

    @property
    def kappa(self) -> float:
        return math.exp(self.log_kappa)

    @lazy_property
    def op_norm(self) -> float:
        return hr.operator_norm(self.p)

    @lazy_property
    def value_norm(self) -> float:
        return hr.operator_norm(self.value)

    def with_rows_scaled(self, log_factors) -> Dense:
        """The same P and values, with row i of A multiplied by exp(log_factors[i])."""
        as_it_is = synthetic.Problem(self.family, self.query, self.key, self.value, self.scale, None, "", {})
        scaled = synthetic.scale_rows(as_it_is, log_factors)
        return replace(self, query=scaled.query, key=scaled.key)

    def approx_d(self, **arguments):
        """Algorithm 2 on this head, with its true kappa by default."""
        arguments = {"kappa": self.kappa, "alpha": self.alpha, "scale": self.scale} | arguments
        return hr.approx_d(self.query, self.key, self.mask_given, **arguments)

    def literal_attention(self, **arguments):
        """Algorithm 3 on this head, with its true kappa by default."""
        arguments = {"kappa": self.kappa, "scale": self.scale} | arguments
        return hr.literal_hyper_attention(self.query, self.key, self.value, self.mask_given, **arguments)

    def practical_attention(self, **arguments):
        """The practical algorithm on this head."""
        return hr.hyper_attention(self.query, self.key, self.value, scale=self.scale, **arguments)

    def diagonal_error(self, log_d) -> float:
        """‖(D̃^{-1} - D^{-1}) A‖_op / ‖D^{-1}A‖_op, the left side of (6) in units of its right side's norm."""
        return hr.operator_norm(np.expm1(self.log_d - log_d)[:, None] * self.p) / self.op_norm

    def error(self, estimate) -> float:
        """‖Att - estimate‖_op / (‖D^{-1}A‖_op ‖V‖_op), the ratio in (1)."""
        return hr.operator_norm(self.attention - estimate) / (self.op_norm * self.value_norm)

    def measured_hardness(self):
        """What `hyperattention_ref.hardness` says of this head."""
        return hr.hardness(self.query, self.key, self.mask_given, scale=self.scale, is_causal=self.is_causal, rng=0)

    def hardness(self) -> dict:
        """The hypothesis values that a verdict reports."""
        return {"alpha": self.alpha, "log kappa": self.log_kappa, "op norm of P": self.op_norm}

    def verdict(self, *, family: str | None = None, **fields) -> Verdict:
        """A Verdict on this head."""
        return Verdict(family=family or self.family, n=len(self.key), **fields)


def check_size(n_q: int, n_k: int) -> None:
    """Raise an error for a caller's matrix that is too small for the statements, or too large for dense arrays."""
    if min(n_q, n_k) < 2 or max(n_q, n_k) > LARGEST_N:
        raise ValueError(
            f"the matrix has {n_q} queries and {n_k} keys; the checks form n x n arrays of float64 and take 2 to "
            f"{LARGEST_N} of each: pass the first ones, or measure large heads with `hyperattention measure`"
        )
