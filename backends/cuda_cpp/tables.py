"""A Plan as tables for the CUDA kernels: what `kernels/plan.cuh` reads.

The tables are made on the host. Every leaf, rectangle or whole head becomes one or more sweeps: a sweep is its queries
in one order, with the segments (lists of keys) that tiles of this order attend. Sweeps that share queries run one after
another, in waves; all others together, over all heads.

The paper's own recipe needs no Plan on the host: `drawn_tables` places everything before any data is seen, and the
kernels `hash.cu` and `sort.cu` fill in the orders and the block numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np

from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.plan import Plan

from .device import Device

NONE = -1
SEGMENT_FIELDS = ("keys", "n", "offsets", "weights", "views", "inside", "causal")
SWEEP_FIELDS = (
    *("head", "query_start", "key_start", "n_q", "n_k", "query_order", "segment", "n_segments"),
    *("query_blocks", "key_blocks", "first", "last"),
)
SIDE_FIELDS = ("head", "start", "n", "planes", "codes")
RUN_FIELDS = ("n", "codes", "order", "blocks", "others", "block_size", "counts")
MOST_SEGMENTS = 3  # of a sweep, in `plan.cuh`: a view's blocks, the exact keys, the sampled keys
CHUNK, DIGITS = 4096, 256  # in `sort.cu`: rows that a block sorts, and numbers it counts

Array = Any  # a NumPy array; a DeviceArray once the tables are uploaded
Place = tuple[int, int, int, int]  # (query_start, query_stop, key_start, key_stop) in a head


@dataclass(frozen=True, eq=False)
class Items:
    """The items of work of one launch: sweeps, sides or runs.

    Attributes
    ----------
    records : structured array, a struct of `plan.cuh` for each item.
    grid : how many items there are, and how many rows the longest one has.
    """

    records: Array
    grid: tuple[int, int]

    @classmethod
    def of(cls, fields: tuple[str, ...], rows: Iterable, length: str = "n") -> Items:
        """Items with these fields, one of which is the number of rows."""
        found = records(fields, rows)
        return cls(found, (len(found), int(found[length].max())))

    def uploaded(self, device: Device) -> Self:
        return replace(self, records=device.upload(self.records))


@dataclass(frozen=True, eq=False)
class Sorting:
    """What is hashed and sorted before a wave of sweeps.

    Attributes
    ----------
    query_sides, key_sides : Items (SIDE_FIELDS): rows to hash, of the queries and of the keys.
    runs : Items (RUN_FIELDS): codes to sort, those of all query sides and of all key sides.
    """

    query_sides: Items
    key_sides: Items
    runs: Items

    def uploaded(self, device: Device) -> Self:
        return replace(self, **{name: items.uploaded(device) for name, items in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Wave:
    """Sweeps that run together, Items (SWEEP_FIELDS), and what is sorted before them, if anything is."""

    sweeps: Items
    sorting: Sorting | None = None

    def uploaded(self, device: Device) -> Self:
        sorting = self.sorting and self.sorting.uploaded(device)
        return replace(self, sweeps=self.sweeps.uploaded(device), sorting=sorting)


@dataclass(frozen=True, eq=False)
class Tables:
    """What the attention kernels read.

    Attributes
    ----------
    waves : to be run in this order.
    segments : structured array (SEGMENT_FIELDS).
    indices : int32, all orders, offsets, key lists and block numbers behind each other.
    weights : float64, the log-weights of all sampled keys behind each other.
    resumes : whether the leaves are left out, so that every sweep takes up a state: that of the leaves, or of a sweep.
    """

    waves: tuple[Wave, ...]
    segments: Array
    indices: Array
    weights: Array
    resumes: bool = False

    @property
    def carries(self) -> bool:
        """Whether some query passes through more than one sweep, so that its state must be kept in between."""
        return self.resumes or len(self.waves) > 1

    def uploaded(self, device: Device) -> Self:
        """The same tables on a device."""
        waves = tuple(wave.uploaded(device) for wave in self.waves)
        segments, indices, weights = map(device.upload, (self.segments, self.indices, self.weights))
        return replace(self, waves=waves, segments=segments, indices=indices, weights=weights)


@dataclass(frozen=True, eq=False)
class DrawnTables(Tables):
    """Tables of the paper's own recipe, for any data: one sortLSH view and sampled keys in every rectangle.

    `indices` is what is known of the array of indices, its beginning. The sampled keys follow, one set after another,
    then the orders and block numbers, which sorting fills in. Set number `head * len(rectangles) + r` of hyperplanes,
    and of sampled keys, is that of the rectangle r of a head. All waves have their orders, block numbers, codes and
    counts in the same places, which are filled before each of them.

    Attributes
    ----------
    n_indices : length of the whole array of indices.
    n_codes : length of the array of codes.
    n_counts : length of the table of counts that sorting needs.
    """

    n_indices: int = 0
    n_codes: int = 0
    n_counts: int = 0

    def uploaded(self, device: Device) -> Self:
        """The same tables on a device; `indices` stay on the host, where the sampled keys are appended to them."""
        return replace(super().uploaded(device), indices=self.indices)


def exact_tables(n_heads: int, n_q: int, n_k: int, is_causal: bool) -> Tables:
    """Exact attention: every head is one sweep over all its keys."""
    builder = _Builder(n_heads, n_q)
    for head in range(n_heads):
        builder.add_exact(head, (0, n_q, 0, n_k), is_causal)
    return builder.tables()


def plan_tables(plan: Plan, leaves: bool = True) -> Tables:
    """The sweeps of a Plan; smaller rectangles first, so that rows share their whole past with their neighbours.

    With `leaves` false the leaves of a causal plan are left out, and every sweep takes up a state: an exact primitive
    attends the leaves (module `leaves`) and gives their state. A query that meets no rectangle is in no sweep.
    """
    builder = _Builder(len(plan.heads), plan.n_q, resumes=plan.is_causal and not leaves)
    for number, head in enumerate(plan.heads):
        for a, c in head.leaves if leaves else ():
            builder.add_exact(number, (a, c, a, c), is_causal=True)
        for rectangle in sorted(head.rectangles, key=lambda r: r.n_q):
            builder.add_rectangle(number, rectangle)
    return builder.tables()


@lru_cache(maxsize=32)
def drawn_tables(
    n_heads: int,
    n_q: int,
    leaves: tuple[tuple[int, int], ...],
    rectangles: tuple[Place, ...],
    *,
    block_size: int,
    sample_size: int,
    resumes: bool = False,
) -> DrawnTables:
    """The sweeps of the Plan that the paper's own recipe makes, before hashing and sampling.

    Parameters
    ----------
    n_heads, n_q : number and length of the heads.
    leaves : pairs (a, c) of `causal_tiling`; none if not causal.
    rectangles : their places; those that share queries smallest first.
    block_size : b, keys in a block.
    sample_size : m, sampled keys of a rectangle; 0 for none.
    resumes : leave out the leaves, as in `plan_tables`.
    """
    builder = _DrawnBuilder(n_heads, n_q, rectangles, block_size=block_size, sample_size=sample_size, resumes=resumes)
    for head in range(n_heads):
        for a, c in () if resumes else leaves:
            builder.add_exact(head, (a, c, a, c), is_causal=True)
        for r in sorted(range(len(rectangles)), key=lambda r: rectangles[r][1] - rectangles[r][0]):
            builder.add_drawn(head, rectangles[r], head * len(rectangles) + r)
    return builder.drawn_tables()


def head_sides(n_heads: int, n: int) -> Items:
    """Items (SIDE_FIELDS): all rows of every head, one set of planes, codes (n_heads, n)."""
    return Items.of(SIDE_FIELDS, [(head, 0, n, 0, head * n) for head in range(n_heads)])


def records(fields: tuple[str, ...], rows: Iterable) -> np.ndarray:
    """A structured array of int64 columns: the structs of `plan.cuh`."""
    return np.array([tuple(row) for row in rows], [(name, np.int64) for name in fields])


class _Builder:
    """Collects sweeps, deals them out to waves, and collects the arrays that they refer to by position.

    With `resumes` the queries have a state before the first wave.
    """

    def __init__(self, n_heads: int, n_q: int, resumes: bool = False):
        self.resumes = resumes
        self.wave_of_row = np.full((n_heads, n_q), NONE)  # the last wave of every query so far
        self.sweeps: list[list[dict[str, int]]] = []  # of each wave
        self.segments: list[tuple[int, ...]] = []
        self.indices: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.n_indices = self.n_weights = 0

    def add_exact(self, head: int, place: Place, is_causal: bool) -> None:
        n_k = place[3] - place[2]
        self._add_sweep(head, place, [_segment(n=n_k, causal=int(is_causal))])

    def add_rectangle(self, head: int, rectangle: Rectangle) -> None:
        """One sweep for each view; the last one also attends the exact keys and the sampled keys."""
        query_blocks, key_blocks = rectangle.block_numbers(exact_keys=True)
        views = [
            tuple(map(self._place, (view.query_order, view.key_order, view.key_offsets))) for view in rectangle.views
        ]
        exact = sampled = None
        if n := rectangle.exact_keys.size:
            exact = _segment(n=n, keys=self._place(rectangle.exact_keys))
        if n := rectangle.sampled_keys.size:
            keys, weights = self._place(rectangle.sampled_keys), self._place_weights(rectangle.log_weights)
            sampled = _segment(n=n, keys=keys, weights=weights, views=len(query_blocks))
        blocks = self._place(query_blocks), self._place(key_blocks)
        self._add_views(head, rectangle.place, views, blocks, exact=exact, sampled=sampled)

    def tables(self) -> Tables:
        """Mark for each sweep whether it finishes its queries."""
        for wave, sweeps in enumerate(self.sweeps):
            for sweep in sweeps:
                sweep["last"] = int(self.wave_of_row[sweep["head"], sweep["query_start"]] == wave)
        rows = [[[sweep[name] for name in SWEEP_FIELDS] for sweep in sweeps] for sweeps in self.sweeps]
        return Tables(
            tuple(Wave(Items.of(SWEEP_FIELDS, row, "n_q"), self._sorting(wave)) for wave, row in enumerate(rows)),
            records(SEGMENT_FIELDS, self.segments),
            np.concatenate([np.empty(0, np.int32), *self.indices]),
            np.concatenate([np.empty(0), *self.weights]),
            self.resumes,
        )

    def _sorting(self, wave: int) -> Sorting | None:
        """What is sorted before a wave: nothing, since a Plan has the orders."""
        return None

    def _next_wave(self, head: int, place: Place) -> int:
        """The first wave in which a sweep of these queries can run."""
        return int(self.wave_of_row[head, place[0] : place[1]].max()) + 1

    def _add_views(self, head: int, place: Place, views, blocks, *, exact=None, sampled=None) -> None:
        """A sweep for each view (query order, key order, key offsets); the last one also has the other segments."""
        n_k = place[3] - place[2]
        sweeps: list[tuple[int, list]] = []
        for u, (query_order, keys, offsets) in enumerate(views, start=2 if exact else 1):  # exact keys are a view too
            sweeps.append((query_order, [_segment(n=n_k, keys=keys, offsets=offsets, views=u, inside=1)]))
        if not sweeps:
            sweeps.append((NONE, []))
        sweeps[-1][1].extend(segment for segment in (exact, sampled) if segment)
        for query_order, segments in sweeps:
            self._add_sweep(head, place, segments, query_order, blocks)

    def _add_sweep(self, head: int, place: Place, segments: list, query_order=NONE, blocks=(NONE, NONE)) -> None:
        assert len(segments) <= MOST_SEGMENTS
        query_start, query_stop, key_start, key_stop = place
        wave = self._next_wave(head, place)
        self.wave_of_row[head, query_start:query_stop] = wave
        if wave == len(self.sweeps):
            self.sweeps.append([])
        self.sweeps[wave].append(
            {
                "head": head,
                "query_start": query_start,
                "key_start": key_start,
                "n_q": query_stop - query_start,
                "n_k": key_stop - key_start,
                "query_order": query_order,
                "segment": len(self.segments),
                "n_segments": len(segments),
                "query_blocks": blocks[0],
                "key_blocks": blocks[1],
                "first": int(wave == 0 and not self.resumes),
            }
        )
        self.segments += segments

    def _place(self, array: np.ndarray) -> int:
        """The position at which this array will stand in `indices`."""
        self.indices.append(array.ravel().astype(np.int32))
        self.n_indices += array.size
        return self.n_indices - array.size

    def _place_weights(self, array: np.ndarray) -> int:
        self.weights.append(array)
        self.n_weights += array.size
        return self.n_weights - array.size


class _DrawnBuilder(_Builder):
    """A builder of rectangles whose orders and samples are not known yet, all with the same parameters."""

    def __init__(self, n_heads: int, n_q: int, rectangles, *, block_size: int, sample_size: int, resumes: bool):
        super().__init__(n_heads, n_q, resumes)
        self.block_size, self.sample_size = block_size, sample_size
        self.offsets: dict[int, int] = {}  # for each number of keys; all rectangles of so many keys share them
        self.log_weights: dict[int, int] = {}
        for n_k in sorted({stop - start for _, _, start, stop in rectangles}):
            b = min(block_size, n_k)
            self.offsets[n_k] = self._place(np.minimum(np.arange(-(-n_k // b) + 1) * b, n_k))
            if sample_size:
                self.log_weights[n_k] = self._place_weights(np.full(sample_size, math.log(n_k / sample_size)))
        self.sampled_keys = self.n_indices
        self.shared = self.sampled_keys + n_heads * len(rectangles) * sample_size  # where the parts of a wave begin
        self.sortings: dict[int, _SortingBuilder] = {}  # of the waves that need one

    def add_drawn(self, head: int, place: Place, number: int) -> None:
        """The sweep of one rectangle, its sides and its runs; `number` is that of its planes and sampled keys."""
        query_start, query_stop, key_start, key_stop = place
        n_q, n_k, m = query_stop - query_start, key_stop - key_start, self.sample_size
        sorting = self.sortings.setdefault(self._next_wave(head, place), _SortingBuilder(self.shared))
        cut = n_k, min(self.block_size, n_k)
        query_order, query_blocks = sorting.add(sorting.query_sides, (head, query_start, n_q, number), cut)
        key_order, key_blocks = sorting.add(sorting.key_sides, (head, key_start, n_k, number), cut)
        sampled = None
        if m:
            keys = self.sampled_keys + number * m
            sampled = _segment(n=m, keys=keys, weights=self.log_weights[n_k], views=1)
        views = [(query_order, key_order, self.offsets[n_k])]
        self._add_views(head, place, views, (query_blocks, key_blocks), sampled=sampled)

    def drawn_tables(self) -> DrawnTables:
        sortings = self.sortings.values()
        return DrawnTables(
            **vars(self.tables()),
            n_indices=max((x.n_indices for x in sortings), default=self.shared),
            n_codes=max((x.n_codes for x in sortings), default=0),
            n_counts=max((x.n_counts for x in sortings), default=0),
        )

    def _sorting(self, wave: int) -> Sorting | None:
        return self.sortings[wave].sorting() if wave in self.sortings else None


class _SortingBuilder:
    """What comes before one wave, and the places that it needs, from `start` on in the indices."""

    def __init__(self, start: int):
        self.query_sides: list[tuple[int, ...]] = []
        self.key_sides: list[tuple[int, ...]] = []
        self.runs: list[tuple[int, ...]] = []
        self.n_indices, self.n_codes, self.n_counts = start, 0, 0

    def add(self, sides: list, side: tuple[int, int, int, int], cut: tuple[int, int]) -> tuple[int, int]:
        """Hash and sort the rows of one side; the positions of their order and of their block numbers."""
        n, order = side[2], self.n_indices
        blocks = order + n
        sides.append((*side, self.n_codes))
        self.runs.append((n, self.n_codes, order, blocks, *cut, self.n_counts))
        self.n_indices += 2 * n
        self.n_codes += n
        self.n_counts += -(-n // CHUNK) * DIGITS
        return order, blocks

    def sorting(self) -> Sorting:
        sides = Items.of(SIDE_FIELDS, self.query_sides), Items.of(SIDE_FIELDS, self.key_sides)
        return Sorting(*sides, Items.of(RUN_FIELDS, self.runs))


def _segment(*, n, keys=NONE, offsets=NONE, weights=NONE, views=0, inside=0, causal=0) -> tuple[int, ...]:
    return keys, n, offsets, weights, views, inside, causal
