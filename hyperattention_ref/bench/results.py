"""What is kept of every contestant, and of the cases on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from textwrap import shorten

from hyperattention_ref.bench.cases import Contestant
from hyperattention_ref.bench.check import Check
from hyperattention_ref.foundation.results import Result

LONGEST_REASON = 300


def reason_of(error: Exception) -> str:
    """An error in one line of limited length."""
    first = (str(error).strip().splitlines() or [""])[0]
    return shorten(f"{type(error).__name__}: {first}" if first else type(error).__name__, LONGEST_REASON)


@dataclass(frozen=True, kw_only=True, repr=False)
class ContestantResult(Contestant):
    """A contestant after its first run; see also `Contestant`.

    Attributes
    ----------
    check : whether the output was right; None where there was none.
    first_seconds : time of the first run, which may compile.
    logits : how many the call evaluates; None where that is unknown.
    relative_error : of the output, beside exact attention; None where that was not computed.
    """

    check: Check | None = None
    first_seconds: float | None = None
    logits: int | None = None
    relative_error: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether the output was right, so that calls were timed."""
        return self.check is not None and self.check.is_right

    def to_dict(self) -> dict:
        return super().to_dict() | {"name": self.name}


@dataclass(frozen=True, kw_only=True, repr=False)
class HostContestantResult(ContestantResult):
    """A contestant on the host; see also `ContestantResult`.

    Attributes
    ----------
    seconds, median, quartiles : its `Times`; None where the output was wrong.
    peak_bytes : what a call adds to the resident memory; None where that was not measured.
    """

    seconds: tuple[float, ...] | None = None
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class LengthResult(Result):
    """What was measured at one length.

    Attributes
    ----------
    baselines : relative errors of zero and of the mean of V.
    stages, sums : seconds by backend, from `measure_stages` and `measure_sums`.
    """

    n: int
    input_bytes: int
    output_bytes: int
    contestants: tuple[HostContestantResult, ...]
    baselines: dict[str, float]
    stages: dict[str, dict[str, float]]
    sums: dict[str, dict[str, float]]

    def find(self, kind: str, engine: str) -> HostContestantResult | None:
        """The contestant of that kind and engine, or None."""
        return next((x for x in self.contestants if (x.kind, x.engine) == (kind, engine)), None)


@dataclass(frozen=True, kw_only=True, repr=False)
class FamilyResult(Result):
    """Error and time on inputs of one family.

    Attributes
    ----------
    points : every approximation at every budget, and exact attention.
    baselines : relative errors of zero and of the mean of V.
    """

    family: str
    n: int
    points: tuple[HostContestantResult, ...]
    baselines: dict[str, float]

    @property
    def best(self) -> HostContestantResult | None:
        """The approximation of least error; None if n is too short for any, or none was right."""
        approximate = [x for x in self.points if x.is_right and x.budget]
        return min(approximate, key=lambda x: x.relative_error or math.inf, default=None)
