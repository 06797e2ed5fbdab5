"""What a benchmark on a GPU found: rates beside the ceilings, times beside SDPA, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from hyperattention_ref.bench.cases import EXACT, EXTERNAL, SDPA, WHOLE
from hyperattention_ref.bench.device import Ceilings
from hyperattention_ref.bench.gpu.cases import HALF, GpuCase, GpuSettings
from hyperattention_ref.bench.gpu.results import ConformanceResult, GpuCaseResult, GpuContestantResult
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number, seconds

TARGETS = {False: 120, True: 12}
"""How many times faster than the best of SDPA a call should be in the case below, by whether it is causal."""
TARGET_CASE: dict[str, Any] = {
    "n": 131072,
    "heads": 12,
    "dim": 64,
    "dtype": HALF,
    "block_size": 256,
    "sample_size": 256,
}


class SdpaTime(NamedTuple):
    """Wall seconds of exact attention of PyTorch, the backend of SDPA, and whether they were measured or predicted."""

    seconds: float
    engine: str
    is_measured: bool


@dataclass(frozen=True, repr=False)
class GpuReport(Result):
    """What a benchmark on a GPU found.

    Attributes
    ----------
    command : the command line.
    environment : the machine, the GPU and the versions.
    ceilings : of the GPU; None if they could not be measured.
    conformance : by backend.
    cases : in the order in which they ran.
    left_out, failures : by name, the reason of what did not run and the error of what broke.
    """

    settings: GpuSettings
    command: str
    environment: dict[str, Any]
    ceilings: Ceilings | None
    conformance: dict[str, ConformanceResult]
    cases: tuple[GpuCaseResult, ...]
    left_out: dict[str, str]
    failures: dict[str, str]

    @property
    def wrong(self) -> list[str]:
        """The contestants that gave a wrong answer, and where; none of them was timed there."""
        return [f"{x.name} in {case.name}" for case, x in self._all() if not (x.failure or x.is_right)]

    @property
    def broken(self) -> list[str]:
        """What raised an error: the conformance suite, a whole case, or a call of this library."""
        suite = [f"conformance of {name} ({x.failure})" for name, x in self.conformance.items() if x.failure]
        return suite + [f"{name} ({reason})" for name, reason in self.failures.items()] + self._failed(False)

    @property
    def absent(self) -> list[str]:
        """What did not run, with the reason, though nothing is wrong with it."""
        return [f"{name}: {reason}" for name, reason in self.left_out.items()] + self._failed(True)

    @property
    def summary(self) -> str:
        """Whether everything that was timed was right, and whether everything ran."""
        sentences = []
        if self.wrong:
            sentences.append(f"WRONG, and not timed: {'; '.join(self.wrong)}.")
        if self.broken:
            sentences.append(f"FAILED: {'; '.join(self.broken)}.")
        if not any(x.is_right for _, x in self._all()):
            sentences.append("Nothing was timed.")
        return " ".join(sentences) or "Every output agreed with float64 rows before it was timed."

    @property
    def is_right(self) -> bool:
        return not (self.wrong or self.broken)

    @property
    def findings(self) -> list[str]:
        """What the numbers say, in words."""
        return list(_findings(self))

    def rates(self, case: GpuCaseResult, x: GpuContestantResult) -> dict[str, float]:
        """What a call does in a second: operations and exponentials of its logits, bytes of inputs and output once."""
        assert x.device is not None
        assert x.logits is not None
        amounts = {"flops": 4.0 * x.logits * case.case.dim, "exponentials": x.logits}
        amounts["bytes"] = case.input_bytes + case.output_bytes
        return {name: amount / x.device.median for name, amount in amounts.items()}

    def shares(self, case: GpuCaseResult, x: GpuContestantResult) -> dict[str, float]:
        """These rates over the ceilings; nothing without ceilings."""
        limits = self.ceilings.to_dict() if self.ceilings else {}
        return {name: rate / limits[name] for name, rate in self.rates(case, x).items() if limits}

    def groups(self) -> dict[tuple, list[GpuCaseResult]]:
        """The cases that differ in n only, short ones first, by what they have in common."""
        groups: dict[tuple, list[GpuCaseResult]] = {}
        for case in sorted(self.cases, key=lambda case: case.case.n):
            groups.setdefault(case.case.group, []).append(case)
        return {case.case.group: groups[case.case.group] for case in self.cases}

    def best_sdpa(self, case: GpuCaseResult) -> SdpaTime | None:
        """The fastest backend of SDPA, predicted where exact attention takes no part; None if there is none."""
        times = [SdpaTime(x.median, x.engine, True) for x in case.contestants if x.kind == SDPA and x.median]
        if times:
            return min(times)
        cases = self.groups()[case.case.group]
        engines = {x.name: x.engine for other in cases for x in other.contestants if x.kind == SDPA}
        predictions = {engine: self.predicted(case, name) for name, engine in engines.items()}
        return min((SdpaTime(t, engine, False) for engine, t in predictions.items() if t is not None), default=None)

    def predicted(self, case: GpuCaseResult, name: str) -> float | None:
        """Seconds of exact attention where it takes no part, from its largest n and n^2; None if unknown."""
        if case.case.has_exact:
            return None
        known = [
            (other.case.n, x.median)
            for other in self.groups()[case.case.group]
            for x in other.contestants
            if x.name == name and x.kind in (EXACT, SDPA) and x.median
        ]
        n, time = max(known, default=(0, 0.0))
        return time * (case.case.n / n) ** 2 if known else None

    def times_best_sdpa(self, case: GpuCaseResult) -> float | None:
        """How many times as long as HyperAttention, plan included, the best of SDPA takes, by the wall clock."""
        hyper, best = case.find(WHOLE), self.best_sdpa(case)
        return best.seconds / hyper.median if hyper and hyper.median and best else None

    def to_dict(self) -> dict:
        words = {"summary": self.summary, "findings": self.findings, "wrong": self.wrong, "broken": self.broken}
        data = super().to_dict()
        for case, case_data in zip(self.cases, data["cases"], strict=True):
            case_data["times_best_sdpa"] = self.times_best_sdpa(case)
            for x, entry in zip(case.contestants, case_data["contestants"], strict=True):
                if x.is_right:
                    entry |= {"rates": self.rates(case, x), "shares_of_ceilings": self.shares(case, x)}
        return words | data

    def _all(self) -> Iterator[tuple[GpuCaseResult, GpuContestantResult]]:
        return ((case, x) for case in self.cases for x in case.contestants)

    def _failed(self, is_external: bool) -> list[str]:
        """The calls that raised an error, of PyTorch's kernels or of this library, and where and how."""
        calls = ((case, x) for case, x in self._all() if x.failure and (x.kind in EXTERNAL) == is_external)
        return [f"{x.name} in {case.name}: {x.failure}" for case, x in calls]


