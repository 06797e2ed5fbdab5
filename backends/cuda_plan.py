"""A Plan as tables for the CUDA kernels: what `cuda/plan.cuh` reads.

A Plan is host data, this is host work; the device only follows. Every leaf, rectangle or whole head becomes one or more
sweeps: a sweep is its queries in one order, with the segments (lists of keys) that tiles of this order attend. Sweeps
that share queries run one after another, in waves; all others together, over all heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.plan import HeadPlan, Plan, Rectangle

NONE = -1


SEGMENT_FIELDS = ("keys", "n", "offsets", "weights", "views", "inside", "causal")
SWEEP_FIELDS = (
    *("head", "query_start", "key_start", "n_q", "n_k", "query_order", "segment", "n_segments"),
    *("query_blocks", "key_blocks", "first", "last"),
)


@dataclass(frozen=True, eq=False)
class Tables:
    """What the attention kernels read.

    Attributes
    ----------
    waves : structured arrays of sweeps (SWEEP_FIELDS), to be run in this order.
    segments : structured array (SEGMENT_FIELDS).
    indices : int32, all orders, offsets, key lists and block numbers behind each other.
    weights : float64, the log-weights of all sampled keys behind each other.
    """

    waves: tuple[np.ndarray, ...]
    segments: np.ndarray
    indices: np.ndarray
    weights: np.ndarray

    @property
    def carries(self) -> bool:
        """Whether some query passes through more than one sweep, so that its state must be kept in between."""
        return len(self.waves) > 1


def exact_tables(n_heads: int, n_q: int, n_k: int, is_causal: bool) -> Tables:
    """Exact attention: every head is one sweep over all its keys."""
    builder = _Builder()
    for head in range(n_heads):
        builder.add_exact(head, 0, n_q, n_k, is_causal)
    return builder.tables(n_heads, n_q)


def plan_tables(plan: Plan) -> Tables:
    """The sweeps of a Plan; smaller rectangles first, so that rows share their whole past with their neighbours."""
    builder = _Builder()
    for number, head in enumerate(plan.heads):
        builder.add_head(number, head)
    return builder.tables(len(plan.heads), plan.heads[0].n_q)


def block_numbers(rectangle: Rectangle) -> tuple[np.ndarray, np.ndarray]:
    """Block numbers (views, n_q) and (views, n_k): M_ij = 1 iff some view gives query i and key j the same number.

    The exact keys are the first of these views, if there are any: every query and every exact key has the number 0.
    """
    query = [view.query_blocks() for view in rectangle.views]
    key = [view.key_blocks() for view in rectangle.views]
    if rectangle.exact_keys.size:
        query.insert(0, np.zeros(rectangle.n_q, np.int32))
        key.insert(0, np.ones(rectangle.n_k, np.int32))
        key[0][rectangle.exact_keys] = 0
    return (
        np.array(query, np.int32).reshape(len(query), rectangle.n_q),
        np.array(key, np.int32).reshape(len(key), rectangle.n_k),
    )


class _Builder:
    """Collects sweeps, and the arrays that they refer to by position."""

    def __init__(self):
        self.sweeps: list[dict[str, int]] = []
        self.segments: list[tuple[int, ...]] = []
        self.indices: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.n_indices = self.n_weights = 0

    def add_head(self, number: int, head: HeadPlan) -> None:
        for a, c in head.leaves:
            self.add_exact(number, a, c - a, c - a, True)
        for rectangle in sorted(head.rectangles, key=lambda r: r.n_q):
            self.add_rectangle(number, rectangle)

    def add_exact(self, head: int, start: int, n_q: int, n_k: int, is_causal: bool) -> None:
        self._sweep(head, (start, start, n_q, n_k), NONE, [self._segment(n=n_k, causal=int(is_causal))])

    def add_rectangle(self, head: int, rectangle: Rectangle) -> None:
        """One sweep for each view; the last one also attends the exact keys and the sampled keys."""
        query_blocks, key_blocks = block_numbers(rectangle)
        n_views = len(query_blocks)
        earlier = n_views - len(rectangle.views)  # the exact keys count as a view before all others
        sweeps = []
        for u, view in enumerate(rectangle.views, start=earlier + 1):
            keys, offsets = self._place(view.key_order), self._place(view.key_offsets)
            segment = self._segment(keys=keys, n=rectangle.n_k, offsets=offsets, views=u, inside=1)
            sweeps.append((self._place(view.query_order), [segment]))
        if not sweeps:
            sweeps.append((NONE, []))
        if rectangle.exact_keys.size:
            keys = self._place(rectangle.exact_keys)
            sweeps[-1][1].append(self._segment(keys=keys, n=rectangle.exact_keys.size))
        if rectangle.sampled_keys.size:
            keys, weights = self._place(rectangle.sampled_keys), self._place_weights(rectangle.log_weights)
            segment = self._segment(keys=keys, n=rectangle.sampled_keys.size, weights=weights, views=n_views)
            sweeps[-1][1].append(segment)
        blocks = self._place(query_blocks), self._place(key_blocks)
        place = rectangle.query_start, rectangle.key_start, rectangle.n_q, rectangle.n_k
        for order, segments in sweeps:
            self._sweep(head, place, order, segments, blocks)

    def tables(self, n_heads: int, n_q: int) -> Tables:
        """Deal the sweeps out to waves, and mark for each whether its queries are new and whether it finishes them."""
        wave_of_row = np.full((n_heads, n_q), NONE)
        waves: list[list[dict[str, int]]] = []
        for sweep in self.sweeps:
            rows = wave_of_row[sweep["head"], sweep["query_start"] : sweep["query_start"] + sweep["n_q"]]
            wave = int(rows.max()) + 1
            sweep["first"] = int(wave == 0)
            rows[:] = wave
            if wave == len(waves):
                waves.append([])
            waves[wave].append(sweep)
        for wave, sweeps in enumerate(waves):
            for sweep in sweeps:
                sweep["last"] = int(wave_of_row[sweep["head"], sweep["query_start"]] == wave)
        return Tables(
            tuple(_records(SWEEP_FIELDS, ([sweep[x] for x in SWEEP_FIELDS] for sweep in sweeps)) for sweeps in waves),
            _records(SEGMENT_FIELDS, self.segments),
            np.concatenate([np.empty(0, np.int32), *self.indices]),
            np.concatenate([np.empty(0), *self.weights]),
        )

    def _sweep(self, head, place, query_order, segments, blocks=(NONE, NONE)) -> None:
        query_start, key_start, n_q, n_k = place
        self.sweeps.append(
            {
                "head": head,
                "query_start": query_start,
                "key_start": key_start,
                "n_q": n_q,
                "n_k": n_k,
                "query_order": query_order,
                "segment": len(self.segments),
                "n_segments": len(segments),
                "query_blocks": blocks[0],
                "key_blocks": blocks[1],
            }
        )
        self.segments += segments

    @staticmethod
    def _segment(*, n, keys=NONE, offsets=NONE, weights=NONE, views=0, inside=0, causal=0) -> tuple[int, ...]:
        return keys, n, offsets, weights, views, inside, causal

    def _place(self, array: np.ndarray) -> int:
        """The position at which this array will stand in `indices`."""
        self.indices.append(array.ravel().astype(np.int32))
        self.n_indices += array.size
        return self.n_indices - array.size

    def _place_weights(self, array: np.ndarray) -> int:
        self.weights.append(array)
        self.n_weights += array.size
        return self.n_weights - array.size


def _records(fields: tuple[str, ...], rows: Iterable) -> np.ndarray:
    """A structured array of int64 columns: the structs of `plan.cuh`."""
    return np.array([tuple(row) for row in rows], [(name, np.int64) for name in fields])
