"""Algorithm 2 (ApproxD): the diagonal of row sums from a mask and m sampled keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy import inf, logaddexp

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import generator, streams
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.paper.row_rescaling import PILOT_SIZE, pilot_log_row_sums
from hyperattention_ref.paper.row_sums import RowSums, covered_rows, large_entries
from hyperattention_ref.plan.head_plan import Rectangle


@dataclass(frozen=True, eq=False, repr=False)
class Parameters(Result):
    """The parameters of Algorithm 2, as in `approx_d`; out of range they are refused."""

    kappa: float
    epsilon: float
    m: int
    alpha: float | None
    scale: float
    cap_constant: float
    rescale_rows: bool
    pilot_size: int = PILOT_SIZE

    def __post_init__(self):
        checked = {
            "kappa": inputs.at_least("kappa", self.kappa, 1.0),
            "epsilon": inputs.positive("epsilon", self.epsilon),
            "m": inputs.count("m", self.m),
            "alpha": None if self.alpha is None else inputs.positive("alpha", self.alpha),
            "scale": inputs.finite("scale", self.scale),
            "cap_constant": inputs.positive("cap_constant", self.cap_constant, allow_infinite=True),
            "rescale_rows": inputs.boolean("rescale_rows", self.rescale_rows),
            "pilot_size": inputs.count("pilot_size", self.pilot_size),
        }
        for name, x in checked.items():
            object.__setattr__(self, name, x)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ApproxDResult(Parameters):
    """D̃ of Algorithm 2, its parameters, and all that was drawn or decided on the way; every logarithm is natural.

    With row rescaling the algorithm runs on E A, E = diag(exp(-log_pilot)): `log_tau`, `log_caps` and `log_floor`
    belong to E A, `log_d` to A.

    Attributes
    ----------
    log_d : (n_q,) log of the estimated row sums d̃.
    subset : T, the rows that estimate tau.
    samples : ℓ, the m sampled keys.
    log_tau : log of the largest unmasked row sum in T; -inf when the mask covers every row.
    log_caps : (n_q,) log C_i, the cap on single entries; inf without cap.
    log_floor : log(tau / kappa).
    log_pilot : (n_q,) log of the pilot estimates 1/E_ii; zeros without row rescaling.
    n_capped : number of unmasked sampled entries above their cap, repeated draws counted.
    n_floored : number of rows whose estimate d_i was below the floor.
    meets_epsilon, meets_alpha : whether the stated preconditions epsilon > 1/kappa^4 and alpha > epsilon^2 kappa hold
        (None without alpha). They are recorded, not required: the proof does not use them.
    """

    log_d: np.ndarray
    subset: np.ndarray
    samples: np.ndarray
    log_tau: float
    log_caps: np.ndarray
    log_floor: float
    log_pilot: np.ndarray
    n_capped: int
    n_floored: int
    meets_epsilon: bool
    meets_alpha: bool | None

    @property
    def d(self) -> np.ndarray:
        """(n_q,) the estimated row sums; infinite where they exceed float64."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_d)

    @property
    def tau(self) -> float:
        """The largest unmasked row sum in T."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.log_tau))


def approx_d(
    q,
    k,
    mask,
    *,
    kappa: float,
    epsilon: float,
    m: int,
    alpha: float | None = None,
    scale: float = 1.0,
    cap_constant: float = 1.0,
    rescale_rows: bool = False,
    pilot_size: int = PILOT_SIZE,
    rng=None,
    backend=None,
) -> ApproxDResult:
    """Estimate D_ii = Σ_j A_ij, A = exp(scale Q K^T), for all rows from one set of m sampled keys.

    Paper: Algorithm 2 (ApproxD); Lemma 1 states its error. With H_i the masked and R_i the unmasked part of row i,
    d̃_i = H_i + max(d_i, τ/κ), d_i = (n_k/m) Σ_r (1 - M_{i,ℓ_r}) min(A_{i,ℓ_r}, C_i),
    C_i = γ ε² m / (n_k ln max(n_q, n_k, 2)) (H_i + τ/κ).

    Parameters
    ----------
    q : (n_q, d) float array.
    k : (n_k, d) float array.
    mask : M, the large entries: BlockMask, Rectangle, (n_q, n_k) boolean array, SciPy sparse matrix, or None for none.
    kappa : κ >= 1, a bound on max R_i / min R_i.
    epsilon : ε > 0, the error aimed at.
    m : number of sampled keys, with replacement; may exceed n_k. Also the size of T, at most the number of rows.
    alpha : α, recorded only; the algorithm does not use it.
    scale : multiplies the logits; 1, as the paper writes exp(QK^T).
    cap_constant : γ, the constant in the paper's Θ; math.inf means no cap. 1/2048 is what the proof uses.
    rescale_rows : run on E A with 1/E_ii a pilot estimate of R_i (derived: page "theory", 9.2); then `kappa` bounds
        κ(E A). The pilot keys come from a stream of their own.
    pilot_size : number of pilot keys.
    rng : None, seed or numpy.random.Generator.
    backend : a name or an instance, see `backends.select`; None means `reference`, dense and literal.

    Returns
    -------
    ApproxDResult, in float64. Cost O(d ((n_q + n_k) m + nnz(M))), with no n_q x n_k array; but O(n_q n_k d) from the
    `reference` backend, and for a mask that is an array or a sparse matrix.

    Notes
    -----
    Differs from the paper: a row that the mask covers completely has d̃_i = H_i, without floor, and is not drawn
    into T, so that τ > 0 whenever a row needs it. All sums are kept as logarithms.
    """
    chosen = select(backend, q, default="reference")
    memory = memory_of(chosen)
    q, k = inputs.query_key(q, k, memory)
    parameters = Parameters(kappa, epsilon, m, alpha, scale, cap_constant, rescale_rows, pilot_size)
    inputs.logit_range(q, k, parameters.scale, memory=memory)
    mask = large_entries(mask, len(q), len(k))
    return approx_d_core(q, k, mask, parameters, generator(rng), chosen)


def approx_d_core(
    q, k, mask: Rectangle | np.ndarray, parameters: Parameters, rng: np.random.Generator, backend: Backend
) -> ApproxDResult:
    """Algorithm 2 for checked arguments, its arrays in the memory of the backend; `mask` is from `large_entries`."""
    p, n_q, n_k = parameters, len(q), len(k)
    (pilot_rng,) = streams(rng, 1)

    sums = RowSums(backend, q, k, mask, p.scale, log_pilot=np.zeros(n_q))  # of A
    if p.rescale_rows:
        pilot = pilot_rng.integers(n_k, size=p.pilot_size)
        log_pilot = pilot_log_row_sums(q, k, mask, pilot, scale=p.scale, backend=backend)
        sums = replace(sums, log_pilot=log_pilot)  # of E A
    log_h = sums.masked()  # H_i
    covered = covered_rows(mask)
    candidates = np.flatnonzero(~covered)

    # line 1: T, a uniformly random subset of the rows
    subset = rng.choice(candidates, size=min(p.m, candidates.size), replace=False)
    # line 2: τ, the largest unmasked row sum in T
    log_tau = float(sums.unmasked(subset).max(initial=-inf))
    log_floor = log_tau - math.log(p.kappa)
    # line 3: ℓ_1 .. ℓ_m, i.i.d. uniform keys
    samples = rng.integers(n_k, size=p.m)
    # line 4: for every row i
    #   C_i = γ ε² m / (n ln n) (H_i + τ/κ)
    log_caps = log_cap_factor(n_q, n_k, p.m, p.epsilon, p.cap_constant) + logaddexp(log_h, log_floor)
    #   d_i = (n/m) Σ_r (1 - M_{i,ℓ_r}) min(A_{i,ℓ_r}, C_i)
    log_capped, n_capped = sums.capped(samples, log_caps)
    log_estimate = math.log(n_k) - math.log(p.m) + log_capped
    #   d̃_i = H_i + max(d_i, τ/κ)
    log_d = logaddexp(log_h, np.where(covered, -inf, np.maximum(log_estimate, log_floor)))
    # line 5: D̃ = diag(d̃)
    return ApproxDResult(
        **vars(p),
        log_d=log_d + sums.log_pilot,
        subset=subset,
        samples=samples,
        log_tau=log_tau,
        log_caps=log_caps,
        log_floor=log_floor,
        log_pilot=sums.log_pilot,
        n_capped=int(n_capped.sum()),
        n_floored=int(np.sum(~covered & (log_estimate < log_floor))),
        meets_epsilon=p.epsilon > p.kappa**-4,
        meets_alpha=None if p.alpha is None else p.alpha > p.epsilon**2 * p.kappa,
    )


def log_cap_factor(n_q: int, n_k: int, m: int, epsilon: float, gamma: float) -> float:
    """log of γ ε² m / (n_k ln max(n_q, n_k, 2)), the factor of the cap C_i; inf when γ is."""
    return math.log(gamma) + 2 * math.log(epsilon) + math.log(m) - math.log(n_k * math.log(max(n_q, n_k, 2)))
