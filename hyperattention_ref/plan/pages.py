"""Routed pages: which pages of keys each block of queries attends to exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.plan.block_lists import BlockLists

PRIOR_BLOCKS = 4
"""Blocks that the average page counts for, in the average share of a page that few blocks have seen."""
BRANCHES = 4
"""Pages in a page of the next coarser level."""
KEPT = 4
"""Pages of a coarser level that a block keeps, for each page that it picks in the end."""


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

    def level(self, merged: int) -> Level:
        """The pages that each block may pick where `merged` pages in turn are one."""
        block, (first, stop) = np.arange(self.n_blocks), self.windows()
        n_pages = -(-self.n_pages // merged)
        sizes = np.minimum(self.size * merged, self.n_k - np.arange(n_pages) * self.size * merged)
        start = -(-first // merged)
        if self.is_causal:
            own = block // merged  # holds keys that come after the block, which must not count
            before, after = np.minimum(start, own), np.full(self.n_blocks, n_pages)
            own = np.where(own < start, own, n_pages)
        else:
            before, after = start, np.maximum(np.where(stop == self.n_pages, n_pages, stop // merged), start)
            own = np.full(self.n_blocks, n_pages)
        return Level(merged, self.is_causal, self.first_pages // merged, sizes, before, after, own)

    def levels(self, top: int) -> list[Level]:
        """The levels of a search for `top` pages, from coarse to fine.

        The coarsest has at least as many pages as a block scores at each finer one.
        """
        merged = [1]
        while self.n_pages >= BRANCHES * merged[-1] * BRANCHES * KEPT * top:
            merged.append(BRANCHES * merged[-1])
        return [self.level(m) for m in reversed(merged)]

    def n_scores(self, top: int) -> int:
        """Scores of a search for `top` pages, a logit each."""
        if top == 0:
            return 0
        coarsest, *finer = self.levels(top)
        scored = [np.minimum(level.far_counts(), BRANCHES * KEPT * top) for level in finer]
        return int(coarsest.far_counts().sum() + sum(counts.sum() for counts in scored))

    def n_logits(self, top: int) -> int:
        """Logits of the near pages and of `top` far pages for each block, and the scores."""
        far = self.level(1).far_counts()
        queries = np.minimum(self.size, self.n_q - np.arange(self.n_blocks) * self.size)
        listed = self.existing() - far + np.minimum(top, far)
        future = queries @ (2 * self.size - 1 - queries) // 2 if self.is_causal else 0  # pairs of a block's own page
        return int(queries @ listed * self.size - future) + self.n_scores(top)

    def near(self) -> np.ndarray:
        """(blocks, pages) boolean: the near pages of each block."""
        first, stop = (x[:, None] for x in self.windows())
        page = np.arange(self.n_pages)
        exists = page < self.existing()[:, None]
        return exists & (((first <= page) & (page < stop)) | (page < self.first_pages))


@dataclass(frozen=True)
class Level:
    """The pages of one level of the search, and which of them each block may pick.

    Those from `first_pages` to `before`, and those from `after` on.

    Attributes
    ----------
    merged : pages in a page of this level.
    is_causal : whether the head is.
    first_pages : pages at the start that are near to all blocks.
    sizes : (pages,) keys of each page.
    before, after : (blocks,) the pages in between are near, or do not exist.
    own : (blocks,) a page of far keys and keys that come after the block, kept without a score; n_pages for none.
    """

    merged: int
    is_causal: bool
    first_pages: int
    sizes: np.ndarray
    before: np.ndarray
    after: np.ndarray
    own: np.ndarray

    @property
    def n_pages(self) -> int:
        return len(self.sizes)

    @property
    def n_blocks(self) -> int:
        return len(self.own)

    def is_far(self, block: int, pages: np.ndarray) -> np.ndarray:
        """Which of these pages a block may pick."""
        is_outside = (pages < self.before[block]) | (pages >= self.after[block])
        return (self.first_pages <= pages) & (pages < self.n_pages) & is_outside

    def far_counts(self) -> np.ndarray:
        """(blocks,) number of pages that each block may pick."""
        after = self.n_pages - np.maximum(self.after, self.first_pages)
        return np.maximum(self.before - self.first_pages, 0) + after

    def pickers(self) -> np.ndarray:
        """(pages,) how many blocks may pick each page; if causal, minus how many blocks come before all of these.

        If causal, all blocks from one on may pick a page: among the first n these plus n, if that is positive.
        """
        page = np.arange(self.n_pages)
        out_of_reach = np.searchsorted(self.before, page, side="right")
        if self.is_causal:
            return -out_of_reach
        return self.n_blocks - out_of_reach + np.searchsorted(self.after, page, side="right")


def page_lists(q, k, paging: Paging, *, top: int, lift: float, scale: float, backend: Backend) -> BlockLists:
    """The near pages of each block, and the `top` far pages that it wants more than others do.

    Derived: page "theory", section 9.9. `pick_pages` says which.

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
        means = _means(q, paging.size), _means(k, paging.size)
        picked = pick_pages(*means, paging, top=top, lift=lift, scale=scale, backend=backend)
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


