"""Everyday attention on heads `(..., n, d)`: exact, and the practical HyperAttention."""

from __future__ import annotations

import inspect
import math
from functools import partial

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import lacks
from hyperattention_ref.foundation.host_arrays import in_library_of, like
from hyperattention_ref.foundation.memory import memory_of, working_dtype
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.planner import Planner


def exact_attention(
    q,
    k,
    v,
    *,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale=None,
    enable_gqa: bool = False,
    backend=None,
    return_lse: bool = False,
):
    """Attention without any approximation: Att = D^{-1} A V with A = exp(scale Q K^T), D = diag(A 1).

    Paper: section 1, the quantity that everything else approximates.

    Parameters
    ----------
    q : (..., n_q, d) float16, float32 or float64 array, or torch tensor, which may be bfloat16 too.
    k : (..., n_k, d) array of the same dtype and leading shape (see `enable_gqa`).
    v : (..., n_k, d_v) array.
    attn_mask, dropout_p : as in PyTorch, to say clearly that there is no mask and no dropout: anything but the defaults
        is refused.
    is_causal : query i sees the keys 0 .. i only; needs n_q == n_k.
    scale : multiplies the logits; None means 1/sqrt(d).
    enable_gqa : query heads (axis -3) share key and value heads, as in grouped-query attention.
    backend : None, a name or an instance; see `backends.select`.
    return_lse : return (out, lse), lse the natural log of D's diagonal, (..., n_q).

    Returns
    -------
    out : (..., n_q, d_v), of the dtype of the inputs (float64 from the reference backend), a torch tensor if q is one.
        Cost O(n_q n_k (d + d_v)).
    """
    check_no_mask_no_dropout(attn_mask, dropout_p)
    chosen, return_lse = select(backend, q), inputs.boolean("return_lse", return_lse)
    caller = q
    memory = memory_of(chosen)
    q, k, v, largest = inputs.measured_heads(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa, memory=memory)
    lead = tuple(np.shape(caller)[:-2])
    scale = inputs.resolve_scale(scale, q.shape[-1])
    inputs.logit_range(q, k, scale, v, largest=largest)
    results = chosen.exact_attention(q, k, v, scale=scale, is_causal=bool(is_causal))
    return _shaped(results, caller, lead, return_lse)


