"""The Numba backend: compiled tiles on all CPU cores; what runs for NumPy arrays unless another is named.

It computes in the dtype of the inputs (float32 for float16). This file cuts the work into independent pieces, each of
which writes rows of its own, and hands them to a pool of threads; `kernels` does the arithmetic. Results are the
same bits for every number of threads.

Memory: O(n d) for states and gathered samples; copies of one head where its arrays are strided or float16.
"""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hyperattention_ref.foundation.backend import AttentionSums, each_head
from hyperattention_ref.foundation.memory import working_dtype
from hyperattention_ref.paper.definition_1_sorted_lsh import scaled_rows

LOG2_E, LN_2 = math.log2(math.e), math.log(2)
PIECES = 8
"""Pieces of work for each thread: enough that a slow piece at the end costs little."""


class NumbaCPU:
    """Attention in compiled tiles."""

    name = "numba"

    def unavailable(self) -> str | None:
        try:
            _kernels()
        except RuntimeError as error:
            return f"{error}; compiled code is kept on disk: set NUMBA_CACHE_DIR to a folder that can be written"
        return None

    def hash_codes(self, x, planes):
        work = working_dtype(x)
        bits, d = planes.shape
        columns = np.zeros((d, -(-bits // 16) * 16), work)
        columns[:, :bits] = scaled_rows(planes).T
        codes = np.empty(x.shape[:-1], dtype=np.int64)
        for index, _, rows in each_head(None, x):
            rows, target = _plain(rows, work), codes[index]
            _run(_kernels().hash_rows, [(rows, columns, bits, *piece, target) for piece in _pieces(len(rows))])
        return codes

    def exact_attention(self, q, k, v, *, scale, is_causal):
        def one_head(q, k, v, _, state):
            factor = q.dtype.type(scale * LOG2_E)
            # the last rows of causal attention take longest: they come first
            jobs = [(q, k, v, *piece, 0, factor, is_causal, True, state) for piece in reversed(_pieces(len(q)))]
            _run(_kernels().exact_rows, jobs)

        return _over_heads(one_head, None, q, k, v)

    def planned_attention(self, q, k, v, plan, *, scale):
        def one_head(q, k, v, head_plan, state):
            _planned_head(q, k, v, head_plan, state, scale)

        return _over_heads(one_head, plan, q, k, v)

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        work = working_dtype(q)
        q, k, factor = _plain(q, work), _plain(k, work), work.type(scale * LOG2_E)
        mask_arrays = _mask(mask, len(q), len(k))

        def row_sums(rows, is_mask_hidden):
            sums = _kernels().RowSums(*(np.empty(len(q), work) for _ in _kernels().RowSums._fields))
            how = is_causal, mask_arrays, mask is not None, is_mask_hidden
            jobs = [(q, k, factor, rows[slice(*piece)], *how, sums) for piece in reversed(_pieces(len(rows)))]
            _run(_kernels().row_sums, jobs)
            return sums

        rows = row_sums(np.arange(len(q)), False)
        log_total = log_unmasked = _natural_log(rows.top, rows.total)
        if mask is not None:
            log_unmasked = _natural_log(rows.top, rows.outside)
            limits = np.finfo(work)
            lost = np.flatnonzero(rows.outside < limits.tiny / limits.eps * len(k))
            if lost.size:  # what counts is far below the row's maximum: these rows again, from their own
                again = row_sums(lost, True)
                log_unmasked[lost] = _natural_log(again.top[lost], again.total[lost])
        sums, squares, share = np.empty(len(k)), np.empty(len(k)), 1 / rows.total
        jobs = [(q, k, factor, *piece, is_causal, rows.top, share, sums, squares) for piece in _pieces(len(k))]
        _run(_kernels().column_sums, jobs)
        return AttentionSums(
            log_total=log_total,
            log_unmasked=log_unmasked,
            column_sums=sums,
            column_squares=squares,
            entropy=work.type(LN_2) * (np.log2(rows.total) - rows.moment / rows.total),
            logit_min=float(rows.least.min()) * LN_2,
            logit_max=float(rows.top.max()) * LN_2,
        )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        work = working_dtype(q)
        q, k, y, factor = _plain(q, work), _plain(k, work), _plain(y, work), work.type(scale * LOG2_E)
        exact = np.asarray(lse, np.float64) * LOG2_E
        rounded = exact.astype(work)
        share = np.exp2(rounded - exact).astype(work)  # what rounding took from the log-sum-exp
        out = np.empty((len(k), y.shape[1]), work)
        jobs = [(q, k, y, factor, *piece, is_causal, rounded, share, out) for piece in _pieces(len(k))]
        _run(_kernels().transposed_rows, jobs)
        return out

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        work = working_dtype(q)
        query_blocks, key_blocks, is_exact, dense = _mask(mask, len(q), len(k))
        dense = np.ascontiguousarray(dense[:, samples]) if dense.size else dense
        drawn = _kernels().Mask(query_blocks, key_blocks[:, samples], is_exact[samples], dense)
        top, total, n_capped = np.empty(len(q), work), np.empty(len(q), work), np.empty(len(q), np.int64)
        results = (log_caps * LOG2_E).astype(work), top, total, n_capped
        q, sampled, factor = _plain(q, work), _plain(k[samples], work), work.type(scale * LOG2_E)
        jobs = [(q, sampled, factor, *piece, drawn, *results) for piece in _pieces(len(q))]
        _run(_kernels().capped_rows, jobs)
        return _natural_log(top, total), n_capped


def _planned_head(q, k, v, head_plan, state, scale):
    """Leaves, then rectangles in the order of the plan; a causal head is finished at its end."""
    factor, is_causal = q.dtype.type(scale * LOG2_E), head_plan.is_causal
    leaves = [
        (q, k, v, a + first, a + stop, a, factor, True, False, state)
        for a, c in head_plan.leaves
        for first, stop in reversed(_pieces(c - a, at_most=512))
    ]
    _run(_kernels().exact_rows, leaves)
    for r in head_plan.rectangles:
        rows, keys = r.rows_and_keys
        part = type(state)(*(x[rows] for x in state))
        _rectangle(q[rows], k[keys], v[keys], r, factor, part, is_whole=not is_causal)
    if is_causal:
        _run(_kernels().finish_rows, [(*piece, state) for piece in _pieces(len(q))])


def _rectangle(q, k, v, rectangle, factor, state, is_whole):
    """One sweep over the queries for each view, at least one; the last takes the shared keys along.

    `is_whole`: the rectangle is all of its head.
    """
    mask = _mask(rectangle, rectangle.n_q, rectangle.n_k)
    shared = _shared(rectangle, k, v, mask)
    nothing = _kernels().Shared(*(x[:0] for x in shared[:3]), shared.blocks[:, :0])
    n_sweeps = max(1, len(rectangle.views))
    for sweep in range(n_sweeps):
        is_last = sweep == n_sweeps - 1
        orders, groups = _sweep(rectangle, sweep)
        how = *orders, sweep, mask, shared if is_last else nothing, is_whole and sweep == 0, is_whole and is_last
        jobs = [(q, k, v, factor, groups[slice(*piece)], *how, state) for piece in _pieces(len(groups), multiple=1)]
        _run(_kernels().view_rows, jobs)


def _sweep(rectangle, sweep):
    """The orders and the groups of a view; without any view, the queries as they are, in groups that have no keys."""
    if rectangle.views:
        view = rectangle.views[sweep]
        arrays = view.query_order, view.key_order, view.query_offsets, view.key_offsets
    else:
        arrays = np.arange(rectangle.n_q), np.empty(0, np.int64), np.array([0, rectangle.n_q]), np.array([0, 0])
    *orders, query_offsets, key_offsets = map(_writable, arrays)
    return orders, _kernels().make_groups(query_offsets, key_offsets)


def _shared(rectangle, k, v, mask):
    """The keys that all queries of a rectangle meet; sampled keys that are exact keys are no one's."""
    is_drawn = ~mask.is_exact[rectangle.sampled_keys]
    n_exact = rectangle.exact_keys.size
    chosen = np.concatenate([rectangle.exact_keys, rectangle.sampled_keys[is_drawn]])
    log_weights, blocks = np.zeros(chosen.size), mask.key_blocks[:, chosen]
    log_weights[n_exact:] = rectangle.log_weights[is_drawn] * LOG2_E
    blocks[:, :n_exact] = -1
    return _kernels().Shared(k[chosen], v[chosen], log_weights.astype(k.dtype), blocks)


def _mask(mask, n_q, n_k):
    """A Rectangle, a dense boolean array or None as the arrays that kernels take."""
    views: tuple = ()
    exact_keys, dense = np.empty(0, np.int64), np.zeros((0, 0), bool)
    if isinstance(mask, np.ndarray):
        dense = _plain(mask, np.dtype(bool))
    elif mask is not None:
        views, exact_keys = mask.views, mask.exact_keys
    query_blocks, key_blocks = np.empty((len(views), n_q), np.int32), np.empty((len(views), n_k), np.int32)
    for u, view in enumerate(views):
        query_blocks[u], key_blocks[u] = view.query_blocks(), view.key_blocks()
    is_exact = np.zeros(n_k, bool)
    is_exact[exact_keys] = True
    return _kernels().Mask(query_blocks, key_blocks, is_exact, dense)


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
    """`x` in C order, aligned, of that dtype; copied only if it is not so."""
    return _writable(np.require(x, dtype, ["C", "A"]))


class _Alias:
    """What NumPy makes an array of: the memory of `x` without its mark read-only."""

    def __init__(self, x):
        self.owner = x
        self.__array_interface__ = {**x.__array_interface__, "data": (x.ctypes.data, False)}


def _writable(x):
    """`x` as kernels take it: to them a read-only array is another type, for which they would be compiled anew."""
    return x if x.flags.writeable else np.asarray(_Alias(x))


# --- Threads ---------------------------------------------------------------------------------------------------------


def n_threads() -> int:
    """Threads that work: what `numba.set_num_threads` or NUMBA_NUM_THREADS says, and no more than cores may be used."""
    from numba import config
    from numba.np.ufunc import parallel

    # to ask for the number that was set would start Numba's own threads, where nobody has set one yet
    started = parallel._is_initialized
    wanted = parallel.get_num_threads() if started else config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted, cores))


def _pieces(n: int, *, multiple: int = 64, at_most: int | None = None) -> list[tuple[int, int]]:
    """(first, stop) of consecutive pieces of range(n), in multiples of a tile."""
    size = -(-n // (n_threads() * PIECES * multiple)) * multiple
    size = max(multiple, min(size, at_most or size))
    return [(first, min(first + size, n)) for first in range(0, n, size)]


def _run(kernel, jobs) -> None:
    """Call the kernel with each tuple of arguments, on all threads; return when all are done."""
    if len(jobs) == 1 or n_threads() == 1:
        for job in jobs:
            kernel(*job)
    else:
        list(_pool().map(lambda job: kernel(*job), jobs))


_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """The pool of this process for this number of threads; a forked child has none of its parent's threads."""
    key = os.getpid(), n_threads()
    with _lock:
        if key not in _pools:
            _pools[key] = ThreadPoolExecutor(n_threads(), thread_name_prefix="hyperattention")
        return _pools[key]


def _kernels():
    """The compiled kernels; Numba is imported when they are needed first."""
    from . import kernels

    return kernels
