"""The results of a survey: its table, and what it means in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.error_bounds import MEAN, ZERO
from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.surveys.head_measures import HeadMeasures, RecipeMeasures
from hyperattention_ref.surveys.settings import SurveySettings

KAPPAS = {
    "log_kappa": "κ",
    "log_kappa_rescaled": "after row rescaling",
    "log_kappa_shifted": "at the best key shift",
}
"""Fields of HeadHardness, and their names in sentences."""


@dataclass(frozen=True, eq=False, repr=False)
class SurveyReport(Result):
    """What a survey found.

    Attributes
    ----------
    file : name of the file of maps.
    settings : what was measured.
    heads : by layer and head; at least one.
    """

    file: str
    settings: SurveySettings
    heads: tuple[HeadMeasures, ...]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many heads have each verdict, the most frequent first."""
        return dict(Counter(head.verdict for head in self.heads).most_common())

    @property
    def summary(self) -> str:
        """The verdicts in one sentence."""
        counts = ", ".join(f"{verdict}: {count}" for verdict, count in self.verdicts.items())
        s = self.settings
        return (
            f"{len(self.heads)} heads. At {s.budget} keys for each query and a relative error of at most "
            f"{s.tolerance:g} (bounds at {s.confidence:.0%} confidence): {counts}."
        )

    @property
    def findings(self) -> list[str]:
        """What the numbers say, in words."""
        return list(_findings(self))

    def errors(self, name: str) -> np.ndarray:
        """By head the bounded relative error of a recipe or baseline."""
        return np.array([head.errors(name).relative_frobenius for head in self.heads])

    def masses(self, name: str) -> np.ndarray:
        """By head the softmax mass that a recipe's exact pairs hold, as estimated."""
        return np.array([head.recipes[name].mass.estimate for head in self.heads])

    def to_dict(self) -> dict:
        return {"summary": self.summary, "findings": self.findings, "verdicts": self.verdicts, **super().to_dict()}


def label(name: str) -> str:
    """A recipe's name in sentences and tables."""
    return name.replace("_", " + ")


def keys(recipe: RecipeMeasures) -> str:
    """Logits for each query that a recipe computes, and those of its pilot."""
    pilot = f" + {recipe.pilot_rows} pilot" if recipe.pilot_rows else ""
    return f"{number(recipe.logits_per_query)}{pilot}"


def _findings(report: SurveyReport) -> Iterator[str]:
    heads, hardness = report.heads, [head.hardness for head in report.heads]
    sink, count = Counter(h.heavy_columns[0] for h in hardness).most_common(1)[0]
    yield (
        f"α has the median {_median(h.alpha for h in hardness)}; without the heaviest 1, 4 and 32 columns "
        + ", ".join(_median(h.alpha_left_out.get(k) for h in hardness) for k in (1, 4, 32))
        + f". The heaviest column is key {sink} on {count} of {len(heads)} heads."
    )
    logs = {name: [x for h in hardness if (x := getattr(h, name)) is not None] for name in KAPPAS}
    spans = [
        f"{KAPPAS[name]} {power_of_ten(np.median(x))} (at most {power_of_ten(max(x))})" for name, x in logs.items() if x
    ]
    yield f"Medians: {', '.join(spans)}."
    overflows = {kind: sum(h.overflows[kind] for h in hardness) for kind in hardness[0].overflows}
    yield (
        f"Logits range from {number(min(h.logit_min for h in hardness))} to "
        f"{number(max(h.logit_max for h in hardness))}; exp of the largest overflows "
        + ", ".join(f"{kind} on {count}" for kind, count in overflows.items())
        + f" of {len(heads)} heads."
    )
    yield "Softmax mass in the exact pairs, medians: " + _listed(report, report.masses, "{:.1%}") + "."
    yield (
        "Relative error, bounded, medians: "
        + _listed(report, report.errors, "{:.2f}")
        + f"; of the zero output {np.median(report.errors(ZERO)):.2f}, of the mean of V "
        + f"{np.median(report.errors(MEAN)):.2f}."
    )
    counts = {name: sum(head.is_useful(name) for head in heads) for name in report.settings.recipes}
    yield (
        f"Closer to attention than the mean of V, which looks at no query, on so many of {len(heads)} heads: "
        + ", ".join(f"{label(name)} {count}" for name, count in counts.items())
        + "."
    )


def _listed(report: SurveyReport, measure: Callable[[str], np.ndarray], form: str) -> str:
    medians = {name: float(np.median(measure(name))) for name in report.settings.recipes}
    return ", ".join(f"{label(name)} {form.format(x)}" for name, x in medians.items())


def _median(values: Iterable[float | None]) -> str:
    known = [x for x in values if x is not None]
    return number(float(np.median(known))) if known else "–"


def table(report: SurveyReport) -> Iterator[dict]:
    """One row of the CSV file for each head; kappas as natural logarithms, as everywhere in the data."""
    for head in report.heads:
        h = head.hardness
        row = {name: getattr(head, name) for name in ("name", "layer", "head", "is_causal", "n", "d", "rows")}
        row |= {"alpha": h.alpha} | {f"alpha_{k}": h.alpha_left_out.get(k) for k in (1, 4, 32)}
        fields = (*KAPPAS, "stable_rank", "op_norm", "frobenius_norm", "logit_min", "logit_max")
        row |= {name: getattr(h, name) for name in fields}
        row["perplexity"] = h.perplexity["50 %"]
        row |= {f"exponent_{name}": head.exponent(name) for name in ("alpha", "alpha_sixteenth", "log_kappa")}
        for name, recipe in head.recipes.items():
            row |= {f"mass_{name}": recipe.mass.estimate, f"error_{name}": recipe.relative_frobenius}
        row |= {f"error_{name}": head.baselines[name].relative_frobenius for name in (ZERO, MEAN)}
        yield row | {"verdict": head.verdict, "rule": head.rule}