def hyper_attention(
    q,
    k,
    v,
    *,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale=None,
    recipe=None,
    block_size: int = 256,
    sample_size: int = 256,
    lsh_bits: int = 8,
    min_seq_len: int = 4096,
    rng=None,
    plan=None,
    backend=None,
    return_lse: bool = False,
    enable_gqa: bool = False,
):
    """Approximate attention in near-linear time.

    Paper: the practical algorithm of the experiments. sortLSH pairs queries with keys and attends exactly inside the
    blocks; m uniformly sampled keys stand for all other keys; the two parts are merged. Causal attention applies this
    to the rectangles of Algorithm 4. Derived: `recipe` finds the large entries or samples the others in another way.

    Parameters
    ----------
    q : (..., n_q, d) float16, float32 or float64 array, or torch tensor, which may be bfloat16 too.
    k : (..., n_k, d) array of the same dtype and leading shape (see `enable_gqa`).
    v : (..., n_k, d_v) array.
    attn_mask, dropout_p : as in `exact_attention`: anything but the defaults is refused.
    is_causal : query i sees the keys 0 .. i only; needs n_q == n_k.
    scale : multiplies the logits; None means 1/sqrt(d).
    recipe : None for the paper's with the next three arguments; or a `Recipe` or the name of one, which replaces
        them; see `make_plan`.
    block_size : b, keys in a block.
    sample_size : m, sampled keys.
    lsh_bits : r, bits of the hash.
    min_seq_len : causal ranges up to this length are computed exactly.
    rng : None, an integer seed or a numpy.random.Generator; must be None when a plan is given.
    plan : a Plan made for these shapes; it replaces recipe, block_size, sample_size, lsh_bits, min_seq_len and rng.
    backend : None, a name or an instance; see `backends.select`.
    return_lse : return (out, lse), lse the estimated log of the softmax denominator, (..., n_q).
    enable_gqa : query heads (axis -3) share key and value heads, as in grouped-query attention.

    Returns
    -------
    out : (..., n_q, d_v), of the dtype of the inputs (float64 from the reference backend), a torch tensor if q is one.
        A query that attends to nothing at all (possible with hand-made plans only) gets 0 and log-sum-exp minus
        infinity.

    Notes
    -----
    Cost O(n (b + m) (d + d_v) + n r d + n log n) for each head, times log n when causal; memory O(n d). For other
    recipes b + m is their number of keys per query, and a pilot adds the price of its rows, see `Recipe`.
    The sum over sampled keys is unbiased for numerator and denominator, their ratio biased by O(1/m).
    Differs from Algorithm 3: one uniform sample serves the denominator and the product, there is no cap, no floor,
    and the row norms of V are not used; see `literal_hyper_attention`.
    """
    check_no_mask_no_dropout(attn_mask, dropout_p)
    chosen, return_lse = select(backend, q), inputs.boolean("return_lse", return_lse)
    caller = q
    decisions = {
        "recipe": recipe,
        "block_size": block_size,
        "sample_size": sample_size,
        "lsh_bits": lsh_bits,
        "min_seq_len": min_seq_len,
    }
    if plan is not None:
        _check_is_plan(plan)
        _only_the_plan({"rng": rng} | decisions)
    memory = memory_of(chosen)
    q, k, v, largest = inputs.measured_heads(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa, memory=memory)
    lead = tuple(np.shape(caller)[:-2])
    scale = inputs.resolve_scale(scale, q.shape[-1])
    check_range = partial(inputs.logit_range, q, k, scale, v, largest=largest)
    if plan is None:
        planner = Planner.of(q, k, is_causal=is_causal, scale=scale, backend=chosen, **decisions)
        if planner.recipe.is_plain and hasattr(chosen, "drawn_attention"):
            noise = partial(planner.noise, rng, math.prod(q.shape[:-2]), q.shape[-1])
            results = chosen.drawn_attention(q, k, v, noise, planner, scale=scale, extremes=largest)
            check_range(draws=planner.most_draws)  # after the call: it finds the largest entries
            return _shaped(results, caller, lead, return_lse)
        check_range(draws=planner.most_draws)
        plan = planner.plan(q, k, lead, rng)
    check_plan(plan, chosen, q, lead, k.shape[-2], is_causal, scale, largest)
    check_range(draws=plan.most_draws)
    return _shaped(chosen.planned_attention(q, k, v, plan, scale=scale), caller, lead, return_lse)


def check_plan(plan, backend, q, lead: tuple[int, ...], n_k: int, is_causal: bool, scale: float, largest) -> None:
    """Refuse a plan for other inputs than these, or with parts that the backend lacks."""
    _check_is_plan(plan)
    plan.check_fits(lead, q.shape[-2], n_k, is_causal, working_dtype(q))
    if missing := lacks(backend, plan.parts):
        raise ValueError(
            f"the plan has {' and '.join(sorted(missing))}, which the backend {backend.name!r} does not compute: pass "
            "backend='numba', or a recipe without window, pages and landmarks"
        )
    plan.check_landmarks(q.shape[-1], scale, largest.values[1], working_dtype(q))


def _check_is_plan(plan) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan is a {type(plan).__name__}; it must be a Plan, from make_plan or Plan.from_orders")


def _shaped(results, caller, lead: tuple[int, ...], return_lse: bool):
    """What a backend returned, in the library and leading shape of the caller's query; (out, lse), or out alone."""
    out, lse = results
    out = like(caller, out.reshape(*lead, *out.shape[-2:]))
    if not return_lse:
        return out
    return out, in_library_of(caller, lse.reshape(*lead, lse.shape[-1]))


def check_no_mask_no_dropout(attn_mask, dropout_p) -> None:
    """Refuse what `scaled_dot_product_attention` takes and this library does not, and say what to do instead."""
    if attn_mask is not None:
        raise TypeError(
            "attn_mask is given, and no mask is supported: for a causal mask pass is_causal=True; for padding cut the "
            "padded tokens off and make one call for each length; for anything else use PyTorch's attention"
        )
    if isinstance(dropout_p, bool) or dropout_p != 0:
        raise ValueError(
            f"dropout_p is {dropout_p!r}, and dropout is not supported: pass 0.0, which is what a model in evaluation "
            "mode uses"
        )


def _only_the_plan(decisions: dict) -> None:
    """Refuse arguments that a given plan would silently overrule."""
    parameters = inspect.signature(hyper_attention).parameters
    given = [name for name, x in decisions.items() if x != parameters[name].default]
    if given:
        raise ValueError(f"plan and {', '.join(given)} are both given; the plan decides these: pass only the plan")
