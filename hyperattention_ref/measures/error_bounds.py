"""The errors of some outputs of one head: bounds from a sample of exact rows, or exact from all rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_rows import attention_rows
from hyperattention_ref.measures.betting import Sum, quotient_lower, quotient_upper, rows_to_refute
from hyperattention_ref.measures.kl_bounds import kl_lower, kl_upper
from hyperattention_ref.measures.norms import operator_norm
from hyperattention_ref.measures.row_sample import RowSample
from hyperattention_ref.measures.spectral_guarantee import mean_of_values, quotient

ZERO, MEAN = "zero", "mean"
"""The baselines, which look at no query: zero output, and the mean of V."""
FIRST_ROWS = 256
"""Rows that bound ||P||_op, and after which `rows="auto"` looks for the first time; then after twice as many again."""
MOST_ROWS = 1 / 16
"""The part of all rows beyond which "auto" takes all: panels of rows then cost more than a compiled backend's pass."""
LEAST_WEIGHT = 0.01
"""The least weight of a row in units of the mean: also rows that cannot be wrong have a part in ||Att||_F."""


@dataclass(frozen=True, eq=False, repr=False)
class ErrorBounds(Result):
    """Error bounds of one output, E = Att - output; numbers, or arrays of the leading shape.

    Where all rows were computed, bounds, estimates and lower bound of an error are the same, and the limits are 0.

    Attributes
    ----------
    frobenius : an upper bound of ||E||_F.
    op_norm : an upper bound of ||E||_op.
    ratio : an upper bound of ||E||_op / (||P||_op ||V||_op), the epsilon of inequality (1).
    relative_frobenius, relative_frobenius_low : an upper and a lower bound of ||E||_F / ||Att||_F.
    frobenius_estimate, op_norm_estimate, ratio_estimate, relative_frobenius_estimate : the same quantities as the
        drawn rows suggest them, without guarantee.
    relative_frobenius_standard_error : of the estimate; infinite for a single row.
    limit : `frobenius` if no drawn row had any error: the least that these rows can certify.
    relative_limit : the same for `relative_frobenius`.
    """

    frobenius: PerHead
    op_norm: PerHead
    ratio: PerHead
    relative_frobenius: PerHead
    relative_frobenius_low: PerHead
    frobenius_estimate: PerHead
    op_norm_estimate: PerHead
    ratio_estimate: PerHead
    relative_frobenius_estimate: PerHead
    relative_frobenius_standard_error: PerHead
    limit: PerHead
    relative_limit: PerHead


@dataclass(frozen=True, eq=False, repr=False)
class Sizes(Result):
    """Sizes to which the errors are compared.

    Attributes
    ----------
    p_op_norm_low, p_op_norm_estimate : a lower bound of ||P||_op, and an estimate of one, ||P^T 1|| / sqrt(n_q).
    v_op_norm : ||V||_op, exact.
    attention_frobenius_low, attention_frobenius_estimate : a lower bound and an estimate of ||Att||_F.
    """

    p_op_norm_low: PerHead
    p_op_norm_estimate: PerHead
    v_op_norm: PerHead
    attention_frobenius_low: PerHead
    attention_frobenius_estimate: PerHead


