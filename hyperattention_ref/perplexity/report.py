"""The results of a comparison: losses, differences with standard errors, times, and what they mean in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.grid import Grid
from hyperattention_ref.pages.wording import label, number, seconds
from hyperattention_ref.perplexity.losses import mean_and_error
from hyperattention_ref.perplexity.methods import LEAVES, WINDOW
from hyperattention_ref.perplexity.settings import PerplexitySettings

STRETCHES = 16
"""Equal parts of the scored tokens, whose mean differences are plotted."""
HEADINGS = [
    "", "layers", "logits/query", "loss, nats", "± ", "perplexity", "Δ loss", "± ", "prefill", "speed-up",
]  # fmt: skip


@dataclass(frozen=True, repr=False)
class Case(Result):
    """One prefill.

    Attributes
    ----------
    method : "exact", a baseline or a recipe.
    layers : how many of the last layers were to be replaced.
    replaced : in how many of them attention was.
    logits_per_query : of the method, in a replaced layer.
    seconds : of the prefill, from token ids to the last hidden states.
    losses : of every scored token, in nats.
    """

    method: str
    layers: int
    replaced: int
    logits_per_query: float
    seconds: float
    losses: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Row(Result):
    """What a case comes to.

    Attributes
    ----------
    method, layers, replaced, logits_per_query, seconds : of the Case.
    loss, loss_error : mean loss in nats, and its standard error.
    perplexity : exp(loss).
    difference, difference_error : mean of loss - exact loss, token by token, and its standard error.
    speed_up : seconds of exact attention over these.
    by_position : mean difference in equal stretches of the scored tokens.
    """

    method: str
    layers: int
    replaced: int
    logits_per_query: float
    loss: float
    loss_error: float
    perplexity: float
    difference: float
    difference_error: float
    seconds: float
    speed_up: float
    by_position: tuple[float, ...]

    @classmethod
    def of(cls, case: Case, exact: Case) -> Row:
        losses = np.array(case.losses)
        differences = losses - np.array(exact.losses)
        loss, difference = mean_and_error(losses), mean_and_error(differences)
        return cls(
            **{name: getattr(case, name) for name in ("method", "layers", "replaced", "logits_per_query", "seconds")},
            loss=loss[0],
            loss_error=loss[1],
            perplexity=math.exp(loss[0]),
            difference=difference[0],
            difference_error=difference[1],
            speed_up=exact.seconds / case.seconds,
            by_position=tuple(float(x.mean()) for x in np.array_split(differences, STRETCHES)),
        )


@dataclass(frozen=True, repr=False)
class PerplexityReport(Result):
    """What was found.

    Attributes
    ----------
    model, text : their names.
    n_layers : of the model.
    scored : number of scored tokens.
    rows : exact attention first, then by number of layers.
    command : that made the report.
    environment : the machine and the versions.
    """

    model: str
    text: str
    n_layers: int
    scored: int
    settings: PerplexitySettings
    rows: tuple[Row, ...]
    command: str
    environment: dict[str, str | int]

    @property
    def counts(self) -> list[int]:
        """The numbers of replaced layers, ascending, without 0."""
        return sorted({row.layers for row in self.rows if row.layers})

    def at(self, count: int) -> list[Row]:
        """The rows of so many replaced layers."""
        return [row for row in self.rows if row.layers == count]

    def recipes_at(self, count: int) -> list[Row]:
        """The rows of so many replaced layers that are no baselines."""
        return [row for row in self.at(count) if row.method in self.settings.recipes]

    def window_beside(self, recipe: Row) -> Row:
        """The smallest sliding window of at least as many keys as a recipe has logits, or that of all keys."""
        windows = [row for row in self.at(recipe.layers) if row.method.startswith(WINDOW)]
        enough = [row for row in windows if row.logits_per_query >= recipe.logits_per_query]
        return min(enough or windows[:1], key=lambda row: row.logits_per_query)

    @property
    def summary(self) -> str:
        """What replacing everything asked for costs, in one sentence."""
        exact = self.rows[0]
        words = (
            f"Exact attention: {nats(exact.loss)} nats, perplexity {exact.perplexity:.2f}, {seconds(exact.seconds)}."
        )
        if not self.counts:
            return words
        best = min(self.recipes_at(self.counts[-1]), key=lambda row: row.difference)
        return (
            f"{words} Least cost of a recipe in the last {best.layers} layers: {label(best.method)}, "
            f"{change(best)} nats, perplexity {best.perplexity:.2f}, {seconds(best.seconds)}."
        )

    @property
    def findings(self) -> list[str]:
        """What the numbers say, in words."""
        return [sentence for count in self.counts for sentence in _findings(self, count)]

    def to_dict(self) -> dict:
        return {"summary": self.summary, "findings": self.findings, **super().to_dict()}


def nats(x: float) -> str:
    """A loss, or a difference of losses."""
    return f"{x:.4f}".replace("-", "−")


def change(row: Row) -> str:
    """The difference to exact attention with its standard error."""
    return f"{'+' if row.difference >= 0 else ''}{nats(row.difference)} ± {nats(row.difference_error)}"


def grid(report: PerplexityReport) -> Grid:
    """The table of all rows."""
    s = report.settings
    lines = [[label(row.method), *cells(row)] for row in report.rows]
    note = (
        f"{report.scored} scored tokens of {s.n}; {s.budget} keys for each query of a rectangle, exact ranges up to "
        f"{s.min_seq_len}. Logits per query count everything; ± is a standard error that allows for neighbours."
    )
    return Grid(f"{report.model} on {report.text}", HEADINGS, lines, note)


def cells(row: Row) -> list[str]:
    """What is in a row of the table, but for its name."""
    layers = str(row.layers) if row.replaced == row.layers else f"{row.replaced} of {row.layers}"
    return [
        layers,
        number(row.logits_per_query) if row.layers else number(None),
        nats(row.loss),
        nats(row.loss_error),
        f"{row.perplexity:.2f}",
        nats(row.difference),
        nats(row.difference_error),
        seconds(row.seconds),
        f"{row.speed_up:.2f}",
    ]


def _findings(report: PerplexityReport, count: int) -> Iterator[str]:
    rows = {row.method: row for row in report.at(count)}
    recipes = report.recipes_at(count)
    best, fastest = min(recipes, key=lambda row: row.difference), max(recipes, key=lambda row: row.speed_up)
    where, window = f"Last {count} of {report.n_layers} layers", report.window_beside(best)
    yield (
        f"{where}: {label(best.method)} costs least, {change(best)} nats at {number(best.logits_per_query)} logits per "
        f"query; {WINDOW} {change(window)} at {number(window.logits_per_query)}, {LEAVES} {change(rows[LEAVES])} at "
        f"{number(rows[LEAVES].logits_per_query)}."
    )
    if better := [label(row.method) for row in recipes if row.difference < report.window_beside(row).difference]:
        yield f"{where}: better than a sliding window of as many keys: {', '.join(better)}."
    worse = [label(row.method) for row in recipes if row.difference > rows[LEAVES].difference]
    if worse:
        yield f"{where}: worse than dropping the far keys: {', '.join(worse)}."
    yield (
        f"{where}: the shortest prefill of a recipe takes {seconds(fastest.seconds)}, with {label(fastest.method)}; "
        f"exact attention {seconds(report.rows[0].seconds)}."
    )
    if short := [row for row in rows.values() if row.replaced < row.layers]:
        yield f"{where}: {short[0].layers - short[0].replaced} of them stayed exact, such as sliding windows do."
