"""The plots of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperattention_ref.pages.plot_style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, Plot
from hyperattention_ref.pages.wording import number
from hyperattention_ref.proofs_checks import Verdict
from hyperattention_ref.proofs_checks.verdict import HOLDS, NOT_REFUTED
from hyperattention_ref.verify import sample_head_measures as heads
from hyperattention_ref.verify.report import (
    FAILS_AS_IT_MUST,
    INFORMATION,
    OUTCOMES,
    UNEXPECTED,
    Report,
    outcome,
    statements,
)

LOOK = {
    HOLDS: (BLUE, "o"),
    NOT_REFUTED: (ORANGE, "s"),
    FAILS_AS_IT_MUST: (PINK, "D"),
    INFORMATION: (GREY, "v"),
    UNEXPECTED: (RED, "X"),
}
"""Colour and marker of every outcome."""
KINDS = {"cap and floor": BLUE, "no cap": ORANGE, "no floor": PINK}
"""Colour of ApproxD with cap and floor, and without one of them."""
LEAST_RATIO, LARGEST_RATIO = 1e-4, 1e3
"""The ends of the ratio axis; what lies beyond is drawn at the end with a triangle."""


def draw_figures(report: Report) -> Iterator[Plot]:
    """The plots for which the report has data."""
    rates = list({v.name: v for v in report.verdicts if "slope" in v.measured}.values())
    ablations = _ablations(report)
    if rates:
        yield error_against_m(rates, report.settings.epsilon)
    if rates and ablations:
        yield caps_and_floors(rates, ablations)
    if report.verdicts:
        yield ratios(report)
    if report.heads:
        yield sample_heads(report)


def error_against_m(rates: list[Verdict], epsilon: float) -> Plot:
    """Left what is measured, right what is guaranteed for the same matrix."""
    figure = Figure(figsize=(10, 4.4))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for verdict, colour, marker in zip(rates, (BLUE, ORANGE), "os", strict=False):
        m, errors, fitted = (np.array(verdict.measured[name]) for name in ("m", "errors", "fitted"))
        mean = errors.mean(axis=1)
        label = f"{_variant(verdict)}: fitted slope {number(verdict.measured['slope'])}"
        left.fill_between(m, errors.min(axis=1), errors.max(axis=1), color=colour, alpha=0.18, linewidth=0)
        left.plot(m, mean, color=colour, linewidth=1.5)
        left.plot(m[fitted], mean[fitted], marker, color=colour, label=label)
        left.plot(m[~fitted], mean[~fitted], marker, color=colour, markerfacecolor="white")
        right.plot(m, mean, marker, color=colour, markersize=4)
    level = np.exp(np.mean(np.log(mean[fitted] * np.sqrt(m[fitted]))))
    left.plot(m, level / np.sqrt(m), "--", color=BLACK, linewidth=1, label="predicted slope −1/2")
    left.set_ylabel(r"error in (6):  $\|(\tilde{D}^{-1}-D^{-1})A\|\,/\,\|D^{-1}A\|$")
    _guarantees(right, rates[0])
    every = np.concatenate([np.ravel(v.measured["errors"]) for v in rates])
    aim = epsilon / 2
    span = min(0.01, 0.8 * every.min(), 0.8 * aim), max(1, 1.2 * every.max())
    for axes, title in ((left, "Measured"), (right, "Measured, and guaranteed")):
        axes.axhline(aim, color=RED, linewidth=1.2)
        axes.set(xscale="log", yscale="log", ylim=span, xlabel="m, sampled keys", title=title)
        axes.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"])
        axes.minorticks_off()
    left.set_xticks(m, [str(x) for x in m])
    left.set_xlim(m[0] / 1.25, m[-1] * 1.25)
    left.text(m[-1] * 1.25, 1.04 * aim, f"aim: ε/2 = {number(aim)}", color=RED, ha="right", va="bottom")
    left.legend(loc="lower left")
    n = rates[0].n
    return Plot(
        "error_against_m",
        "ApproxD’s error falls like m to the power "
        + " and ".join(f"{number(v.measured['slope'])} ({_variant(v)})" for v in rates)
        + "; −1/2 is predicted",
        f"{rates[0].family}, n = {n}, spectral norms; ε = {epsilon:g}, so that the aim is an error of {number(aim)}. "
        "Left: line = mean, band = smallest to largest run, filled markers = the points that the slope is fitted to; "
        "at small m the cap removes mass and bends its curve upward. Right: the same points beside the error that is "
        "guaranteed for this very matrix at each m, by the usable version of Lemma 1 (computed from the rows’ "
        "variances) and by Lemma 1 with explicit constant. The horizontal distance is what the guarantee costs; right "
        "of the dotted line it asks for more samples than there are tokens.",
        figure,
    )


def _variant(verdict: Verdict) -> str:
    return verdict.name.split(", ")[-1]


def _guarantees(axes: Axes, rate: Verdict) -> None:
    """The m that the bounds ask for, as curves over the error."""
    asked = rate.measured["asked"]
    aims = np.array(asked["epsilon"]) / 2
    lemmas = {"usable version": (GREEN, "Lemma 1,\nusable version"), "Lemma 1": (PINK, "Lemma 1")}
    for name, (colour, label) in lemmas.items():
        axes.plot(asked[name], aims, color=colour, linewidth=2)
        axes.text(asked[name][-1], 0.53, label, color=colour, ha="center", va="bottom", fontweight="bold")
    n = rate.n or math.nan
    axes.axvline(n, ymax=0.8, color=GREY, linewidth=1, linestyle=":")
    axes.text(n * 1.2, 0.012, "m = n", color="#555555", va="bottom")


def _ablations(report: Report) -> dict[str, dict[str, Verdict]]:
    """By family, the runs with cap and floor, without the cap and without the floor."""
    families: dict[str, dict[str, Verdict]] = {}
    for verdict in report.verdicts:
        kind = _variant(verdict).replace("without the", "no")
        if kind in KINDS:
            families.setdefault(verdict.family, {})[kind] = verdict
    return {family: runs for family, runs in families.items() if len(runs) == len(KINDS)}


def caps_and_floors(rates: list[Verdict], ablations: dict[str, dict[str, Verdict]]) -> Plot:
    """How often cap and floor act on a benign matrix, and what their absence costs on a hostile one."""
    figure = Figure(figsize=(10, 3.8))
    left, right = figure.subplots(1, 2)
    for verdict, line in zip(rates, ("-", "--"), strict=False):
        m = verdict.measured["m"]
        capped, floored = (100 * np.array(verdict.measured[x]) for x in ("entries capped", "rows floored"))
        left.plot(m, capped, "o" + line, color=BLUE, label=f"entries capped, {_variant(verdict)}")
        left.plot(m, floored, "s" + line, color=ORANGE, label=f"rows floored, {_variant(verdict)}")
    left.set(xscale="log", xlabel="m, sampled keys", ylabel="share [%]", title="Benign input: how often they act")
    left.set_xticks(m, [str(x) for x in m])
    left.minorticks_off()
    left.legend()
    aim = next(float(runs["cap and floor"].right[0]) for runs in ablations.values())
    _ablation_bars(right, ablations, aim)
    capped = rates[0].measured["entries capped"]
    worst = {kind: number(max(float(np.median(runs[kind].left)) for runs in ablations.values())) for kind in KINDS}
    return Plot(
        "caps_and_floors",
        f"Inputs that need cap and floor: error {worst['cap and floor']} with both, {worst['no cap']} without the cap, "
        f"{worst['no floor']} without the floor",
        "Left: on the Gaussian family, the share of sampled entries that the cap cuts and of rows that the floor "
        f"lifts: {100 * capped[0]:.2g} % of the entries at m = {m[0]}, {100 * capped[-1]:.2g} % at m = {m[-1]}. "
        "Right: on two families made to need them, the median error of ApproxD (bar) and its range over the runs "
        "(line), logarithmic; an error of 0 is a stub at the left edge. Beyond the line at "
        f"ε/2 = {number(aim)} (6) is broken.",
        figure,
    )


def _ablation_bars(axes: Axes, ablations: dict[str, dict[str, Verdict]], aim: float) -> None:
    rows = [(family, kind, runs[kind]) for family, runs in ablations.items() for kind in KINDS]
    edge = 1e-3
    for y, (_, kind, verdict) in enumerate(rows):
        low, middle, high = np.maximum(np.quantile(verdict.left, [0, 0.5, 1]), edge * 1.15)
        axes.barh(y, middle - edge, left=edge, color=KINDS[kind], height=0.7)
        axes.plot([low, high], [y, y], color=BLACK, linewidth=1)
        failed = f"{number(np.median(verdict.left))}: {verdict.failures} of {verdict.trials} fail"
        axes.text(high * 1.25, y, failed, va="center")
    axes.axvline(aim, color=RED, linewidth=1.2)
    axes.text(aim, len(rows) - 0.15, f"ε/2 = {number(aim)} ", color=RED, ha="right", va="bottom")
    axes.set_yticks(range(len(rows)), [f"{family}, {kind}" for family, kind, _ in rows])
    largest = max(verdict.left.max() for *_, verdict in rows)
    axes.set(xscale="log", xlim=(edge, max(1.0, largest) * 1000), ylim=(len(rows) - 0.1, -0.6))
    axes.set(xlabel="error in (6)", title="Hostile input: what their absence costs")
    axes.grid(axis="y", visible=False)


def ratios(report: Report) -> Plot:
    """One line for each statement, one marker for each family."""
    lines: list[tuple[str, list[Verdict]]] = []
    for title, verdicts in report.sections().items():
        lines.append((title.split(":")[0], []))
        lines += [(group[0].name, group) for group in statements(verdicts)]
    figure = Figure(figsize=(10, 0.9 + 0.215 * len(lines)))
    axes = figure.subplots()
    axes.axvspan(1, LARGEST_RATIO * 2, color="#f7ece6", linewidth=0)
    axes.axvline(1, color=BLACK, linewidth=1)
    for y, (_, verdicts) in enumerate(lines):
        for offset, verdict in zip(np.linspace(-0.3, 0.3, len(verdicts) + 2)[1:-1], verdicts, strict=True):
            _ratio_marker(axes, y + offset, verdict)
    axes.set(xscale="log", xlim=(LEAST_RATIO / 2, LARGEST_RATIO * 2), ylim=(len(lines) - 0.4, -0.6))
    axes.set_yticks(range(len(lines)), [_typeset(name) for name, _ in lines])
    axes.tick_params(axis="y", length=0, labelsize=8.5)
    for tick, (_, verdicts) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if verdicts else "bold")
    axes.set_xlabel("ratio of the left to the right side (above 1 the inequality fails)")
    axes.secondary_xaxis("top").tick_params(labelsize=8.5)
    for name in OUTCOMES:
        colour, marker = LOOK[name]
        axes.plot([], [], marker, color=colour, label=name, markersize=6)
    figure.legend(loc="outside upper center", ncols=len(OUTCOMES))
    failing = sum(verdict.ratios.max() > 1 for verdict in report.verdicts if outcome(verdict) in (HOLDS, NOT_REFUTED))
    return Plot(
        "ratios",
        f"{report.headline}: how much room every inequality has",
        "Left side over right side, smallest – median – largest over the trials, one marker for each family (or angle) "
        "that the statement was checked on. Left of the line at 1 the inequality holds; counterexamples belong right "
        "of it. Triangles stand for values beyond the axis: 0 on the left (equalities, within rounding), larger than "
        f"{LARGEST_RATIO:g} on the right. Of the random statements that stand, {failing} exceed 1 in a few trials, as "
        "their claim allows.",
        figure,
    )


def _typeset(name: str) -> str:
    """Subscripts and superscripts as matplotlib writes them."""
    name = re.sub(r"\^\(([^()]*)\)", r"$^{\1}$", name)
    return re.sub(r"_([A-Za-z0-9]+|∞)", r"$_{\\mathrm{\1}}$", name)


def _ratio_marker(axes: Axes, y: float, verdict: Verdict) -> None:
    colour, marker = LOOK[outcome(verdict)]
    finite = np.nan_to_num(verdict.ratios, nan=np.inf, posinf=np.inf, neginf=0)
    low, middle, high = np.clip(np.quantile(finite, [0, 0.5, 1], method="nearest"), LEAST_RATIO, LARGEST_RATIO)
    end = {LEAST_RATIO: "<", LARGEST_RATIO: ">"}.get(float(middle), marker)
    axes.plot([low, high], [y, y], color=colour, linewidth=1, alpha=0.7)
    axes.plot(middle, y, end, color=colour, markersize=4.5, markeredgewidth=0)


def sample_heads(report: Report) -> Plot:
    """The errors on the real heads, both measures, all methods."""
    figure = Figure(figsize=(10, 4.6))
    left, right = figure.subplots(1, 2, sharey=True)
    filled = [(BLUE, "o"), (PINK, "D"), (PINK, "D"), (GREEN, "^"), (BLACK, "s"), (BLACK, "x")]
    hollow = (heads.LITERAL_UNCAPPED, heads.ZERO)
    names = [head.name for head in report.heads]
    for row, (method, (colour, marker)) in enumerate(zip(heads.METHODS, filled, strict=True)):
        face = "white" if method in hollow else colour
        y = np.arange(len(names)) + (row - 2.5) * 0.13
        for axes, field in ((left, "relative_frobenius"), (right, "ratio")):
            x = [getattr(head.errors[method], field) for head in report.heads]
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, label=method, linestyle="none", markersize=6)
    epsilon = report.settings.epsilon
    right.axvline(epsilon, color=RED, linewidth=1.2)
    right.text(epsilon, len(names) - 0.52, f" ε = {epsilon:g}", color=RED, va="bottom")
    left.set(xscale="log", xlabel="relative Frobenius error", title="Is the output close to attention?")
    right.set(xscale="log", xlabel="error in (1)", title="Is inequality (1) met?")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    for axes in (left, right):
        axes.hlines(np.arange(len(names) - 1) + 0.5, *axes.get_xlim(), color="#cccccc", linewidth=0.8)
        axes.margins(x=0)
        axes.grid(axis="y", visible=False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    closer = sum(head.is_closer(heads.PRACTICAL, heads.MEAN) for head in report.heads)
    return Plot(
        "sample_heads",
        f"On {closer} of {len(names)} real heads the practical algorithm is closer to attention than the mean of V",
        "Six heads of a sentence encoder, 512 tokens, medians of five runs. Left: relative Frobenius error of the "
        "output; right: the error that the theorem speaks of, ‖Att − output‖ / (‖P‖ ‖V‖) in spectral norms. The two "
        "baselines look at no query: an output is of use where it lies left of both.",
        figure,
    )