def attention(case: GpuCase) -> str:
    """The kind of attention in words."""
    return "causal" if case.is_causal else "not causal"


def _findings(report: GpuReport) -> Iterator[str]:
    for name, x in report.conformance.items():
        if not x.failure:
            yield (
                f"{name} conforms: {x.examples} examples, the largest error {number(x.worst_ratio)} of what gate A "
                "allows."
            )
    if report.ceilings:
        yield (
            f"Ceilings: {number(report.ceilings.flops / 1e12)} TFLOP/s in a product of bfloat16 matrices, "
            f"{number(report.ceilings.exponentials / 1e12)}·10¹² exponentials/s, "
            f"{number(report.ceilings.bytes / 1e9)} GB/s copied, read and written bytes counted."
        )
    for case in report.cases:
        hyper, best = case.find(WHOLE), report.best_sdpa(case)
        if hyper and hyper.median and best and case.case.n >= TARGET_CASE["n"]:
            yield _beside_sdpa(case.case, hyper.median, best)


def _beside_sdpa(case: GpuCase, hyper: float, best: SdpaTime) -> str:
    verb = "takes" if best.is_measured else "was not run and, in proportion to n², would take"
    is_target = all(getattr(case, field) == x for field, x in TARGET_CASE.items())
    target = f"; the target is {TARGETS[case.is_causal]}" if is_target else ""
    return (
        f"n = {case.n}, d = {case.dim}, {attention(case)}: HyperAttention, plan included, takes {seconds(hyper)}, the "
        f"best of SDPA ({best.engine}) {verb} {seconds(best.seconds)}: {number(best.seconds / hyper)} times as "
        f"long{target}."
    )
