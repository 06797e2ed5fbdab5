"""Routed pages: which pages of keys each block of queries attends to exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.plan.block_lists import BlockLists

PRIOR_BLOCKS = 4
"""Blocks that the average page counts for, in the average share of a page that few blocks have seen."""
PANEL = 64
"""Blocks that are scored at a time."""


@dataclass(frozen=True)
class Paging:
    """The near and the far pages of each block of a head.

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

    @property
    def first_pages(self) -> int:
        """Pages that the first keys take."""
        return min(-(-self.first_keys // self.size), self.n_pages)

    @property
    def page_sizes(self) -> np.ndarray:
        """(pages,) keys of each page."""
        return np.minimum(self.size, self.n_k - np.arange(self.n_pages) * self.size)

    def existing(self) -> np.ndarray:
        """(blocks,) number of pages that each block may see."""
        return np.arange(1, self.n_blocks + 1) if self.is_causal else np.full(self.n_blocks, self.n_pages)

    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """(blocks,) first page and page after the last of the window of each block, its own page included if causal."""
        first_query = np.arange(self.n_blocks) * self.size
        if self.is_causal:
            return np.maximum(first_query - max(self.window, 1) + 1, 0) // self.size, self.existing()
        count = min(-(-self.window // self.size), self.n_pages)
        centre = (first_query + self.size / 2) * self.n_k / self.n_q
        first = np.floor((centre - self.window / 2) / self.size + 0.5).astype(np.int64)
        first = np.clip(first, 0, self.n_pages - count)
        return first, first + count

    def far_counts(self) -> np.ndarray:
        """(blocks,) number of far pages that each block may pick from."""
        (first, stop), existing = self.windows(), self.existing()
        first_pages = np.minimum(self.first_pages, existing)
        return existing - (stop - first) - first_pages + np.maximum(0, np.minimum(first_pages, stop) - first)

    def n_pickers(self, n_blocks: int) -> np.ndarray:
        """(pages,) how many of the first `n_blocks` blocks may pick each page."""
        page, (first, stop) = np.arange(self.n_pages), (x[:n_blocks] for x in self.windows())
        count = n_blocks - np.searchsorted(first, page, side="right")
        if not self.is_causal:
            count += np.searchsorted(stop, page, side="right")
        count[: self.first_pages] = 0
        return count

    def n_logits(self, top: int) -> int:
        """Logits of the near pages and of `top` far pages for each block, and the scores, a logit for each far page."""
        far = self.far_counts()
        queries = np.minimum(self.size, self.n_q - np.arange(self.n_blocks) * self.size)
        listed = self.existing() - far + np.minimum(top, far)
        future = queries @ (2 * self.size - 1 - queries) // 2 if self.is_causal else 0  # pairs of a block's own page
        return int(queries @ listed * self.size - future + (far.sum() if top else 0))

    def masks(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(len(blocks), pages) boolean: the near pages of these blocks, and those that they may pick."""
        first, stop = (x[blocks, None] for x in self.windows())
        page = np.arange(self.n_pages)
        exists = page < self.existing()[blocks, None]
        near = exists & (((first <= page) & (page < stop)) | (page < self.first_pages))
        return near, exists & ~near


def page_lists(q, k, paging: Paging, *, top: int, lift: float, scale: float, backend: Backend) -> BlockLists:
    """The near pages of each block, and the `top` far pages that it wants more than others do.

    Derived: page "theory", section 9.9. `pick_pages` says which; a backend may have a method of that name, with the
    same arguments and result. Rounding may swap two pages of nearly equal score.

    Parameters
    ----------
    q, k : (n_q, d) and (n_k, d) arrays on the host.
    paging : their near and far pages.
    top : far pages to pick; a block that has fewer takes them all.
    lift : from 0, the share alone, to 1.

    Returns
    -------
    BlockLists.
    """
    picked = np.empty((paging.n_blocks, 0), np.int64)
    if top:
        pick = getattr(backend, "pick_pages", pick_pages)
        picked = pick(_means(q, paging.size), _means(k, paging.size), paging, top=top, lift=lift, scale=scale)
    first, stop = paging.windows()
    existing = paging.existing()[:, None]
    window = first[:, None] + np.arange((stop - first).max())
    window = np.where(window < stop[:, None], window, paging.n_pages)
    first_pages = np.broadcast_to(np.arange(paging.first_pages), (paging.n_blocks, paging.first_pages))
    first_pages = np.where((first_pages < first[:, None]) | (first_pages >= stop[:, None]), first_pages, paging.n_pages)
    pages = np.sort(np.hstack([first_pages, window, picked]), axis=1)
    is_page = pages < existing
    offsets = np.concatenate([[0], np.cumsum(is_page.sum(axis=1))])
    return BlockLists(
        paging.n_q, paging.n_k, paging.size, paging.size, offsets, pages[is_page], is_causal=paging.is_causal
    )


def pick_pages(q_mean, k_mean, paging: Paging, *, top: int, lift: float, scale: float) -> np.ndarray:
    """The far pages that each block picks, those of the largest lifted score.

    Derived: page "theory", section 9.9. With the block's mean query and the page's mean key, L_bp = scale q̄_b·k̄_p +
    log(keys of p) estimates the logarithm of the mass of page p, and m_bp = e^{L_bp} / Σ_p e^{L_bp}, over the far pages
    of b, its share. B_bp is the average share of p over the blocks up to b that may pick it (all blocks if not causal),
    with the average page as prior. The score is m_bp / B_bp^lift: a page that all blocks want, such as one of large
    keys, scores less than its share, a page that this block alone wants more. Ties go to the earlier page.

    Parameters
    ----------
    q_mean, k_mean : (blocks, d) and (pages, d) means.
    paging, top, lift, scale : as in `page_lists`; top is at least 1.

    Returns
    -------
    (blocks, min(top, pages)) int64 pages in any order; `paging.n_pages` stands for none. Cost O(blocks pages d), halved
    if causal.
    """
    top, log_sizes = min(top, paging.n_pages), np.log(paging.page_sizes)
    picked = np.full((paging.n_blocks, top), paging.n_pages)
    panels = [np.arange(b, min(b + PANEL, paging.n_blocks)) for b in range(0, paging.n_blocks, PANEL)]

    def shares(blocks, far):
        log_mass = np.where(far, scale * q_mean[blocks] @ k_mean.T + log_sizes, -np.inf)
        best = log_mass.max(axis=1, keepdims=True)
        mass = np.exp(log_mass - np.where(np.isneginf(best), 0, best))
        return mass / np.maximum(mass.sum(axis=1, keepdims=True), 1)

    total, count = np.zeros(paging.n_pages), np.zeros(paging.n_pages)
    for blocks in panels if not paging.is_causal else ():
        _, far = paging.masks(blocks)
        total, count = total + shares(blocks, far).sum(axis=0), count + far.sum(axis=0)
    for blocks in panels:
        _, far = paging.masks(blocks)
        share, n_far = shares(blocks, far), far.sum(axis=1, keepdims=True)
        totals, counts = total, count
        if paging.is_causal:
            totals, counts = total + np.cumsum(share, axis=0), count + np.cumsum(far, axis=0)
            total, count = totals[-1], counts[-1]
        average = (totals + PRIOR_BLOCKS / np.maximum(n_far, 1)) / (counts + PRIOR_BLOCKS)
        with np.errstate(divide="ignore"):
            score = np.where(far, np.log(share) - lift * np.log(average), -np.inf)
        best = np.argsort(-score, axis=1, kind="stable")[:, :top]
        picked[blocks] = np.where(np.take_along_axis(far, best, axis=1), best, paging.n_pages)
    return picked


def _means(x, size: int) -> np.ndarray:
    """(blocks, d) means of consecutive rows, the last block may be shorter, in float64."""
    whole = len(x) // size * size
    means = x[:whole].reshape(-1, size, x.shape[1]).mean(axis=1, dtype=np.float64)
    return means if whole == len(x) else np.vstack([means, x[whole:].mean(axis=0, dtype=np.float64)])
