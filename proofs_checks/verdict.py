"""What a check states and how its trials are judged.

A statement is checked on trials. Each trial compares a left side with a right side and fails when left > right. A
random statement claims that the failure probability is at most `claim`. Exact binomial (Clopper-Pearson) limits decide:
*fails* when the lower limit exceeds the claim, *holds* when the upper limit is within it, else *not refuted*. A
deterministic statement (claim 0) *fails* when a trial fails and *holds* when none does; it is only *not refuted* where
no number of trials could prove it: an exact probability, or random outcomes without a stated failure probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from hyperattention_ref.foundation.results import Result

LEVEL = 1e-6
"""Each Clopper-Pearson limit misses the true probability with at most this probability."""

POWER = 0.99
"""Probability with which trials refute a statement that is wrong by the detectable discrepancy."""
MOST_TRIALS = 10**5
"""More are not run for the sake of a wanted discrepancy."""

HOLDS, FAILS, NOT_REFUTED = "holds", "fails", "not refuted"


@dataclass(frozen=True, eq=False, repr=False)
class Verdict(Result):
    """The outcome of one statement on one family of inputs.

    Attributes
    ----------
    name, paper : the statement's short name and the paper item or derivation it belongs to.
    statement, hypothesis : in words.
    family : the inputs.
    left, right : both sides of the inequality left <= right, in every trial; kept as (trials,) float64 arrays.
    claim : the failure probability that the statement allows; 0 for a deterministic statement.
    provable : False for a statement with claim 0 that trials can refute but not prove.
    expected : "holds", "fails" for a counterexample, or None where nothing is promised and the outcome is information.
    measured : hypothesis values and other values that explain the outcome.
    n : tokens; keys, where there are more or fewer queries.
    m_asked : samples that the statement requires, with explicit constant; None if it requires none.
    m_used : samples drawn.
    failures : trials with left > right; NaN counts as a failure.
    low, high : Clopper-Pearson limits of the failure probability.
    detectable : the smallest failure probability that this many trials refute with probability 0.99; None where no
        outcome of theirs could refute the claim.
    verdict : "holds", "fails" or "not refuted".
    """

    name: str
    paper: str
    statement: str
    hypothesis: str
    family: str
    left: Any
    right: Any
    claim: float = 0.0
    provable: bool = True
    expected: str | None = HOLDS
    measured: dict = field(default_factory=dict)
    n: int | None = None
    m_asked: float | None = None
    m_used: int | None = None
    failures: int = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)
    detectable: float | None = field(init=False)
    verdict: str = field(init=False)

    def __post_init__(self):
        left, right = np.broadcast_arrays(np.atleast_1d(self.left), np.atleast_1d(self.right))
        left, right = left.astype(np.float64), right.astype(np.float64)
        failures = int(np.sum(~(left <= right)))
        low, high = clopper_pearson(failures, left.size)
        verdict = judge(failures, low, high, self.claim, self.provable)
        power = float(detectable(left.size, self.claim))
        computed = {"left": left, "right": right, "failures": failures, "low": low, "high": high, "verdict": verdict}
        computed["detectable"] = None if math.isnan(power) else power
        for name, x in computed.items():
            object.__setattr__(self, name, x)

    @property
    def trials(self) -> int:
        return self.left.size

    @property
    def ratios(self) -> np.ndarray:
        """(trials,) left / right; 0 for 0/0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((self.left == 0) & (self.right == 0), 0.0, self.left / self.right)

    @property
    def vacuous(self) -> bool:
        """Whether the statement requires more samples than there are tokens."""
        return self.m_asked is not None and self.n is not None and self.m_asked > self.n

    @property
    def as_expected(self) -> bool:
        """False if a statement that should hold fails, or a counterexample does not fail."""
        if self.expected == FAILS:
            return self.verdict == FAILS
        return self.expected is None or self.verdict != FAILS

    def to_dict(self) -> dict:
        extra = {"trials": self.trials, "vacuous": self.vacuous, "as_expected": self.as_expected}
        return {**super().to_dict(), **extra}


def clopper_pearson(failures: int, trials: int) -> tuple[float, float]:
    """Exact lower and upper limits of a failure probability, each at level 1e-6."""
    from scipy.stats import binomtest

    interval = binomtest(failures, trials).proportion_ci(confidence_level=1 - 2 * LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def judge(failures: int, low: float, high: float, claim: float, provable: bool) -> str:
    """The verdict on "the failure probability is at most `claim`"."""
    if failures if claim == 0 else low > claim:
        return FAILS
    return HOLDS if provable and (claim == 0 or high <= claim) else NOT_REFUTED


def trials_to_hold(claim: float) -> int:
    """The number of trials without failure from which *holds* follows: the least t with (1 - claim)^t <= 1e-6."""
    return math.ceil(math.log(LEVEL) / math.log1p(-claim))


def detectable(trials, claim: float) -> np.ndarray:
    """The least p such that, where trials fail with probability p, *fails* follows with probability 0.99.

    *Fails* follows from k failures, the least number whose lower limit exceeds the claim: Pr[Binomial(t, claim) >= k]
    is then at most 1e-6. So Pr[Binomial(t, p) >= k] = 0.99; this is 1 - 0.01^(1/t) for claim 0, where k = 1.

    Parameters
    ----------
    trials : t, a number or an array of numbers.
    claim : the failure probability that the statement allows.

    Returns
    -------
    An array of the shape of `trials`; NaN where k exceeds t.
    """
    from scipy.stats import beta, binom

    trials = np.asarray(trials)
    least = binom.isf(LEVEL, trials, claim) + 1 if claim else np.ones(trials.shape)
    with np.errstate(invalid="ignore"):
        return np.where(least <= trials, beta.ppf(POWER, least, trials - least + 1), np.nan)


@cache
def trials_to_detect(discrepancy: float, claim: float) -> int | None:
    """The least number of trials whose detectable failure probability is at most `discrepancy`; None above 10^5."""
    (enough,) = np.nonzero(detectable(np.arange(1, MOST_TRIALS + 1), claim) <= discrepancy)
    return int(enough[0]) + 1 if enough.size else None
