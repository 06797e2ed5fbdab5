"""The gradient of everyday attention on heads `(..., n, d)`: exact, or of a Plan whose decisions are held constant."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperattention_ref.attention import check_plan
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import GRADIENTS, Backend, lacks
from hyperattention_ref.foundation.extremes import Extremes
from hyperattention_ref.foundation.host_arrays import dtype_name, like
from hyperattention_ref.foundation.memory import memory_of, working_dtype
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.plan.plan import Plan


def attention_gradient(
    q,
    k,
    v,
    dout,
    *,
    plan: Plan | None = None,
    is_causal: bool = False,
    scale=None,
    enable_gqa: bool = False,
    backend=None,
):
    """The gradient of Σ dout∘out with respect to q, k and v, for out of `exact_attention` or `hyper_attention`.

    Derived: page "theory", section 9.10. With p = e^{x - L}, x the logit of a pair with its log-weight, L the
    log-sum-exp of its query and δ = dout·out: dx = p (dout·v - δ), dq = scale Σ dx k, dk = scale Σ dx q,
    dv = Σ p dout. The decisions of the plan are held constant: hashes, orders and samples have no derivative, or the
    derivative 0.

    Parameters
    ----------
    q : (..., n_q, d) float16, float32 or float64 array, or torch tensor, which may be bfloat16 too.
    k : (..., n_k, d) array of the same dtype and leading shape (see `enable_gqa`).
    v : (..., n_k, d_v) array.
    dout : (..., n_q, d_v) array of the same dtype: the gradient of a number with respect to the output.
    plan : the Plan of the attention; None for exact attention.
    is_causal, scale, enable_gqa, backend : as in `hyper_attention`. Query heads that share a key head add up.

    Returns
    -------
    (dq, dk, dv) of the shapes and the dtype of q, k and v (float64 from the reference backend), tensors if q is one.

    Raises
    ------
    TypeError, ValueError
        as `hyper_attention`; for `dout` of another shape or dtype, and gradients that may overflow; for a backend that
        has no gradients.

    Notes
    -----
    Cost about 2.5 times the forward pass, which comes first; memory O(n d). float16 and bfloat16 are computed in
    float32 throughout and rounded once.
    """
    return gradient_of(
        q, k, v, dout, plan=plan, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa, backend=backend
    )


def gradient_of(q, k, v, dout, *, plan, is_causal, scale, enable_gqa, backend, results=None, dlse=None):
    """As `attention_gradient`; `results` are (out, lse) if they are known, `dlse` (..., n_q) the gradient of lse."""
    chosen = select(backend, q)
    check_gradients(chosen)
    memory, callers = memory_of(chosen), (q, k, v)
    upstream, dtype = memory.view("dout", dout), dtype_name(q, memory.view("query", q))
    if dtype_name(dout, upstream) != dtype:
        raise TypeError(f"dout is {dtype_name(dout, upstream)} and query is {dtype}: convert it to the query's dtype")
    q, k, v, largest = inputs.measured_heads(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa, memory=memory)
    lead, work = tuple(np.shape(callers[0])[:-2]), working_dtype(q)
    scale, is_causal = inputs.resolve_scale(scale, q.shape[-1]), bool(is_causal)
    if tuple(upstream.shape) != (*lead, q.shape[-2], v.shape[-1]):
        raise ValueError(f"dout has shape {upstream.shape}; it must be that of the output, (..., n_q, d_v)")
    if plan is not None:
        check_plan(plan, chosen, q, lead, k.shape[-2], is_causal, scale, largest)
    inputs.logit_range(q, k, scale, v, plan.most_draws if plan else 0, largest=largest)
    named = {"dout": upstream} | ({} if dlse is None else {"dlse": memory.view("dlse", dlse)})
    inputs.gradient_range(q, v, scale, largest, Extremes(memory, named))
    q, k, v = (memory.copy(x, work.name) for x in (q, k, v))
    heads = tuple(q.shape[:-1])
    if results is None:
        results = _attend(chosen, q, k, v, plan, scale, is_causal)
    out, lse = (memory.view(name, x) for name, x in zip(("out", "lse"), results, strict=True))
    dlse = named["dlse"].reshape(heads) if dlse is not None else memory.from_host(np.zeros(heads, work), q)
    upstream = memory.copy(upstream.reshape(*heads, v.shape[-1]), work.name)
    out, lse = out.reshape(*heads, v.shape[-1]), lse.reshape(heads)
    found = chosen.attention_gradient(q, k, v, plan, out, lse, upstream, dlse, scale=scale, is_causal=is_causal)
    if enable_gqa:
        found = found[0], found[1].sum(axis=-3), found[2].sum(axis=-3)
    shaped = [x.reshape(np.shape(caller)) for caller, x in zip(callers, found, strict=True)]
    if dtype == "float16":
        shaped = [_halved(name, x, work) for name, x in zip(("query", "key", "value"), shaped, strict=True)]
    return tuple(like(caller, x) for caller, x in zip(callers, shaped, strict=True))


def check_gradients(backend: Backend) -> None:
    """Refuse a backend that lacks gradients."""
    if lacks(backend, {GRADIENTS}):
        raise ValueError(
            f"the backend {backend.name!r} does not compute gradients: pass backend='numba' with arrays on the host, "
            "or detach the tensors"
        )


def _attend(backend: Backend, q, k, v, plan, scale: float, is_causal: bool):
    if plan is None:
        return backend.exact_attention(q, k, v, scale=scale, is_causal=is_causal)
    return backend.planned_attention(q, k, v, plan, scale=scale)


def _halved(name: str, gradient, work) -> Any:
    """A gradient of float16 inputs in float16; in float64 if the backend returns that whatever the inputs are."""
    if gradient.dtype != work:
        return gradient
    largest = float(np.abs(gradient).max())
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(
            f"the gradient of {name} reaches {largest:.3g} and overflows float16: pass a smaller dout, or float32"
        )
    return gradient.astype(np.float16)
