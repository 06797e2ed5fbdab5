"""What all plots of the reports share. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222", "#8a8a8a",
)  # fmt: skip
STYLE: dict = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": BLACK,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def own_style() -> Iterator[None]:
    """Draw and save with `STYLE` on Matplotlib's defaults: a user's matplotlibrc changes no figure."""
    with rc_context():
        rcdefaults()
        rcParams.update(STYLE)
        yield


@dataclass(frozen=True)
class Plot:
    """A figure, the name of its file, and how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure
