"""The first run of each contestant of a case, and its output against float64 rows: before anything is timed."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from hyperattention_ref.bench.cases import RIVAL, CallSettings, Contestant, Heads, logits, planned
from hyperattention_ref.bench.check import Check, DrawnRows, mean_of_values, true_rows
from hyperattention_ref.bench.device import Call, Device
from hyperattention_ref.bench.results import ContestantResult
from hyperattention_ref.bench.timing import timed
from hyperattention_ref.plan.plan import Plan

SomeResult = TypeVar("SomeResult", bound=ContestantResult)
ROWS_SEED = 1
"""Added to the seed for the rows that are compared."""


class OutputChecker:
    """Checks the outputs of one case.

    Attributes
    ----------
    heads : the inputs, on the device.
    exact : rows of exact attention; None if `has_exact` is not set.
    """

    def __init__(self, device: Device, settings: CallSettings, heads: Heads, *, has_exact: bool = True, **options: Any):
        self.device, self.settings, self.heads = device, settings, heads
        self.on_host = device.on_host(heads)
        self.options = options | {"seed": settings.seed + ROWS_SEED}
        self.exact = true_rows(self.on_host, **self.options) if has_exact else None
        self._planned: dict[tuple, tuple[Plan, DrawnRows]] = {}

    def first_run(self, contestant: Contestant, kind: type[SomeResult]) -> tuple[Call, SomeResult]:
        """The call, and what its first run took and returned; a rival's approximation must only be finite."""
        call = self.device.prepare(contestant, self.settings, self.heads)
        output, seconds = timed(lambda: self.device.finished(call))
        facts: dict[str, Any] = vars(contestant) | {"first_seconds": seconds}
        if flaw := self.device.flaw(output, self.heads.value):
            return call, kind(**facts, check=Check(False, math.inf, flaw))
        plan, truth = self._truth(contestant)
        drawn = truth or self.exact
        assert drawn is not None  # exact attention and rivals take part only where rows of exact attention are known
        rows = self.device.rows(output, drawn.rows)
        return call, kind(
            **facts,
            check=truth.check(rows) if truth else Check(True),
            logits=logits(contestant, plan, self.heads),
            relative_error=self.exact.relative_error(rows) if self.exact else None,
        )

    def baselines(self) -> dict[str, float]:
        """Relative errors of the two estimates that look at no query."""
        assert self.exact is not None
        mean = mean_of_values(self.on_host)
        return {"zero": 1.0, "mean": self.exact.relative_error(self.device.rows(mean, self.exact.rows))}

    def _truth(self, contestant: Contestant) -> tuple[Plan | None, DrawnRows | None]:
        """The plan, if the contestant has one, and the rows that its output must agree with, if any."""
        if contestant.is_exact:
            return None, self.exact
        if contestant.kind == RIVAL:
            return None, None
        key = contestant.backend, contestant.budget
        if key not in self._planned:
            plan = planned(self.settings.with_budget(contestant.budget), self.heads, contestant.backend)
            self._planned[key] = plan, true_rows(self.on_host, plan, **self.options)
        return self._planned[key]