class Problem(NamedTuple):
    """One checked head."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    scale: float
    is_causal: bool


class Rule(NamedTuple):
    """The number of rows or "auto", the failure probability of each bound, and the relative error that decides."""

    rows: int | str
    delta: float
    tolerance: float


class Found(NamedTuple):
    """Bounds by the name of the output, what they share, and numbers of rows as in `Certificate`."""

    bounds: dict[str, ErrorBounds]
    sizes: Sizes
    rows: int
    rows_to_decide: int


def bound_errors(problem: Problem, outputs: dict, rule: Rule, rng: np.random.Generator, backend) -> Found:
    """Bound the errors of several outputs of one head, and those of zero and the mean of V, from the same rows.

    Derived: page "theory", certificates after the fact. "auto" and `rows_to_decide` are about all given outputs.
    """
    work, n_q = np.promote_types(problem.q.dtype, np.float32), len(problem.q)
    problem = problem._replace(**{x: getattr(problem, x).astype(work, copy=False) for x in ("q", "k", "v")})
    head = _Head(problem, outputs, rng, rule)
    if rule.rows == "auto":
        stops = [FIRST_ROWS << i for i in range(n_q.bit_length()) if FIRST_ROWS << i <= MOST_ROWS * n_q]
        for count in stops:
            found = head.from_rows(count, len(stops))
            if found.rows_to_decide == count:
                return found
    elif isinstance(rule.rows, int) and rule.rows < n_q:
        return head.from_rows(rule.rows, 1)
    return head.from_all_rows(backend)


class _Head:
    """What is known of a head before any row is computed, and the drawn rows of Att so far.

    All lengths are in units of a power of two near the largest entry: exact, and no square overflows or underflows.
    """

    def __init__(self, problem: Problem, outputs: dict[str, np.ndarray], rng: np.random.Generator, rule: Rule):
        self.problem, self.rule, self.given = problem, rule, tuple(outputs)
        self.n_q = len(problem.q)
        self.unit = 2.0 ** (math.frexp(max(max(x.max(), -x.min()) for x in (problem.v, *outputs.values())))[1] - 1)
        self.v = problem.v / np.float64(self.unit)
        self.v_norm = operator_norm(self.v)
        self.outputs = outputs | {
            ZERO: np.broadcast_to(0.0, (self.n_q, self.v.shape[1])),
            MEAN: mean_of_values(problem.v.astype(np.float64), self.n_q, problem.is_causal),
        }
        center = self.v.mean(axis=0)
        radii = self._largest_of_keys(_lengths(self.v - center))
        # Row i of Att is a mean of the rows of V that query i sees, so no further from the center than the furthest.
        caps = {name: (_lengths(self._rows(name) - center) + radii) ** 2 for name in self.outputs}
        weights = np.max([caps[name] for name in outputs], axis=0)
        weights = np.maximum(weights, LEAST_WEIGHT * weights.mean()) if weights.any() else np.ones(self.n_q)
        self.sample = RowSample.draw(weights, rng)
        self.largest = {name: float((x / weights).max()) for name, x in caps.items()}
        self.largest_of_attention = float((self._largest_of_keys(_lengths(self.v)) ** 2 / weights).max())
        self.largest_of_one = float(1 / weights.min())
        self.attention = np.zeros((0, self.v.shape[1]))

    def _largest_of_keys(self, x: np.ndarray) -> np.ndarray:
        """(n_q,) the largest number of the keys that each query sees."""
        return np.maximum.accumulate(x) if self.problem.is_causal else np.full(self.n_q, x.max())

    def _rows(self, name: str, rows=slice(None)) -> np.ndarray:
        """Rows of an output in float64, in units."""
        return self.outputs[name][rows].astype(np.float64) / self.unit

    # --- From all rows ----------------------------------------------------------------------------------------------

    def from_all_rows(self, backend) -> Found:
        """The exact errors, by one pass of the backend."""
        memory, p = memory_of(backend), self.problem
        q, k, v = (memory.from_host(x) for x in (p.q, p.k, p.v))
        result, _ = backend.exact_attention(q, k, v, scale=p.scale, is_causal=p.is_causal)
        attention = memory.to_host(result).astype(np.float64) / self.unit
        norm = float(np.linalg.norm(attention))
        sizes = Sizes(*self._norms_of_p(min(FIRST_ROWS, self.n_q)), self.v_norm, norm, norm)
        bounds = {name: self._exact(attention - self._rows(name), sizes) for name in self.outputs}
        return self._found(bounds, sizes, self.n_q, self.n_q)

    def _exact(self, error: np.ndarray, sizes: Sizes) -> ErrorBounds:
        frobenius, op_norm = float(np.linalg.norm(error)), operator_norm(error)
        relative = quotient(frobenius, float(sizes.attention_frobenius_low))
        return ErrorBounds(
            frobenius=frobenius,
            op_norm=op_norm,
            ratio=quotient(op_norm, float(sizes.p_op_norm_low * sizes.v_op_norm)),
            relative_frobenius=relative,
            relative_frobenius_low=relative,
            frobenius_estimate=frobenius,
            op_norm_estimate=op_norm,
            ratio_estimate=quotient(op_norm, float(sizes.p_op_norm_estimate * sizes.v_op_norm)),
            relative_frobenius_estimate=relative,
            relative_frobenius_standard_error=0.0,
            limit=0.0,
            relative_limit=0.0,
        )

    # --- From a sample ----------------------------------------------------------------------------------------------

    def from_rows(self, count: int, stops: int) -> Found:
        """Bounds from the first `count` rows of the draw, which could have stopped at one of `stops` places."""
        sample, p = self.sample.first(count), self.problem
        new = sample.rows[len(self.attention) :]
        panels = attention_rows(p.q, p.k, new, scale=p.scale, is_causal=p.is_causal)
        attention_of_new = [(panel.probabilities @ p.v).astype(np.float64) / self.unit for panel in panels]
        self.attention = np.concatenate([self.attention, *attention_of_new])

        squares = (self.attention**2).sum(axis=1)
        attention = Sum.sampled(sample, squares, self.largest_of_attention)
        low = quotient_lower(attention, Sum.one(sample), self.rule.delta / 2)
        norms = self._norms_of_p(min(FIRST_ROWS, count))
        sizes = Sizes(*norms, self.v_norm, math.sqrt(low), math.sqrt(attention.terms.mean()))
        errors = {name: self.attention - self._rows(name, sample.rows) for name in self.outputs}
        sums = {name: Sum.sampled(sample, (x**2).sum(axis=1), self.largest[name]) for name, x in errors.items()}
        bounds = {name: self._sampled(name, x, sums[name], attention, sizes, stops) for name, x in errors.items()}
        to_decide = [self._rows_to_decide(bounds[name], x, attention) for name, x in sums.items() if name in self.given]
        return self._found(bounds, sizes, count, max(to_decide))

    def _sampled(self, name: str, error: np.ndarray, top: Sum, attention: Sum, sizes: Sizes, stops: int) -> ErrorBounds:
        sample, delta = self.sample.first(len(error)), self.rule.delta
        one, nothing = Sum.one(sample), Sum.sampled(sample, np.zeros(len(error)), self.largest[name])
        relative, standard_error = _relative_estimate(top, attention)
        # One fixed direction is tested, the top one of E: the dimension does not enter.
        op_square = operator_norm(np.sqrt(sample.factors())[:, None] * error) ** 2
        op_most = operator_norm(error) ** 2 + self.largest[name] * sample.left[-1]

        def op_norm(delta: float) -> float:
            scale = self.largest[name] * sample.left[0]  # no term is larger
            level = math.log(stops / delta) / len(sample)
            upper = scale * float(kl_upper(min(1.0, op_square / scale), level)) if scale else 0.0
            return math.sqrt(min(upper, op_most))

        def uppers(top: Sum) -> tuple[float, float]:
            """Of the Frobenius norm, and relative to Att; without error the latter is 0 even if Att is 0."""
            absolute = math.sqrt(quotient_upper(top, one, delta))
            return absolute, math.sqrt(quotient_upper(top, attention, delta)) if absolute else 0.0

        frobenius, relative_frobenius = uppers(top)
        limit, relative_limit = uppers(nothing)
        return ErrorBounds(
            frobenius=frobenius,
            op_norm=op_norm(delta),
            # In a quotient of two bounds, each gets half of delta.
            ratio=quotient(op_norm(delta / 2), float(sizes.p_op_norm_low * sizes.v_op_norm)),
            relative_frobenius=relative_frobenius,
            relative_frobenius_low=math.sqrt(quotient_lower(top, attention, delta)),
            frobenius_estimate=math.sqrt(top.terms.mean()),
            op_norm_estimate=math.sqrt(op_square),
            ratio_estimate=quotient(math.sqrt(op_square), float(sizes.p_op_norm_estimate * sizes.v_op_norm)),
            relative_frobenius_estimate=relative,
            relative_frobenius_standard_error=standard_error,
            limit=limit,
            relative_limit=relative_limit,
        )

    def _rows_to_decide(self, bounds: ErrorBounds, top: Sum, attention: Sum) -> int:
        """About how many rows show on which side of the tolerance an output lies."""
        count, tolerance = len(top.terms), self.rule.tolerance
        if bounds.relative_frobenius <= tolerance or bounds.relative_frobenius_low > tolerance:
            return count
        needed = rows_to_refute(tolerance**2, top, attention, self.rule.delta)
        return int(min(self.n_q, max(count + 1, needed)))

    # --- Both -------------------------------------------------------------------------------------------------------

    def _norms_of_p(self, count: int) -> tuple[float, float]:
        """A lower bound of ||P||_op, wrong with probability at most delta / 2, and an estimate of one.

        ||P||_op is at least each of sqrt(n_q / n_k), since P 1 = 1; ||P_T^T 1|| / sqrt(s) for the drawn rows T; and the
        largest column norm, bounded for all n_k columns at once. Only the last can fail.
        """
        p, sample, n_k = self.problem, self.sample.first(count), len(self.problem.k)
        # The means of the terms of the first and of the second half of the draw are uncorrelated estimates of P^T 1.
        half, other, factors = sample.first(count // 2).factors(), sample.factors(count // 2), sample.factors()
        weights = np.stack([np.ones(count), np.pad(half, (0, count - len(half))), other])
        sums, squares, seen = np.zeros((3, n_k)), np.zeros(n_k), 0
        for panel in attention_rows(p.q, p.k, sample.rows, scale=p.scale, is_causal=p.is_causal):
            place, x = slice(seen, seen + len(panel.rows)), panel.probabilities.astype(np.float64)
            sums += weights[:, place] @ x
            squares += factors[place] @ x**2
            seen = place.stop
        most = self.largest_of_one * sample.left[0]
        column = most * kl_lower(min(1.0, squares.max() / most), math.log(2 * n_k / self.rule.delta) / count)
        together = float(sums[0] @ sums[0])
        low = max(self.n_q / n_k, together / count, float(column))
        square = together if count == self.n_q else float(sums[1] @ sums[2])
        return math.sqrt(low), math.sqrt(max(self.n_q / n_k, square / self.n_q))

    def _found(self, bounds: dict[str, ErrorBounds], sizes: Sizes, rows: int, rows_to_decide: int) -> Found:
        """In the units of the caller; the relative error of zero is never estimated."""
        relative = 1.0 if self.v.any() else 0.0
        names = ("relative_frobenius", "relative_frobenius_low", "relative_frobenius_estimate")
        bounds[ZERO] = replace(bounds[ZERO], **dict.fromkeys(names, relative), relative_frobenius_standard_error=0.0)
        lengths = ("frobenius", "op_norm", "frobenius_estimate", "op_norm_estimate", "limit")
        bounds = {name: self._in_units(x, *lengths) for name, x in bounds.items()}
        sizes = self._in_units(sizes, "v_op_norm", "attention_frobenius_low", "attention_frobenius_estimate")
        return Found(bounds, sizes, rows, rows_to_decide)

    def _in_units(self, result, *names: str):
        return replace(result, **{name: self.unit * getattr(result, name) for name in names})


def _lengths(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", x, x))


def _relative_estimate(top: Sum, bottom: Sum) -> tuple[float, float]:
    """The square root of the quotient of two estimates, and its standard error to first order."""
    quotient_square, s = quotient(float(top.terms.mean()), float(bottom.terms.mean())), len(top.terms)
    estimate = math.sqrt(quotient_square)
    if s == 1 or not math.isfinite(estimate):
        return estimate, math.inf
    deviation = float(np.std(top.terms - quotient_square * bottom.terms, ddof=1)) / math.sqrt(s)
    return estimate, quotient(deviation, 2 * estimate * float(bottom.terms.mean()))
