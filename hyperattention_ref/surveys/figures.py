"""The plots of a survey: maps of layers by heads, growth with n, errors beside the baselines, attention pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from hyperattention_ref.measures.error_bounds import MEAN, ZERO
from hyperattention_ref.pages.plot_style import BLACK, BLUE, GREY, ORANGE, RED, Plot
from hyperattention_ref.pages.wording import label, number
from hyperattention_ref.surveys.report import SurveyReport

COLUMNS = 3
"""Heat maps side by side."""
MOST_NUMBERED = 16
"""Up to this many heads in a layer, each cell of a heat map has its number; at most so many ticks on an axis."""
FAINTEST = 0.01
"""The attention pictures' darkest colour, in multiples of what flat attention gives."""


def draw_figures(report: SurveyReport) -> Iterator[Plot]:
    """The plots for which the report has data."""
    yield errors(report)
    yield mass_maps(report)
    yield error_maps(report)
    yield hardness_maps(report)
    if any(head.growth for head in report.heads):
        yield growth(report)
    yield pictures(report)


def hardness_maps(report: SurveyReport) -> Plot:
    """The kappas above, the alphas below."""
    kappas = {
        "log₁₀ κ": "log_kappa",
        "log₁₀ κ, rows rescaled": "log_kappa_rescaled",
        "log₁₀ κ*, best key shift": "log_kappa_shifted",
    }
    hardness = [head.hardness for head in report.heads]
    panels = {title: _log10([getattr(h, name) for h in hardness], name) for title, name in kappas.items()}
    alphas = {"log₁₀ α": 0, "log₁₀ α without the heaviest column": 1, "log₁₀ α without the 32 heaviest": 32}
    panels |= {title: _log10([h.alpha_left_out.get(k) for h in hardness], "alpha") for title, k in alphas.items()}
    kappa, alpha = np.array(list(panels.values())).reshape(2, -1)
    norms = [Normalize(np.nanmin(x), np.nanquantile(x, 0.97)) for x in (kappa, alpha)]
    figure = _heat_maps(report, panels, "{:.1f}", "cividis", lambda place: norms[place // COLUMNS])
    return Plot(
        "hardness_maps",
        "α and κ head by head, and how little of them is left without a few columns and without the scale of rows",
        "Upper row: κ as the paper defines it, without a mask; after row rescaling by a pilot of 128 keys; and κ*, the "
        "least that a constant added to all keys can reach, which leaves attention unchanged. Lower row: α, from 0 "
        f"(flat) to {number(2 * np.log10(max(head.n for head in report.heads)))} (every query looks at one key), "
        "without the heaviest column and without the 32 heaviest. Colours of each row end at its 97 % quantile.",
        figure,
    )


def mass_maps(report: SurveyReport) -> Plot:
    """The softmax mass in the exact pairs of every recipe."""
    panels = {name: report.masses(name) for name in report.settings.recipes}
    figure = _heat_maps(report, _with_median(panels, "{:.0%}"), "{:.2f}", "cividis", lambda _: Normalize(0, 1))
    best = max(panels, key=lambda name: np.median(panels[name]))
    return Plot(
        "mass_maps",
        f"Share of the softmax mass that each recipe’s exact pairs hold; most by {label(best)}, "
        f"{np.median(panels[best]):.0%} in the median",
        "In brackets the median over the heads. Sampled keys do not count as found: they stand for what is left over, "
        "so that “uniform” finds nothing by itself.",
        figure,
    )


def error_maps(report: SurveyReport) -> Plot:
    """The relative error of every recipe and of the mean of V."""
    panels = {name: report.estimates(name) for name in (*report.settings.recipes, MEAN)}
    panels = _with_median(panels, "{:.2f}", {MEAN: "baseline: mean of V"})
    figure = _heat_maps(report, panels, "{:.2f}", "RdBu_r", lambda _: TwoSlopeNorm(1, 0, 2))
    return Plot(
        "error_maps",
        "Relative error head by head: blue is closer to attention than an output of zeros, red is further off",
        f"‖Att − output‖_F / ‖Att‖_F, {'estimated from drawn rows' if report.sampled else 'exact'}; in brackets the "
        "median over the heads. "
        "The zero output has the error 1, which is white; the mean of V is the last map.",
        figure,
    )


def _with_median(panels: dict[str, np.ndarray], form: str, names: dict[str, str] | None = None) -> dict:
    names = names or {}
    return {f"{names.get(name, label(name))} ({form.format(np.median(x))})": x for name, x in panels.items()}


def _heat_maps(
    report: SurveyReport, panels: dict[str, np.ndarray], form: str, colours: str, norm: Callable[[int], Normalize]
) -> Figure:
    """Maps of layers by heads; `form` writes a value, `norm` is the colour scale by the place of a panel."""
    layers, heads = (sorted({getattr(head, axis) for head in report.heads}) for axis in ("layer", "head"))
    down = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(10, down * (0.75 + 0.21 * min(len(layers), 40))))
    grid = figure.subplots(down, COLUMNS, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for place, (axes, (title, values)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        cells = np.full((len(layers), len(heads)), np.nan)
        for head, value in zip(report.heads, values, strict=True):
            cells[layers.index(head.layer), heads.index(head.head)] = value
        image = axes.imshow(cells, cmap=colours, norm=norm(place), aspect="auto", interpolation="nearest")
        axes.set_facecolor("#f0f1f3")
        axes.set_title(title, fontsize=9.5)
        axes.grid(visible=False)
        axes.tick_params(length=0, labelsize=8)
        for axis, labels in ((axes.yaxis, layers), (axes.xaxis, heads)):
            step = -(-len(labels) // MOST_NUMBERED)
            axis.set_ticks(range(0, len(labels), step), [str(x) for x in labels[::step]])
        if len(heads) <= MOST_NUMBERED:
            _numbers(axes, cells, image, form)
        if place % COLUMNS == 0:
            axes.set_ylabel("layer")
        if place + COLUMNS >= len(panels):
            axes.set_xlabel("head")
            axes.tick_params(labelbottom=True)
    return figure


def _numbers(axes: Axes, cells: np.ndarray, image: AxesImage, form: str) -> None:
    """The value in each cell, white on dark."""
    size = min(8.5, 66 / cells.shape[1])
    for (y, x), value in np.ndenumerate(cells):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else BLACK
            axes.text(x, y, form.format(value), ha="center", va="center", fontsize=size, color=colour)


def errors(report: SurveyReport) -> Plot:
    """One line for each recipe, one dot for each head, and the two baselines below."""
    recipes = sorted(report.settings.recipes, key=lambda name: np.median(report.estimates(name)))
    lines = [*recipes, MEAN, ZERO]
    figure = Figure(figsize=(10, 1.1 + 0.36 * len(lines)))
    axes = figure.subplots()
    spread = np.random.default_rng(0).uniform(-0.22, 0.22, len(report.heads))
    labels = [f"{label(x)}, {number(report.heads[0].recipes[x].logits_per_query)} logits" for x in recipes]
    for y, name in enumerate(lines):
        x, bounds, colour = report.estimates(name), report.bounds(name), BLUE if name in recipes else GREY
        axes.hlines(y + spread, x, np.where(np.isfinite(bounds), bounds, x), color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(x, y + spread, "o", color=colour, alpha=0.55, markersize=4.5, markeredgewidth=0)
        axes.plot([np.median(x)] * 2, [y - 0.36, y + 0.36], color=BLACK, linewidth=2)
        axes.text(1.01, y, f"{np.median(x):.2f}", va="center", transform=axes.get_yaxis_transform())
    axes.text(1.01, -0.9, "median", va="center", transform=axes.get_yaxis_transform(), color="#555555")
    axes.axvline(1, color=GREY, linewidth=1)
    axes.axvline(report.settings.tolerance, color=RED, linewidth=1.2)
    axes.text(report.settings.tolerance, -0.9, "tolerance ", color=RED, ha="left", va="center")
    axes.set_yticks(range(len(lines)), [*labels, "baseline: mean of V", "baseline: zero output"])
    axes.set(ylim=(len(lines) - 0.4, -0.6), xlabel="relative Frobenius error", xlim=(0, None))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    within = sum(bool((report.bounds(name) <= report.settings.tolerance).any()) for name in recipes)
    return Plot(
        "errors",
        f"{'No recipe' if not within else f'{within} of {len(recipes)} recipes'} within the tolerance "
        f"{'on any head' if not within else 'on some head'}; least error in the median: {label(recipes[0])}",
        f"One dot for each head, at {report.settings.budget} keys for each query"
        f"{', with a line up to the bound' if report.sampled else ''}; the bar is the median. A recipe is "
        "of use on a head where it lies left of both baselines, which look at no query. Logits are those of "
        f"each query of {report.heads[0].name}, everything counted.",
        figure,
    )


def growth(report: SurveyReport) -> Plot:
    """alpha, alpha without n/16 columns and kappa on prefixes of the text."""
    figure = Figure(figsize=(10, 3.9))
    panels = {"alpha": ("α", BLUE), "alpha_sixteenth": ("α without n/16 columns", BLUE), "log_kappa": ("κ", ORANGE)}
    medians, words = [], []
    for axes, (name, (title, colour)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        curves = [(n, _log10(x, name)) for n, x in (head.curve(name) for head in report.heads)]
        _growth_panel(axes, curves, colour)
        slopes = [head.exponent(name) for head in report.heads]
        low, median, high = np.nanquantile(slopes, [0.25, 0.5, 0.75])
        axes.set_title(f"{title}:  n^{median:.2f}".replace("-", "−"))
        medians.append(f"{title} like n^{median:.2f}")
        words.append(f"{title} like n^{median:.2f} ({low:.2f} to {high:.2f})")
    return Plot(
        "growth",
        f"Growth with the length of the text: {', '.join(medians)}",
        "Each line is one head, measured on prefixes of its text; black is the median. Exponents are slopes of least "
        f"squares, the median over the heads and the middle half: {', '.join(words)}. Prefixes reuse the queries and "
        "keys of the whole text.",
        figure,
    )


def _growth_panel(axes: Axes, curves: list[tuple[np.ndarray, np.ndarray]], colour: str) -> None:
    """One line for each head, and their median at the lengths that all heads have; `curves` are powers of ten."""
    for n, x in curves:
        axes.plot(n, x, color=colour, linewidth=0.8, alpha=0.35)
    lengths = sorted({int(m) for n, _ in curves for m in n})
    shared = [m for m in lengths if all(m in n for n, _ in curves)]
    medians = [np.median([x[list(n).index(m)] for n, x in curves]) for m in shared]
    axes.plot(shared, medians, "o-", color=BLACK, linewidth=2, markersize=4)
    axes.set(xscale="log", xlabel="n, tokens of the prefix", ylabel="powers of ten")
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    highest = np.array([x.max() for _, x in curves])
    if highest.max() > (top := 1.5 * np.quantile(highest, 0.97)):
        axes.set_ylim(top=top)
        axes.text(0.02, 0.98, "one or more heads beyond", transform=axes.transAxes, va="top", color=GREY)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.yaxis.set_major_formatter(lambda y, _: f"$10^{{{y:g}}}$")


def _log10(values, name: str) -> np.ndarray:
    """Powers of ten of alphas, or of kappas that come as natural logarithms; NaN for None."""
    x = np.array(values, dtype=float)
    return x / np.log(10) if name.startswith("log_kappa") else np.log10(x)


def pictures(report: SurveyReport) -> Plot:
    """Every head's attention, down-sampled: rows are layers where every layer has all its heads."""
    layers, heads = ({getattr(head, axis) for head in report.heads} for axis in ("layer", "head"))
    is_grid = len(layers) * len(heads) == len(report.heads)
    across = len(heads) if is_grid and len(heads) > 2 else min(6, len(report.heads))
    down = -(-len(report.heads) // across)
    side = 10 / across
    figure = Figure(figsize=(10, down * (side + 0.28) + 0.6))
    grid = figure.subplots(down, across, squeeze=False)
    flat = [np.array(head.picture) * len(head.picture) for head in report.heads]
    norm = LogNorm(FAINTEST, max(float(x.max()) for x in flat), clip=True)
    small = min(9.0, 90 / across)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, head, x in zip(grid.flat, report.heads, flat, strict=False):
        x = np.where(x.sum(axis=1, keepdims=True) > 0, x, np.nan)  # no row of this band was drawn
        axes.imshow(x, cmap="magma", norm=norm, interpolation="nearest")
        title = head.name
        if across <= 6:
            h = head.hardness
            title += f"\nα = {number(h.alpha)}, κ = $10^{{{h.log_kappa / np.log(10):.1f}}}$"
        axes.set_title(title, fontsize=small, fontweight="normal", pad=2, loc="center")
    bar = figure.colorbar(
        ScalarMappable(norm, "magma"), ax=grid, orientation="horizontal", fraction=0.02, aspect=60, pad=0.03
    )
    bar.set_label("attention, in multiples of what flat attention gives")
    return Plot(
        "pictures",
        "The attention of each head: queries from top to bottom, keys from left to right",
        f"Down-sampled to {len(report.heads[0].picture)} bands of queries and keys, logarithmic colours, 1 = flat "
        "attention. A bright column is a sink; a bright diagonal is local attention.",
        figure,
    )
