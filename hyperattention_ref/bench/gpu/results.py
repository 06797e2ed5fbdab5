"""What is kept of a benchmark on a GPU: of every contestant, of every case, and of the conformance suite."""

from __future__ import annotations

from dataclasses import dataclass

from hyperattention_ref.bench.device import Ceilings
from hyperattention_ref.bench.gpu.cases import GpuCase
from hyperattention_ref.bench.results import ContestantResult
from hyperattention_ref.bench.timing import Times
from hyperattention_ref.foundation.results import Result


@dataclass(frozen=True, repr=False)
class GpuCeilings(Ceilings):
    """The ceilings of a GPU, and the seconds in which they were measured."""

    took: float = 0.0


@dataclass(frozen=True, kw_only=True, repr=False)
class ConformanceResult(Result):
    """What the conformance suite says of a backend, in `took` seconds.

    Attributes
    ----------
    backend, operations, examples, worst_ratio : of `Conformance`, where the backend passed.
    failure, message : else the first violation, in one line and in full.
    """

    backend: str | None = None
    operations: tuple[str, ...] | None = None
    examples: int | None = None
    worst_ratio: float | None = None
    failure: str | None = None
    message: str | None = None
    took: float = 0.0


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuContestantResult(ContestantResult):
    """A contestant on a GPU; see also `ContestantResult`.

    Attributes
    ----------
    failure : the error that the first run raised, or None.
    peak_bytes : memory of the device that a call takes; None where that cannot be measured.
    calls_in_a_run : how many calls in a row a run is.
    wall, device : seconds of a call by the clock of the host and by events of the device; None where it was not timed.
    """

    failure: str | None = None
    peak_bytes: int | None = None
    calls_in_a_run: int | None = None
    wall: Times | None = None
    device: Times | None = None

    @property
    def median(self) -> float | None:
        """Wall-clock seconds of a call."""
        return self.wall.median if self.wall else None


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuCaseResult(Result):
    """What was measured in one case.

    Attributes
    ----------
    paths : for each backend which kernels it has for the inputs, and why no better ones; None if it does not say.
    took : seconds of the whole case.
    """

    name: str
    case: GpuCase
    input_bytes: int
    output_bytes: int
    paths: dict[str, dict[str, str | None] | None]
    contestants: tuple[GpuContestantResult, ...]
    took: float = 0.0

    def find(self, kind: str) -> GpuContestantResult | None:
        """The first contestant of a kind whose output was right, or None."""
        return next((x for x in self.contestants if x.kind == kind and x.is_right), None)
