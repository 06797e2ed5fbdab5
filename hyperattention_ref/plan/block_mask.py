"""Masks of large entries: the block mask of Algorithm 1, and the other forms that callers may pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.host_arrays import host_array
from hyperattention_ref.foundation.lazy_property import lazy_property


@dataclass(frozen=True, eq=False)
class BlockMask:
    """M_ij = 1 iff query i and key j lie in the same block of two ordered, ragged partitions.

    Paper: the mask that Algorithm 1 returns; page "theory", rule 1 of the Plan. Block u holds the queries
    `query_order[query_offsets[u]:query_offsets[u + 1]]` and the keys `key_order[key_offsets[u]:key_offsets[u + 1]]`.
    Either side of a block may be empty.

    Parameters
    ----------
    query_order : (n_q,) int array, a permutation; `query_order[p]` is the query at sorted position p.
    key_order : (n_k,) int array, a permutation.
    query_offsets, key_offsets : (blocks + 1,) int arrays, from 0 to n_q and to n_k, never decreasing.
    """

    query_order: np.ndarray
    key_order: np.ndarray
    query_offsets: np.ndarray
    key_offsets: np.ndarray

    def __post_init__(self):
        for side in ("query", "key"):
            order = _permutation(f"{side}_order", getattr(self, f"{side}_order"))
            offsets = _offsets(f"{side}_offsets", getattr(self, f"{side}_offsets"), order.size)
            object.__setattr__(self, f"{side}_order", order)
            object.__setattr__(self, f"{side}_offsets", offsets)
        if self.query_offsets.size != self.key_offsets.size:
            raise ValueError(
                f"query_offsets make {self.query_offsets.size - 1} blocks and key_offsets {self.key_offsets.size - 1}; "
                "every block needs both sides (either may be empty)"
            )

    @classmethod
    def from_orders(cls, query_order, key_order, block_size: int) -> BlockMask:
        """Cut two orders into blocks of `block_size` keys.

        Paper: Algorithm 1, M_ij = 1 iff floor(P_Q(i) / b) = floor(P_K(j) / b). Derived for n_q != n_k: the query at
        sorted position p belongs to block floor(floor(p n_k / n_q) / b), which is the paper's rule when n_q = n_k.
        """
        b = inputs.count("block_size", block_size)
        query_order = _permutation("query_order", query_order)
        key_order = _permutation("key_order", key_order)
        n_q, n_k = query_order.size, key_order.size
        b = min(b, n_k)  # a larger block holds the same keys, and b may exceed the integers of NumPy
        blocks = -(-n_k // b)
        query_block = (np.arange(n_q) * n_k // n_q) // b
        query_offsets = np.searchsorted(query_block, np.arange(blocks + 1))
        key_offsets = np.minimum(np.arange(blocks + 1) * b, n_k)
        return cls(query_order, key_order, query_offsets, key_offsets)

    @property
    def n_q(self) -> int:
        return self.query_order.size

    @property
    def n_k(self) -> int:
        return self.key_order.size

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_q, self.n_k

    @property
    def n_blocks(self) -> int:
        return self.query_offsets.size - 1

    @property
    def nnz(self) -> int:
        """Number of marked pairs; floor(n/b) b^2 + (n mod b)^2 for square masks cut with `from_orders`."""
        return int(np.diff(self.query_offsets) @ np.diff(self.key_offsets))

    def query_blocks(self) -> np.ndarray:
        """(n_q,) int32 block number of every query."""
        return self._query_blocks

    def key_blocks(self) -> np.ndarray:
        """(n_k,) int32 block number of every key."""
        return self._key_blocks

    @lazy_property
    def _query_blocks(self) -> np.ndarray:
        return _block_numbers(self.query_order, self.query_offsets)

    @lazy_property
    def _key_blocks(self) -> np.ndarray:
        return _block_numbers(self.key_order, self.key_offsets)

    def block(self, u: int) -> tuple[np.ndarray, np.ndarray]:
        """The queries and the keys of block u, in sorted order."""
        queries = self.query_order[self.query_offsets[u] : self.query_offsets[u + 1]]
        keys = self.key_order[self.key_offsets[u] : self.key_offsets[u + 1]]
        return queries, keys

    def toarray(self) -> np.ndarray:
        """The dense (n_q, n_k) boolean matrix M."""
        return self.rows(np.arange(self.n_q))

    def rows(self, queries) -> np.ndarray:
        """The rows of M that belong to these queries, (len(queries), n_k) boolean."""
        return self.query_blocks()[queries][:, None] == self.key_blocks()

    def __reduce__(self):
        # A copy and an unpickled mask are made anew, so that they are checked, and as immutable as this one.
        return type(self), (self.query_order, self.key_order, self.query_offsets, self.key_offsets)

    def __repr__(self) -> str:
        return f"BlockMask(n_q={self.n_q}, n_k={self.n_k}, n_blocks={self.n_blocks}, nnz={self.nnz})"


def dense_mask(mask, n_q: int, n_k: int) -> np.ndarray:
    """Any accepted mask as a dense (n_q, n_k) boolean array.

    Parameters
    ----------
    mask : BlockMask, boolean array, SciPy sparse matrix or array (nonzero means marked), or None for no mark at all.
    n_q, n_k : the shape that is needed.
    """
    if mask is None:
        return np.zeros((n_q, n_k), dtype=bool)
    if hasattr(mask, "toarray"):  # BlockMask and every SciPy sparse container
        mask = mask.toarray() != 0
    mask = host_array("mask", mask)
    if mask.dtype != bool:
        raise TypeError(
            f"mask has dtype {mask.dtype}; it must be a BlockMask, a boolean array, a SciPy sparse matrix or None: "
            "convert it with .astype(bool) (True marks a large entry; this is no additive mask)"
        )
    if mask.shape != (n_q, n_k):
        raise ValueError(f"mask has shape {mask.shape}; it must be (n_q, n_k) = {(n_q, n_k)}")
    return mask


def _permutation(name: str, order) -> np.ndarray:
    order = index_array(name, order)
    is_found = np.zeros(order.size, dtype=bool)
    if order.size and order.min() >= 0 and order.max() < order.size:
        is_found[order] = True
    if order.size == 0 or not is_found.all():
        raise ValueError(f"{name} is no permutation of 0 .. {order.size - 1}; every index must occur exactly once")
    return order


def _offsets(name: str, offsets, n: int) -> np.ndarray:
    offsets = index_array(name, offsets)
    if offsets.size < 2 or offsets[0] != 0 or offsets[-1] != n or np.any(np.diff(offsets) < 0):
        raise ValueError(f"{name} is {offsets}; it must rise from 0 to {n} without decreasing")
    return offsets


def index_array(name: str, x) -> np.ndarray:
    """A one-dimensional, read-only int64 copy of `x`."""
    x = host_array(name, x)
    if x.size == 0 and x.ndim == 1:
        x = x.astype(np.int64)
    if x.ndim != 1 or x.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {x.dtype} and shape {x.shape}; it must be a one-dimensional integer array")
    x = x.astype(np.int64)
    x.setflags(write=False)
    return x


def _block_numbers(order: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    numbers = np.empty(order.size, dtype=np.int32)
    numbers[order] = np.repeat(np.arange(offsets.size - 1, dtype=np.int32), np.diff(offsets))
    numbers.setflags(write=False)
    return numbers
