"""The plots of a report."""

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
