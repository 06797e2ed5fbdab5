"""The plots of a benchmark: time and ratio against n, error against time, memory, stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from hyperattention_ref.bench.cases import EXACT, PLANNED, RIVAL, WHOLE, BenchSettings, Contestant
from hyperattention_ref.bench.report import BenchReport, wording
from hyperattention_ref.bench.results import FamilyResult
from hyperattention_ref.bench.rivals import RIVALS
from hyperattention_ref.pages.plot_style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Plot
from hyperattention_ref.pages.wording import number

BACKEND_COLOURS = (BLUE, SKY, BLACK, GREY)
RIVAL_COLOURS = dict(zip(RIVALS, (RED, ORANGE, GREEN, PINK), strict=True))
LINES = {WHOLE: "o-", PLANNED: "o:", EXACT: "s--", RIVAL: "D-"}
"""Marker and line of every kind of contestant."""
STAGE_COLOURS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#AAAAAA")


def draw_figures(report: BenchReport) -> Iterator[Plot]:
    """The plots for which the report has data."""
    yield time_against_n(report)
    yield ratio_against_n(report)
    yield error_against_time(report)
    yield memory_against_n(report)
    if any(case.stages for case in report.lengths):
        yield stages(report)


def time_against_n(report: BenchReport) -> Plot:
    """Median seconds of every contestant, with the middle half of its runs."""
    figure, axes = _lines(report, lambda case, x: x.median, height=5, has_bars=True, markersize=5)
    _n_axis(axes, report, "seconds")
    return Plot(
        "time",
        f"Time of one call against n; threads: {report.settings.threads}",
        "Medians; the bars are the middle half of the runs. Calls were timed in turn, after their answers had been "
        "compared with float64 rows.",
        figure,
    )


def ratio_against_n(report: BenchReport) -> Plot:
    """Every contestant's time in HyperAttentions of the first backend."""
    first = report.settings.backends[0]
    hyper = Contestant(first, WHOLE).name
    figure, axes = _lines(report, lambda case, x: None if x.name == hyper else report.times_hyper(case, x))
    axes.axhline(1, color=BLACK, linewidth=1)
    _n_axis(axes, report, f"time in HyperAttentions of {first}")
    return Plot(
        "ratio",
        f"How many calls of HyperAttention ({first}) one call of each other takes",
        "Above the line HyperAttention is faster. What each gives for its time is in the plot of error against time: "
        "the approximations do not have the same error.",
        figure,
    )


def error_against_time(report: BenchReport) -> Plot:
    """One panel for each family: lines join the budgets of one approximation."""
    figure = Figure(figsize=(10, 4.8))
    panels = figure.subplots(1, len(report.families), squeeze=False, sharey=True)[0]
    for axes, case in zip(panels, report.families, strict=True):
        _one_family(axes, report, case)
        _log_ticks(axes.xaxis, (1, 3))
    panels[0].set_ylabel("relative error in the drawn rows")
    _log_ticks(panels[0].yaxis, (1, 2, 5))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8.5)
    return Plot(
        "error_against_time",
        "Error against time: lower left is better",
        "‖output − Att‖_F / ‖Att‖_F over exact rows in float64. The numbers are budgets: keys for each query of "
        + "; ".join(["HyperAttention", *_budgets(report)])
        + ". Vertical lines: exact attention. Horizontal lines: the outputs that look at no query, zero and the mean "
        "of V; what lies above them is of no use on this input.",
        figure,
    )


def memory_against_n(report: BenchReport) -> Plot:
    """Peak memory of every contestant, beside the inputs and the output."""
    figure, axes = _lines(report, lambda case, x: max(x.peak_bytes or 0, 1) / 2**20, markersize=5)
    for name, line in (("input_bytes", "-"), ("output_bytes", ":")):
        sizes = [getattr(case, name) / 2**20 for case in report.lengths]
        axes.plot([case.n for case in report.lengths], sizes, line, color=GREY, label=name.replace("_bytes", "s"))
    _n_axis(axes, report, "peak memory of the call, MB")
    return Plot(
        "memory",
        "Peak memory of one call against n",
        "What the call adds to the resident memory of a fresh process, its output included, the inputs not.",
        figure,
    )