def pick_pages(q_mean, k_mean, paging: Paging, *, top: int, lift: float, scale: float, backend: Backend) -> np.ndarray:
    """The far pages that each block picks, from coarse to fine.

    Derived: page "theory", section 9.9. Where there are many pages, a block picks among coarser ones first, of BRANCHES
    pages each, KEPT times as many; only what is in these are its candidates at the next level. `pick_level` says what
    it picks; a backend may have a method of that name, with the same arguments and result. Rounding may swap two pages
    of nearly equal score.

    Parameters
    ----------
    q_mean, k_mean : (blocks, d) and (pages, d) means.
    paging, top, lift, scale : as in `page_lists`; top is at least 1.
    backend : computes the levels.

    Returns
    -------
    (blocks, min(top, pages)) int64 pages, rising; `paging.n_pages` stands for none. Cost O(n log(n) top d) for n
    blocks and pages, O(n² d) where there are few.
    """
    pick, (coarsest, *finer) = getattr(backend, "pick_level", pick_level), paging.levels(top)

    def picked(level, candidates):
        count = min(top if level.merged == 1 else KEPT * top, level.n_pages)
        return pick(q_mean, _means(k_mean, level.merged), level, candidates, top=count, lift=lift, scale=scale)

    pages = picked(coarsest, np.arange(coarsest.n_pages)[None])
    for level in finer:
        parts = BRANCHES * pages[:, :, None] + np.arange(BRANCHES)
        pages = picked(level, parts.reshape(len(pages), -1))
    return pages


def pick_level(q_mean, k_mean, level: Level, candidates, *, top: int, lift: float, scale: float) -> np.ndarray:
    """The far pages of the largest lifted score among the candidates of each block.

    Derived: page "theory", section 9.9. With the block's mean query and the page's mean key, L_bp = scale q̄_b·k̄_p +
    log(keys of p) estimates the logarithm of the mass of page p, and m_bp = e^{L_bp} / Σ_p e^{L_bp}, over the far
    candidates of b, its share. B_bp is the average share of p over the blocks up to b that may pick it (all blocks if
    not causal), with the average candidate as prior; blocks of which it is no candidate give it none. The score is
    m_bp / B_bp^lift: a page that all blocks want, such as one of large keys, scores less than its share, a page that
    this block alone wants more. Ties go to the earlier page.

    Parameters
    ----------
    q_mean, k_mean : (blocks, d) mean queries and (pages, d) mean keys of the level.
    level : which pages each block may pick.
    candidates : (blocks, .) pages of each block, or (1, .) all pages for all; rising, what is no page at the end.
    top : how many to pick, at most the pages of the level; a block that has fewer takes them all.
    lift, scale : as in `page_lists`.

    Returns
    -------
    (blocks, top) int64 pages, rising, `level.own` among them; `level.n_pages` stands for none.
    """

    def shares(block):
        pages = candidates[block if len(candidates) > 1 else 0]
        pages = pages[level.is_far(block, pages)]
        log_mass = scale * k_mean[pages] @ q_mean[block] + np.log(level.sizes[pages])
        mass = np.exp(log_mass - log_mass.max(initial=-np.inf)) if pages.size else log_mass
        return pages, mass / mass.sum()

    total, pickers = np.zeros(level.n_pages), level.pickers()
    for block in range(level.n_blocks) if not level.is_causal else ():
        pages, share = shares(block)
        total[pages] += share
    picked = np.full((level.n_blocks, top), level.n_pages)
    for block in range(level.n_blocks):
        pages, share = shares(block)
        count = pickers[pages]
        if level.is_causal:
            total[pages] += share
            count = count + block + 1
        average = (total[pages] + PRIOR_BLOCKS / max(pages.size, 1)) / (count + PRIOR_BLOCKS)
        with np.errstate(divide="ignore"):
            score = np.log(share) - lift * np.log(average)
        has_own = int(level.own[block] < level.n_pages)
        best = pages[np.argsort(-score, kind="stable")[: top - has_own]]
        picked[block, : best.size] = best
        picked[block, best.size : best.size + has_own] = level.own[block]
    return np.sort(picked, axis=1)


def _means(x, size: int) -> np.ndarray:
    """(blocks, d) means of consecutive rows, the last block may be shorter, in float64."""
    whole = len(x) // size * size
    means = x[:whole].reshape(-1, size, x.shape[1]).mean(axis=1, dtype=np.float64)
    return means if whole == len(x) else np.vstack([means, x[whole:].mean(axis=0, dtype=np.float64)])
