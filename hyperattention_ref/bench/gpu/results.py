"""What is kept of a benchmark on a GPU: of every contestant, of every case, and of the conformance suite."""

from __future__ import annotations

from dataclasses import dataclass

from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.bench.gpu.cases import GpuCase
from hyperattention_ref.bench.results import ContestantResult
from hyperattention_ref.bench.timing import Times
from hyperattention_ref.foundation.results import Result


@dataclass(frozen=True, kw_only=True, repr=False)
class JobResult(Result):
    """What a job returned.

    Attributes
    ----------
    took : its seconds, by which the time of a later job is predicted.
    """

    took: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing of this library was wrong or broke, so that the result is kept when a run resumes."""
        return True


@dataclass(frozen=True, repr=False)
class GpuCeilings(JobResult, Ceilings):
    """The ceilings of a GPU."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ConformanceResult(JobResult):
    """What the conformance suite says of a backend.

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

    @property
    def is_clean(self) -> bool:
        return self.failure is None


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
    def median(self) -> float:
        """Wall-clock seconds of a call that was timed."""
        assert self.wall is not None
        return self.wall.median

    @property
    def device_median(self) -> float:
        """The same by events of the device."""
        assert self.device is not None
        return self.device.median


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuCaseResult(JobResult):
    """What was measured in one case.

    Attributes
    ----------
    name : of the case.
    case : the inputs.
    input_bytes, output_bytes : size of the arrays.
    paths : for each backend which kernels it has for the inputs, and why no better ones; None if it does not say.
    contestants : every one, in order.
    """

    name: str
    case: GpuCase
    input_bytes: int
    output_bytes: int
    paths: dict[str, dict[str, str | None] | None]
    contestants: tuple[GpuContestantResult, ...]

    @property
    def is_clean(self) -> bool:
        return all(x.is_right for x in self.contestants if not x.is_external)

    def find(self, kind: str) -> GpuContestantResult | None:
        """The first contestant of a kind whose output was right, or None."""
        return next((x for x in self.contestants if x.kind == kind and x.is_right), None)
