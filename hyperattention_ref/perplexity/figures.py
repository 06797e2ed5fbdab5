"""The plots of a comparison: loss and time against replaced layers, loss by position, time against loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from hyperattention_ref.pages.plot_style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Plot
from hyperattention_ref.pages.wording import label, number
from hyperattention_ref.perplexity.methods import LEAVES
from hyperattention_ref.perplexity.report import STRETCHES, PerplexityReport, Row

COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY)
MARKERS = ("o", "s", "^")
LINEAR = 0.01
"""Nats up to which an axis of differences is linear; beyond, it is logarithmic."""


def draw_figures(report: PerplexityReport) -> Iterator[Plot]:
    """The plots; only exact attention has none."""
    if report.counts:
        yield loss_against_layers(report)
        yield time_against_layers(report)
        yield loss_by_position(report)
        yield time_against_loss(report)


def loss_against_layers(report: PerplexityReport) -> Plot:
    """Difference of the loss, with its standard error."""
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots()
    _difference_axis(axes.set_yscale, axes.yaxis)
    _lines(axes, report, lambda row: row.difference, lambda row: row.difference_error)
    axes.set_ylabel("Δ loss, nats per token")
    return Plot(
        "loss_against_layers",
        "What replacing layers costs",
        "Mean over tokens of the loss less the loss with exact attention, with its standard error, against the number "
        "of last layers that are replaced. Grey: what needs no recipe.",
        figure,
    )


def time_against_layers(report: PerplexityReport) -> Plot:
    """Seconds of the prefill."""
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots()
    _lines(axes, report, lambda row: row.seconds)
    axes.set(ylabel="seconds of the prefill", ylim=(0, None))
    return Plot(
        "time_against_layers",
        "What replacing layers saves",
        "Seconds of the whole prefill, one run of each, from token ids to the last hidden states. All but attention is "
        "the same.",
        figure,
    )


def loss_by_position(report: PerplexityReport) -> Plot:
    """Difference of the loss in equal stretches of the text."""
    count, s = report.counts[-1], report.settings
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots()
    _difference_axis(axes.set_yscale, axes.yaxis)
    ends = s.n - report.scored + np.arange(STRETCHES + 1) * report.scored / STRETCHES
    for row in report.at(count):
        axes.plot((ends[:-1] + ends[1:]) / 2, row.by_position, label=label(row.method), **_style(report, row.method))
    axes.set(xlabel="position of the token", ylabel="Δ loss, nats per token")
    _legend(axes)
    return Plot(
        "loss_by_position",
        "Where in the text it costs",
        f"Mean Δ loss in {STRETCHES} stretches of the scored tokens, last {count} layers replaced.",
        figure,
    )


def time_against_loss(report: PerplexityReport) -> Plot:
    """All replaced prefills as points."""
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots()
    _difference_axis(axes.set_xscale, axes.xaxis)
    for row in report.rows[1:]:
        style = _style(report, row.method) | {"linestyle": "", "markersize": 5 + 5 * row.layers / report.n_layers}
        name = label(row.method) if row.layers == report.counts[-1] else None
        axes.plot(row.difference, row.seconds, label=name, **style)
    axes.axhline(report.rows[0].seconds, color=BLACK, linewidth=1, label="exact")
    axes.set(xlabel="Δ loss, nats per token", ylabel="seconds of the prefill", ylim=(0, None))
    _legend(axes)
    return Plot(
        "time_against_loss",
        "Time against loss: lower left is better",
        "Each point is one prefill; the larger, the more layers are replaced.",
        figure,
    )


def _lines(axes: Axes, report: PerplexityReport, value: Callable, error: Callable | None = None) -> None:
    """A line for each method over the numbers of replaced layers, from exact attention at 0."""
    for first in report.at(report.counts[0]):
        rows: list[Row] = [report.rows[0], *(x for x in report.rows if x.method == first.method)]
        layers, y = [row.layers for row in rows], [value(row) for row in rows]
        bars = [error(row) for row in rows] if error else None
        axes.errorbar(layers, y, bars, label=label(first.method), **_style(report, first.method))
    axes.set_xticks([0, *report.counts])
    axes.set_xlabel("replaced layers, counted from the last")
    _legend(axes)


def _style(report: PerplexityReport, method: str) -> dict:
    """Grey for the baselines; a colour and a marker for each recipe."""
    if method not in report.settings.recipes:
        linestyle, marker = (":", "x") if method == LEAVES else ("--", "+")
        return {"color": GREY, "linestyle": linestyle, "marker": marker, "markersize": 6}
    place = report.settings.recipes.index(method)
    marker = MARKERS[place // len(COLOURS) % len(MARKERS)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": "-", "marker": marker, "markersize": 5}


def _difference_axis(set_scale: Callable, axis: Axis) -> None:
    """To be called before anything is drawn, so that the limits fit the scale."""
    set_scale("symlog", linthresh=LINEAR)
    axis.set_major_formatter(lambda x, _: number(x))


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)
