"""The NumPy backend: blocked, memory O(n d) plus one tile of logits.

It computes in the dtype of the inputs (float32 for float16). Exact blocks, sampled keys and causal leaves all use one
routine, `RunningSoftmax.tiles`: the keys are folded tile by tile into the state of their queries.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from hyperattention_ref.foundation.backend import AttentionSums, each_head
from hyperattention_ref.foundation.memory import working_dtype
from hyperattention_ref.paper.definition_1_sorted_lsh import gray_rank, scaled_rows
from hyperattention_ref.plan.merge import merge_attention

from .blocked_gradient import head_gradient
from .far_gradient import gradients_with_far_parts
from .far_part import FarPart
from .tiles import (
    TILE_QUERIES,
    Tiles,
    cut,
    exact_pieces,
    in_one_block,
    listed_pieces,
    rectangle_pieces,
    taken_tiles,
)

PANEL_BYTES = 2**24  # a panel holds a few rows of logits by all keys; with its copies it stays in the last-level cache


class BlockedNumpy:
    """Attention in tiles with a running softmax."""

    name = "numpy"

    def unavailable(self) -> str | None:
        return None

    def hash_codes(self, x, planes):
        work = working_dtype(x)
        planes = scaled_rows(planes).astype(work)
        codes = np.empty(x.shape[:-1], dtype=np.int64)
        for index, _, rows in each_head(None, x):
            for tile in cut(len(rows), TILE_QUERIES):
                codes[index][tile] = gray_rank(scaled_rows(rows[tile].astype(work, copy=False)) @ planes.T > 0)
        return codes

    def exact_attention(self, q, k, v, *, scale, is_causal):
        def one_head(q, k, v, _):
            return exact_head(q, k, v, scale, is_causal)

        return _over_heads(one_head, None, q, k, v)

    def planned_attention(self, q, k, v, plan, *, scale):
        def one_head(q, k, v, head_plan):
            out, lse = attention(q, k, v, scale, listed_pieces(head_plan.lists))
            for a, c in head_plan.leaves:
                out[a:c], lse[a:c] = exact_head(q[a:c], k[a:c], v[a:c], scale, is_causal=True)
            for rectangle in head_plan.rectangles:
                rows, keys = rectangle.rows_and_keys
                part = rectangle_attention(q[rows], k[keys], v[keys], rectangle, head_plan.lists, scale)
                out[rows], lse[rows] = merge_attention((out[rows], lse[rows]), part)
            return out, lse

        return _over_heads(one_head, plan, q, k, v)

    def attention_gradient(self, q, k, v, plan, out, lse, dout, dlse, *, scale, is_causal):
        attention, results = partial(exact_head, scale=scale, is_causal=False), (out, lse, dout, dlse)
        options = {"scale": scale, "is_causal": is_causal}
        return gradients_with_far_parts(head_gradient, attention, plan, q, k, v, results, **options)

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        work = working_dtype(q)
        q, k = q.astype(work, copy=False) * work.type(scale), k.astype(work, copy=False)
        n_q, n_k = len(q), len(k)
        rows = {name: np.empty(n_q, work) for name in ("log_total", "log_unmasked", "entropy")}
        columns = {name: np.zeros(n_k) for name in ("column_sums", "column_squares")}
        logit_min, logit_max = np.inf, -np.inf
        marked = _marked_rows(mask)
        for panel in cut(n_q, max(1, PANEL_BYTES // (n_k * work.itemsize))):
            r = np.arange(n_q)[panel]
            m = r[-1] + 1 if is_causal else n_k  # keys that some query of the panel meets
            hidden = np.arange(m) > r[:, None] if is_causal else np.zeros((1, m), dtype=bool)
            logits = q[panel] @ k[:m].T
            logit_min = min(logit_min, np.where(hidden, np.inf, logits).min() if is_causal else logits.min())
            if is_causal:
                logits[hidden] = -np.inf
            top = logits.max(axis=1)
            logit_max = max(logit_max, top.max())
            logits -= top[:, None]
            weights = np.exp(logits)
            total = weights.sum(axis=1)
            rows["log_total"][panel] = top + np.log(total)
            if is_causal:
                logits[hidden] = 0
            rows["entropy"][panel] = np.log(total) - np.einsum("ij,ij->i", weights, logits) / total
            columns["column_sums"][:m] += (1 / total) @ weights
            columns["column_squares"][:m] += (1 / total**2) @ np.multiply(weights, weights, out=logits)
            if marked is None:
                rows["log_unmasked"][panel] = rows["log_total"][panel]
            else:
                outside = ~(marked(r)[:, :m] | hidden)
                rows["log_unmasked"][panel] = top + _log_sums(weights, outside, q[panel], k[:m], top)
        return AttentionSums(**rows, **columns, logit_min=float(logit_min), logit_max=float(logit_max))

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        work = working_dtype(q)
        q, k, y, lse = (x.astype(work, copy=False) for x in (q, k, y, lse))
        out = np.zeros((len(k), y.shape[1]), work)
        for rows, keys, logits in Tiles(q, k, scale).of(exact_pieces(len(q), len(k), is_causal)):
            logits -= lse[rows, None]
            out[keys] += np.exp(logits, out=logits).T @ y[rows]
        return out

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        work = working_dtype(q)
        q, k, log_caps = (x.astype(work, copy=False) for x in (q, k, log_caps))
        softmax = RunningSoftmax(len(q), 0, work)
        n_capped = np.zeros(len(q), np.int64)
        draws = [(np.arange(len(q)), samples, None, _marked_pairs(mask))]
        for rows, keys, logits in Tiles(q, k, scale).of(draws):
            caps = log_caps[rows, None]
            n_capped[rows] += (logits > caps).sum(axis=1)  # an excluded pair has the logit -inf, above no cap
            softmax.fold(rows, np.minimum(logits, caps, out=logits), k[keys, :0])
        _, log_sums = softmax.finish()
        return log_sums, n_capped


def exact_head(q, k, v, scale, is_causal):
    """Exact attention of one head."""
    return attention(q, k, v, scale, exact_pieces(len(q), len(k), is_causal))


def rectangle_attention(q, k, v, rectangle, lists, scale):
    """What a rectangle adds to its rows: masked and sampled pairs, and the far part."""
    exact = attention(q, k, v, scale, rectangle_pieces(rectangle, lists))
    far = FarPart.fit(k, v, rectangle, scale, partial(exact_head, scale=scale, is_causal=False))
    if far is None:
        return exact
    _, sums, shift = far.sums(q, k, v, scale, taken_tiles(rectangle, lists))
    return merge_attention(exact, far.finish(sums, shift))


def attention(q, k, v, scale, pieces):
    """(out, lse) of the softmax over the pieces."""
    softmax = RunningSoftmax(len(q), v.shape[1], q.dtype)
    for rows, keys, logits in Tiles(q, k, scale).of(pieces):
        softmax.fold(rows, logits, v[keys])
    return softmax.finish()


class RunningSoftmax:
    """For each query the largest logit so far, the sum of exp(logit - largest) and the same sum with the values."""

    def __init__(self, n_q, d_v, dtype):
        self.top = np.full(n_q, -np.inf, dtype)
        self.total = np.zeros(n_q, dtype)
        self.sums = np.zeros((n_q, d_v), dtype)

    def fold(self, rows, logits, v):
        """Fold the logits of some queries, which are overwritten, and the values `v` of their keys into the state."""
        top = np.maximum(self.top[rows], logits.max(axis=1))
        base = np.where(np.isneginf(top), 0, top).astype(top.dtype, copy=False)
        logits -= base[:, None]
        weights = np.exp(logits, out=logits)
        decay = np.exp(self.top[rows] - base)
        self.top[rows] = top
        self.total[rows] = self.total[rows] * decay + weights.sum(axis=1)
        self.sums[rows] = self.sums[rows] * decay[:, None] + weights @ v

    def finish(self):
        """(out, lse); a query that met no key gives (0, -inf)."""
        met = self.total > 0
        self.sums /= np.where(met, self.total, 1)[:, None].astype(self.sums.dtype, copy=False)
        lse = self.top + np.log(self.total, out=np.zeros_like(self.total), where=met)
        return self.sums, lse


def _marked_pairs(mask):
    """A function (rows, keys) -> the boolean tile of marked pairs; None if nothing is marked."""
    if isinstance(mask, np.ndarray):
        return lambda rows, keys: mask[rows[:, None], keys]
    return mask and in_one_block(*mask.block_numbers(exact_keys=True))


def _marked_rows(mask):
    """A function from row indices to the (rows, n_k) boolean panel of marked pairs; None if nothing is marked."""
    return mask.__getitem__ if isinstance(mask, np.ndarray) else mask and mask.rows


def _log_sums(weights, counted, q, k, top):
    """log of the row sums of weights = exp(q k^T - top) over the counted pairs; -inf where there is none.

    Overwrites `weights`. A row whose counted weights underflow, or nearly so, is summed again relative to its largest.
    """
    weights *= counted
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore"):
        result = np.log(total)
    limits = np.finfo(weights.dtype)
    for row in np.flatnonzero(total < limits.tiny / limits.eps * weights.shape[1]):
        logits = k[counted[row]] @ q[row] - top[row]
        if logits.size:
            result[row] = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    return result


def _over_heads(one_head, plan, q, k, v):
    """Run one head after another in the working dtype; round the output to the dtype of the inputs."""
    work = working_dtype(q)
    out, lse = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype), np.empty(q.shape[:-1], work)
    for index, head_plan, *head in each_head(plan, q, k, v):
        out[index], lse[index] = one_head(*(x.astype(work, copy=False) for x in head), head_plan)
    return out, lse
