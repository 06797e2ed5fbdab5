"""Confidence bounds for the error of an attention output: from some exact rows, or exact from all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_rows import DEFAULT_ROWS, ROWS
from hyperattention_ref.measures.error_bounds import MEAN, ZERO, ErrorBounds, Problem, Rule, Sizes, bound_errors
from hyperattention_ref.measures.kl_bounds import failure_probability
from hyperattention_ref.measures.per_head import per_head

EXACT_OPERATIONS = 2**41
"""Up to so many multiply-adds all rows are taken unless told otherwise: a minute on two cores (n = 131072, d = 64)."""


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Result):
    """The result of `certify`.

    Each bound in `output`, `zero` and `mean` individually holds with probability at least `confidence` over the draw of
    the rows; not jointly. The lower bound of ||P||_op enters `ratio`; it and ||Att||_F's hold with probability at least
    (1 + confidence) / 2 each.

    Attributes
    ----------
    output : bounds for the given output.
    zero : bounds for the output 0; its relative error is 1 by definition.
    mean : bounds for the mean of V's rows in every row (of V_0 .. V_i with causal attention), which is flat attention.
    sizes : the denominators.
    rows : s, the number of exact rows of each head; n_q where the errors are exact.
    rows_to_decide : about so many rows show whether the output's relative error is within `tolerance`: `rows` where
        these rows show it, n_q where only all rows will.
    confidence, tolerance : the arguments of `certify`.
    """

    output: ErrorBounds
    zero: ErrorBounds
    mean: ErrorBounds
    sizes: Sizes
    rows: PerHead
    rows_to_decide: PerHead
    confidence: float = 0.0
    tolerance: float = 0.0


def certify(
    q,
    k,
    v,
    output,
    *,
    rows=None,
    confidence: float = 0.95,
    tolerance: float = 0.1,
    scale=None,
    is_causal: bool = False,
    rng=None,
    backend=None,
) -> Certificate:
    """Bound the error of an attention output, however computed, or measure it exactly.

    Derived: page "theory", certificates after the fact; page "estimators" lists the assumptions and limits of the
    bounds. `spectral_error` computes the errors from the dense matrix.

    Parameters
    ----------
    q, k, v, scale, is_causal : as in `exact_attention`.
    output : (..., n_q, d_v) array, finite, fixed before the rows are drawn; its type may differ from the others'.
    rows : the exact rows of each head, drawn without replacement.
        A number s; n_q gives the exact errors, from one pass of the backend over all pairs, like "all".
        "auto" draws until the relative error of the output is shown to be within the tolerance or beyond it, and takes
        all rows where a sixteenth of them does not show it.
        None means "all" up to 2^41 multiply-adds, about a minute on two cores, and 1024 rows beyond.
    confidence : of each individual bound, in (0, 1).
    tolerance : the relative Frobenius error that decides, for "auto" and `rows_to_decide`.
    rng : None, int or Generator for the rows. The output must not depend on them; the output of `hyper_attention` does
        not, not even with the same integer seed.
    backend : of the pass over all rows: None, a name or an instance; see `backends.select`.

    Returns
    -------
    Certificate

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; more rows than n_q; causal with n_q != n_k; logits that may
        overflow the type.

    Cost: s n_k (d + d_v + some 20) + (n_q + n_k) d_v^2 operations per head; memory O((n_q + n_k) d_v) and a few panels
    of 32 x n_k numbers. Rows of Att are computed in the dtype of the inputs (float32 for float16): bounds hold up to
    its rounding.
    """
    q, k, v = inputs.heads(q, k, v, is_causal=is_causal)
    backend = select(backend, q)
    lead = q.shape[:-2]
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, v)
    output = inputs.output(output, (*q.shape[:-1], v.shape[-1]))
    rule = Rule(exact_rows(rows, q, v), failure_probability(confidence), inputs.positive("tolerance", tolerance))
    row_streams = dict(zip(np.ndindex(lead), streams(rng, math.prod(lead), purpose=ROWS), strict=True))

    def measure(head) -> Certificate:
        problem = Problem(q[head], k[head], v[head], scale, is_causal)
        found = bound_errors(problem, {"output": output[head]}, rule, row_streams[head], backend)
        return Certificate(
            output=found.bounds["output"],
            zero=found.bounds[ZERO],
            mean=found.bounds[MEAN],
            sizes=found.sizes,
            rows=found.rows,
            rows_to_decide=found.rows_to_decide,
        )

    return replace(per_head(measure, lead), confidence=float(confidence), tolerance=float(tolerance))


def exact_rows(rows, q, v) -> int | str:
    """The argument `rows` of `certify`, resolved to a number or "auto", for heads of checked shapes."""
    n_q, n_k = q.shape[-2], v.shape[-2]
    if isinstance(rows, str) and rows not in ("auto", "all"):
        raise ValueError(f'rows is {rows!r}; it must be a number from 1 to {n_q}, "auto", "all" or None')
    if rows is None:
        operations = math.prod(q.shape[:-1]) * n_k * (q.shape[-1] + v.shape[-1])
        rows = "all" if operations <= EXACT_OPERATIONS else min(DEFAULT_ROWS, n_q)
    if rows == "all":
        return n_q
    return rows if rows == "auto" else inputs.count("rows", rows, most=n_q)
