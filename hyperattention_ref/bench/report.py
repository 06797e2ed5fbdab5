"""A benchmark: ratios, shares of the ceilings, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hyperattention_ref.bench.cases import EXACT, PLANNED, RIVAL, WHOLE, BenchSettings, left_out
from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number


@dataclass(frozen=True, eq=False, repr=False)
class BenchReport(Result):
    """What a benchmark found.

    Attributes
    ----------
    settings : what was measured.
    environment : the machine and the versions.
    ceilings : what the machine can do at most.
    lengths : what `measure_length` returned, by n.
    families : what `measure_family` returned.
    """

    settings: BenchSettings
    environment: dict[str, Any]
    ceilings: Ceilings
    lengths: tuple[dict, ...]
    families: tuple[dict, ...]

    @property
    def wrong(self) -> list[str]:
        """The contestants that gave a wrong answer, and where; none of them was timed there."""
        at_n = [f"{x['name']} at n = {case['n']}" for case in self.lengths for x in case["contestants"] if not right(x)]
        on_family = [
            f"{x['name']} on {case['family']}" for case in self.families for x in case["points"] if not right(x)
        ]
        return at_n + on_family

    @property
    def left_out(self) -> list[str]:
        """The rivals that cannot do what the settings ask, with the reason of each."""
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

    def times_hyper(self, case: dict, contestant: dict) -> float | None:
        """The contestant's time in those of the first backend's HyperAttention."""
        ours = find(case, WHOLE, self.settings.backends[0])
        if ours is None or not (right(ours) and right(contestant)):
            return None
        return contestant["median"] / ours["median"]

    def flops(self, contestant: dict) -> float | None:
        """Floating-point operations of the products with K and V; None where the logits are not known."""
        if contestant["logits"] is None:
            return None
        return 2.0 * contestant["logits"] * (self.settings.dim + self.settings.d_v)

    def flops_per_second(self, contestant: dict) -> float | None:
        """The rate of these operations."""
        flops = self.flops(contestant)
        return None if flops is None or not right(contestant) else flops / contestant["median"]

    def share_of_ceilings(self, contestant: dict) -> float | None:
        """The least time of its products and exponentials, one after the other, over its time."""
        flops = self.flops(contestant)
        if flops is None or not right(contestant):
            return None
        return self.ceilings.share(contestant["median"], flops, contestant["logits"])

    def to_dict(self) -> dict:
        words = {"summary": self.summary, "findings": self.findings, "wrong": self.wrong, "left_out": self.left_out}
        data = super().to_dict()
        for case, case_data in zip(self.lengths, data["lengths"], strict=True):
            for contestant, entry in zip(case["contestants"], case_data["contestants"], strict=True):
                entry["times_hyper_attention"] = self.times_hyper(case, contestant)
                entry["flops"] = self.flops(contestant)
                entry["share_of_ceilings"] = self.share_of_ceilings(contestant)
        return words | data


def right(contestant: dict) -> bool:
    """Whether its answer was right, so that it was timed."""
    return contestant["check"]["is_right"]


def find(case: dict, kind: str, engine: str) -> dict | None:
    """The contestant of that kind and engine at one length, or None."""
    return next((x for x in case["contestants"] if (x["kind"], x["engine"]) == (kind, engine)), None)


def best_error(case: dict) -> dict | None:
    """The approximation of least error on a family; None if n is too short for any, or none was right."""
    approximate = [x for x in case["points"] if right(x) and x["budget"]]
    return min(approximate, key=lambda x: x["relative_error"], default=None)


def _findings(report: BenchReport) -> Iterator[str]:
    first = report.settings.backends[0]
    last = report.lengths[-1]
    ours = find(last, WHOLE, first)
    assert ours is not None  # every backend is timed at every length
    if right(ours):
        yield (
            f"At n = {last['n']} HyperAttention takes {seconds(ours['median'])} on {first}, "
            f"{number(ours['peak_bytes'] / 2**20)} MB beside {number(last['input_bytes'] / 2**20)} MB of inputs, with "
            f"the relative error {number(ours['relative_error'])} on Gaussian inputs, where zero has 1 and the mean "
            f"of V {number(last['baselines']['mean'])}."
        )
        others = [x for x in last["contestants"] if right(x) and x["kind"] in (EXACT, RIVAL)]
        yield (
            "Their time in HyperAttentions, with their own errors: "
            + ", ".join(
                f"{x['name']} {number(report.times_hyper(last, x))} (error {number(x['relative_error'])})"
                for x in others
            )
            + "."
        )
    for case in report.families:
        best, mean = best_error(case), case["baselines"]["mean"]
        if best is None:
            continue
        yield (
            f"On {wording(case['family'])}, n = {case['n']}, the least error of an approximation is "
            f"{number(best['relative_error'])}, by {best['name']} in {seconds(best['median'])}; the mean of V has "
            f"{number(mean)} for nothing"
            + (", so that no approximation here is of use." if best["relative_error"] >= mean else ".")
        )
    for case in report.lengths:
        for name, stages in case["stages"].items():
            if case is last:
                longest = max(stages, key=lambda stage: stages[stage])
                yield (
                    f"The longest stage of {name} at n = {case['n']} is “{longest}”, "
                    f"{stages[longest] / sum(stages.values()):.0%} of the call."
                )


def seconds(x: float) -> str:
    """A time as a person writes it."""
    return f"{number(x)} s" if x >= 1 else f"{number(1e3 * x)} ms"


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


KINDS = {WHOLE: "whole call", PLANNED: "the plan given", EXACT: "exact attention", RIVAL: "rival"}
"""Words for the kinds of contestants."""
