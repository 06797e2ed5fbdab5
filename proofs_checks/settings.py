"""What a run of the checks is told: sizes, families, trials, and the random stream of each statement."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from hyperattention_ref import synthetic
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.results import Result

from .dense import Dense


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
    """

    n: int = 1024
    families: tuple[str, ...] | None = None
    epsilon: float = 0.5
    trials: int = 20
    seed: int = 0

    def __post_init__(self):
        inputs.count("n", self.n, least=2)
        inputs.count("trials", self.trials)
        inputs.count("seed", self.seed, least=0)
        if not 0 < inputs.finite("epsilon", self.epsilon) <= 1:
            raise ValueError(f"epsilon is {self.epsilon}; it must be above 0 and at most 1")
        if unknown := sorted(set(self.families or ()) - set(synthetic.FAMILIES)):
            raise ValueError(f"families has {', '.join(unknown)}; known: {', '.join(synthetic.FAMILIES)}")

    def rng(self, *name) -> np.random.Generator:
        """The random stream of a name."""
        return np.random.default_rng([self.seed, zlib.crc32(repr(name).encode())])

    def problems(self, default: tuple[str, ...], n: int | None = None):
        """One Problem for each family of the settings, or of `default` if they have none."""
        for name in self.families or default:
            yield synthetic.FAMILIES[name](n or self.n, rng=self.rng(name))

    def heads(self, default: tuple[str, ...], n: int | None = None, **changes):
        """The dense quantities of each of `problems`."""
        for problem in self.problems(default, n):
            yield Dense.of(problem, **changes)
