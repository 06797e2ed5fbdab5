"""Confidence bounds for a quotient of two sums over rows, valid at every step of a draw, by betting.

Derived: page "theory", certificates after the fact. A gambler starts with the capital 1 and bets, row by row, against
the claim that the quotient is at least (or at most) x. Where the claim is true, the expected capital never grows, so
that it ever reaches 1 / delta with probability at most delta (Ville 1939). The bound is the edge of the claims that the
capital has not refuted at any step: it holds when the draw stops, for whatever reason it stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hyperattention_ref.measures.row_sample import RowSample

BETS = 2.0 ** -np.arange(9)
"""The fractions of the largest possible bet among which the gambler divides the capital at the start."""
PARTS = np.where(BETS == 1, 0.5, 0.5 / 8)
"""Half of the capital bets all it may, which is best where no row has any error; the rest is for smaller effects."""
RANGE, HALVINGS = 256.0, 22
"""Exponents of 2 among which the edge is searched, and steps: the last bracket is below 1e-4 relative."""


class Sum(NamedTuple):
    """A sum of numbers x_i >= 0 over all rows, as far as a sample knows it.

    Attributes
    ----------
    terms : (s,) numbers whose conditional mean is the sum, given the rows before.
    seen : (s + 1,) the part of the sum in the rows drawn before step t; the last entry is after all steps.
    most_left : (s + 1,) an upper bound of the other part; seen[t] + most_left[t] >= terms[t].
    """

    terms: np.ndarray
    seen: np.ndarray
    most_left: np.ndarray

    @classmethod
    def sampled(cls, sample: RowSample, x: np.ndarray, largest: float) -> Sum:
        """From the drawn numbers `x`, none of which exceeds `largest` times the weight of its row, drawn or not."""
        return cls(sample.terms(x), sample.seen(x), largest * sample.left)

    @classmethod
    def one(cls, sample: RowSample) -> Sum:
        """The number 1, a sum that is known beforehand: nothing of it is left to be seen."""
        s = len(sample)
        return cls(np.ones(s), np.ones(s + 1), np.zeros(s + 1))


def quotient_upper(top: Sum, bottom: Sum, delta: float) -> float:
    """An upper bound of top / bottom, wrong with probability at most `delta` whenever the draw stops.

    The least x that is refuted, to 1e-4 relative: if x is refuted, so are all larger ones (page "theory"). Infinite
    where the rows refute no x. Cost: 24 times 9 s logarithms.
    """
    return _edge(lambda x: _reaches(*_against_at_least(x, top, bottom), delta), top, bottom, 1)


def quotient_lower(top: Sum, bottom: Sum, delta: float) -> float:
    """A lower bound of top / bottom, like `quotient_upper`; 0 where the rows refute no x."""
    return _edge(lambda x: _reaches(*_against_at_most(x, top, bottom), delta), top, bottom, -1)


def rows_to_refute(x: float, top: Sum, bottom: Sum, delta: float) -> float:
    """About how many rows it takes to refute that top / bottom >= x, or that it is <= x, whichever takes fewer.

    The number of the sample's rows if they do it; else as many as would if the capital went on to grow as it did in the
    second half of the draw; infinite if it did not grow.
    """
    s, target = len(top.terms), -math.log(delta)
    needed = math.inf
    for gain, risk in (_against_at_least(x, top, bottom), _against_at_most(x, top, bottom)):
        if _reaches(gain, risk, delta):
            return s
        capital = log_capital(gain, risk[:-1])
        growth = (capital[-1] - capital[s // 2]) / (s - s // 2)
        if growth > 0:
            needed = min(needed, s + (target - capital[-1]) / growth)
    return needed


def log_capital(gain: np.ndarray, risk: np.ndarray) -> np.ndarray:
    """(s,) the logarithm of the capital after every step.

    Bet number k multiplies its part of the capital by 1 + BETS[k] gain_t / risk_t: `gain` has a conditional mean of at
    most 0 under the claim, and is never below -`risk` (but for rounding).
    """
    odds = np.divide(gain, risk, out=np.zeros_like(gain), where=risk > 0)  # no risk, no bet
    with np.errstate(divide="ignore"):
        growth = np.cumsum(np.log1p(np.outer(BETS, np.maximum(odds, -1.0))), axis=1)
    return np.logaddexp.reduce(np.log(PARTS)[:, None] + growth, axis=0)


def _against_at_least(x: float, top: Sum, bottom: Sum) -> tuple[np.ndarray, np.ndarray]:
    """Gain (s,) and risk (s + 1,) of bets against top / bottom >= x."""
    return x * bottom.terms - top.terms, top.seen + top.most_left - x * bottom.seen


def _against_at_most(x: float, top: Sum, bottom: Sum) -> tuple[np.ndarray, np.ndarray]:
    """Gain (s,) and risk (s + 1,) of bets against top / bottom <= x."""
    return top.terms - x * bottom.terms, x * (bottom.seen + bottom.most_left) - top.seen


def _reaches(gain: np.ndarray, risk: np.ndarray, delta: float) -> bool:
    """Whether the capital reaches 1 / delta at any step, or what is left cannot make the claim true."""
    return bool((risk < 0).any() or (log_capital(gain, risk[:-1]) >= -math.log(delta)).any())


def _edge(refuted: Callable[[float], bool], top: Sum, bottom: Sum, sign: int) -> float:
    """The refuted end of a bracket of the edge: refuted are all x above it (`sign` 1), or all below it (-1)."""
    high, low = top.terms.mean(), bottom.terms.mean()
    near = high / low if high > 0 and low > 0 else 1.0
    inside, outside = -RANGE * sign, RANGE * sign  # exponents of 2, from the quotient of the estimates
    if not refuted(near * 2.0**outside):
        return math.inf if sign > 0 else 0.0
    if refuted(near * 2.0**inside):
        return 0.0 if sign > 0 else math.inf
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        inside, outside = (inside, middle) if refuted(near * 2.0**middle) else (middle, outside)
    return near * 2.0**outside
