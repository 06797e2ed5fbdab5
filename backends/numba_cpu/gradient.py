"""The gradient of the Numba backend: units of queries by keys, in rounds in which no two units share a query or a key.

A unit makes all five products of its pairs at once and adds to dq, dk and dv. Rounds follow one another, so that every
sum has its order, and the bits are the same for any number of threads. Page "theory", section 9.10, has the formulas.

- A view, a set of leaves, or exact attention is made of blocks. A block of many queries is a square of units: in round
  t the piece of queries number r meets the piece of keys number r + t.
- Keys that all queries meet (exact and sampled ones) have few rows: their gradients are summed in copies, each for some
  pieces of queries, and the copies are added in their order. So repeated draws add up.
- Block lists share keys among blocks in any manner: they are gone through twice, by block for dq, by page for dk, dv.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..upstream import Upstream
from .backend import LOG2_E, _kernels, _lists, _mask, _plain, _shared, _writable
from .threads import pieces, run

COPIES = 64
"""Copies of the gradients of shared keys, at most; together they have no more rows than there are keys."""
SHARED_PIECES = 16
"""Pieces of shared keys, at most."""


def head_gradient(q, k, v, upstream: Upstream, *, head_plan, scale, is_causal):
    """(dq, dk, dv) of one head: of exact attention if `head_plan` is None, else of its plan but for far parts."""
    q, k, v, dout = (_plain(x, q.dtype) for x in (q, k, v, upstream.dout))
    lse = upstream.finite_lse * q.dtype.type(LOG2_E)
    dq, dk, dv = (np.zeros(x.shape, x.dtype) for x in (q, k, v))
    head = _Part(q, k, v, dout, lse, upstream.delta, dq, dk, dv, scale)
    if head_plan is None:
        _add_ranges(head, np.array([0, len(q)]), np.array([0, len(k)]), is_causal)
    else:
        if head_plan.lists is not None:
            _add_lists(head, head_plan.lists)
        if head_plan.leaves:  # without lists they meet end to end
            ends = np.unique(head_plan.leaves)
            _add_ranges(head, ends, ends, True)
        for rectangle in head_plan.rectangles:
            _add_rectangle(head.of(*rectangle.rows_and_keys), rectangle, head_plan.lists)
    return dq, dk, dv


@dataclass(frozen=True, eq=False)
class _Part:
    """A head, or a rectangle of it: its arrays, and where its gradients are added."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    lse: np.ndarray
    delta: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    scale: float

    def of(self, rows: slice, keys: slice) -> _Part:
        """A rectangle."""
        of_rows = {name: getattr(self, name)[rows] for name in ("q", "dout", "lse", "delta", "dq")}
        return replace(self, **of_rows, **{name: getattr(self, name)[keys] for name in ("k", "v", "dk", "dv")})

    def add(self, rounds, query_order, query_blocks, columns, exclusion, *, with_queries=True, with_keys=True):
        """Run rounds of units."""
        kernels, dtype = _kernels(), self.q.dtype
        arguments = {
            "queries": kernels.Queries(self.q, self.dout, self.lse, self.delta, query_blocks, query_order),
            "k": self.k,
            "v": self.v,
            "columns": columns,
            "factor": dtype.type(self.scale * LOG2_E),
            "scale": dtype.type(self.scale),
            "exclusion": exclusion,
            "gradients": kernels.Gradients(self.dq, self.dk, self.dv, with_queries, with_keys),
        }
        for units in rounds:
            units = np.ascontiguousarray(units)
            work = [(units[slice(*piece)],) for piece in pieces(len(units), multiple=1)]
            run(kernels.gradient_units, work, **arguments)


def _add_ranges(part: _Part, query_offsets, key_offsets, is_causal):
    """Blocks of consecutive queries and keys, from these offsets on."""
    blocks = [np.repeat(np.arange(len(x) - 1, dtype=np.int32), np.diff(x))[None] for x in (query_offsets, key_offsets)]
    columns = _columns(part, np.arange(len(part.k)), blocks[1])
    groups = _kernels().make_groups(query_offsets, key_offsets)
    exclusion = _kernels().Exclusion(0, _lists(None), is_causal)
    part.add(_rounds(groups, is_causal), np.arange(len(part.q)), blocks[0], columns, exclusion)


def _add_rectangle(part: _Part, rectangle, lists):
    """Its views, each without exact keys and the pairs of earlier views, then the keys that all queries meet."""
    mask = _mask(rectangle, rectangle.n_q, rectangle.n_k)
    lists = _lists(lists, rectangle.query_start, rectangle.key_start)
    for u, view in enumerate(rectangle.views):
        is_met = ~mask.is_exact[view.key_order]
        keys = view.key_order[is_met]
        key_offsets = np.concatenate([[0], np.cumsum(is_met)])[view.key_offsets]
        groups = _kernels().make_groups(_writable(view.query_offsets), key_offsets)
        columns = _columns(part, keys, mask.key_blocks.take(keys, axis=1))
        exclusion = _kernels().Exclusion(u, lists, False)
        part.add(_rounds(groups), _writable(view.query_order), mask.query_blocks, columns, exclusion)
    shared = _shared(rectangle, part.k, part.v, mask)
    if shared.indices.size:
        _add_shared(part, shared, mask.query_blocks, lists, rectangle.exact_keys.size)


