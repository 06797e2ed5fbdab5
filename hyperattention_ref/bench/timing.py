"""Wall-clock times: contestants in turn, all runs kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hyperattention_ref.foundation.results import Result

Name = TypeVar("Name", bound=Hashable)
LEAST_RUNS = 3
PAUSE = 0.1
"""Seconds of rest before each run: worker threads of the library that ran before spin for a while, and take a core."""


@dataclass(frozen=True, repr=False)
class Times(Result):
    """The seconds of every run of a call, and what sums them up.

    Attributes
    ----------
    quartiles : the middle half; the range where there are fewer than four runs.
    """

    seconds: tuple[float, ...]
    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        low, high = min(seconds), max(seconds)
        if len(seconds) >= 4:
            low, _, high = statistics.quantiles(seconds, method="inclusive")
        return cls(tuple(seconds), float(statistics.median(seconds)), (low, high))


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What the call returns, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def take_turns(
    calls: dict[Name, Callable[[], Any]], repeats: int, seconds: float, *, pause: float = PAUSE
) -> dict[Name, Times]:
    """Time every call `repeats` times, one run of each in turn, so that a slow minute is shared by all.

    A call that has taken `seconds` in all stops at the third run or the one that it has reached. The calls should
    have run before: the first run of anything compiles, loads or allocates. `pause` is the rest before each run.
    """
    runs: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if len(runs[name]) >= LEAST_RUNS and sum(runs[name]) >= seconds:
                continue
            time.sleep(pause)
            runs[name].append(timed(call)[1])
    return {name: Times.of(times) for name, times in runs.items()}
