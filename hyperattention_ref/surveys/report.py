"""A survey of real heads: its table, and what it means in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number, power_of_ten
from hyperattention_ref.surveys.head import SurveySettings

ZERO, MEAN = "zero", "mean"


@dataclass(frozen=True, eq=False, repr=False)
class SurveyReport(Result):
    """What a survey found.

    Attributes
    ----------
    file : name of the file of maps.
    settings : what was measured.
    heads : what `measure_head` returned, by layer and head; at least one.
    """

    file: str
    settings: SurveySettings
    heads: tuple[dict, ...]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many heads have each verdict, the most frequent first."""
        return dict(Counter(head["verdict"] for head in self.heads).most_common())

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
        """By head the bounded relative error of a recipe, or of the baseline "zero" or "mean"."""
        return np.array([relative_error(head, name) for head in self.heads])

    def masses(self, name: str) -> np.ndarray:
        """By head the softmax mass that a recipe's exact pairs hold, as estimated."""
        return np.array([head["recipes"][name]["mass"]["estimate"] for head in self.heads])

    def to_dict(self) -> dict:
        return {"summary": self.summary, "findings": self.findings, "verdicts": self.verdicts, **super().to_dict()}


def relative_error(head: dict, name: str) -> float:
    """The bounded relative error of a recipe or baseline on one head."""
    return float(_found(head, name)["relative_frobenius"])


def estimated_error(head: dict, name: str) -> float:
    """The relative error of a recipe or baseline on one head as the drawn rows show it; exact if all were drawn."""
    return float(_found(head, name)["relative_frobenius_estimate"])


def is_useful(head: dict, name: str) -> bool:
    """Whether a recipe is closer to attention than the mean of V, in the drawn rows."""
    return estimated_error(head, name) < estimated_error(head, MEAN)


def _found(head: dict, name: str) -> dict:
    return head["recipes"].get(name) or head["baselines"][name]


def best_recipe(head: dict) -> str:
    """The recipe of least bounded error on one head."""
    return min(head["recipes"], key=lambda name: relative_error(head, name))


def alpha_without(head: dict, columns: int) -> float | None:
    """alpha with so many of the heaviest columns left out; None where the head has no more than these."""
    return head["hardness"]["alpha_left_out"].get(str(columns))


def log10(log_x: float | None) -> float:
    """The logarithm to base ten, from the natural one; NaN for None."""
    return math.nan if log_x is None else float(log_x) / math.log(10)


def curve(head: dict, name: str) -> tuple[np.ndarray, np.ndarray]:
    """n and "alpha", "alpha_sixteenth" or "log_kappa" for the prefixes and the whole head."""
    whole = {"n": head["n"], "alpha_sixteenth": alpha_without(head, head["n"] // 16)}
    whole |= {key: head["hardness"][key] for key in ("alpha", "log_kappa")}
    points = (*head["growth"], whole)
    return np.array([point["n"] for point in points]), np.array([point[name] for point in points], dtype=float)


def exponent(head: dict, name: str) -> float:
    """The slope of ln alpha, ln alpha_sixteenth or ln kappa over ln n, by least squares; NaN without prefixes."""
    if not head["growth"]:
        return math.nan
    n, x = curve(head, name)
    return float(np.polyfit(np.log(n), x if name == "log_kappa" else np.log(x), 1)[0])


def shown(name: str) -> str:
    """A recipe's name as it stands in sentences and tables."""
    return name.replace("_", " + ")


def keys(head: dict, name: str) -> str:
    """Logits for each query that a recipe computes, and those of its pilot."""
    recipe = head["recipes"][name]
    pilot = f" + {recipe['pilot_rows']} pilot" if recipe["pilot_rows"] else ""
    return f"{number(recipe['logits_per_query'])}{pilot}"


def _findings(report: SurveyReport) -> Iterator[str]:
    heads, hardness = report.heads, [head["hardness"] for head in report.heads]
    sink = Counter(h["heavy_columns"][0] for h in hardness).most_common(1)[0]
    yield (
        f"α has the median {_median(h['alpha'] for h in hardness)}; without the heaviest 1, 4 and 32 columns "
        + ", ".join(_median(alpha_without(head, k) for head in heads) for k in (1, 4, 32))
        + f". The heaviest column is key {sink[0]} on {sink[1]} of {len(heads)} heads."
    )
    kappas = ("log_kappa", "log_kappa_rescaled", "log_kappa_shifted")
    names = ("κ", "after row rescaling", "at the best key shift")
    spans = [
        f"{name} {power_of_ten(np.median(x))} (at most {power_of_ten(max(x))})"
        for name, x in zip(names, ([h[key] for h in hardness if h[key] is not None] for key in kappas), strict=True)
        if x
    ]
    yield f"Medians: {', '.join(spans)}."
    overflows = {kind: sum(h["overflows"][kind] for h in hardness) for kind in hardness[0]["overflows"]}
    yield (
        f"Logits range from {number(min(h['logit_min'] for h in hardness))} to "
        f"{number(max(h['logit_max'] for h in hardness))}; exp of the largest overflows "
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
    closer = {name: sum(is_useful(head, name) for head in heads) for name in report.settings.recipes}
    yield (
        f"Closer to attention than the mean of V, which looks at no query, on so many of {len(heads)} heads: "
        + ", ".join(f"{shown(name)} {count}" for name, count in closer.items())
        + "."
    )


def _listed(report: SurveyReport, measure, form: str) -> str:
    medians = {name: float(np.median(measure(name))) for name in report.settings.recipes}
    return ", ".join(f"{shown(name)} {form.format(x)}" for name, x in medians.items())


def _median(values: Iterable[float | None]) -> str:
    known = [x for x in values if x is not None]
    return number(float(np.median(known))) if known else "–"


def table(report: SurveyReport) -> Iterator[dict]:
    """One row of the CSV file for each head; kappas as natural logarithms, as everywhere in the data."""
    for head in report.heads:
        h = head["hardness"]
        row = {name: head[name] for name in ("name", "layer", "head", "is_causal", "n", "d", "rows")}
        row |= {"alpha": h["alpha"]} | {f"alpha_{k}": alpha_without(head, k) for k in (1, 4, 32)}
        kappas = ("log_kappa", "log_kappa_rescaled", "log_kappa_shifted")
        row |= {
            name: h[name] for name in (*kappas, "stable_rank", "op_norm", "frobenius_norm", "logit_min", "logit_max")
        }
        row["perplexity"] = h["perplexity"]["50 %"]
        row |= {f"exponent_{name}": exponent(head, name) for name in ("alpha", "alpha_sixteenth", "log_kappa")}
        for name, recipe in head["recipes"].items():
            row |= {f"mass_{name}": recipe["mass"]["estimate"], f"error_{name}": recipe["relative_frobenius"]}
        row |= {f"error_{name}": head["baselines"][name]["relative_frobenius"] for name in (ZERO, MEAN)}
        yield row | {"verdict": head["verdict"], "rule": head["rule"]}
