"""HyperAttention with the signature of PyTorch's `scaled_dot_product_attention`, for models that are built by hand."""

from __future__ import annotations

from hyperattention_ref.attention import check_no_mask_no_dropout, hyper_attention
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.host_arrays import is_tensor
from hyperattention_ref.models.differentiable import differentiable_attention
from hyperattention_ref.plan.planner import make_plan


def scaled_dot_hyper_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale=None,
    enable_gqa: bool = False,
    *,
    recipe=None,
    min_seq_len: int = 4096,
    rng=None,
):
    """Approximate attention in place of `torch.nn.functional.scaled_dot_product_attention`.

    Derived: `hyper_attention` where queries and keys are both more than `min_seq_len`; else PyTorch's own function,
    which is exact and takes every argument, so that the steps of a decoder, with one query each, stay exact.

    Parameters
    ----------
    query : (..., n_q, d) tensor, on the CPU or a CUDA device.
    key, value : (..., n_k, d) and (..., n_k, d_v) tensors.
    attn_mask, dropout_p : refused where attention is approximated, unless None and 0.
    is_causal, scale, enable_gqa : as in PyTorch; for causal attention that is approximated n_q == n_k.
    recipe, rng : as in `hyper_attention`.
    min_seq_len : up to so many queries or keys attention is exact; causal ranges within a longer one, too.

    Returns
    -------
    (..., n_q, d_v) tensor of the dtype of the query. bfloat16 on the CPU is computed in float32. Cost and memory as
    `hyper_attention`.

    Raises
    ------
    TypeError, ValueError
        as `hyper_attention`; for tensors that require a gradient on a backend that has none, too.

    Notes
    -----
    Autograd goes through it: the gradient is that of the plan of this call, whose decisions (hashes, orders, samples)
    are held constant. Kept for the backward pass are the tensors, the log-sum-exps and the plan. There is no second
    derivative.
    """
    import torch

    for name, x in (("query", query), ("key", key), ("value", value)):
        if not is_tensor(x):
            raise TypeError(f"{name} is {type(x).__name__}; it must be a torch tensor: hyper_attention takes arrays")
    min_seq_len = inputs.count("min_seq_len", min_seq_len)
    options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if min(query.shape[-2], key.shape[-2]) <= min_seq_len:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    check_no_mask_no_dropout(attn_mask, dropout_p)
    decisions = {"recipe": recipe, "min_seq_len": min_seq_len, "rng": rng}
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))):
        return hyper_attention(query, key, value, **options, **decisions)
    with torch.no_grad():
        plan = make_plan(query, key, **options, **decisions)
    return differentiable_attention(query, key, value, plan, **options)[0]
