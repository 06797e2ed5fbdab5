"""The Numba CUDA backend: kernels in Python, for readers who learn from a GPU implementation or check one.

This module launches; the arithmetic is in `kernels`. Data stays on the device: arrays of CuPy, PyTorch, Numba and any
library with the CUDA array interface are read in place, with any strides, and results are arrays of the caller's
library, in the stream that is current there (`device`). Decisions (plans, hyperplanes, masks, samples) are host data,
and are copied to the device.

Numba and the package numba-cuda are imported at the first use.
"""

from __future__ import annotations

import math

import numpy as np

from hyperattention_ref.foundation.backend import BLOCK_LISTS, GRADIENTS, LANDMARKS, AttentionSums, each_head
from hyperattention_ref.foundation.memory import working_dtype
from hyperattention_ref.paper.definition_1_sorted_lsh import scaled_rows
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

from ..device_array import DeviceArray
from .device import NAME, NumbaDevice, Queue
from .memory import NumbaMemory


class NumbaCuda:
    """Attention on one CUDA device, Numba's current one."""

    name = NAME
    lacks = frozenset({BLOCK_LISTS, LANDMARKS, GRADIENTS})

    def __init__(self, device: NumbaDevice | None = None):
        self.device = device or NumbaDevice()
        self.memory = NumbaMemory(self.device)

    def unavailable(self) -> str | None:
        return self.device.unavailable()

    def hash_codes(self, x, planes):
        (x,) = self.device.views(x=x)
        with self.device.queue(x) as queue:
            planes = queue.upload(scaled_rows(np.asarray(planes, np.float64)).astype(working_dtype(x)))
            codes = queue.empty(x.shape[:-1], np.int64)
            for _, _, rows, head_codes in each_head(None, x, codes):
                queue.launch("hash_rows", queue.tiles(queue.tiles(len(rows))), rows, planes, head_codes)
        return codes.owner

    def exact_attention(self, q, k, v, *, scale, is_causal):
        q, k, v = self.device.views(query=q, key=k, value=v)
        n_q, n_k = q.shape[-2], k.shape[-2]
        if is_causal:  # the plan that is a single leaf, or has every key exact
            head = HeadPlan(n_q, n_k, (), ((0, n_q),))
        else:
            head = HeadPlan(n_q, n_k, (Rectangle(n_q, n_k, exact_keys=np.arange(n_k)),))
        lead = q.shape[:-2]
        return self.planned_attention(q, k, v, Plan(lead, (head,) * math.prod(lead)), scale=scale)

    def planned_attention(self, q, k, v, plan, *, scale):
        q, k, v = self.device.views(query=q, key=k, value=v)
        work = working_dtype(q)
        with self.device.queue(q, k, v) as queue:
            out = queue.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
            lse = queue.empty(q.shape[:-1], work)
            softmax = SoftmaxLaunches(queue, work.type(scale), q.shape[-2], v.shape[-1])
            for _, head, *arrays, head_out, head_lse in each_head(plan, q, k, v, out, lse):
                softmax.attend_head(head, arrays, head_out, head_lse)
        return out.owner, lse.owner

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        q, k = self.device.views(query=q, key=k)
        n_q, n_k, work = len(q), len(k), working_dtype(q)
        scale, is_causal = work.type(scale), bool(is_causal)
        with self.device.queue(q, k) as queue:
            rows = {name: queue.empty((n_q,), work) for name in ("log_total", "log_unmasked", "entropy")}
            columns = {name: queue.empty((n_k,), work) for name in ("column_sums", "column_squares")}
            lowest, highest = queue.empty((n_q,), work), queue.empty((n_q,), work)
            mask_arrays = [queue.upload(x) for x in _mask_arrays(mask, n_q, n_k)]
            row_results = *rows.values(), lowest, highest
            queue.launch("row_sums", queue.tiles(n_q), q, k, scale, *mask_arrays, is_causal, *row_results)
            log_total, column_results = rows["log_total"], columns.values()
            queue.launch("column_sums", queue.tiles(n_k), q, k, log_total, scale, is_causal, *column_results)
            return AttentionSums(
                **{name: x.owner for name, x in (rows | columns).items()},
                logit_min=float(queue.download(lowest).min()),
                logit_max=float(queue.download(highest).max()),
            )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        q, k, y = self.device.views(query=q, key=k, y=y)
        lse, work = self._row_data("lse", lse), working_dtype(q)
        with self.device.queue(q, k, y, lse) as queue:
            out = queue.upload(np.zeros((len(k), y.shape[-1]), work))
            arrays = q, k, y, self._on_device(queue, lse, work)
            queue.launch("transposed", queue.tiles(len(k)), *arrays, work.type(scale), bool(is_causal), out)
        return out.owner

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        q, k = self.device.views(query=q, key=k)
        log_caps, n_q, work = self._row_data("log_caps", log_caps), len(q), working_dtype(q)
        samples = np.asarray(samples, np.int64)
        query_blocks, key_blocks, dense = _mask_arrays(mask, n_q, len(k))
        with self.device.queue(q, k, log_caps) as queue:
            drawn = [queue.upload(x) for x in (query_blocks, key_blocks[:, samples], dense, samples)]
            caps = self._on_device(queue, log_caps, work)
            log_sums, n_capped = queue.empty((n_q,), work), queue.empty((n_q,), np.int64)
            queue.launch("capped_rows", queue.tiles(n_q), q, k, work.type(scale), *drawn, caps, log_sums, n_capped)
        return log_sums.owner, n_capped.owner

    def _row_data(self, name: str, x) -> np.ndarray | DeviceArray:
        """One number for each row, from the host or from the device."""
        return x if isinstance(x, np.ndarray) else self.device.floating(name, x)

    @staticmethod
    def _on_device(queue: Queue, x: np.ndarray | DeviceArray, dtype: np.dtype) -> DeviceArray:
        """Row data on the device; what is there already is rounded by the kernels."""
        return x if isinstance(x, DeviceArray) else queue.upload(x.astype(dtype))


