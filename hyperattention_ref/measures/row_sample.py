"""Rows drawn one after another with unequal probabilities, and what they say about sums over all rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RowSample:
    """Rows drawn without replacement, each time with probabilities in proportion to the weights of what is left.

    Derived: page "theory", certificates after the fact. For numbers x_1 .. x_n, let I_t be the t-th drawn row, pi_t its
    probability when it was drawn, and S_t the sum of x over the first t drawn rows. The terms

        z_t = S_{t-1} + x_{I_t} / pi_t

    have the sum of all x as conditional mean, whatever was drawn before (Des Raj 1956): they are uncorrelated, so their
    mean is unbiased, and the standard deviation of the terms gives its standard error.

    Attributes
    ----------
    rows : (s,) the drawn rows, in the order in which they were drawn.
    shares : (s,) the probabilities pi_t.
    left : (s + 1,) sums of the weights of the rows that are not yet drawn before step t; the last is after all steps.
    """

    rows: np.ndarray
    shares: np.ndarray
    left: np.ndarray

    @classmethod
    def draw(cls, weights: np.ndarray, rng: np.random.Generator) -> RowSample:
        """All rows in the order of a draw; `first` takes a part. Cost n log n for n rows.

        An exponential clock of rate w_i for each row: the next one that rings is row i with probability w_i over the
        sum of the weights that are left. `weights` are positive.
        """
        rows = np.argsort(rng.exponential(size=len(weights)) / weights, kind="stable")
        drawn = weights[rows]
        left = np.append(np.cumsum(drawn[::-1])[::-1], 0.0)
        return cls(rows, drawn / left[:-1], left)

    def first(self, count: int) -> RowSample:
        """The sample as it was after `count` steps."""
        return RowSample(self.rows[:count], self.shares[:count], self.left[: count + 1])

    def __len__(self) -> int:
        return len(self.rows)

    def factors(self, start: int = 0) -> np.ndarray:
        """(s,) the factors with which the drawn numbers enter the mean of the terms, of those after `start` of them.

        Number t enters its own term with 1 / pi_t and each later term with 1.
        """
        t, s = np.arange(1, len(self) + 1), len(self)
        return (np.where(t > start, 1 / self.shares, 0.0) + s - np.maximum(t, start)) / (s - start)

    def terms(self, x: np.ndarray) -> np.ndarray:
        """(s,) the terms z_t of the drawn numbers `x`."""
        return self.seen(x)[:-1] + x / self.shares

    def seen(self, x: np.ndarray) -> np.ndarray:
        """(s + 1,) S_0 = 0 .. S_s."""
        return np.append(0.0, np.cumsum(x))
