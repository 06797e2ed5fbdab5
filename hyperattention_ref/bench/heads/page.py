"""The report of `bench-heads` on disk: one HTML page that stands alone, the plot, the data as JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from hyperattention_ref.bench.heads.methods import title
from hyperattention_ref.bench.heads.report import TARGETS, HeadsReport, grids, table
from hyperattention_ref.pages import files
from hyperattention_ref.pages.plot_style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, Plot
from hyperattention_ref.pages.wording import number

COLOURS, MARKERS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK), "osD^"


def write_report(report: HeadsReport, folder: Path) -> None:
    """Write bench_heads.json, bench_heads.csv, the plot and report.html to an existing folder."""
    files.write_csv(folder / "bench_heads.csv", list(table(report)))
    names = {"grids": list(grids(report))}
    files.write_report(folder, "bench_heads.json", report, draw_figures(report), "bench/heads/page.html.j2", **names)


def draw_figures(report: HeadsReport) -> Iterator[Plot]:
    """The plot of time against error, if an approximation was right."""
    if report.lines:
        yield time_against_error(report)


def time_against_error(report: HeadsReport) -> Plot:
    """One line for each approximation, a dot for each budget; exact attention as horizontal lines."""
    figure = Figure(figsize=(10, 5.4))
    axes = figure.subplots()
    for i, (name, line) in enumerate(report.lines.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
        errors, times = [x.errors[0] for x in line], [1e3 * x.seconds for x in line]
        axes.plot(errors, times, label=title(name), markersize=4.5, color=colour, marker=marker)
        for x, error, time in ((line[0], errors[0], times[0]), (line[-1], errors[-1], times[-1])):
            axes.annotate(str(x.budget), (error, time), (3, 4), textcoords="offset points", fontsize=7.5)
    for stop, style in zip(report.exact.values(), ("-", "--"), strict=False):
        axes.axhline(1e3 * stop.seconds, color=GREY, linestyle=style, linewidth=1.2, label=title(stop.method))
    for target in TARGETS:
        axes.axvline(target, color="#cccccc", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="relative Frobenius error, median over the heads", ylabel="ms")
    axes.invert_xaxis()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda x, _: number(x))
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)
    return Plot(
        "time_against_error",
        "Time of a whole call against its error: lower right is better",
        "Medians over the heads; a dot is a budget, the least and the largest of a line are written at it. Plans, "
        "pilots and scores are part of the time. Vertical lines: the errors of the table.",
        figure,
    )
