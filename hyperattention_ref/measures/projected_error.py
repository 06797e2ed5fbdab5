"""A bound for the error of an attention output that sees every row, at less than the cost of exact attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.kl_bounds import failure_probability
from hyperattention_ref.measures.per_head import per_head
from hyperattention_ref.measures.spectral_guarantee import quotient

DIRECTIONS = 0x64697273  # the purpose of these streams, "dirs" in ASCII; no other stream of a state has it


@dataclass(frozen=True, eq=False, repr=False)
class ProjectedError(Result):
    """The result of `projected_error`, E = Att - output; numbers, or arrays of the leading shape.

    Attributes
    ----------
    frobenius, relative_frobenius : upper bounds of ||E||_F and of ||E||_F / ||Att||_F; each individually holds with
        probability at least `confidence`.
    frobenius_estimate, relative_frobenius_estimate : estimates of the same, without guarantee.
    directions, confidence : the arguments.
    """

    frobenius: PerHead
    relative_frobenius: PerHead
    frobenius_estimate: PerHead
    relative_frobenius_estimate: PerHead
    directions: int = 0
    confidence: float = 0.0


def projected_error(
    q,
    k,
    v,
    output,
    *,
    directions: int = 4,
    confidence: float = 0.95,
    scale=None,
    is_causal: bool = False,
    rng=None,
    backend=None,
) -> ProjectedError:
    """Bound the error of an attention output from a few random directions of the values.

    Derived: page "theory", certificates after the fact. With G a (d_v, r) matrix of independent standard normal
    numbers, E G = P (V G) - output G is a pass of exact attention over r columns of values instead of d_v, and
    ||E G||_F^2 / r has the mean ||E||_F^2. No row is left out, so nothing can hide: small errors are bounded by a small
    multiple of themselves, where `certify` from drawn rows has a limit.

    Parameters
    ----------
    q, k, v, output, confidence, scale, is_causal, backend : as in `certify`; the output must not depend on `rng`.
    directions : r. At 95 % the bound of ||E||_F is 7.3, 3.3, 2.2 and 1.7 times its estimate for r = 2, 4, 8, 16.
    rng : None, int or Generator for the directions of each head.

    Returns
    -------
    ProjectedError

    Errors as in `certify`. Cost: n_q n_k (d + r) + (n_q + n_k) d_v r operations; memory O((n_q + n_k) (d + r)).
    Bounds hold up to the rounding of the inputs' dtype (float32 for float16).
    """
    q, k, v = inputs.heads(q, k, v, is_causal=is_causal)
    backend, directions = select(backend, q), inputs.count("directions", directions)
    delta = failure_probability(confidence)
    lead = q.shape[:-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, v)
    output = inputs.output(output, (*q.shape[:-1], v.shape[-1]))
    head_streams = dict(zip(np.ndindex(lead), streams(rng, math.prod(lead), purpose=DIRECTIONS), strict=True))
    work = np.promote_types(q.dtype, np.float32)
    memory = memory_of(backend)

    def measure(head) -> ProjectedError:
        g = head_streams[head].standard_normal((v.shape[-1], directions))
        unit = float(max(np.abs(v[head]).max(), np.abs(output[head]).max())) or 1.0
        values = (v[head].astype(np.float64) / unit @ g).astype(work)
        arrays = (memory.from_host(x) for x in (q[head].astype(work), k[head].astype(work), values))
        result, _ = backend.exact_attention(*arrays, scale=scale, is_causal=is_causal)
        attention = memory.to_host(result).astype(np.float64)
        error = attention - output[head].astype(np.float64) / unit @ g
        lengths = float(np.linalg.norm(error)), float(np.linalg.norm(attention))
        return _from_lengths(*lengths, unit, directions, delta)

    return replace(per_head(measure, lead), directions=directions, confidence=float(confidence))


def _from_lengths(error: float, attention: float, unit: float, r: int, delta: float) -> ProjectedError:
    """The bounds from ||E G||_F and ||Att G||_F in units."""
    relative = quotient(error, attention)
    shortest, longest = length_factors(r, delta / 2)
    estimate = unit * error / math.sqrt(r)
    return ProjectedError(
        frobenius=estimate / length_factors(r, delta)[0],
        relative_frobenius=relative * longest / shortest,
        frobenius_estimate=estimate,
        relative_frobenius_estimate=relative,
    )


def length_factors(r: int, delta: float) -> tuple[float, float]:
    """The two x with (x^2 e^(1 - x^2))^(r/2) = delta.

    For any fixed matrix E, ||E G||_F / (sqrt(r) ||E||_F) is below the smaller one with probability at most delta, and
    above the larger one likewise.
    """
    from scipy.special import lambertw

    level = -(delta ** (2 / r)) / math.e
    return math.sqrt(-lambertw(level, 0).real), math.sqrt(-lambertw(level, -1).real)
