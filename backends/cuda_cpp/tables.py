"""A Plan as tables for the CUDA kernels: what `kernels/plan.cuh` reads.

A Plan is host data, this is host work; the device only follows. Every leaf, rectangle or whole head becomes one or more
sweeps: a sweep is its queries in one order, with the segments (lists of keys) that tiles of this order attend. Sweeps
that share queries run one after another, in waves; all others together, over all heads.

The paper's own recipe needs no Plan on the host: `drawn_tables` knows where everything will stand before any data is
seen, and the kernels `hash.cu` and `sort.cu` fill in the orders and the block numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

NONE = -1


SEGMENT_FIELDS = ("keys", "n", "offsets", "weights", "views", "inside", "causal")
SWEEP_FIELDS = (
    *("head", "query_start", "key_start", "n_q", "n_k", "query_order", "segment", "n_segments"),
    *("query_blocks", "key_blocks", "first", "last"),
)
SIDE_FIELDS = ("head", "start", "n", "planes", "codes")
RUN_FIELDS = ("n", "codes", "order", "blocks", "others", "block_size", "counts")
MOST_SEGMENTS = 3  # of a sweep, in `plan.cuh`: a view's blocks, the exact keys, the sampled keys
CHUNK, DIGITS = 4096, 256  # of `sort.cu`: rows that a block sorts, and numbers it counts


@dataclass(frozen=True, eq=False)
class Tables:
    """What the attention kernels read.

    Attributes
    ----------
    waves : structured arrays of sweeps (SWEEP_FIELDS), to be run in this order.
    segments : structured array (SEGMENT_FIELDS).
    indices : int32, all orders, offsets, key lists and block numbers behind each other.
    weights : float64, the log-weights of all sampled keys behind each other.
    begun : whether the leaves are left out, so that every sweep takes up a state: that of the leaves, or of a sweep.
    """

    waves: tuple[np.ndarray, ...]
    segments: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    begun: bool = False

    @property
    def carries(self) -> bool:
        """Whether some query passes through more than one sweep, so that its state must be kept in between."""
        return self.begun or len(self.waves) > 1


@dataclass(frozen=True, eq=False)
class Sorting:
    """What must be hashed and sorted before a wave of sweeps can run; nothing at all before one of leaves.

    Attributes
    ----------
    query_sides, key_sides : structured arrays (SIDE_FIELDS): rows to hash, of the queries and of the keys.
    runs : structured array (RUN_FIELDS): codes to sort, those of all query sides and of all key sides.
    """

    query_sides: np.ndarray
    key_sides: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True, eq=False)
class DrawnTables(Tables):
    """Tables of the paper's own recipe, for any data: one sortLSH view and sampled keys in every rectangle.

    `indices` holds only what is known. The array that the kernels read begins with it; the sampled keys follow, one
    set after another, then the orders and block numbers, which sorting fills in. Set number
    `head * len(rectangles) + r` of hyperplanes, and of sampled keys, is that of the rectangle r of a head. All waves
    have their orders, block numbers, codes and counts in the same places: before each of them, its own are made.

    Attributes
    ----------
    sorting : for each wave what comes before it.
    n_indices : length of the whole array of indices.
    n_codes : length of the array of codes.
    n_counts : length of the table of counts that sorting needs.
    """

    sorting: tuple[Sorting, ...] = ()
    n_indices: int = 0
    n_codes: int = 0
    n_counts: int = 0


def exact_tables(n_heads: int, n_q: int, n_k: int, is_causal: bool) -> Tables:
    """Exact attention: every head is one sweep over all its keys."""
    builder = _Builder(n_heads, n_q)
    for head in range(n_heads):
        builder.add_exact(head, 0, n_q, n_k, is_causal)
    return builder.tables()


def plan_tables(plan: Plan, leaves: bool = True) -> Tables:
    """The sweeps of a Plan; smaller rectangles first, so that rows share their whole past with their neighbours.

    With `leaves` false the leaves of a causal plan are left out, and their queries count as begun: somebody else has
    attended the leaves (`leaves`) and hands in the state. A query that meets no rectangle is in no sweep.
    """
    builder = _Builder(len(plan.heads), plan.n_q, begun=plan.is_causal and not leaves)
    for number, head in enumerate(plan.heads):
        builder.add_head(number, head, leaves)
    return builder.tables()


@lru_cache(maxsize=32)
def drawn_tables(
    n_heads: int,
    n_q: int,
    n_k: int,
    leaves: tuple[tuple[int, int], ...],
    rectangles: tuple[tuple[int, int, int, int], ...],
    *,
    block_size: int,
    sample_size: int,
    begun: bool = False,
) -> DrawnTables:
    """The sweeps of the Plan that the paper's own recipe makes, before hashing and sampling.

    Parameters
    ----------
    n_heads, n_q, n_k : number and lengths of the heads.
    leaves : pairs (a, c) of `causal_tiling`; none if not causal.
    rectangles : (query_start, query_stop, key_start, key_stop); those that share queries smallest first.
    block_size : b, keys in a block.
    sample_size : m, sampled keys of a rectangle; 0 for none.
    begun : leave out the leaves, as in `plan_tables`.
    """
    builder = _DrawnBuilder(n_heads, n_q, begun, rectangles, block_size, sample_size)
    for head in range(n_heads):
        for a, c in () if begun else leaves:
            builder.add_exact(head, a, c - a, c - a, True)
        for r in sorted(range(len(rectangles)), key=lambda r: rectangles[r][1] - rectangles[r][0]):
            builder.add_drawn(head, head * len(rectangles) + r, rectangles[r])
    return builder.drawn_tables()


def head_sides(n_heads: int, n: int) -> np.ndarray:
    """Structured array (SIDE_FIELDS): all rows of every head, one set of planes, codes (n_heads, n)."""
    return _records(SIDE_FIELDS, [(head, 0, n, 0, head * n) for head in range(n_heads)])


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
    """Collects sweeps, deals them out to waves, and collects the arrays that they refer to by position.

    With `begun` the queries have a state already, that of leaves which somebody else attends.
    """

    def __init__(self, n_heads: int, n_q: int, begun: bool = False):
        self.begun = begun
        self.wave_of_row = np.full((n_heads, n_q), NONE)  # the last wave of every query so far
        self.waves: list[list[dict[str, int]]] = []
        self.segments: list[tuple[int, ...]] = []
        self.indices: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.n_indices = self.n_weights = 0

    def add_head(self, number: int, head: HeadPlan, leaves: bool = True) -> None:
        for a, c in head.leaves if leaves else ():
            self.add_exact(number, a, c - a, c - a, True)
        for rectangle in sorted(head.rectangles, key=lambda r: r.n_q):
            self.add_rectangle(number, rectangle)

    def add_exact(self, head: int, start: int, n_q: int, n_k: int, is_causal: bool) -> None:
        self._sweep(head, (start, start, n_q, n_k), NONE, [self._segment(n=n_k, causal=int(is_causal))])

    def add_rectangle(self, head: int, rectangle: Rectangle) -> None:
        """One sweep for each view; the last one also attends the exact keys and the sampled keys."""
        query_blocks, key_blocks = block_numbers(rectangle)
        views = [
            (self._place(view.query_order), self._place(view.key_order), self._place(view.key_offsets))
            for view in rectangle.views
        ]
        exact = sampled = None
        if rectangle.exact_keys.size:
            exact = self._segment(keys=self._place(rectangle.exact_keys), n=rectangle.exact_keys.size)
        if rectangle.sampled_keys.size:
            keys, weights = self._place(rectangle.sampled_keys), self._place_weights(rectangle.log_weights)
            sampled = self._segment(keys=keys, n=rectangle.sampled_keys.size, weights=weights, views=len(query_blocks))
        place = rectangle.query_start, rectangle.key_start, rectangle.n_q, rectangle.n_k
        self._sweeps(head, place, views, exact, sampled, (self._place(query_blocks), self._place(key_blocks)))

    def tables(self) -> Tables:
        """Mark for each sweep whether it finishes its queries."""
        for wave, sweeps in enumerate(self.waves):
            for sweep in sweeps:
                sweep["last"] = int(self.wave_of_row[sweep["head"], sweep["query_start"]] == wave)
        rows = [[[sweep[name] for name in SWEEP_FIELDS] for sweep in sweeps] for sweeps in self.waves]
        return Tables(
            tuple(_records(SWEEP_FIELDS, wave) for wave in rows),
            _records(SEGMENT_FIELDS, self.segments),
            np.concatenate([np.empty(0, np.int32), *self.indices]),
            np.concatenate([np.empty(0), *self.weights]),
            self.begun,
        )

    def next_wave(self, head: int, query_start: int, n_q: int) -> int:
        """The first wave in which a sweep of these queries can run."""
        return int(self.wave_of_row[head, query_start : query_start + n_q].max()) + 1

    def _sweeps(self, head, place, views, exact, sampled, blocks) -> None:
        """A sweep for each view (query order, key order, key offsets); the last one also has the other segments."""
        sweeps = []
        for u, (query_order, keys, offsets) in enumerate(views, start=2 if exact else 1):  # exact keys are a view too
            segment = self._segment(keys=keys, n=place[3], offsets=offsets, views=u, inside=1)
            sweeps.append((query_order, [segment]))
        if not sweeps:
            sweeps.append((NONE, []))
        sweeps[-1][1].extend(segment for segment in (exact, sampled) if segment)
        for order, segments in sweeps:
            self._sweep(head, place, order, segments, blocks)

    def _sweep(self, head, place, query_order, segments, blocks=(NONE, NONE)) -> None:
        assert len(segments) <= MOST_SEGMENTS
        query_start, key_start, n_q, n_k = place
        wave = self.next_wave(head, query_start, n_q)
        self.wave_of_row[head, query_start : query_start + n_q] = wave
        if wave == len(self.waves):
            self.waves.append([])
        self.waves[wave].append(
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
                "first": int(wave == 0 and not self.begun),
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


class _DrawnBuilder(_Builder):
    """A builder of rectangles whose orders and samples are not known yet, all with the same parameters."""

    def __init__(self, n_heads: int, n_q: int, begun: bool, rectangles, block_size: int, sample_size: int):
        super().__init__(n_heads, n_q, begun)
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
        self.steps: dict[int, _Step] = {}

    def add_drawn(self, head: int, number: int, rectangle: tuple[int, int, int, int]) -> None:
        """The sweep of one rectangle, its sides and its runs; `number` is that of its planes and sampled keys."""
        query_start, query_stop, key_start, key_stop = rectangle
        n_q, n_k = query_stop - query_start, key_stop - key_start
        step = self.steps.setdefault(self.next_wave(head, query_start, n_q), _Step(self.shared))
        cut = n_k, min(self.block_size, n_k)
        query_order, query_blocks = step.add(step.query_sides, (head, query_start, n_q, number), cut)
        key_order, key_blocks = step.add(step.key_sides, (head, key_start, n_k, number), cut)
        sampled = None
        if m := self.sample_size:
            keys = self.sampled_keys + number * m
            sampled = self._segment(keys=keys, n=m, weights=self.log_weights[n_k], views=1)
        views = [(query_order, key_order, self.offsets[n_k])]
        place = query_start, key_start, n_q, n_k
        self._sweeps(head, place, views, None, sampled, (query_blocks, key_blocks))

    def drawn_tables(self) -> DrawnTables:
        nothing = _Step(self.shared)
        steps = [self.steps.get(wave, nothing) for wave in range(len(self.waves))]
        return DrawnTables(
            **vars(self.tables()),
            sorting=tuple(step.sorting() for step in steps),
            n_indices=max((step.n_indices for step in steps), default=self.shared),
            n_codes=max((step.n_codes for step in steps), default=0),
            n_counts=max((step.n_counts for step in steps), default=0),
        )


class _Step:
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
        sides = _records(SIDE_FIELDS, self.query_sides), _records(SIDE_FIELDS, self.key_sides)
        return Sorting(*sides, _records(RUN_FIELDS, self.runs))


def _records(fields: tuple[str, ...], rows: Iterable) -> np.ndarray:
    """A structured array of int64 columns: the structs of `plan.cuh`."""
    return np.array([tuple(row) for row in rows], [(name, np.int64) for name in fields])
