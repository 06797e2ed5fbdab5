"""What a run of the checks is told: sizes, families, trials, and the random stream of each statement."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from hyperattention_ref import synthetic
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import Result

from .dense import Dense
from .verdict import trials_to_detect, trials_to_hold

LEAST_POWER = 1e-4
"""46 050 trials detect it."""


@dataclass(frozen=True, eq=False, repr=False)
class Settings(Result):
    """The settings of a run of the checks.

    Attributes
    ----------
    n : tokens of the larger problems.
    families : names from `synthetic.FAMILIES` for the statements that are checked family by family; None for the
        families that each statement selects.
    epsilon : the target error, 0 < epsilon <= 1.
    trials : trials of the larger problems; cheap statements take as many as their claim needs, a multiple of it.
    seed : seed of the random streams, a separate one for every statement.
    power : a failure probability that the trials shall detect, from 0.0001 and below 1; None for no such aim. See
        `trials_for`.
    """

    n: int = 1024
    families: tuple[str, ...] | None = None
    epsilon: float = 0.5
    trials: int = 20
    seed: int = 0
    power: float | None = None

    def __post_init__(self):
        inputs.count("n", self.n, least=2)
        inputs.count("trials", self.trials)
        inputs.count("seed", self.seed, least=0)
        if not 0 < inputs.finite("epsilon", self.epsilon) <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; it must be above 0 and at most 1")
        if self.power is not None and not LEAST_POWER <= inputs.finite("power", self.power) < 1:
            raise ValueError(f"power is {self.power}; it must be a probability from {LEAST_POWER:g} and below 1")
        if unknown := sorted(set(self.families or ()) - set(synthetic.FAMILIES)):
            raise ValueError(f"families has {', '.join(unknown)}; known: {', '.join(synthetic.FAMILIES)}")

    def rng(self, *name) -> np.random.Generator:
        """The random stream of a name."""
        return np.random.default_rng([self.seed, zlib.crc32(repr(name).encode())])

    def trials_for(self, claim: float = 0.0, times: int = 1) -> int:
        """How often a statement is tried that allows the failure probability `claim`.

        Without `power`: `times` the settings' trials, but no more than prove the claim. With it: as many as detect it.
        Where no number does, because the statement allows as much or almost as much: the usual number, or as many as
        would detect it if nothing were allowed, whichever is more.
        """
        usual = times * self.trials if claim == 0 else min(times * self.trials, trials_to_hold(claim))
        if self.power is None:
            return usual
        return trials_to_detect(self.power, claim) or max(usual, trials_to_detect(self.power, 0.0) or 0)

    def problems(self, default: tuple[str, ...], n: int | None = None):
        """One Problem for each family of the settings, or of `default` if they have none."""
        for name in self.families or default:
            yield synthetic.FAMILIES[name](n or self.n, rng=self.rng(name))

    def heads(self, default: tuple[str, ...], n: int | None = None, **changes):
        """The dense quantities of each of `problems`."""
        for problem in self.problems(default, n):
            yield Dense.of(problem, **changes)
