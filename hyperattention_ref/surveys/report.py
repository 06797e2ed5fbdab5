"""The results of a survey: its table, and what it means in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.measures.error_bounds import MEAN, ZERO
from hyperattention_ref.pages.environment import environment
from hyperattention_ref.pages.wording import label, number, power_of_ten, span
from hyperattention_ref.surveys.comparison import Comparison, Survey, compare
from hyperattention_ref.surveys.head_measures import HeadErrors, HeadHardness, HeadMeasures, RecipeMeasures
from hyperattention_ref.surveys.settings import SurveySettings
from hyperattention_ref.surveys.survey import load_survey

PACKAGES = ("hyperattention-ref", "numpy", "scipy", "numba")
PAPER = "paper"
"""The recipe that every sentence compares with."""
KAPPAS = {
    "log_kappa": "κ",
    "log_kappa_rescaled": "after row rescaling",
    "log_kappa_shifted": "at the best key shift",
}
"""Fields of HeadHardness, and their names in sentences."""
VERDICTS = {
    "not approximated": ("·", "the map is causal and so short that every recipe computes it exactly"),
    "window + sinks suffice": ("W", "window + sinks, which looks at no query, is within"),
    "replace": ("R", "the paper’s recipe is within"),
    "replace, with": ("R+", "the named recipe is within, and has the least error"),
    "keep exact": ("K", "no recipe is within"),
    "undecided": ("?", "these rows cannot tell; the rule says how many would"),
}
"""The beginning of each verdict, in the order of the rules, its mark on the map, and what it means."""


@dataclass(frozen=True, eq=False, repr=False)
class SurveyReport(Result):
    """What a survey found.

    Attributes
    ----------
    file : name of the file of maps.
    settings : what was measured.
    heads : by layer and head; at least one.
    command : that made the report.
    environment : the backend, the machine and the versions.
    comparison : with another survey; None without one.
    """

    file: str
    settings: SurveySettings
    heads: tuple[HeadMeasures, ...]
    command: str
    environment: dict[str, str | int]
    comparison: Comparison | None = None

    @property
    def verdicts(self) -> dict[str, int]:
        """How many heads have each verdict, the most frequent first."""
        return dict(Counter(head.verdict for head in self.heads).most_common())

    @property
    def model(self) -> str:
        """The model that the maps are of, as far as they say; of a folder its name."""
        path = PurePath(self.heads[0].model)
        return path.name if path.is_absolute() else self.heads[0].model

    @property
    def kinds(self) -> Counter[str]:
        """How many heads have each of `VERDICTS`."""
        return Counter(kind(head.verdict) for head in self.heads)

    @property
    def sampled(self) -> list[HeadMeasures]:
        """The heads whose errors come from some of their rows, so that they are not exact."""
        return [head for head in self.heads if head.rows < head.n]

    @property
    def summary(self) -> str:
        """The verdicts in one sentence."""
        counts = ", ".join(f"{verdict}: {count}" for verdict, count in self.verdicts.items())
        s = self.settings
        errors = f"bounds at {s.confidence:.0%} confidence" if self.sampled else "exact"
        return (
            f"{len(self.heads)} heads. At {s.budget} keys for each query and a relative error of at most "
            f"{s.tolerance:g} ({errors}): {counts}."
        )

    @property
    def findings(self) -> list[str]:
        """What the numbers say, in words."""
        return list(_findings(self))

    @property
    def best_recipe(self) -> str:
        """The recipe whose error has the least median over the heads."""
        return min(self.settings.recipes, key=lambda name: np.median(self.estimates(name)))

    def estimates(self, name: str) -> np.ndarray:
        """By head the estimated relative error of a recipe or baseline."""
        return np.array([head.errors(name).relative_frobenius_estimate for head in self.heads])

    def bounds(self, name: str) -> np.ndarray:
        """By head the bounded relative error of a recipe or baseline."""
        return np.array([head.errors(name).relative_frobenius for head in self.heads])

    def masses(self, name: str) -> np.ndarray:
        """By head the softmax mass that a recipe's exact pairs hold, as estimated."""
        return np.array([head.recipes[name].mass.estimate for head in self.heads])

    def to_dict(self) -> dict:
        return {"summary": self.summary, "findings": self.findings, "verdicts": self.verdicts, **super().to_dict()}


def make_report(
    out, settings: SurveySettings, heads: Sequence[HeadMeasures], command: str, other: tuple[str, Survey] | None = None
) -> SurveyReport:
    """The report of the heads that were measured into a folder.

    Parameters
    ----------
    out, settings, heads : of the survey.
    command : that made it.
    other : name and content, from `load_survey`, of another survey to compare with.
    """
    record, _ = load_survey(out)
    facts = {"backend": select(settings.backend, np.empty(0)).name} | environment(PACKAGES)
    comparison = compare(*other, (record, list(heads))) if other else None
    return SurveyReport(record["file"], settings, tuple(heads), command, facts, comparison)


def cost(recipe: RecipeMeasures) -> str:
    """Keys for each query of a recipe, and its logits for each query of the head, all counted."""
    return f"{recipe.keys_per_query} keys, {number(recipe.logits_per_query)} logits"


def kind(verdict: str) -> str:
    """The one of `VERDICTS` that a verdict belongs to."""
    return max((name for name in VERDICTS if verdict.startswith(name)), key=len)


def error_number(x: float) -> str:
    """A relative error with two decimals, or two digits where it is small."""
    return f"{x:.2f}" if 0.1 <= x < 100 else number(float(f"{x:.2g}"))


