"""The reference backend: dense, float64, literal; every other backend is judged against it.

Results stay float64 whatever the inputs are, so that a comparison never hides rounding. Memory O(n_q n_k).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from hyperattention_ref.foundation.backend import AttentionSums, each_head
from hyperattention_ref.paper.definition_1_sorted_lsh import hamming_sorted_lsh
from hyperattention_ref.plan.block_mask import dense_mask
from hyperattention_ref.plan.landmarks import FLOOR
from hyperattention_ref.plan.merge import NEUTRAL, merge_attention

from .reference_gradient import far_fit, head_gradient, rectangle_logits
from .upstream import gradients_of_heads


class Reference:
    """Attention as the rules of the Plan define it, one dense matrix of logits per rectangle."""

    name = "reference"

    def unavailable(self) -> str | None:
        return None

    def hash_codes(self, x, planes):
        return hamming_sorted_lsh(x, planes)

    def exact_attention(self, q, k, v, *, scale, is_causal):
        out, lse = _results(q, v)
        for index, _, *head in each_head(None, q, k, v):
            q1, k1, v1 = (x.astype(np.float64) for x in head)
            exists = np.tri(len(q1), len(k1), dtype=bool) if is_causal else True
            out[index], lse[index] = softmax_average(np.where(exists, scale * q1 @ k1.T, -np.inf), v1)
        return out, lse

    def planned_attention(self, q, k, v, plan, *, scale):
        out, lse = _results(q, v)
        for index, head_plan, *head in each_head(plan, q, k, v):
            q1, k1, v1 = (x.astype(np.float64) for x in head)
            out[index], lse[index] = self._head(q1, k1, v1, head_plan, scale)
        return out, lse

    def attention_gradient(self, q, k, v, plan, out, lse, dout, dlse, *, scale, is_causal):
        one_head = partial(head_gradient, scale=scale, is_causal=is_causal)
        return gradients_of_heads(one_head, plan, q, k, v, (out, lse, dout, dlse), np.dtype(np.float64))

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        exists = np.tri(len(q), len(k), dtype=bool) if is_causal else np.ones((len(q), len(k)), dtype=bool)
        logits = np.where(exists, scale * q.astype(np.float64) @ k.astype(np.float64).T, -np.inf)
        marked = np.zeros(logits.shape, dtype=bool) if mask is None else dense_mask(mask, *logits.shape)
        _, log_total = softmax_average(logits, np.zeros((len(k), 0)))
        _, log_unmasked = softmax_average(np.where(marked, -np.inf, logits), np.zeros((len(k), 0)))
        p = np.exp(logits - log_total[:, None])
        return AttentionSums(
            log_total=log_total,
            log_unmasked=log_unmasked,
            column_sums=p.sum(axis=0),
            column_squares=(p**2).sum(axis=0),
            entropy=-np.sum(p * np.where(p > 0, logits - log_total[:, None], 0), axis=1),
            logit_min=float(logits[exists].min()),
            logit_max=float(logits[exists].max()),
        )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        logits = scale * q.astype(np.float64) @ k.astype(np.float64).T
        exists = np.tri(len(q), len(k), dtype=bool) if is_causal else True
        return np.exp(np.where(exists, logits, -np.inf) - lse[:, None]).T @ y

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        drawn = (scale * q.astype(np.float64) @ k.astype(np.float64).T)[:, samples]
        unmasked = ~dense_mask(mask, len(q), len(k))[:, samples]
        capped = np.minimum(drawn, log_caps[:, None])
        _, log_sums = softmax_average(np.where(unmasked, capped, -np.inf), np.zeros((len(samples), 0)))
        return log_sums, np.sum(unmasked & (drawn > log_caps[:, None]), axis=1, dtype=np.int64)

    def _head(self, q, k, v, head_plan, scale):
        out, lse = np.zeros((len(q), v.shape[1])), np.full(len(q), NEUTRAL[1])
        if head_plan.lists is not None:  # rule 11: listed pairs come first
            listed = head_plan.lists.toarray()
            out, lse = softmax_average(np.where(listed, scale * q @ k.T, -np.inf), v)
        for a, c in head_plan.leaves:  # rule 8: exact causal leaves
            rows = slice(a, c)
            out[rows], lse[rows] = self.exact_attention(q[rows], k[rows], v[rows], scale=scale, is_causal=True)
        for rectangle in head_plan.rectangles:  # rule 9: merged in the order of the plan
            rows, keys = rectangle.rows_and_keys
            listed = head_plan.listed(rectangle, range(rectangle.n_q), range(rectangle.n_k))
            part = rectangle_attention(q[rows], k[keys], v[keys], rectangle, listed, scale)
            out[rows], lse[rows] = merge_attention((out[rows], lse[rows]), part)
        return out, lse


def rectangle_attention(q, k, v, rectangle, listed, scale):
    """Rules 3, 4, 7 and 11: the masked pairs with weight 1, then every sampled key that the mask does not cover.

    Pairs that are listed belong to another part.
    """
    logits, keys = rectangle_logits(q, k, rectangle, listed, scale)
    exact = softmax_average(logits, v[keys])
    if rectangle.landmarks is None:
        return exact
    return merge_attention(exact, far_part(q, k, v, rectangle, listed, scale))


def far_part(q, k, v, rectangle, listed, scale):
    """Rule 4 with landmarks C: (out, lse) over the far keys l that neither mask nor lists give to the query."""
    landmarks, far = rectangle.landmarks, np.flatnonzero(~rectangle.is_exact)
    if far.size == 0:
        return np.zeros((len(q), v.shape[1])), np.full(len(q), NEUTRAL[1])
    fit = far_fit(k, landmarks, far, scale)
    rows = scale * q @ k[landmarks.keys].T - fit.w[landmarks.keys] + fit.top
    shift = rows.max(axis=1)
    e = np.exp(rows - shift[:, None])
    estimates = e @ fit.g  # e^{s q·k_l} ≈ Σ_j e^{s q·k_j} G_jl
    estimates[(rectangle.toarray() | listed)[:, far]] = 0
    return weighted_mean(estimates, v[far], shift, FLOOR * e @ np.abs(fit.g.sum(axis=1)))


def weighted_mean(weights, v, shift, least):
    """(out, lse) of signed weights times e^shift: nothing if their sum is not above `least`, else their mean of v.

    The mean is moved into the smallest ball around the mean of v that holds all of v.
    """
    centre = v.mean(axis=0)
    total = weights.sum(axis=1)
    is_there = total > least
    safe = np.where(is_there, total, 1)
    out = weights @ (v - centre) / safe[:, None]
    radius, size = np.linalg.norm(v - centre, axis=1).max(), np.linalg.norm(out, axis=1)
    out *= np.where(size > radius, radius / np.where(size > radius, size, 1), 1)[:, None]
    lse = np.where(is_there, shift + np.log(safe), NEUTRAL[1])
    return np.where(is_there[:, None], centre + out, 0), lse


def softmax_average(logits, v):
    """(out, lse) of softmax(logits) @ v in the log domain; a row without any finite logit gives (0, -inf)."""
    top = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[:, 0]
    return weights @ v / np.where(total > 0, total, 1), lse


def _results(q, v):
    return np.empty((*q.shape[:-1], v.shape[-1])), np.empty(q.shape[:-1])
