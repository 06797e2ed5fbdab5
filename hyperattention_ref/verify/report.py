"""A run of the checks: what came out, whether that was expected, and what it means in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.proofs_checks import Settings, Verdict
from hyperattention_ref.proofs_checks.verdict import FAILS, HOLDS, NOT_REFUTED
from hyperattention_ref.verify.sample_head_measures import SampleHeadMeasures, findings

FAILS_AS_IT_MUST, INFORMATION, UNEXPECTED = "fails, as it must", "information", "unexpected"
OUTCOMES = {
    HOLDS: "no trial failed, or the exact upper limit of the failure probability is within the claim",
    NOT_REFUTED: "no contradiction, but counting cannot conclude that it holds: too few trials, or no count could",
    FAILS_AS_IT_MUST: "a counterexample: a hypothesis is dropped and the check notices",
    INFORMATION: "nothing is promised here; the outcome is for the reader",
    UNEXPECTED: "something that should hold fails, or a counterexample does not",
}
"""The possible outcomes of a check, in the order of the report."""


def outcome(verdict: Verdict) -> str:
    """One of `OUTCOMES`: the verdict compared with what was expected."""
    if not verdict.as_expected:
        return UNEXPECTED
    if verdict.expected is None:
        return INFORMATION
    return FAILS_AS_IT_MUST if verdict.expected == FAILS else verdict.verdict


@dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """The results of a run.

    Attributes
    ----------
    settings : of the run.
    verdicts : in the order of the paper.
    heads : the sample heads' measures.
    seconds : time of checks and measures.
    environment : the machine and the versions.
    """

    settings: Settings
    verdicts: tuple[Verdict, ...]
    heads: tuple[SampleHeadMeasures, ...]
    seconds: float
    environment: dict[str, str | int]

    @property
    def as_expected(self) -> bool:
        return all(verdict.as_expected for verdict in self.verdicts)

    @property
    def counts(self) -> dict[str, int]:
        """How many verdicts have each outcome."""
        counts = Counter(outcome(verdict) for verdict in self.verdicts)
        return {name: counts[name] for name in OUTCOMES}

    @property
    def headline(self) -> str:
        """Whether everything came out as it should."""
        unexpected = self.counts[UNEXPECTED]
        if unexpected:
            return f"{unexpected} of {len(self.verdicts)} outcomes are not as expected"
        return f"All {len(self.verdicts)} outcomes are as expected"

    @property
    def summary(self) -> str:
        """The run in two sentences."""
        counts, vacuous = self.counts, sum(verdict.vacuous for verdict in self.verdicts)
        return (
            f"{self.headline}: {counts[HOLDS]} hold, {counts[NOT_REFUTED]} are not refuted, {counts[FAILS_AS_IT_MUST]} "
            f"counterexamples fail as they must, {counts[INFORMATION]} are for information. "
            f"In {vacuous} of them the paper asks for more samples than there are tokens (vacuous)."
        )

    @property
    def findings(self) -> list[str]:
        """What the measures of the real heads say, in words."""
        return findings(self.heads, self.settings.epsilon)

    def sections(self) -> dict[str, list[Verdict]]:
        """The verdicts by paper item; counterexamples that fail and what is for information come last."""
        last = {
            FAILS_AS_IT_MUST: "Counterexamples: a hypothesis is dropped, and the check must fail",
            INFORMATION: "For information: nothing is promised here",
        }
        sections: dict[str, list[Verdict]] = {}
        for verdict in self.verdicts:
            sections.setdefault(last.get(outcome(verdict), verdict.paper), []).append(verdict)
        ends = [title for title in last.values() if title in sections]
        return {title: sections[title] for title in [*(t for t in sections if t not in ends), *ends]}

    def to_dict(self) -> dict:
        words = {"as_expected": self.as_expected, "counts": self.counts, "summary": self.summary}
        return {**words, "findings": self.findings, **super().to_dict()}


def statements(verdicts: list[Verdict]) -> list[list[Verdict]]:
    """The verdicts gathered by statement: one group for each, with the families it was checked on."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.name, verdict.statement), []).append(verdict)
    return list(groups.values())


def limit(verdict: Verdict) -> str:
    """The exact limit of the failure probability that decides; empty for a deterministic statement."""
    if verdict.claim == 0:
        return ""
    return f"≥ {number(verdict.low)}" if verdict.verdict == FAILS else f"≤ {number(verdict.high)}"


def hypothesis_values(verdict: Verdict) -> dict[str, str]:
    """The measured single numbers of a verdict; lists are in the JSON only."""
    names = {"alpha": "α", "op norm of P": "‖P‖_op"}
    values = {}
    for name, x in verdict.measured.items():
        if name.startswith("log kappa"):
            values[name.replace("log kappa", "κ")] = power_of_ten(x)
        elif isinstance(x, int | float):
            values[names.get(name, name)] = number(x)
    return values