# --- Attention --------------------------------------------------------------------------------------------------------


class SoftmaxLaunches:
    """The state of the queries of one head, on the device, and the launches that change it.

    What `blocked_numpy.RunningSoftmax` does on the host; the state is described at the kernel `attend`.
    """

    def __init__(self, queue: Queue, scale, n_q: int, d_v: int):
        self.queue, self.scale, self.n_blocks = queue, scale, queue.tiles(n_q)
        self.state = [queue.empty(shape, scale.dtype) for shape in ((n_q, d_v), (n_q,), (n_q,))]

    def attend_head(self, head: HeadPlan, arrays, out, lse):
        """Rules 8 and 9: the causal leaves, then the rectangles in the order of the plan. `arrays` are q, k, v."""
        self.queue.launch("start", self.n_blocks, *self.state)
        if head.leaves:
            rows = np.arange(head.n_q)
            tiles = [self._tiles(a, c, first_key=a) for a, c in head.leaves]
            self._attend(arrays, rows, rows, np.concatenate(tiles), is_causal=True)
        for r in head.rectangles:
            self._attend_rectangle(r, arrays)
        self.queue.launch("finish", self.n_blocks, *self.state, out, lse)

    def _attend_rectangle(self, r: Rectangle, arrays):
        """Rules 3, 4 and 7: exact keys, then each view, then the sampled keys, every masked pair once.

        The exact keys, if there are any, are view 0, as `kernels` explains; a sweep skips the pairs of the views before
        its own.
        """
        query_blocks, key_blocks = r.block_numbers(exact_keys=True)
        all_queries = np.arange(r.n_q)

        def attend(queries, keys, tiles, **conditions):
            blocks = query_blocks[:, queries], key_blocks[:, keys]
            self._attend(arrays, r.query_start + queries, r.key_start + keys, tiles, blocks, **conditions)

        attend(all_queries, r.exact_keys, self._tiles(0, r.n_q, stop_key=r.exact_keys.size))
        for u, view in enumerate(r.views, start=len(query_blocks) - len(r.views)):
            block, tiles = query_blocks[u, view.query_order], self._tiles(0, r.n_q)
            tiles[:, 2] = view.key_offsets[block[tiles[:, 0]]]  # the keys from the block of its first query
            tiles[:, 3] = view.key_offsets[block[tiles[:, 1] - 1] + 1]  # to that of its last
            attend(view.query_order, view.key_order, tiles, view=u, earlier=u)
        tiles = self._tiles(0, r.n_q, stop_key=r.sampled_keys.size)
        attend(all_queries, r.sampled_keys, tiles, earlier=len(query_blocks), log_weights=r.log_weights)

    def _tiles(self, first: int, stop: int, *, first_key: int = 0, stop_key: int | None = None) -> np.ndarray:
        """Queries first .. stop in tiles, each with the keys first_key .. stop_key, by default up to its last query."""
        size = self.queue.kernels.TILE
        firsts = np.arange(first, stop, size)
        stops = np.minimum(firsts + size, stop)
        tiles = np.stack([firsts, stops, np.full_like(firsts, first_key), stops], axis=1)
        if stop_key is not None:
            tiles[:, 3] = stop_key
        return tiles

    def _attend(
        self, arrays, queries, keys, tiles, blocks=None, *, view=-1, earlier=0, is_causal=False, log_weights=()
    ):
        """One sweep: the kernel `attend`, for the tiles that have keys."""
        tiles = tiles[tiles[:, 2] < tiles[:, 3]]
        if len(tiles):
            query_blocks, key_blocks = blocks or np.empty((2, 0, 0), np.int32)
            log_weights = np.asarray(log_weights, self.scale.dtype)
            lists = [self.queue.upload(x) for x in (queries, keys, tiles, log_weights, query_blocks, key_blocks)]
            conditions = view, earlier, is_causal
            self.queue.launch("attend", len(tiles), *arrays, self.scale, *lists, *conditions, *self.state)


def _mask_arrays(mask, n_q: int, n_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mask as `row_sums` and `capped_rows` take it: block numbers of queries and of keys, and a dense boolean array.

    For a Rectangle the dense array is empty, for a dense mask the block numbers are, and for None both.
    """
    rectangle = mask if isinstance(mask, Rectangle) else Rectangle(n_q, n_k)
    dense = mask if isinstance(mask, np.ndarray) else np.empty((0, 0), bool)
    return *rectangle.block_numbers(exact_keys=True), dense
