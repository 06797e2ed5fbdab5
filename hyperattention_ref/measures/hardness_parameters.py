"""The hardness parameters alpha and kappa of an attention matrix and related measures, for any n."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import ARRAYS
from hyperattention_ref.foundation.memory import memory_of, working_dtype
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import PerHead, Result
from hyperattention_ref.measures.attention_matrix import attention_logits, row_softmax
from hyperattention_ref.measures.norm_interval import norm_interval
from hyperattention_ref.measures.per_head import per_head
from hyperattention_ref.paper.row_rescaling import PILOT_SIZE, pilot_log_row_sums
from hyperattention_ref.paper.row_sums import large_entries
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.tiling import causal_tiling

DENSE_ENTRIES = 2**24
"""Up to this many pairs the operator norm comes from the dense P, which is cheaper than streaming P many times."""
LOG_OVERFLOW = {"float16": math.log(65504), "bfloat16": math.log(3.3895e38), "float32": math.log(3.4028e38)}
"""Natural logarithms of the largest numbers: exp of a larger logit overflows."""


@dataclass(frozen=True, eq=False, repr=False)
class Hardness(Result):
    """The result of `hardness`; every field has the leading shape of the input in front.

    A = exp(scale * Q K^T), P = D^-1 A its row-normalised form, R_i the unmasked part of row sum i of A. All fields
    but the kappas and the logits are functions of P alone.

    Attributes
    ----------
    alpha : n_k^2 / n_q times the largest squared column norm of P; from 1 (P flat) to n_k^2 (one column takes all).
    alpha_curve : (..., n_k); entry k is alpha with the k heaviest columns left out.
    heavy_columns : (..., n_k) the columns (keys) in descending order of norm, equal ones in ascending order of index.
    log_kappa : ln(max R_i / min R_i) over the rows with R_i > 0; 0.0 when there is none.
    log_kappa_rescaled : the same for E A, with 1 / E_ii a pilot estimate of R_i.
    frobenius_norm : ||P||_F, at most sqrt(alpha n_q / n_k).
    op_norm, op_norm_high : ||P||_op lies between them, up to rounding; op_norm is at least sqrt(n_q / n_k). They agree
        to 5e-4, relatively, where 12 rounds reach that: see `measures.norm_interval`. None if not requested.
    stable_rank : ||P||_F^2 / op_norm^2, at most alpha; None without op_norm.
    perplexity : (..., n_q) exp of the entropy of each row of P: the effective number of its keys.
    logit_min, logit_max : the range of scale * Q K^T, with causal attention over the pairs j <= i.
    """

    alpha: PerHead
    alpha_curve: np.ndarray
    heavy_columns: np.ndarray
    log_kappa: PerHead
    log_kappa_rescaled: PerHead
    frobenius_norm: PerHead
    op_norm: PerHead
    op_norm_high: PerHead
    stable_rank: PerHead
    perplexity: np.ndarray
    logit_min: PerHead
    logit_max: PerHead

    @property
    def overflows(self) -> dict[str, bool | np.ndarray]:
        """For each floating-point type, whether exp of the largest logit overflows it."""
        return {name: self.logit_max > limit for name, limit in LOG_OVERFLOW.items()}


def hardness(
    q, k, mask=None, *, scale=None, is_causal: bool = False, op_norm: bool = True, rng=None, backend=None
) -> Hardness:
    """Measure exactly how hard an attention matrix is for HyperAttention, without forming it.

    Paper: alpha and kappa of section 1, the hypotheses of Lemma 1 and Theorem 1. Derived: the rectangular alpha, the
    curve, and kappa after row rescaling (page "theory"). Row sums of exp(Q K^T) differ by factors that are unrelated
    to attention, so kappa alone says little; kappa after rescaling is what remains.

    Parameters
    ----------
    q, k, scale : as in `exact_attention`, on the host or, for a GPU backend, on its device. The backend computes in
        their dtype (float32 for shorter ones).
    mask : large entries: a Plan of one rectangle for each head (its views and exact keys count, its samples do not),
        or one mask for all heads: BlockMask, boolean (n_q, n_k) array, SciPy sparse matrix or None. Only the kappas
        depend on it.
    is_causal : pairs j > i do not exist (A_ij = 0). P_11 = 1 then, so alpha >= n whatever the input; flat causal
        attention has alpha near pi^2 / 6 n and kappa = n. `causal_hardness` measures the recursion's rectangles.
    op_norm : False omits ||P||_op and the stable rank. For more than 2^24 pairs they need 1 to 12 rounds of two passes
        over all pairs; everything else needs one pass.
    rng : None, int or Generator for the 128 pilot keys of each head (uniform, with replacement); the heads draw from
        it in order. Only `log_kappa_rescaled` depends on it.
    backend : None, a name or an instance; see `backends.select`. "reference" is dense and float64.

    Returns
    -------
    Hardness, its fields floats and one-dimensional arrays for one head, with the leading shape in front otherwise.

    Raises
    ------
    TypeError, ValueError : bad shapes, types or values; causal with n_q != n_k; logits that may overflow; a plan for
        other shapes, or a causal one.

    Cost: n_q n_k (d + some 10) operations per head, memory O((n_q + n_k) d). Results are host arrays. A GPU returns the
    sums over rows and columns; for heads of up to 2^24 pairs q and k are copied, too, and the host computes ||P||_op.
    """
    backend, op_norm = select(backend, q), inputs.boolean("op_norm", op_norm)
    q, k, _, largest = inputs.measured_heads(q, k, is_causal=is_causal, memory=memory_of(backend))
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, largest=largest)
    masks = _masks(mask, q.shape[:-2], q.shape[-2], k.shape[-2])
    rng = generator(rng)

    def one_head(index) -> Hardness:
        return _one_head(q[index], k[index], masks[index], scale, is_causal, op_norm, rng, backend)

    return per_head(one_head, q.shape[:-2])


def causal_hardness(q, k, *, min_seq_len: int = 4096, **options) -> dict[tuple[int, int, int], Hardness]:
    """Measure the rectangles of the causal recursion, which are the approximated part.

    Paper: Algorithm 4. Derived: the diagonal of a causal map forces alpha >= n, so only rectangles are informative.

    Parameters
    ----------
    q, k : (..., n, d) arrays.
    min_seq_len : ranges up to this length are exact leaves and are not measured.
    **options : scale, op_norm, rng and backend, as in `hardness`.

    Returns
    -------
    dict from (start, split, stop) to the Hardness of queries [split, stop) by keys [start, split); empty when n is at
    most min_seq_len.
    """
    backend = select(options.pop("backend", None), q)
    q, k, _ = inputs.heads(q, k, is_causal=True, memory=memory_of(backend))
    options["backend"], options["rng"] = backend, generator(options.get("rng"))
    _, rectangles = causal_tiling(q.shape[-2], min_seq_len)
    return {(a, s, c): hardness(q[..., s:c, :], k[..., a:s, :], **options) for a, s, c in rectangles}


def _one_head(q, k, mask, scale, is_causal, op_norm, rng, backend) -> Hardness:
    n_q, n_k = len(q), len(k)
    memory = memory_of(backend)
    sums = backend.attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
    sums = replace(sums, **{name: memory.to_host(getattr(sums, name)) for name in ARRAYS})
    heavy_columns = np.argsort(-sums.column_squares, kind="stable")
    alpha_curve = n_k**2 / n_q * sums.column_squares[heavy_columns]
    squares = float(sums.column_squares.sum())
    pilot = rng.integers(n_k, size=PILOT_SIZE)
    log_pilot = pilot_log_row_sums(q, k, mask, pilot, scale=scale, is_causal=is_causal, backend=backend)
    low = high = None
    if op_norm:
        low, high = norm_interval(_gram(q, k, sums.log_total, scale, is_causal, backend), sums.column_squares)
    return Hardness(
        alpha=float(alpha_curve[0]),
        alpha_curve=alpha_curve,
        heavy_columns=heavy_columns,
        log_kappa=_log_kappa(sums.log_unmasked),
        log_kappa_rescaled=_log_kappa(sums.log_unmasked - log_pilot),
        frobenius_norm=math.sqrt(squares),
        op_norm=low,
        op_norm_high=high,
        stable_rank=None if low is None else squares / low**2,
        perplexity=np.exp(sums.entropy),
        logit_min=sums.logit_min,
        logit_max=sums.logit_max,
    )


def _masks(mask, lead: tuple[int, ...], n_q: int, n_k: int) -> dict[tuple[int, ...], Any]:
    """For the index of each head its mask: a Rectangle, a dense boolean array or None."""
    if isinstance(mask, Plan):
        mask.check_fits(lead, n_q, n_k, is_causal=False)
        return dict(zip(np.ndindex(lead), map(_as_rectangle, mask.heads), strict=True))
    return dict.fromkeys(np.ndindex(lead), None if mask is None else large_entries(mask, n_q, n_k))


def _as_rectangle(head: HeadPlan) -> Rectangle:
    """The exact pairs of a head that is not causal; block lists become views."""
    (rectangle,) = head.rectangles or (Rectangle(head.n_q, head.n_k),)
    views = head.lists.views() if head.lists is not None else ()
    return Rectangle(head.n_q, head.n_k, (*rectangle.views, *views), rectangle.exact_keys)


def _gram(q, k, log_total, scale, is_causal, backend):
    """The function X -> P^T P X: with the dense P if it is small, else streamed by the backend."""
    memory = memory_of(backend)
    if len(q) * len(k) <= DENSE_ENTRIES:
        q, k = (memory.to_host(x) for x in (q, k))
        p = row_softmax(attention_logits(q, k, scale, is_causal))
        return lambda x: p.T @ (p @ x)
    work = working_dtype(q)
    q, k = memory.copy(q, work.name), memory.copy(k, work.name)

    def streamed(x):
        y, _ = backend.exact_attention(q, k, memory.from_host(x.astype(work), like=q), scale=scale, is_causal=is_causal)
        z = backend.transposed_attention(q, k, y, log_total, scale=scale, is_causal=is_causal)
        return memory.to_host(z).astype(np.float64)

    return streamed


def _log_kappa(log_r: np.ndarray) -> float:
    """max - min over the rows with R_i > 0: a row that the mask covers is exact and does not count for kappa."""
    finite = log_r[np.isfinite(log_r)]
    return float(np.ptp(finite)) if finite.size else 0.0
