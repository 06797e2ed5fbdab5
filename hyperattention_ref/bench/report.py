"""A benchmark: ratios, shares of the ceilings, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hyperattention_ref.bench.cases import EXACT, RIVAL, WHOLE, BenchSettings, left_out
from hyperattention_ref.bench.device import Ceilings
from hyperattention_ref.bench.results import FamilyResult, HostContestantResult, LengthResult
from hyperattention_ref.bench.timing import Times
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number, seconds


@dataclass(frozen=True, repr=False)
class BenchReport(Result):
    """What a benchmark found.

    Attributes
    ----------
    environment : the machine and the versions.
    lengths, families : the results, in the order of the settings.
    """

    settings: BenchSettings
    environment: dict[str, Any]
    ceilings: Ceilings
    lengths: tuple[LengthResult, ...]
    families: tuple[FamilyResult, ...]

    @property
    def wrong(self) -> list[str]:
        """The contestants that gave a wrong answer, and where; none of them was timed there."""
        at_n = [f"{x.name} at n = {case.n}" for case in self.lengths for x in case.contestants if not x.is_right]
        on_family = [f"{x.name} on {case.family}" for case in self.families for x in case.points if not x.is_right]
        return at_n + on_family

    @property
    def is_right(self) -> bool:
        return not self.wrong

    @property
    def left_out(self) -> list[str]:
        """The rivals that do not support the settings, with the reason of each."""
        return list(left_out(self.settings).values())

    @property
    def summary(self) -> str:
        """Whether everything that was timed was right."""
        if self.wrong:
            return f"WRONG, and not timed: {'; '.join(self.wrong)}."
        return (
            "Every output agreed with float64 rows before it was timed; of rivals that approximate it was only checked "
            "that they are finite."
        )

    @property
    def findings(self) -> list[str]:
        """What the numbers say, in words."""
        return list(_findings(self))

    def times_hyper(self, case: LengthResult, x: HostContestantResult) -> float | None:
        """The contestant's time in those of the first backend's HyperAttention."""
        hyper = case.find(WHOLE, self.settings.backends[0])
        return x.median / hyper.median if hyper and hyper.median and x.median else None

    def flops(self, x: HostContestantResult) -> float | None:
        """Floating-point operations of the products with K and V; None where the logits are not known."""
        return None if x.logits is None else 2.0 * x.logits * (self.settings.dim + self.settings.d_v)

    def share_of_ceilings(self, x: HostContestantResult) -> float | None:
        """The least time of its products and exponentials, one after the other, over its time."""
        flops = self.flops(x)
        return self.ceilings.share(x.median, flops, x.logits) if flops and x.logits and x.median else None

    def to_dict(self) -> dict:
        words = {"summary": self.summary, "findings": self.findings, "wrong": self.wrong, "left_out": self.left_out}
        data = super().to_dict()
        for case, case_data in zip(self.lengths, data["lengths"], strict=True):
            for x, entry in zip(case.contestants, case_data["contestants"], strict=True):
                entry["times_hyper_attention"] = self.times_hyper(case, x)
                entry["flops"] = self.flops(x)
                entry["share_of_ceilings"] = self.share_of_ceilings(x)
        return words | data


def _findings(report: BenchReport) -> Iterator[str]:
    yield from _at_the_longest(report, report.lengths[-1])
    for case in report.families:
        best, mean = case.best, case.baselines["mean"]
        if best and best.relative_error is not None:
            yield (
                f"On {wording(case.family)}, n = {case.n}, the least error of an approximation is "
                f"{number(best.relative_error)}, by {best.name} in {seconds(best.median)}; the mean of V has "
                f"{number(mean)} for nothing"
                + (", so that no approximation here is of use." if best.relative_error >= mean else ".")
            )
    for name, stages in report.lengths[-1].stages.items():
        longest = max(stages, key=lambda stage: stages[stage])
        yield (
            f"The longest stage of {name} at n = {report.lengths[-1].n} is “{longest}”, "
            f"{stages[longest] / sum(stages.values()):.0%} of the call."
        )


def _at_the_longest(report: BenchReport, case: LengthResult) -> Iterator[str]:
    """HyperAttention at the largest n, and the others beside it."""
    first = report.settings.backends[0]
    hyper = case.find(WHOLE, first)
    if hyper is None or not hyper.is_right:
        return
    yield (
        f"At n = {case.n} HyperAttention takes {seconds(hyper.median)} on {first}, "
        f"{megabytes(hyper.peak_bytes)} MB beside {megabytes(case.input_bytes)} MB of inputs, with "
        f"the relative error {number(hyper.relative_error)} on Gaussian inputs, where zero has 1 and the mean "
        f"of V {number(case.baselines['mean'])}."
    )
    others = [
        f"{x.name} {number(report.times_hyper(case, x))} (error {number(x.relative_error)})"
        for x in case.contestants
        if x.is_right and x.kind in (EXACT, RIVAL)
    ]
    yield f"Their time in HyperAttentions, with their own errors: {', '.join(others)}."


def middle_half(x: Times | HostContestantResult) -> str:
    """The quartiles of a call that was timed."""
    return " – ".join(map(seconds, x.quartiles or ()))


def megabytes(n_bytes: int | None) -> str:
    """Bytes in units of 2^20; a dash for None."""
    return number(None if n_bytes is None else n_bytes / 2**20)


def wording(family: str) -> str:
    """A family as it stands in sentences."""
    return family.replace("_", " ")


def setting_words(settings: BenchSettings) -> dict[str, str]:
    """The settings that decide what is computed, for the head of a page."""
    s = settings
    shape = f"{s.heads} × n × {s.dim}" + ("" if s.d_v == s.dim else f", values {s.d_v}")
    words = {"inputs": f"{shape}, {s.dtype}", "attention": "causal" if s.is_causal else "not causal"}
    words |= {"block": str(s.block_size), "samples": str(s.sample_size)}
    if s.is_causal:
        words["exact leaves up to"] = str(s.min_seq_len)
    return words | {"threads": str(s.threads), "runs of each call": f"{s.repeats}, or 3 beyond {number(s.seconds)} s"}
