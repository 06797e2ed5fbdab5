"""Block lists: for each block of consecutive queries a list of pages of consecutive keys that are exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.plan.block_mask import BlockMask, index_array


@dataclass(frozen=True, eq=False)
class BlockLists:
    """M_ij = 1 iff the page of key j is in the list of the block of query i, and, if causal, j <= i.

    Derived: rule 11 of the Plan (page "theory"). Block u holds the queries u block_size .. (u + 1) block_size - 1, page
    p the keys p page_size .. (p + 1) page_size - 1; the last of either may be shorter. The list of block u is
    `pages[offsets[u]:offsets[u + 1]]`. It is a block-sparse matrix in compressed rows.

    Parameters
    ----------
    n_q, n_k : numbers of queries and keys.
    block_size, page_size : queries in a block and keys in a page.
    offsets : (blocks + 1,) int array from 0, never decreasing.
    pages : (offsets[-1],) int array, rising within each list.
    is_causal : whether a pair with j > i does not exist, though its page is in the list.
    """

    n_q: int
    n_k: int
    block_size: int
    page_size: int
    offsets: np.ndarray
    pages: np.ndarray
    is_causal: bool = False

    def __post_init__(self):
        for name in ("n_q", "n_k", "block_size", "page_size"):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name)))
        object.__setattr__(self, "is_causal", inputs.boolean("is_causal", self.is_causal))
        if self.is_causal:
            inputs.causal_lengths(self.n_q, self.n_k)
        for name in ("offsets", "pages"):
            object.__setattr__(self, name, index_array(name, getattr(self, name)))
        offsets, pages = self.offsets, self.pages
        needed = f"it must rise from 0 to {pages.size}, the number of pages, without decreasing"
        if offsets.size != self.n_blocks + 1 or offsets[0] != 0 or offsets[-1] != pages.size:
            raise ValueError(f"offsets has {offsets.size} entries for {self.n_blocks} blocks; {needed}")
        if np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets decreases; {needed}")
        if pages.size and (pages.min() < 0 or pages.max() >= self.n_pages):
            raise ValueError(
                f"pages runs from {pages.min()} to {pages.max()}; it must be within 0 .. {self.n_pages - 1}"
            )
        rises = np.diff(pages) > 0
        rises[offsets[(offsets > 0) & (offsets < pages.size)] - 1] = True  # a new list begins
        if not rises.all():
            raise ValueError("pages does not rise within each list; sort each list and name a page once")

    @classmethod
    def from_mask(cls, mask, n_q: int, n_k: int, *, block_size: int, page_size: int, is_causal: bool = False):
        """From a (blocks, pages) boolean array."""
        offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
        return cls(n_q, n_k, block_size, page_size, offsets, np.nonzero(mask)[1], is_causal)

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_q, self.n_k

    @property
    def n_blocks(self) -> int:
        return -(-self.n_q // self.block_size)

    @property
    def n_pages(self) -> int:
        return -(-self.n_k // self.page_size)

    @property
    def nnz(self) -> int:
        """Number of marked pairs."""
        block = np.repeat(np.arange(self.n_blocks), np.diff(self.offsets))
        first, stop = self._range(block, self.block_size, self.n_q)
        key, key_stop = self._range(self.pages, self.page_size, self.n_k)
        if not self.is_causal:
            return int((stop - first) @ (key_stop - key))
        queries = first[:, None] + np.arange(self.block_size)
        met = np.clip(queries + 1 - key[:, None], 0, (key_stop - key)[:, None])
        return int(met[queries < stop[:, None]].sum())

    @staticmethod
    def _range(number, size: int, n: int):
        return number * size, np.minimum((number + 1) * size, n)

    def pages_of(self, u: int) -> np.ndarray:
        """The list of block u."""
        return self.pages[self.offsets[u] : self.offsets[u + 1]]

    def blocks(self, place: tuple[int, int, int, int] | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each block its queries and the keys of its list, both rising.

        `place` = (first query, past the last query, first key, past the last key): only what lies inside, counted from
        its corner.
        """
        first, stop, key_first, key_stop = place or (0, self.n_q, 0, self.n_k)
        for u in range(first // self.block_size, -(-stop // self.block_size)):
            queries = np.arange(max(u * self.block_size, first), min((u + 1) * self.block_size, stop))
            keys = (self.pages_of(u)[:, None] * self.page_size + np.arange(self.page_size)).ravel()
            yield queries - first, keys[(key_first <= keys) & (keys < key_stop)] - key_first

    def pairs(self, queries, keys) -> np.ndarray:
        """The (len(queries), len(keys)) boolean tile of M."""
        queries, keys = np.asarray(queries), np.asarray(keys)
        blocks, rows = np.unique(queries // self.block_size, return_inverse=True)
        is_listed = np.zeros((blocks.size, self.n_pages), dtype=bool)
        for row, u in enumerate(blocks):
            is_listed[row, self.pages_of(u)] = True
        tile = is_listed[:, keys // self.page_size][rows]
        return tile & (keys <= queries[:, None]) if self.is_causal else tile

    def rows(self, queries) -> np.ndarray:
        """The rows of M that belong to these queries, (len(queries), n_k) boolean."""
        return self.pairs(queries, np.arange(self.n_k))

    def toarray(self) -> np.ndarray:
        """The dense (n_q, n_k) boolean matrix M."""
        return self.rows(np.arange(self.n_q))

    def views(self) -> tuple[BlockMask, ...]:
        """The same pairs as ordinary views, as many as the longest list is long; not for causal lists.

        Derived: view t holds the t-th page of every list; queries of all blocks whose t-th page is p share block p.
        """
        if self.is_causal:
            raise ValueError("these lists are causal; a view has no pairs that do not exist")
        lengths, key_offsets = np.diff(self.offsets), np.minimum(np.arange(self.n_pages + 2) * self.page_size, self.n_k)
        key_order, block = np.arange(self.n_k), np.arange(self.n_q) // self.block_size
        result = []
        for t in range(lengths.max(initial=0)):
            page = np.full(self.n_blocks, self.n_pages)  # a block without keys, for queries that meet no page here
            page[lengths > t] = self.pages[self.offsets[:-1][lengths > t] + t]
            order = np.argsort(page[block], kind="stable")
            query_offsets = np.searchsorted(page[block][order], np.arange(self.n_pages + 2))
            query_offsets[-1] = self.n_q
            result.append(BlockMask(order, key_order, query_offsets, key_offsets))
        return tuple(result)

    def __reduce__(self):
        # A copy and an unpickled object are made anew, so that they are checked, and as immutable as this one.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __repr__(self) -> str:
        kind = ", causal" if self.is_causal else ""
        return (
            f"BlockLists(n_q={self.n_q}, n_k={self.n_k}, block_size={self.block_size}, page_size={self.page_size}, "
            f"pages={self.pages.size}{kind})"
        )
