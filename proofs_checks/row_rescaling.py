"""Row rescaling: kappa is an artefact of row scale, which a pilot of 128 keys removes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from hyperattention_ref import synthetic

from .dense import ROUNDING, Dense
from .settings import Settings
from .verdict import Verdict

FAMILIES = ("gaussian", "sink", "cones")
M = 256
SPREAD = 5.0
KAPPA = 2.0
"""What the algorithm is told where its answer does not depend on it; small, so that cap and floor act."""


def check(settings: Settings):
    for dense in settings.heads(FAMILIES, n=min(settings.n, 256), mask_given=None):
        yield blind_to_scale(settings, dense)
    rng = settings.rng("row rescaling")
    base = synthetic.gaussian(settings.n, rng=rng)
    dense = Dense.of(synthetic.scale_rows(base, rng.uniform(0, SPREAD, settings.n)))
    yield from errors(settings, dense, "rows of A multiplied by e^U[0,5]; no mask")


def check_matrix(settings: Settings, dense: Dense):
    """The identity without the mask, and both errors of the matrix as it is."""
    yield blind_to_scale(settings, replace(dense, mask_given=None))
    yield from errors(settings, dense, "any matrix")


def blind_to_scale(settings: Settings, dense: Dense) -> Verdict:
    """ApproxD of F A against F times ApproxD of A, F diagonal, from the same draws."""
    rng = settings.rng("row rescaling, blind", dense.family)
    left = []
    for _ in range(settings.trials_for()):
        log_factors = rng.uniform(0, SPREAD, size=dense.n)
        scaled, seed = dense.with_rows_scaled(log_factors), int(rng.integers(2**32))
        log_d, log_scaled = (
            x.approx_d(kappa=KAPPA, epsilon=settings.epsilon, m=M, rescale_rows=True, rng=seed).log_d
            for x in (dense, scaled)
        )
        left.append(np.abs(np.expm1(log_scaled - log_factors - log_d)).max())
    return dense.verdict(
        name="row rescaling, blind to the scale of rows",
        paper="9.2, derived",
        statement="ApproxD with row rescaling of FA is F times that of A; left is the largest relative difference.",
        hypothesis="F diagonal, here e^U[0,5]; no mask; the same draws; any κ",
        left=left,
        right=ROUNDING,
        m_used=M,
    )


def errors(settings: Settings, dense: Dense, hypothesis: str):
    yield error(settings, dense, hypothesis, "as they are", rescale_rows=False)
    yield error(settings, dense, hypothesis, "with a pilot of 128", rescale_rows=True)


def error(settings: Settings, dense: Dense, hypothesis: str, label: str, *, rescale_rows: bool) -> Verdict:
    """The error of ApproxD when kappa is exact for the matrix that the algorithm runs on."""
    errors, log_kappas = [], []
    for seed in settings.rng("row rescaling", label).integers(2**32, size=settings.trials_for()).tolist():
        run = partial(dense.approx_d, epsilon=settings.epsilon, m=M, rescale_rows=rescale_rows, rng=seed)
        open_rows = np.isfinite(dense.log_r)
        rescaled = (dense.log_r - run(kappa=1.0).log_pilot)[open_rows]  # the same pilot, whatever kappa is
        log_kappas.append(float(np.ptp(rescaled)) if rescaled.size else 0.0)
        errors.append(dense.diagonal_error(run(kappa=math.exp(log_kappas[-1])).log_d))
    return dense.verdict(
        name=f"row scales, {label}",
        paper="9.2, derived",
        statement="‖(D̃⁻¹ - D⁻¹)A‖_op ≤ (ε/2) ‖D⁻¹A‖_op in every run; both sides over ‖D⁻¹A‖_op.",
        hypothesis=f"{hypothesis}; κ exact for the matrix that the algorithm runs on",
        left=errors,
        right=settings.epsilon / 2,
        provable=False,
        expected=None,  # no pilot of a fixed size bounds κ with certainty
        m_used=M,
        measured={"alpha": dense.alpha, "log kappa": float(np.median(log_kappas))},
    )