def stages(report: BenchReport) -> Plot:
    """Stacked bars: the share of every stage in the whole call, for each backend and length."""
    rows = [(f"{name}, n = {case.n}", parts) for case in report.lengths for name, parts in case.stages.items()]
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(rows)))
    axes = figure.subplots()
    below, above = np.zeros(len(rows)), np.zeros(len(rows))
    for stage, colour in zip(rows[0][1], STAGE_COLOURS, strict=True):
        share = np.array([parts[stage] / sum(parts.values()) for _, parts in rows])
        left = np.where(share >= 0, above, below)
        axes.barh(range(len(rows)), share, left=left, color=colour, label=stage)
        above, below = above + np.maximum(share, 0), below + np.minimum(share, 0)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.set_xlabel("share of the whole call")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=8)
    return Plot(
        "stages",
        "Where the time of a call goes",
        "Stages are differences of calls on parts of the plan, as the table says. Left of zero: a difference that came "
        "out negative, by noise or because the backend does two things at once for less.",
        figure,
    )


def _lines(
    report: BenchReport, value: Callable, height: float = 4.4, *, has_bars: bool = False, **style
) -> tuple[Figure, Axes]:
    """A figure with a line for each contestant: the values of (case, contestant) against n, where not None.

    The bars are the middle half of the runs.
    """
    figure = Figure(figsize=(10, height))
    axes = figure.subplots()
    for contestant in report.lengths[0].contestants:
        found = [(case, case.find(contestant.kind, contestant.engine)) for case in report.lengths]
        right = [(case, x) for case, x in found if x and x.is_right]
        colour = _colour(report.settings, contestant.engine)
        if points := [(case.n, y) for case, x in right if (y := value(case, x)) is not None]:
            n, y = np.transpose(points)
            if has_bars:
                axes.vlines(n, *np.transpose([x.quartiles for _, x in right]), color=colour, linewidth=1)
            axes.plot(n, y, LINES[contestant.kind], color=colour, label=contestant.name, **style)
    return figure, axes


def _n_axis(axes: Axes, report: BenchReport, label: str) -> None:
    lengths = [case.n for case in report.lengths]
    axes.set(xscale="log", yscale="log", xlabel="n, tokens", ylabel=label)
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    if axes.get_legend_handles_labels()[0]:  # nothing is left to compare where all answers were wrong
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)


def _log_ticks(axis: Axis, multiples: tuple[int, ...]) -> None:
    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_major_formatter(lambda x, _: number(x))
    axis.set_minor_locator(NullLocator())


def _one_family(axes: Axes, report: BenchReport, case: FamilyResult) -> None:
    points: list[Any] = [x for x in case.points if x.is_right]
    for engine in dict.fromkeys(x.engine for x in points):
        colour = _colour(report.settings, engine)
        curve = sorted((x for x in points if x.engine == engine and x.budget), key=lambda x: x.budget)
        for x in points:
            if x.engine == engine and not x.budget:
                axes.axvline(x.median, color=colour, linestyle="--", linewidth=1, label=x.name)
        if curve:
            times, errors = [x.median for x in curve], [x.relative_error for x in curve]
            label = curve[0].name.rpartition(",")[0]
            axes.plot(times, errors, LINES[curve[0].kind], color=colour, label=label, markersize=4)
            for x in (curve[0], curve[-1]):
                place = (x.median, x.relative_error)
                axes.annotate(str(x.budget), place, (3, 4), textcoords="offset points", fontsize=7.5, color=colour)
    for name, error in case.baselines.items():
        axes.axhline(error, color=GREY, linewidth=1)
        words, side = ("zero", "bottom") if name == "zero" else (f"mean of V, {number(error)}", "top")
        axes.text(0.01, error, words, transform=axes.get_yaxis_transform(), va=side, color=GREY, fontsize=8.5)
    axes.set(xscale="log", yscale="log", xlabel="seconds", title=f"{wording(case.family)}, n = {case.n}")


def _budgets(report: BenchReport) -> list[str]:
    engines = {x.engine for case in report.families for x in case.points if x.kind == RIVAL and x.budget}
    return [f"{RIVALS[name].budget_name} of {RIVALS[name].title}" for name in RIVALS if name in engines]


def _colour(settings: BenchSettings, engine: str) -> str:
    if engine in RIVAL_COLOURS:
        return RIVAL_COLOURS[engine]
    return BACKEND_COLOURS[settings.backends.index(engine) % len(BACKEND_COLOURS)]
