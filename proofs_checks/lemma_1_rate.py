"""The rate at which the error of ApproxD falls with m, with and without cap, and the m of the bounds."""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref import synthetic

from . import lemma_1, lemma_1_usable
from .dense import Dense
from .settings import Settings
from .verdict import Verdict

SAMPLES = (64, 128, 256, 512, 1024, 2048, 4096)
FITS = {"cap constant 1": (1.0, 256, 4096), "no cap": (math.inf, 64, 1024)}
"""The cap constants and ranges of m for the fit: below m = 256 the cap's bias bends the curve."""
EPSILONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The ε for which the m of the bounds is computed."""


def check(settings: Settings):
    yield from check_matrix(settings, Dense.of(synthetic.gaussian(settings.n, rng=settings.rng("lemma 1, rate"))))


def check_matrix(settings: Settings, dense: Dense):
    for label, (gamma, least, most) in FITS.items():
        yield slope(settings, dense, label, gamma, least, most)


def slope(settings: Settings, dense: Dense, label: str, gamma: float, least: int, most: int) -> Verdict:
    """Fit log error = slope · log m + constant to the mean errors."""
    rng = settings.rng("lemma 1, rate", label)
    repeats = max(3, settings.trials // 4)
    runs = [
        [dense.approx_d(epsilon=settings.epsilon, m=m, cap_constant=gamma, rng=rng) for _ in range(repeats)]
        for m in SAMPLES
    ]
    errors = np.array([[dense.diagonal_error(run.log_d) for run in at_m] for at_m in runs])
    fitted = np.array([least <= m <= most for m in SAMPLES])
    exponent = np.polyfit(np.log(SAMPLES)[fitted], np.log(errors.mean(axis=1))[fitted], 1)[0]
    return dense.verdict(
        name=f"rate m^(-1/2), {label}",
        paper="Lemma 1; derived",
        statement=f"The fitted slope of log error against log m lies between -0.6 and -0.4 for m = {least} … {most}.",
        hypothesis=f"{label}, ε = {settings.epsilon:g}, κ exact",
        left=abs(exponent + 0.5),
        right=0.1,
        provable=False,
        expected=None,  # the lemma bounds the error from above; no theorem gives the slope
        measured=dense.hardness()
        | {
            "slope": float(exponent),
            "m": list(SAMPLES),
            "errors": errors.tolist(),
            "fitted": fitted.tolist(),
            "asked": {
                "epsilon": list(EPSILONS),
                "Lemma 1": [
                    lemma_1.samples_asked(dense.n, dense.kappa, dense.alpha, e, dense.op_norm) for e in EPSILONS
                ],
                "usable version": [lemma_1_usable.samples_asked(dense, e) for e in EPSILONS],
            },
            "entries capped": [float(np.mean([run.n_capped / (run.m * dense.n) for run in at_m])) for at_m in runs],
            "rows floored": [float(np.mean([run.n_floored / dense.n for run in at_m])) for at_m in runs],
        },
    )
