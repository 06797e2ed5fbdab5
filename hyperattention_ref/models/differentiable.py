"""HyperAttention that PyTorch's autograd goes through: a function that knows its gradient."""

from __future__ import annotations

from functools import cache

from hyperattention_ref.attention import exact_attention, hyper_attention
from hyperattention_ref.attention_gradient import check_gradients, gradient_of
from hyperattention_ref.foundation.registry import select


def differentiable_attention(
    query, key, value, plan, *, is_causal: bool = False, scale=None, enable_gqa: bool = False, backend=None
):
    """`hyper_attention` with a given plan, or exact attention without one, for tensors that require a gradient.

    Derived: page "theory", section 9.10. The plan's decisions are held constant.

    Parameters
    ----------
    query, key, value : tensors as `hyper_attention` takes them.
    plan : a Plan, or None for exact attention.
    is_causal, scale, enable_gqa, backend : as in `hyper_attention`.

    Returns
    -------
    (out, lse), both differentiable, once. What is kept for the backward pass: these, the inputs and the plan.

    Raises
    ------
    TypeError, ValueError
        as `hyper_attention`; for a backend that has no gradient; for a second derivative (NotImplementedError).
    """
    check_gradients(select(backend, query))
    options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa, "backend": backend}
    return _function().apply(query, key, value, plan, options)


@cache
def _function():
    """The class for autograd; torch is imported at the first use."""
    import torch

    class HyperAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, plan, options):
            if plan is None:
                results = exact_attention(query, key, value, return_lse=True, **options)
            else:
                results = hyper_attention(query, key, value, plan=plan, return_lse=True, **options)
            ctx.save_for_backward(query, key, value, *results)
            ctx.plan, ctx.options = plan, options
            return results

        @staticmethod
        def backward(ctx, dout, dlse):
            if torch.is_grad_enabled():
                raise NotImplementedError(
                    "a second derivative is asked for (create_graph=True), and HyperAttention has only the first: "
                    "pass create_graph=False"
                )
            q, k, v, *results = ctx.saved_tensors
            found = gradient_of(q, k, v, dout, plan=ctx.plan, results=results, dlse=dlse, **ctx.options)
            return *(x.to(array.dtype) for x, array in zip(found, (q, k, v), strict=True)), None, None

    return HyperAttention
