"""The results of `bench-heads`: the line of each method, the time that it takes to reach an error, and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.bench.check import Check
from hyperattention_ref.bench.heads.methods import title
from hyperattention_ref.bench.heads.settings import EXACT, HeadsSettings
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.grid import Grid
from hyperattention_ref.pages.wording import number, seconds

TARGETS = (0.2, 0.1, 0.05)
"""Relative errors, the time to which is told."""


@dataclass(frozen=True, repr=False)
class Point(Result):
    """A method on one head.

    Attributes
    ----------
    method, budget, logits_per_query : as in `Method`.
    check : whether the output was right.
    error : relative Frobenius error against exact attention of the same backend.
    first_seconds : of the first run, which may compile.
    seconds, median : of whole calls; None where the output was wrong.
    """

    method: str
    budget: int | None
    logits_per_query: float
    check: Check
    error: float
    first_seconds: float
    seconds: tuple[float, ...] | None = None
    median: float | None = None


@dataclass(frozen=True, repr=False)
class HeadResult(Result):
    """All methods on one head; `failures` are those that could not run, with the reason."""

    name: str
    n: int
    is_causal: bool
    points: tuple[Point, ...]
    failures: dict[str, str]


@dataclass(frozen=True, repr=False)
class Stop(Result):
    """A method at one budget, over all heads.

    Attributes
    ----------
    method, budget, logits_per_query : as in `Method`.
    errors : median, 90 % quantile and largest over the heads.
    seconds : median over the heads.
    """

    method: str
    budget: int | None
    logits_per_query: float
    errors: tuple[float, float, float]
    seconds: float


@dataclass(frozen=True, repr=False)
class HeadsReport(Result):
    """What was found.

    Attributes
    ----------
    source : name of the file of maps.
    heads : at least one.
    command : that made the report.
    environment : the machine and the versions.
    """

    source: str
    settings: HeadsSettings
    heads: tuple[HeadResult, ...]
    command: str
    environment: dict[str, str | int]

    @property
    def wrong(self) -> list[str]:
        """What gave a wrong answer, and where; it was not timed."""
        points = ((x, head) for head in self.heads for x in head.points if not x.check.is_right)
        return [f"{titled(x.method, x.budget)} on {head.name}" for x, head in points]

    @property
    def is_right(self) -> bool:
        return not self.wrong

    @property
    def left_out(self) -> list[str]:
        """What could not run, with the reason."""
        failures = {name: reason for head in self.heads for name, reason in head.failures.items()}
        return [f"{title(name)}: {reason}" for name, reason in failures.items()]

    @property
    def stops(self) -> list[Stop]:
        """Every method at every budget that was right on all heads, in the order in which they were run."""
        places: dict[tuple, list[Point]] = {}
        for head in self.heads:
            for x in head.points:
                places.setdefault((x.method, x.budget), []).append(x)
        return [_stop(points) for points in places.values() if all(x.check.is_right for x in points)]

    @property
    def lines(self) -> dict[str, list[Stop]]:
        """The stops of each approximation, by ascending budget."""
        lines: dict[str, list[Stop]] = {}
        for stop in self.stops:
            if stop.budget is not None:
                lines.setdefault(stop.method, []).append(stop)
        return lines

    @property
    def exact(self) -> dict[str, Stop]:
        """Exact attention, of the backend and of PyTorch."""
        return {stop.method: stop for stop in self.stops if stop.budget is None}

    @property
    def summary(self) -> str:
        """Whether everything was right, or the fastest way to the middle target."""
        if self.wrong:
            return f"WRONG, and not timed: {'; '.join(self.wrong)}."
        target = TARGETS[1]
        times = {name: t for name, line in self.lines.items() if (t := time_to(line, target)) is not None}
        many = f"{len(self.heads)} heads of {self.source}, n = {self.heads[0].n}"
        if not times:
            return f"{many}: no approximation reaches a median error of {target:g} at these budgets."
        best = min(times, key=times.__getitem__)
        exact = self.exact[EXACT].seconds
        return (
            f"{many}: {title(best)} is the first to reach a median error of {target:g}, in {seconds(times[best])}; "
            f"exact attention takes {seconds(exact)}, {number(exact / times[best])} times as long."
        )

    def to_dict(self) -> dict:
        reached = {name: {str(x): time_to(line, x) for x in TARGETS} for name, line in self.lines.items()}
        words = {"summary": self.summary, "wrong": self.wrong, "left_out": self.left_out, "seconds_to_error": reached}
        return words | {"stops": [stop.to_dict() for stop in self.stops]} | super().to_dict()


def time_to(line: Sequence[Stop], target: float) -> float | None:
    """Seconds at which a line reaches a median error, between two budgets on logarithmic scales; None if it does not.

    Of a line whose least budget is within it is that budget's time: an upper bound.
    """
    before: Stop | None = None
    for stop in line:
        if stop.errors[0] <= target:
            if before is None:
                return stop.seconds
            logs = [math.log(max(x.errors[0], np.finfo(float).tiny)) for x in (stop, before)]
            return float(np.exp(np.interp(math.log(target), logs, np.log([stop.seconds, before.seconds]))))
        before = stop
    return None


def titled(name: str, budget: int | None) -> str:
    """A method with its budget."""
    return title(name) if budget is None else f"{title(name)}, {budget}"


def grids(report: HeadsReport) -> Iterator[Grid]:
    """The time to each target, then every stop."""
    exact = report.exact.get(EXACT)
    ratio = (lambda t: number(exact.seconds / t)) if exact else (lambda t: "–")
    lines = []
    for name, line in report.lines.items():
        cells = [title(name)]
        for target in TARGETS:
            time, is_bound = time_to(line, target), line[0].errors[0] <= target
            cells += ["–", "–"] if time is None else [f"{'≤ ' if is_bound else ''}{seconds(time)}", ratio(time)]
        lines.append(cells)
    headings = ["", *(x for target in TARGETS for x in (f"to {target:g}", "× exact"))]
    note = (
        "Interpolated between budgets; ≤: the least budget is within. × exact: so many times as fast as the backend's."
    )
    yield Grid("Time of a whole call at which the median error reaches a target", headings, lines, note)
    headings = ["", "keys", "logits", "error", "90 %", "worst", "time", "× exact"]
    lines = [
        [
            title(stop.method),
            number(stop.budget),
            number(stop.logits_per_query),
            *map(number, stop.errors),
            seconds(stop.seconds),
            ratio(stop.seconds),
        ]
        for stop in report.stops
    ]
    note = "Keys and logits for each query, preparation counted. Errors over the heads: median, 90 % quantile, largest."
    yield Grid(f"{len(report.heads)} heads, n = {report.heads[0].n}", headings, lines, note)


def table(report: HeadsReport) -> Iterator[dict]:
    """One row of the CSV file for each method, budget and head."""
    for head in report.heads:
        for x in head.points:
            fields = ("method", "budget", "logits_per_query", "error", "first_seconds", "median")
            row = {"head": head.name, "n": head.n} | {name: getattr(x, name) for name in fields}
            yield row | {"is_right": x.check.is_right}


def _stop(points: Sequence[Point]) -> Stop:
    median, high, worst = np.quantile([x.error for x in points], [0.5, 0.9, 1]).tolist()
    time = float(np.median([x.median for x in points if x.median is not None]))
    first = points[0]
    return Stop(first.method, first.budget, first.logits_per_query, (median, high, worst), time)