def error_words(head: HeadMeasures, name: str) -> str:
    """The error of a recipe or baseline: estimate, standard error and bound, or the number alone if it is exact."""
    x = head.errors(name)
    estimate = error_number(x.relative_frobenius_estimate)
    if head.rows == head.n or x.relative_frobenius == x.relative_frobenius_estimate:
        return estimate
    deviation = number(float(f"{x.relative_frobenius_standard_error:.1g}"))
    return f"{estimate} ± {deviation} ≤ {error_number(x.relative_frobenius)}"


def overflows(hardness: HeadHardness) -> list[str]:
    """The types that exp of the largest logit overflows."""
    return [name for name, overflow in hardness.overflows.items() if overflow]


def limits(sampled: Sequence[HeadMeasures]) -> str:
    """The least and the largest error that the drawn rows of such heads can certify."""
    values = [x.relative_limit for head in sampled for x in head.recipes.values()]
    low, high = error_number(min(values)), error_number(max(values))
    return low if low == high else f"{low} to {high}"


def _findings(report: SurveyReport) -> Iterator[str]:
    heads, hardness = report.heads, [head.hardness for head in report.heads]
    sink, count = Counter(h.heavy_columns[0] for h in hardness).most_common(1)[0]
    alpha, one, many = (_median(h.alpha_left_out.get(k) for h in hardness) for k in (0, 1, 32))
    yield (
        f"Median α {alpha}; without the heaviest column {one}, without 32 columns {many}. "
        f"Key {sink} is the heaviest on {count} of {len(heads)} heads."
    )
    logs = {name: [x for h in hardness if (x := getattr(h, name)) is not None] for name in KAPPAS}
    yield f"{', '.join(f'{KAPPAS[name]} {power_of_ten(np.median(x))}' for name, x in logs.items() if x)} in the median."
    counts = Counter(name for h in hardness for name in overflows(h))
    where = ", ".join(f"{name} on {count}" for name, count in counts.items())
    logits = span([min(h.logit_min for h in hardness), max(h.logit_max for h in hardness)])
    yield f"Logits range from {logits}; exp overflows {f'{where} of {len(heads)} heads' if where else 'no type'}."
    most = max(report.settings.recipes, key=lambda name: np.median(report.masses(name)))
    yield f"Median softmax mass in the exact pairs: {_named(report, most, report.masses, '{:.0%}'.format)}."
    yield (
        f"Median relative error: {_named(report, report.best_recipe, report.estimates, error_number)}; "
        f"mean of V {error_number(float(np.median(report.estimates(MEAN))))}, zero 1."
    )
    useful = {name: sum(head.is_useful(name) for head in heads) for name in report.settings.recipes}
    best = max(useful, key=useful.__getitem__)
    yield (
        "Closer to attention than the mean of V, which looks at no query: "
        f"{_named(report, best, lambda name: np.array(useful[name]), 'on {:.0f}'.format)} of {len(heads)} heads."
    )
    if sampled := report.sampled:
        rows, tokens = (_range([getattr(head, name) for head in sampled]) for name in ("rows", "n"))
        yield (
            f"The errors of {len(sampled)} heads come from {rows} of {tokens} rows, which cannot certify "
            f"less than {limits(sampled)}."
        )
    undecided = [head for head in heads if head.rows_to_decide is not None]
    if undecided:
        most_rows = max(head.rows_to_decide or 0 for head in undecided)
        yield f"{len(undecided)} of {len(heads)} heads are undecided; {most_rows} rows would decide."


def _named(report: SurveyReport, best: str, measure: Callable[[str], np.ndarray], form: Callable[[float], str]) -> str:
    """The median of a measure for the best recipe, and for the paper's beside it."""
    names = [best, PAPER] if PAPER in report.settings.recipes and best != PAPER else [best]
    return ", ".join(f"{label(name)} {form(float(np.median(measure(name))))}" for name in names)


def _median(values: Iterable[float | None]) -> str:
    known = [x for x in values if x is not None]
    return number(float(np.median(known))) if known else "–"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def table(report: SurveyReport) -> Iterator[dict]:
    """One row of the CSV file for each head; kappas as natural logarithms, as everywhere in the data."""
    for head in report.heads:
        h = head.hardness
        row = {
            name: getattr(head, name) for name in ("name", "layer", "head", "is_causal", "n", "d", "rows", "mass_rows")
        }
        row |= {"alpha": h.alpha} | {f"alpha_{k}": h.alpha_left_out.get(k) for k in (1, 4, 32)}
        fields = (*KAPPAS, "stable_rank", "op_norm", "frobenius_norm", "logit_min", "logit_max")
        row |= {name: getattr(h, name) for name in fields}
        row["perplexity"] = h.perplexity["50 %"]
        row |= {f"exponent_{name}": head.exponent(name) for name in ("alpha", "alpha_sixteenth", "log_kappa")}
        for name, recipe in head.recipes.items():
            row |= {f"keys_{name}": recipe.keys_per_query, f"logits_{name}": recipe.logits_per_query}
            row |= {f"mass_{name}": recipe.mass.estimate} | _error_cells(name, recipe)
        row |= _error_cells(ZERO, head.baselines[ZERO]) | _error_cells(MEAN, head.baselines[MEAN])
        yield row | {"verdict": head.verdict, "rule": head.rule, "rows_to_decide": head.rows_to_decide}


def _error_cells(name: str, errors: HeadErrors) -> dict[str, float]:
    return {
        f"error_{name}": errors.relative_frobenius_estimate,
        f"standard_error_{name}": errors.relative_frobenius_standard_error,
        f"error_low_{name}": errors.relative_frobenius_low,
        f"error_high_{name}": errors.relative_frobenius,
        f"error_limit_{name}": errors.relative_limit,
    }
