"""The interface of backends: what each must implement, the sums that it returns, and the iteration over heads.

The folder `backends/` implements it; `registry` finds a backend by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hyperattention_ref.foundation.results import Result

ARRAYS = ("log_total", "log_unmasked", "column_sums", "column_squares", "entropy")
"""The fields of `AttentionSums` that are arrays, in the memory of the backend; the others are floats."""
BLOCK_LISTS, LANDMARKS = "block lists", "landmarks"
"""The parts of a Plan that a backend may lack."""
GRADIENTS = "gradients"
"""The other thing that it may lack: `attention_gradient`."""


@dataclass(frozen=True, eq=False, repr=False)
class AttentionSums(Result):
    """Row and column sums of A = exp(scale Q K^T) and P = D^{-1} A, for one head.

    Derived: every field is a sum or an extreme over rows or columns, so tiles of any shape can be folded into it.

    Attributes
    ----------
    log_total : (n_q,) log D_ii.
    log_unmasked : (n_q,) log R_i, R_i the part of row i that the mask does not mark; -inf for a covered row.
    column_sums : (n_k,) sum_i P_ij.
    column_squares : (n_k,) sum_i P_ij^2.
    entropy : (n_q,) -sum_j P_ij log P_ij in nats; its exponential is the perplexity, the effective support of the row.
    logit_min, logit_max : over the pairs that exist.
    """

    log_total: Any
    log_unmasked: Any
    column_sums: Any
    column_squares: Any
    entropy: Any
    logit_min: float
    logit_max: float


@runtime_checkable
class Backend(Protocol):
    """What a backend must implement.

    Arrays are `(..., n, d)` with equal leading shapes; they may be views with any strides, stride 0 included. They are
    already checked: one floating dtype, finite, matching shapes, `scale` finite. `out` is `(..., n_q, d_v)` and
    `lse` `(..., n_q)`, the natural log of the softmax denominator.

    A backend whose arrays are not on the host has one more attribute, `memory`, a `foundation.memory.Memory`: arrays
    arrive as its views, results are arrays of the caller's library. Plans, masks, hyperplanes, samples and caps are
    decisions and lie on the host.

    A backend that cannot compute everything names what it `lacks`, a set of `BLOCK_LISTS`, `LANDMARKS` and
    `GRADIENTS`. Calls that need one of these are refused before they reach it, and the conformance suite makes none.
    One that lacks `GRADIENTS` needs no `attention_gradient`.

    A backend that hashes and sorts where its arrays lie may also offer `drawn_attention(q, k, v, noise, planner, *,
    scale, extremes)`: (out, lse) of the Plan that a `plan.planner.Planner` of the paper's recipe makes from its noise,
    without this Plan on the host. `backends/cuda_cpp/backend.py` has it, and says in its docstring what is read of the
    planner. The entries of q, k and v have not been checked then: `hyper_attention` reads `extremes` after the call.
    """

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run here, or None if it can."""

    def hash_codes(self, x, planes) -> Any:
        """Bucket numbers `(..., n)`, int64, of the rows of `x`; Definition 1."""

    def exact_attention(self, q, k, v, *, scale: float, is_causal: bool) -> tuple[Any, Any]:
        """(out, lse) of exact softmax attention."""

    def planned_attention(self, q, k, v, plan, *, scale: float) -> tuple[Any, Any]:
        """(out, lse) of the attention of `plan`; `plan.heads` follow the leading shape in row-major order."""

    def attention_gradient(
        self, q, k, v, plan, out, lse, dout, dlse, *, scale: float, is_causal: bool
    ) -> tuple[Any, Any, Any]:
        """(dq, dk, dv): the gradient of Σ dout∘out + Σ dlse∘lse, all decisions of the plan held constant.

        `plan` is None for exact attention, causal or not; `is_causal` is the plan's otherwise. `out` and `lse` are what
        `exact_attention` or `planned_attention` returned for these arguments, `dout` is of the shape of `out` and
        `dlse` of that of `lse`. A query that met no key gets 0. The results have the shapes of q, k and v, and are of
        the type of `lse`, or float64. Cost about 2.5 times the forward pass, memory O(n d).
        """

    def attention_sums(self, q, k, mask, *, scale: float, is_causal: bool) -> AttentionSums:
        """Row and column sums of one head, q `(n_q, d)` and k `(n_k, d)`.

        `mask` is a Rectangle (its views and exact keys mark pairs), a dense boolean array, or None.
        """

    def transposed_attention(self, q, k, y, lse, *, scale: float, is_causal: bool) -> Any:
        """P^T y `(n_k, c)` of one head, for y `(n_q, c)` and the log-sum-exps of the rows; P x is `exact_attention`."""

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale: float) -> tuple[Any, Any]:
        """The capped sums of Algorithm 2 over sampled keys, of one head, q `(n_q, d)` and k `(n_k, d)`.

        With A = exp(scale q k^T), M the mask (as in `attention_sums`; the sampled keys of a Rectangle are ignored),
        ℓ = `samples` `(m,)`, m >= 1, int64 keys with repetition, and log C = `log_caps` `(n_q,)` float64, +inf for no
        cap: `log_sums` `(n_q,)`, log Σ_r (1 - M_{i,ℓ_r}) min(A_{i,ℓ_r}, C_i), -inf for an empty sum, and `n_capped`
        `(n_q,)` int64, how many of these draws have A_{i,ℓ_r} > C_i.
        """


def lacks(backend: Backend, parts) -> set[str]:
    """Which of these parts of a Plan, or gradients, the backend cannot compute."""
    return set(parts) & set(getattr(backend, "lacks", ()))


def missing_members(x) -> list[str]:
    """What an object lacks to be a Backend."""
    members = [*Backend.__annotations__, *(name for name in vars(Backend) if not name.startswith("_"))]
    if lacks(x, {GRADIENTS}):
        members.remove("attention_gradient")
    return [name for name in dict.fromkeys(members) if not hasattr(x, name)]


def each_head(plan_or_none, *arrays):
    """Iterate over heads in row-major order: the index, the HeadPlan (or None) and the (n, d) arrays of the head."""
    for h, index in enumerate(np.ndindex(arrays[0].shape[:-2])):
        yield index, plan_or_none.heads[h] if plan_or_none else None, *(x[index] for x in arrays)
