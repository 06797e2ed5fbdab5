"""PyTorch's FlexAttention on the pages of a plan, as torch ships it: compiled for the processor by its inductor."""

from __future__ import annotations

from functools import cache

import numpy as np

from hyperattention_ref.plan.block_lists import BlockLists

STEP = 32
"""Coordinates. With 16, or a last page that is not full, the kernel of torch 2.13 for processors gives wrong numbers or
writes where it must not, which may end the process."""


def flex_attention(q, k, v, lists: BlockLists, scale: float) -> np.ndarray:
    """Exact attention to the pairs of block lists.

    Parameters
    ----------
    q, k, v : (heads, n, d) arrays; all heads have the same lists.
    lists : which pairs.
    scale : multiplies the logits.

    Returns
    -------
    (heads, n, d_v) array. The first call for each shape compiles, about a minute.

    Raises
    ------
    ValueError : coordinates that are no multiple of STEP, or tokens that are none of a block or a page.
    """
    import torch

    if q.shape[-1] % STEP or v.shape[-1] % STEP:
        raise ValueError(f"d is {q.shape[-1]} and d_v {v.shape[-1]}; torch's kernel is right for multiples of {STEP}")
    if lists.n_q % lists.block_size or lists.n_k % lists.page_size:
        raise ValueError(f"n is {lists.n_q}; torch's kernel is safe for multiples of {lists.page_size}")
    q, k, v = (torch.from_numpy(x[None]) for x in (q, k, v))
    with torch.inference_mode():
        return _compiled()(q, k, v, block_mask=_block_mask(lists), scale=scale)[0].numpy()


@cache
def _compiled():
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _block_mask(lists: BlockLists):
    """The lists as FlexAttention takes them: for each block of queries its number of pages, and these in a row."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    counts = np.diff(lists.offsets)
    pages = np.zeros((lists.n_blocks, lists.n_pages), np.int32)
    pages[np.arange(lists.n_pages) < counts[:, None]] = lists.pages
    return BlockMask.from_kv_blocks(
        *(torch.from_numpy(x[None, None]) for x in (counts.astype(np.int32), pages)),
        BLOCK_SIZE=(lists.block_size, lists.page_size),
        mask_mod=_exists if lists.is_causal else None,
        seq_lengths=lists.shape,
        compute_q_blocks=False,
    )


def _exists(batch, head, query, key):
    """Whether a causal pair exists."""
    return key <= query
