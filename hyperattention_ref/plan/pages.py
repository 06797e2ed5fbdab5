"""Routed pages: which pages of keys each block of queries attends to exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.plan.block_lists import BlockLists

PRIOR_BLOCKS = 4
"""Blocks that the average page counts for, in the average share of a page that few blocks have seen."""
PANEL = 64
"""Blocks that are scored at a time."""


@dataclass(frozen=True)
class Paging:
    """The pages of one head.

    Parameters
    ----------
    n_q, n_k, size, is_causal : lengths of the head, queries in a block and keys in a page, whether it is causal.
    window : keys around the queries whose pages are near; before them, if causal.
    first_keys : keys at the start whose pages are near to all blocks.
    """

    n_q: int
    n_k: int
    size: int
    is_causal: bool
    window: int
    first_keys: int

    @property
    def n_blocks(self) -> int:
        return -(-self.n_q // self.size)

    @property
    def n_pages(self) -> int:
        return -(-self.n_k // self.size)

    def near(self) -> tuple[np.ndarray, np.ndarray]:
        """(blocks,) first page and page after the last of the window of each block, its own page included if causal."""
        first_query = np.arange(self.n_blocks) * self.size
        if self.is_causal:
            return np.maximum(first_query - max(self.window, 1) + 1, 0) // self.size, np.arange(1, self.n_blocks + 1)
        count = min(-(-self.window // self.size), self.n_pages)
        centre = (first_query + self.size / 2) * self.n_k / self.n_q
        first = np.floor((centre - self.window / 2) / self.size + 0.5).astype(np.int64)
        first = np.clip(first, 0, self.n_pages - count)
        return first, first + count

    @property
    def first_pages(self) -> int:
        """Pages that the first keys take."""
        return min(-(-self.first_keys // self.size), self.n_pages)

    def n_logits(self, top: int) -> int:
        """Logits of the near pages and of `top` far pages for each block, and the scores, a logit for each far page."""
        first, stop = self.near()
        exist = stop if self.is_causal else self.n_pages
        first_pages = np.minimum(self.first_pages, exist)
        near = stop - first + first_pages - np.maximum(0, np.minimum(first_pages, stop) - first)
        far = exist - near
        queries = np.minimum(self.size, self.n_q - np.arange(self.n_blocks) * self.size)
        listed = near + np.minimum(top, far)
        future = queries @ (2 * self.size - 1 - queries) // 2 if self.is_causal else 0  # pairs of a block's own page
        return int(queries @ listed * self.size - future + (far.sum() if top else 0))

    def masks(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(len(blocks), pages) boolean: the near pages of these blocks, and those that they may choose among."""
        first, stop = (x[blocks, None] for x in self.near())
        page = np.arange(self.n_pages)
        exists = page < stop if self.is_causal else np.ones((len(blocks), self.n_pages), dtype=bool)
        near = exists & (((first <= page) & (page < stop)) | (page < self.first_pages))
        return near, exists & ~near


def page_lists(q, k, paging: Paging, *, top: int, lift: float, scale: float) -> BlockLists:
    """The near pages of each block, and the `top` far pages that it wants more than others do.

    Derived: page "theory", section 10. With the block's mean query and the page's mean key, L_bp = scale q̄_b·k̄_p +
    log(keys of p) estimates the logarithm of the mass of page p, and m_bp = e^{L_bp} / Σ_p e^{L_bp}, over the far pages
    of b, its share. B_bp is the average share of p over the blocks up to b that may choose it (all blocks if not
    causal), with the average page as prior. Chosen are the largest m_bp / B_bp^lift: pages that all blocks want, such
    as those of large keys, win them less than their share, pages that this block alone wants win.

    Parameters
    ----------
    q, k : (n_q, d) and (n_k, d) arrays.
    top : far pages to choose; a block that has fewer takes them all.
    lift : from 0, the share alone, to 1.

    Returns
    -------
    BlockLists. Cost n_q n_k / size² (d + log) operations, halved if causal.
    """
    q_mean, k_mean = _means(q, paging.size), _means(k, paging.size)
    log_sizes = np.log(np.minimum(paging.size, paging.n_k - np.arange(paging.n_pages) * paging.size))
    chosen = np.zeros((paging.n_blocks, paging.n_pages), dtype=bool)
    panels = [np.arange(b, min(b + PANEL, paging.n_blocks)) for b in range(0, paging.n_blocks, PANEL)]

    def shares(blocks, far):
        log_mass = np.where(far, scale * q_mean[blocks] @ k_mean.T + log_sizes, -np.inf)
        best = log_mass.max(axis=1, keepdims=True)
        mass = np.exp(log_mass - np.where(np.isneginf(best), 0, best))
        return mass / np.maximum(mass.sum(axis=1, keepdims=True), 1)

    total, count = np.zeros(paging.n_pages), np.zeros(paging.n_pages)
    if not paging.is_causal:
        for blocks in panels:
            _, far = paging.masks(blocks)
            total, count = total + shares(blocks, far).sum(axis=0), count + far.sum(axis=0)
    for blocks in panels:
        chosen[blocks], far = paging.masks(blocks)
        share = shares(blocks, far)
        prior = share.sum(axis=1, keepdims=True) / np.maximum(far.sum(axis=1, keepdims=True), 1)
        if paging.is_causal:
            totals, counts = total + np.cumsum(share, axis=0), count + np.cumsum(far, axis=0)
            total, count = totals[-1], counts[-1]
        else:
            totals, counts = total, count
        average = (totals + PRIOR_BLOCKS * prior) / (counts + PRIOR_BLOCKS)
        score = np.where(far, share / np.maximum(average, np.finfo(average.dtype).tiny) ** lift, -1)
        best = np.argsort(-score, axis=1, kind="stable")[:, :top]
        rows = np.arange(len(blocks))[:, None]
        chosen[blocks[:, None], best] |= far[rows, best]
    sizes = {"block_size": paging.size, "page_size": paging.size}
    return BlockLists.from_mask(chosen, paging.n_q, paging.n_k, **sizes, is_causal=paging.is_causal)


def _means(x, size: int) -> np.ndarray:
    """(blocks, d) float64 means of consecutive rows, the last block may be shorter."""
    starts = np.arange(0, len(x), size)
    return np.add.reduceat(x, starts, axis=0, dtype=np.float64) / np.diff([*starts, len(x)])[:, None]
