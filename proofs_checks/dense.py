"""The n x n quantities of the paper's section 1, computed from their definitions; every check compares with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp

import hyperattention_ref as hr
from hyperattention_ref import synthetic
from hyperattention_ref.foundation.lazy_property import lazy_property
from hyperattention_ref.plan.block_mask import dense_mask

from .verdict import Verdict

ROUNDING = 1e-9
"""Relative tolerance for float64 in deterministic inequalities, where both sides may be equal. The errors of sums of
4096 terms, exponentials of logits up to 100 and norms by Lanczos (1e-12) are two orders of magnitude smaller."""


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

    @property
    def n(self) -> int:
        return len(self.query)

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

    def hardness(self) -> dict:
        """The hypothesis values that a verdict reports."""
        return {"alpha": self.alpha, "log kappa": self.log_kappa, "op norm of P": self.op_norm}

    def verdict(self, *, family: str | None = None, **fields) -> Verdict:
        """A Verdict on this head."""
        return Verdict(family=family or self.family, n=self.n, **fields)
