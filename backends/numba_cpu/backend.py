"""The Numba backend: compiled tiles on all CPU cores; what runs for NumPy arrays unless another is named.

It computes in the dtype of the inputs (float32 for float16). This file cuts the work into independent pieces, each of
which writes rows of its own; `threads` runs the pieces, `kernels` does the arithmetic. Results are the same bits for
every number of threads.

Memory: O(n d) for states and gathered samples; copies of one head where its arrays are strided or float16.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np

from hyperattention_ref.foundation.backend import AttentionSums, each_head
from hyperattention_ref.foundation.memory import working_dtype
from hyperattention_ref.paper.definition_1_sorted_lsh import scaled_rows
from hyperattention_ref.plan import pages
from hyperattention_ref.plan.head_plan import Rectangle

from ..far_gradient import gradients_with_far_parts
from ..far_part import FarPart
from .threads import pieces, run

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
LARGEST_SCORE = 2.0**20
"""Scores of pages up to this size are compared in float32, whose neighbours are then less than 0.1 apart."""


class NumbaCPU:
    """Attention in compiled tiles."""

    name = "numba"

    def unavailable(self) -> str | None:
        from numba import config

        if config.DISABLE_JIT:  # type: ignore[attr-defined]
            return "NUMBA_DISABLE_JIT is set, and its kernels exist only compiled; unset it"
        return None

    def hash_codes(self, x, planes):
        work = working_dtype(x)
        bits, d = planes.shape
        columns = np.zeros((d, -(-bits // 16) * 16), work)
        columns[:, :bits] = scaled_rows(planes).T
        codes = np.empty(x.shape[:-1], dtype=np.int64)
        for index, _, rows in each_head(None, x):
            arguments = {"x": _plain(rows, work), "planes": columns, "n_bits": bits, "codes": codes[index]}
            run(_kernels().hash_rows, pieces(len(rows)), **arguments)
        return codes

    def exact_attention(self, q, k, v, *, scale, is_causal):
        def one_head(q, k, v, _, state):
            # the last rows of causal attention take longest: they come first
            work = [(*piece, 0) for piece in reversed(pieces(len(q)))]
            _exact_rows(work, q, k, v, state, scale, is_causal=is_causal, is_final=True)

        return _over_heads(one_head, None, q, k, v)

    def planned_attention(self, q, k, v, plan, *, scale):
        def one_head(q, k, v, head_plan, state):
            _planned_head(q, k, v, head_plan, state, scale)

        return _over_heads(one_head, plan, q, k, v)

    def attention_gradient(self, q, k, v, plan, out, lse, dout, dlse, *, scale, is_causal):
        from .gradient import head_gradient  # it takes the tools of this module

        attention, results = partial(_pilots_attention, scale=scale), (out, lse, dout, dlse)
        options = {"scale": scale, "is_causal": is_causal}
        return gradients_with_far_parts(head_gradient, attention, plan, q, k, v, results, **options)

    def pick_level(self, q_mean, k_mean, level, candidates, *, top, lift, scale):
        """`plan.pages.pick_level` in float32; shares are summed first, for a thread sees only some of the blocks."""
        largest = abs(scale) * q_mean.shape[1] * float(np.abs(q_mean).max()) * float(np.abs(k_mean).max())
        if not largest <= LARGEST_SCORE:
            return pages.pick_level(q_mean, k_mean, level, candidates, top=top, lift=lift, scale=scale)
        k_mean, lanes = k_mean.astype(np.float32), _kernels().LANES
        n_chunks = -(-level.n_pages // lanes) if len(candidates) == 1 else 0
        columns = np.zeros((n_chunks, k_mean.shape[1], lanes), np.float32)
        run(_kernels().transpose_pages, pieces(n_chunks, multiple=1), k=k_mean, page_size=lanes, out=columns)
        scores = _kernels().Scores(
            (q_mean * (scale * LOG2_E)).astype(np.float32),
            k_mean,
            columns,
            np.log2(level.sizes).astype(np.float32),
            candidates,
            level.first_pages,
            level.before,
            level.after,
            level.own,
            level.pickers().astype(np.float32),
            level.is_causal,
        )
        work = [(*piece, number) for number, piece in enumerate(pieces(level.n_blocks, multiple=1))]
        totals = np.zeros((len(work), level.n_pages), np.float32)
        run(_kernels().page_totals, work, scores=scores, totals=totals)
        if level.is_causal:
            totals = np.cumsum(totals, axis=0, dtype=np.float64).astype(np.float32) - totals
        else:
            totals[:] = totals.sum(axis=0)
        picked = np.full((level.n_blocks, top), level.n_pages)
        run(
            _kernels().pick_rows,
            work,
            scores=scores,
            top=top,
            lift=np.float32(lift),
            prior_blocks=np.float32(pages.PRIOR_BLOCKS),
            totals=totals,
            picked=picked,
        )
        return picked

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        work = working_dtype(q)
        mask_arrays = _mask(mask, len(q), len(k))
        common = {"q": _plain(q, work), "k": _plain(k, work), "factor": work.type(scale * LOG2_E)}
        common["is_causal"] = is_causal

        def row_sums(rows, is_mask_hidden):
            sums = _kernels().RowSumArrays(*(np.empty(len(q), work) for _ in _kernels().RowSumArrays._fields))
            marks = {"mask": mask_arrays, "has_mask": mask is not None, "is_mask_hidden": is_mask_hidden}
            orders = [(rows[slice(*piece)],) for piece in reversed(pieces(len(rows)))]
            run(_kernels().row_sums, orders, **common, **marks, sums=sums)
            return sums

        rows = row_sums(np.arange(len(q)), False)
        log_total = log_unmasked = _natural_log(rows.top, rows.total)
        if mask is not None:
            log_unmasked = _natural_log(rows.top, rows.outside)
            limits = np.finfo(work)
            lost = np.flatnonzero(rows.outside < limits.tiny / limits.eps * len(k))
            if lost.size:  # what counts is far below the row's maximum: these rows again, relative to their own
                again = row_sums(lost, True)
                log_unmasked[lost] = _natural_log(again.top[lost], again.total[lost])
        columns = {"sums": np.empty(len(k)), "squares": np.empty(len(k))}
        run(_kernels().column_sums, pieces(len(k)), **common, top=rows.top, share=1 / rows.total, **columns)
        return AttentionSums(
            log_total=log_total,
            log_unmasked=log_unmasked,
            column_sums=columns["sums"],
            column_squares=columns["squares"],
            entropy=work.type(LN_2) * (np.log2(rows.total) - rows.moment / rows.total),
            logit_min=float(rows.least.min()) * LN_2,
            logit_max=float(rows.top.max()) * LN_2,
        )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        work = working_dtype(q)
        exact = np.asarray(lse, np.float64) * LOG2_E
        rounded = exact.astype(work)
        share = np.exp2(rounded - exact).astype(work)  # makes up for the rounding of the log-sum-exp
        out = np.empty((len(k), y.shape[1]), work)
        arrays = {"q": _plain(q, work), "k": _plain(k, work), "y": _plain(y, work), "lse": rounded, "share": share}
        factor = work.type(scale * LOG2_E)
        run(_kernels().transposed_rows, pieces(len(k)), **arrays, factor=factor, is_causal=is_causal, out=out)
        return out

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        work = working_dtype(q)
        query_blocks, key_blocks, is_exact, dense = _mask(mask, len(q), len(k))
        dense = dense.take(samples, axis=1) if dense.size else dense
        top, total, n_capped = np.empty(len(q), work), np.empty(len(q), work), np.empty(len(q), np.int64)
        run(
            _kernels().capped_rows,
            pieces(len(q)),
            q=_plain(q, work),
            sampled=_plain(k[samples], work),
            factor=work.type(scale * LOG2_E),
            mask=_kernels().Mask(query_blocks, key_blocks.take(samples, axis=1), is_exact[samples], dense),
            log_caps=(log_caps * LOG2_E).astype(work),
            tops=top,
            totals=total,
            counts=n_capped,
        )
        return _natural_log(top, total), n_capped


def _exact_rows(work, q, k, v, state, scale, *, is_causal, is_final):
    """The kernel `exact_rows` on pieces (first row, stop row, first key)."""
    arrays = {"q": q, "k": k, "v": v, "factor": q.dtype.type(scale * LOG2_E)}
    run(_kernels().exact_rows, work, **arrays, is_causal=is_causal, is_final=is_final, state=state)


def _planned_head(q, k, v, head_plan, state, scale):
    """Block lists or leaves, then rectangles in the order of the plan; several parts are finished at their end."""
    if head_plan.lists is not None:
        _listed(q, k, v, head_plan.lists, state, scale, is_final=not head_plan.rectangles)
    leaves = [
        (a + first, a + stop, a) for a, c in head_plan.leaves for first, stop in reversed(pieces(c - a, at_most=512))
    ]
    _exact_rows(leaves, q, k, v, state, scale, is_causal=True, is_final=False)
    is_whole = not head_plan.is_causal and head_plan.lists is None
    for r in head_plan.rectangles:
        rows, keys = r.rows_and_keys
        part = type(state)(*(x[rows] for x in state))
        lists = _lists(head_plan.lists, r.query_start, r.key_start)
        _rectangle(q[rows], k[keys], v[keys], r, lists, part, scale, is_whole=is_whole)
    if head_plan.leaves or (head_plan.lists is not None and head_plan.rectangles):
        run(_kernels().finish_rows, pieces(len(q)), state=state)


def _listed(q, k, v, lists, state, scale, *, is_final):
    """The pairs of BlockLists, on keys that are transposed within each page."""
    key_pages = np.empty((lists.n_pages, k.shape[1], lists.page_size), k.dtype)
    transposing = pieces(lists.n_pages, multiple=1)
    run(_kernels().transpose_pages, transposing, k=k, page_size=lists.page_size, out=key_pages)
    run(
        _kernels().listed_rows,
        list(reversed(pieces(lists.n_blocks, multiple=1))),
        q=q,
        key_pages=key_pages,
        v=v,
        factor=q.dtype.type(scale * LOG2_E),
        lists=_lists(lists),
        is_final=is_final,
        state=state,
    )


def _lists(lists, first_query=0, first_key=0):
    """BlockLists, or None, as kernels take them, seen from the rectangle that begins there."""
    if lists is None:
        none = np.empty(0, np.int64)
        return _kernels().Lists(1, 1, none, none, False, 0, 0)
    arrays = _writable(lists.offsets), _writable(lists.pages)
    return _kernels().Lists(lists.block_size, lists.page_size, *arrays, lists.is_causal, first_query, first_key)


def _rectangle(q, k, v, rectangle, lists, state, scale, *, is_whole):
    """One sweep over the queries for each view, at least one; the last takes the shared keys along.

    `is_whole`: the rectangle is all of its head.
    """
    mask = _mask(rectangle, rectangle.n_q, rectangle.n_k)
    shared = _shared(rectangle, k, v, mask)
    no_keys = _kernels().Shared(*(x[:0] for x in shared[:3]), shared.blocks[:, :0], shared.indices[:0])
    far = FarPart.fit(k, v, rectangle, scale, partial(_pilots_attention, scale=scale))
    n_sweeps = max(1, len(rectangle.views))
    for sweep in range(n_sweeps):
        is_last = sweep == n_sweeps - 1
        query_order, key_order, groups = _sweep(rectangle, sweep)
        run(
            _kernels().view_rows,
            [(groups[slice(*piece)],) for piece in pieces(len(groups), multiple=1)],
            q=q,
            k=k,
            v=v,
            factor=q.dtype.type(scale * LOG2_E),
            query_order=query_order,
            key_order=key_order,
            view=sweep,
            mask=mask,
            lists=lists,
            shared=shared if is_last else no_keys,
            is_new=is_whole and sweep == 0,
            is_final=is_whole and is_last and far is None,
            state=state,
        )
    if far is not None:
        _merge(state, *_far_attention(far, q, k, v, rectangle, lists, mask, scale))
        if is_whole:
            run(_kernels().finish_rows, pieces(len(q)), state=state)


def _pilots_attention(q, k, v, *, scale):
    """Exact attention of the pilots."""
    state = _kernels().State(np.empty((len(q), v.shape[1]), q.dtype), *(np.empty(len(q), q.dtype) for _ in range(2)))
    _exact_rows([(*piece, 0) for piece in pieces(len(q))], q, k, v, state, scale, is_causal=False, is_final=True)
    return state.out, state.top


def _far_attention(far, q, k, v, rectangle, lists, mask, scale):
    """(out, lse) of the far part: attention to the landmarks with their loads, less the pairs that are exact.

    The loads carry the mix along, so that one sweep gives the far sums and the combination of pilots.
    """
    n_q, width, work = len(q), far.loads.shape[1], q.dtype
    weights = (far.log_weights * work.type(LOG2_E)).astype(work)
    loads = np.hstack([far.loads, far.mix])
    indices = rectangle.landmarks.keys
    shared = _kernels().Shared(far.landmarks, loads, weights, np.empty((0, len(weights)), np.int32), indices)
    state = _kernels().State(np.empty((n_q, loads.shape[1]), work), *(np.empty(n_q, work) for _ in range(2)))
    query_order, key_order, groups = _sweep(Rectangle(n_q, 1), 0)
    run(
        _kernels().view_rows,
        [(groups[slice(*piece)],) for piece in pieces(len(groups), multiple=1)],
        q=q,
        k=k,
        v=loads,
        factor=work.type(scale * LOG2_E),
        query_order=query_order,
        key_order=key_order,
        view=0,
        mask=_mask(None, n_q, 1),
        lists=_lists(None),
        shared=shared,
        is_new=True,
        is_final=False,
        state=state,
    )
    for view in range(len(rectangle.views)):
        query_order, key_order, groups = _sweep(rectangle, view)
        run(
            _kernels().take_out_rows,
            [(groups[slice(*piece)],) for piece in pieces(len(groups), multiple=1)],
            pilots=_padded(far),
            k=k,
            values=far.values(v),
            query_order=query_order,
            key_order=key_order,
            view=view,
            mask=mask,
            lists=lists,
            sums=state.out,
        )
    if lists.pages.size:
        _take_out_listed(far, k, v, mask.is_exact, lists, state.out)
    return far.finish(state.out[:, :width], state.top * work.type(LN_2))


def _take_out_listed(far, k, v, is_exact, lists, sums):
    """Take the listed pairs of a rectangle out of its far sums, but for those of exact keys."""
    first, stop = lists.first_query // lists.block_size, -(-(lists.first_query + len(sums)) // lists.block_size)
    first_page, before = divmod(lists.first_key, lists.page_size)  # the rectangle may begin within a page
    n_pages = -(-(before + len(k)) // lists.page_size)
    share_pages = np.zeros((n_pages, len(far.pilot_lse), lists.page_size), k.dtype)
    arrays = {"k": k, "pilots": _padded(far), "page_size": lists.page_size, "before": before, "out": share_pages}
    run(_kernels().shares_of_pages, pieces(n_pages, multiple=1), **arrays)
    values = np.concatenate([np.zeros((before, v.shape[1] + 2), v.dtype), far.values(v)])
    run(
        _kernels().take_out_listed,
        [(first + a, first + b) for a, b in pieces(stop - first, multiple=1)],
        share_pages=share_pages,
        values=values,
        is_taken=np.concatenate([np.zeros(before, bool), ~is_exact]),
        lists=lists,
        first_page=first_page,
        sums=sums,
    )


def _padded(far):
    """The pilots as the kernels take them."""
    r, d = far.pilots.shape
    columns, lse = np.zeros((d, -(-r // 16) * 16), far.pilots.dtype), np.zeros(-(-r // 16) * 16, far.pilots.dtype)
    columns[:, :r], lse[:r] = far.pilots.T * lse.dtype.type(LOG2_E), far.pilot_lse * lse.dtype.type(LOG2_E)
    return _kernels().Pilots(columns, lse)


def _merge(state, out, lse):
    """Merge (out, lse) into the state of its queries."""
    log = lse * lse.dtype.type(LOG2_E)
    top = np.maximum(state.top, log)
    decay, weight = np.exp2(state.top - top), np.exp2(log - top)
    state.out[...] = decay[:, None] * state.out + weight[:, None] * out
    state.total[...] = decay * state.total + weight
    state.top[...] = top


def _sweep(rectangle, sweep):
    """(query order, key order, groups) of a view; without any view, the queries in their order and groups of no key."""
    if rectangle.views:
        view = rectangle.views[sweep]
        arrays = view.query_order, view.key_order, view.query_offsets, view.key_offsets
    else:
        arrays = np.arange(rectangle.n_q), np.empty(0, np.int64), np.array([0, rectangle.n_q]), np.array([0, 0])
    query_order, key_order, *offsets = map(_writable, arrays)
    return query_order, key_order, _kernels().make_groups(*offsets)


def _shared(rectangle, k, v, mask):
    """The keys that all queries of a rectangle meet; sampled keys that are exact keys are left out."""
    is_drawn = ~mask.is_exact[rectangle.sampled_keys]
    n_exact = rectangle.exact_keys.size
    keys = np.concatenate([rectangle.exact_keys, rectangle.sampled_keys[is_drawn]])
    log_weights, blocks = np.zeros(keys.size), mask.key_blocks.take(keys, axis=1)  # in C order, for any number of views
    log_weights[n_exact:] = rectangle.log_weights[is_drawn] * LOG2_E
    blocks[:, :n_exact] = -1
    return _kernels().Shared(k[keys], v[keys], log_weights.astype(k.dtype), blocks, keys)


def _mask(mask, n_q, n_k):
    """A Rectangle, a dense boolean array or None as the arrays that kernels take."""
    rectangle = mask if isinstance(mask, Rectangle) else Rectangle(n_q, n_k)
    dense = _plain(mask, np.dtype(bool)) if isinstance(mask, np.ndarray) else np.zeros((0, 0), bool)
    return _kernels().Mask(*rectangle.block_numbers(exact_keys=False), rectangle.is_exact, dense)


def _natural_log(top, total):
    """log(2^top total), minus infinity where total is 0."""
    with np.errstate(divide="ignore"):
        return np.where(total > 0, (top + np.log2(total)) * total.dtype.type(LN_2), -np.inf).astype(total.dtype)


def _over_heads(one_head, plan, q, k, v):
    """Run one head after another in the working dtype; round the output to the dtype of the inputs."""
    work = working_dtype(q)
    out, lse = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype), np.empty(q.shape[:-1], work)
    total = np.empty(q.shape[-2], work)
    for index, head_plan, *head in each_head(plan, q, k, v):
        target = out[index] if out.dtype == work else np.empty(out.shape[-2:], work)
        one_head(*(_plain(x, work) for x in head), head_plan, _kernels().State(target, lse[index], total))
        if target.dtype != out.dtype:
            out[index] = target
    return out, lse


def _plain(x, dtype):
    """`x` in C order, aligned, of that dtype; copied only if necessary."""
    return _writable(np.require(x, dtype, ["C", "A"]))


def _writable(x):
    """`x` as kernels take it: they would be compiled again for a read-only array, which is another type to Numba."""
    if x.flags.writeable:
        return x
    return np.asarray(
        SimpleNamespace(owner=x, __array_interface__=x.__array_interface__ | {"data": (x.ctypes.data, False)})
    )


def _kernels():
    """The compiled kernels; Numba is imported at the first use."""
    from . import kernels

    return kernels