def _add_shared(part: _Part, shared, query_blocks, lists, n_exact: int):
    """Keys that all queries meet: gradients in copies, each for as many pieces of queries as there are of keys."""
    m, (n_q, n_k) = shared.indices.size, (len(part.q), len(part.k))
    n_pieces = min(SHARED_PIECES, -(-m // _kernels().GROUP))
    n_copies = max(1, min(COPIES // n_pieces, n_k // m))
    dk, dv = (np.zeros((n_copies * m, x.shape[1]), x.dtype) for x in (part.dk, part.dv))
    copies = replace(part, dk=dk, dv=dv)
    log_weights, blocks = np.tile(shared.log_weights, n_copies), np.tile(shared.blocks, (1, n_copies))
    columns = _kernels().Columns(np.tile(shared.indices, n_copies), np.arange(n_copies * m), log_weights, blocks)
    i = np.arange(n_copies * n_pieces)
    copy, place = np.divmod(i, n_pieces)
    rounds = []
    for t in range(n_pieces):
        piece = (place + t) % n_pieces
        keys = copy * m + m * piece // n_pieces, copy * m + m * (piece + 1) // n_pieces
        rounds.append(np.stack([i * n_q // i.size, (i + 1) * n_q // i.size, *keys, 0 * i], axis=1))
    exclusion = _kernels().Exclusion(len(query_blocks), lists, False)
    copies.add(rounds, np.arange(n_q), query_blocks, columns, exclusion)
    for copied, total in ((dk, part.dk), (dv, part.dv)):
        sums = copied.reshape(n_copies, m, -1).sum(axis=0)
        total[shared.indices[:n_exact]] += sums[:n_exact]
        np.add.at(total, shared.indices[n_exact:], sums[n_exact:])  # repeated draws add up


def _add_lists(part: _Part, lists):
    """The listed pairs: every block with the keys of its pages for dq, every page with its queries for dk and dv."""
    n_q, n_k = lists.shape
    nothing, exclusion = np.zeros((0, n_q), np.int32), _kernels().Exclusion(0, _lists(None), lists.is_causal)
    keys, offsets = _members(lists.pages, lists.offsets, lists.page_size, n_k)
    units = _units_of_pages(lists.n_blocks, lists.block_size, n_q, offsets)[:, [2, 3, 0, 1, 4]]
    of_blocks = _columns(part, keys, np.zeros((0, keys.size), np.int32))
    part.add([units], np.arange(n_q), nothing, of_blocks, exclusion, with_keys=False)

    block = np.repeat(np.arange(lists.n_blocks), np.diff(lists.offsets))
    by_page = np.argsort(lists.pages, kind="stable")
    page_offsets = np.searchsorted(lists.pages[by_page], np.arange(lists.n_pages + 1))
    queries, offsets = _members(block[by_page], page_offsets, lists.block_size, n_q)
    units = _units_of_pages(lists.n_pages, lists.page_size, n_k, offsets)
    columns = _columns(part, np.arange(n_k), np.zeros((0, n_k), np.int32))
    part.add([units], queries, nothing, columns, exclusion, with_queries=False)


def _members(numbers, offsets, size: int, n: int):
    """The members of pages `numbers`, of that size, and where the lists from `offsets` on begin among them."""
    members = (numbers[:, None] * size + np.arange(size)).ravel()
    counts = np.minimum((numbers + 1) * size, n) - numbers * size
    return members[members < n], np.concatenate([[0], np.cumsum(counts)])[offsets]


def _units_of_pages(n_pages: int, size: int, n: int, offsets):
    """Units of the members in the lists of pages with the pages' own members."""
    own = np.minimum(np.arange(n_pages + 1) * size, n)
    return np.stack([offsets[:-1], offsets[1:], own[:-1], own[1:], np.zeros(n_pages, np.int64)], axis=1)


def _columns(part: _Part, keys, blocks):
    """These keys without log-weights."""
    return _kernels().Columns(keys, keys, np.zeros(keys.size, part.k.dtype), np.ascontiguousarray(blocks))


def _rounds(groups, is_causal=False):
    """Units of the groups from `make_groups`, round by round.

    Groups of one block have its keys in common: in round t, group number r of R takes piece (r + t) mod R of them.
    """
    groups = groups[groups[:, 2] < groups[:, 3]]
    _, first, block, sizes = np.unique(groups[:, 2], return_index=True, return_inverse=True, return_counts=True)
    number, size = np.arange(len(groups)) - first[block], sizes[block]
    start, length = groups[:, 2], groups[:, 3] - groups[:, 2]
    rounds = []
    for t in range(sizes.max(initial=0)):
        piece = (number + t) % size
        units = np.stack([*groups.T[:2], start + length * piece // size, start + length * (piece + 1) // size], axis=1)
        units = np.column_stack([units, groups[:, 4] > 1])
        is_met = (t < size) & ~(is_causal & (units[:, 2] >= units[:, 1]))
        rounds.append(units[is_met])
    return rounds
