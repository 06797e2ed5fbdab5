"""The plots of a report."""

from dataclasses import replace

import numpy as np

from hyperattention_ref.pages.wording import number
from hyperattention_ref.verify.figures import draw_figures


def test_figure_titles_state_the_measured_slopes(full):
    titles = {plot.name: plot.title for plot in draw_figures(full)}
    for v in full.verdicts:
        if "slope" in v.measured:
            assert number(v.measured["slope"]) in titles["error_against_m"]
    medians = {v.name: number(float(np.median(v.left))) for v in full.verdicts}
    assert medians["permutation, without the floor"] in titles["caps_and_floors"]


def test_the_aim_is_that_of_the_settings(full):
    """In the line, its label and the captions; 0.25 belongs to epsilon = 0.5."""
    at_03 = replace(full, settings=replace(full.settings, epsilon=0.3))
    (plot,) = [plot for plot in draw_figures(at_03) if plot.name == "error_against_m"]
    assert "ε = 0.3, so that the aim is an error of 0.15" in plot.caption
    for axes in plot.figure.axes:
        assert [0.15, 0.15] in [list(line.get_ydata()) for line in axes.lines]
    assert "aim: ε/2 = 0.15" in [text.get_text() for text in plot.figure.axes[0].texts]
