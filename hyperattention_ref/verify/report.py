"""A run of the checks: what came out, whether that was expected, and what it means in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.proofs_checks import Settings, Verdict
from hyperattention_ref.proofs_checks.dense import Dense
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
class MatrixFacts(Result):
    """What is known of the user's matrix.

    Attributes
    ----------
    name : of the file.
    kind : "square", "rectangular" or "causal".
    n_q, n_k, d, d_v : queries, keys, and coordinates of a query and of a value.
    scale : multiplies the logits.
    marked : entries of the mask.
    alpha, log_kappa, op_norm : the hypotheses: alpha, natural log of kappa, ‖P‖_op.
    """

    name: str
    kind: str
    n_q: int
    n_k: int
    d: int
    d_v: int
    scale: float
    marked: int
    alpha: float
    log_kappa: float
    op_norm: float

    @classmethod
    def of(cls, x: Dense) -> MatrixFacts:
        sizes = *x.query.shape, *x.value.shape
        n_q, d, n_k, d_v = sizes
        return cls(x.family, x.kind, n_q, n_k, d, d_v, x.scale, int(x.mask.sum()), x.alpha, x.log_kappa, x.op_norm)

    def __str__(self) -> str:
        mask = f", {self.marked} entries in the mask" if self.marked else ""
        return f"{self.name}: {self.kind}, {self.n_q} queries and {self.n_k} keys, d = {self.d}, d_v = {self.d_v}{mask}"


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
    command : the command to repeat the run.
    matrix : the user's matrix; None if the matrices were synthetic.
    """

    settings: Settings
    verdicts: tuple[Verdict, ...]
    heads: tuple[SampleHeadMeasures, ...]
    seconds: float
    environment: dict[str, str | int]
    command: str
    matrix: MatrixFacts | None = None

    @property
    def as_expected(self) -> bool:
        return bool(self.verdicts) and all(verdict.as_expected for verdict in self.verdicts)

    @property
    def counts(self) -> dict[str, int]:
        """How many verdicts have each outcome."""
        counts = Counter(outcome(verdict) for verdict in self.verdicts)
        return {name: counts[name] for name in OUTCOMES}

    @property
    def headline(self) -> str:
        """Whether everything came out as it should."""
        unexpected = self.counts[UNEXPECTED]
        if not self.verdicts:
            return "Nothing was checked: every matrix asks for more samples than a trial can draw"
        if unexpected:
            return f"{unexpected} of {len(self.verdicts)} outcomes are not as expected"
        return f"All {len(self.verdicts)} outcomes are as expected"

    @property
    def summary(self) -> str:
        """The run in a few sentences, the offenders first."""
        counts, vacuous = self.counts, sum(verdict.vacuous for verdict in self.verdicts)
        offenders = "; ".join(f"{v.name} ({v.family}) {v.verdict}" for v in self.verdicts if not v.as_expected)
        return (
            f"{self.headline}{offenders and f' ({offenders})'}: {counts[HOLDS]} hold, {counts[NOT_REFUTED]} are not "
            f"refuted, {counts[FAILS_AS_IT_MUST]} counterexamples fail as they must, {counts[INFORMATION]} are for "
            f"information. In {vacuous} of them the paper asks for more samples than there are tokens (vacuous)."
            f"{self._power()}"
        )

    def _power(self) -> str:
        """How many outcomes have the power that was asked for."""
        if (power := self.settings.power) is None:
            return ""
        able = sum(v.detectable is not None and v.detectable <= power for v in self.verdicts)
        return (
            f" {able} of them would have noticed a failure probability of {power:g} with probability 0.99; the others "
            "allow as much or almost as much, or compare a fixed number of times."
        )

    @property
    def findings(self) -> list[str]:
        """What the measures of the real heads, or of the user's matrix, say in words."""
        if self.heads:
            return findings(self.heads, self.settings.epsilon)
        return [f"{self.matrix}. {self._asked()}"] if self.matrix else []

    def _asked(self) -> str:
        """The samples that the statements ask for on the user's matrix."""
        asked = {v.name: v.m_asked for v in self.verdicts if v.m_asked is not None}
        return f"Samples asked for: {'; '.join(f'{name}: {number(m)}' for name, m in asked.items()) or 'none'}."

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


def table(report: Report) -> list[dict[str, str | int | float | bool | None]]:
    """One row for each verdict: what report.csv holds."""
    fields = ("name", "paper", "statement", "hypothesis", "family", "n", "m_asked", "m_used", "claim", "trials")
    judged = ("failures", "low", "high", "detectable", "expected", "verdict", "vacuous")
    return [
        {
            **{name: getattr(v, name) for name in fields},
            "left_median": float(np.median(v.left)),
            "right_median": float(np.median(v.right)),
            "ratio_median": float(np.median(v.ratios)),
            "ratio_largest": float(v.ratios.max()),
            **{name: getattr(v, name) for name in judged},
            "outcome": outcome(v),
        }
        for v in report.verdicts
    ]


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
