"""Tiles of logits: how the NumPy backend goes through the pairs of a plan, whatever it then does with them.

A *piece* is (rows, keys, log_weights, excluded): some queries meet some keys, whose log-weights are added if they are
not None, except for the pairs that the function `excluded(rows, keys)` marks in a tile; None marks none. Keys repeat
only where there are log-weights.
"""

from __future__ import annotations

import numpy as np

TILE_QUERIES, TILE_KEYS = 512, 1024  # a tile of logits is at most 4 MB in float64


class Tiles:
    """The logits of one head, q (n_q, d) and k (n_k, d), tile by tile."""

    def __init__(self, q, k, scale):
        self.q, self.k = q, k
        self.scale = q.dtype.type(scale)

    def of(self, pieces):
        """Yield (rows, keys, logits) for every tile of the pieces; excluded pairs have -inf."""
        for rows, keys, log_weights, excluded in pieces:
            for row_tile in cut(len(rows), TILE_QUERIES):
                r = rows[row_tile]
                q = self.q[r] * self.scale
                for key_tile in cut(len(keys), TILE_KEYS):
                    s = keys[key_tile]
                    logits = q @ self.k[s].T
                    if log_weights is not None:
                        logits += log_weights[key_tile].astype(logits.dtype)
                    if excluded is not None:
                        logits[excluded(r, s)] = -np.inf
                    yield r, s, logits


def exact_pieces(n_q, n_k, is_causal):
    """All pairs that exist; causal pieces stop at the diagonal."""
    queries, keys = np.arange(n_q), np.arange(n_k)
    for tile in cut(n_q, TILE_QUERIES):
        rows = queries[tile]
        yield (rows, keys[: rows[-1] + 1], None, after) if is_causal else (rows, keys, None, None)


def listed_pieces(lists):
    """Rule 11 of the Plan: the pairs of BlockLists; none if `lists` is None."""
    hidden = after if lists and lists.is_causal else None
    for rows, keys in lists.blocks() if lists else ():
        yield rows, keys, None, hidden


def rectangle_pieces(rectangle, lists):
    """Rules 3, 4 and 7 of the Plan: exact keys, then each view, then the sampled keys, every masked pair once.

    Indices count from the rectangle's corner. Pairs in `lists`, those of the head or None, belong to another part.
    """
    all_queries, listed = np.arange(rectangle.n_q), listed_pairs(rectangle, lists)
    yield all_queries, rectangle.exact_keys, None, listed
    for rows, keys, earlier in blocks_of_views(rectangle):
        yield rows, keys, None, either(earlier, listed)
    masked = either(in_one_block(*rectangle.block_numbers(exact_keys=True)), listed)
    yield all_queries, rectangle.sampled_keys, rectangle.log_weights, masked


def taken_tiles(rectangle, lists):
    """Yield (rows, keys, hidden): the pairs of views, then of lists, that are exact though their keys are far.

    `hidden` marks the pairs of a tile that are none, or have come before; in a rectangle with landmarks.
    """
    listed = listed_pairs(rectangle, lists)

    def of_exact_keys(rows, keys):
        return np.broadcast_to(rectangle.is_exact[keys], (len(rows), len(keys)))

    def blocks():
        for rows, keys, earlier in blocks_of_views(rectangle):
            yield rows, keys, either(earlier, listed)  # landmarks are exact keys: there is something earlier
        for rows, keys in lists.blocks(rectangle.place) if lists else ():
            yield rows, keys, of_exact_keys

    for rows, keys, hidden in blocks():
        for row_tile in cut(len(rows), TILE_QUERIES):
            for key_tile in cut(len(keys), TILE_KEYS):
                r, s = rows[row_tile], keys[key_tile]
                yield r, s, hidden(r, s)


def blocks_of_views(rectangle):
    """Yield (rows, keys, earlier) for each block of each view; `earlier` marks the pairs of exact keys, earlier views.

    `earlier` is as `in_one_block` returns it.
    """
    query_blocks, key_blocks = rectangle.block_numbers(exact_keys=True)
    for u, view in enumerate(rectangle.views, start=len(query_blocks) - len(rectangle.views)):
        earlier = in_one_block(query_blocks[:u], key_blocks[:u])
        for block in range(view.n_blocks):
            yield *view.block(block), earlier


def listed_pairs(rectangle, lists):
    """The function that marks listed pairs, counted from the rectangle's corner; None if there are no lists."""
    return lists and (lambda rows, keys: lists.pairs(rows + rectangle.query_start, keys + rectangle.key_start))


def in_one_block(query_blocks, key_blocks):
    """A function (rows, keys) -> the boolean tile of pairs that some view has in one block; None if there is no view.

    Each view is a row of block numbers, as `Rectangle.block_numbers` gives them.
    """

    def pairs(rows, keys):
        return (query_blocks[:, rows, None] == key_blocks[:, None, keys]).any(axis=0)

    return pairs if len(query_blocks) else None


def after(rows, keys):
    """The tile of pairs whose key comes after the query."""
    return keys > rows[:, None]


def either(one, other):
    """The function that marks a pair that one of two such functions marks; None marks nothing."""
    if one is None or other is None:
        return one or other
    return lambda rows, keys: one(rows, keys) | other(rows, keys)


def cut(n, size):
    """range(n) in slices of `size`."""
    return [slice(start, start + size) for start in range(0, n, size)]
