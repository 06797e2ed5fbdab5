"""Algorithm 1 on the device: hash codes, their stable order, the blocks that the order is cut into.

`hash.cu` and `sort.cu` fill in what `tables.drawn_tables` leaves open. All that the host sends is noise:
hyperplanes, and keys drawn before any data was seen. Rows of 16 bits are hashed on tensor cores, by `hash_tensor.cu`,
where the device has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hyperattention_ref.foundation.bfloat16 import bfloat16_bits, from_bfloat16_bits
from hyperattention_ref.paper.definition_1_sorted_lsh import scaled_rows
from hyperattention_ref.plan.noise import Draw

from ..device_array import DeviceArray
from .device import (
    MAX_WIDTH,
    STORAGE,
    TILE,
    Device,
    Kernel,
    Layouts,
    integers,
    launch,
    real,
    storage,
    tiles,
    warp_bytes,
)
from .memory import Largest
from .tables import CHUNK, DIGITS, DrawnTables, Sorting

if TYPE_CHECKING:
    from hyperattention_ref.foundation.extremes import Extremes
    from hyperattention_ref.plan.planner import Planner

DIGIT_BITS, SORT_WARPS = 8, 8
COUNT_BYTES, SCAN_BYTES = 4 * SORT_WARPS * (DIGITS + 1), 4 * DIGITS  # of the structs Tile and Sums in `sort.cu`

GROUP, PARTS = 8, 3  # of `hash_tensor.cu`: planes of a round, and parts of a plane
TENSOR_ROWS, TENSOR_STEP = 128, 32  # rows of a block, and what DEPTH is a multiple of
NOTHING = np.uint64(0)


class SortingOnDevice(NamedTuple):
    """`Sorting` on a device, and how many rows its longest run has."""

    query_sides: DeviceArray
    key_sides: DeviceArray
    runs: DeviceArray
    n_runs: int
    longest: int

    @classmethod
    def of(cls, device: Device, sorting: Sorting) -> SortingOnDevice | None:
        """None if there is nothing to sort."""
        runs = sorting.runs
        if not len(runs):
            return None
        query_sides, key_sides = device.upload(sorting.query_sides), device.upload(sorting.key_sides)
        return cls(query_sides, key_sides, device.upload(runs), len(runs), int(runs["n"].max()))


class Hyperplanes(NamedTuple):
    """Sets of hyperplanes on a device, and the kernel that takes them so: blocks of it hash that many rows."""

    kernel: Kernel
    rows: int
    data: DeviceArray
    n_planes: int

    @classmethod
    def of(cls, device: Device, planes: np.ndarray, x: DeviceArray, path: str) -> Hyperplanes:
        """Of planes (sets, r, d), for rows of x.

        Tensor cores take rows of 16 bits, unless `path` is "portable" (`CudaBackend`). Where the rows lie does not
        matter: a head that is hashed by itself must get the codes that it gets among others.
        """
        _, n_planes, d = planes.shape
        scaled = scaled_rows(planes)
        if path == "portable" or x.item_bytes > 2 or d > MAX_WIDTH or device.capability() < 80:
            kernel = Kernel("hash.cu", "hash_codes", (storage(x),))
            return cls(kernel, TILE, device.upload(np.ascontiguousarray(scaled, real(x))), n_planes)
        kernel, depth = tensor_hash_kernel(x.dtype, d)
        return cls(kernel, TENSOR_ROWS, device.upload(three_parts(scaled, x.dtype, depth)), n_planes)


def tensor_hash_kernel(dtype: str, d: int) -> tuple[Kernel, int]:
    """The kernel that hashes on tensor cores, and how many columns its planes have."""
    depth = tiles(d, TENSOR_STEP) * TENSOR_STEP
    return Kernel("hash_tensor.cu", "hash_codes_tensor", (f"STORAGE={STORAGE[dtype]}", f"DEPTH={depth}")), depth


def three_parts(planes: np.ndarray, dtype: str, depth: int) -> np.ndarray:
    """Scaled planes (sets, r, d) as `hash_tensor.cu` takes them: the bits of numbers of 16 bits, 0 where there is none.

    Each part is what the parts before it leave of the float32 number, rounded. Three parts of bfloat16 leave nothing.
    Neither do those of float16 for entries down to 2^-16 of the largest one of the plane, which is brought into
    [2^14, 2^15); of smaller entries they leave at most 2^-39 of it.

    Returns
    -------
    (sets, groups of eight planes, 3, 8, depth) uint16
    """
    n_sets, n_planes, d = planes.shape
    left = np.zeros((n_sets, tiles(n_planes, GROUP) * GROUP, depth), np.float32)
    left[:, :n_planes, :d] = planes if dtype == "bfloat16" else np.ldexp(planes, 15)
    parts = []
    for _ in range(PARTS):
        if dtype == "bfloat16":
            bits = bfloat16_bits(left)
            rounded = from_bfloat16_bits(bits)
        else:
            rounded = left.astype(np.float16)
            bits = rounded.view(np.uint16)
        parts.append(bits.reshape(n_sets, -1, GROUP, depth))
        left = left - rounded
    return np.stack(parts, axis=2)


def hash_sides(
    device: Device,
    layouts: Layouts,
    x: DeviceArray,
    sides: DeviceArray,
    grid: tuple[int, int],
    planes: Hyperplanes,
    codes: DeviceArray,
    largest: np.uint64 = NOTHING,
) -> None:
    """Fill in the codes of some sides of x; `grid` is how many there are and how many rows the longest one has.

    codes : int64, on the device.
    largest : a place of `Largest` for the largest absolute entry of all these rows.
    """
    args = [*layouts.matrix(x), sides, planes.data, *integers(x.shape[-1], planes.n_planes), codes, largest]
    launch(device, planes.kernel, warp_bytes(x), (grid[0], tiles(grid[1], planes.rows)), args)


def sort_runs(
    device: Device, runs: DeviceArray, grid: tuple[int, int], n_bits: int, codes, indices, counts: DeviceArray
) -> None:
    """Fill in the orders and block numbers of runs of codes below 2^n_bits, eight bits at a time.

    `grid` is how many runs there are and how many rows the longest one has; `codes`, `indices` and `counts` are what
    the Runs refer to.
    """
    n_passes = -(-n_bits // DIGIT_BITS)
    spare = device.empty(codes.shape if n_passes > 1 else (0,), "int32")
    chunks = tiles(grid[1], CHUNK)
    for number in range(n_passes):
        args = [runs, codes, *integers(number, n_passes), indices, spare, counts]
        for name, tile_bytes, n_blocks, given in (
            ("count_digits", COUNT_BYTES, chunks, args),
            ("scan_digits", SCAN_BYTES, 1, [runs, counts]),
            ("place_rows", COUNT_BYTES, chunks, args),
        ):
            launch(device, Kernel("sort.cu", name, ()), tile_bytes, (grid[0], n_blocks), given)


class DrawnIndices:
    """The table of indices of `DrawnTables`, filled before each wave of sweeps with what it needs.

    Parameters
    ----------
    device, layouts : where, and where arrays lie.
    query, key : (..., n, d) arrays on the device.
    tables : made ahead for these lengths.
    sorting : for each wave the SortingOnDevice, or None.
    planner, noise : as in `CudaBackend.drawn_attention`.
    path : as in `CudaBackend`.
    extremes : told the largest entries of query and key, which hashing finds; None if not all their rows are hashed.
    """

    def __init__(
        self,
        device: Device,
        layouts: Layouts,
        query: DeviceArray,
        key: DeviceArray,
        tables: DrawnTables,
        sorting: tuple[SortingOnDevice | None, ...],
        planner: Planner,
        noise: Callable[[], Draw],
        path: str,
        extremes: Extremes | None,
    ):
        self.device, self.layouts, self.query, self.key = device, layouts, query, key
        self.tables, self.sorting, self.planner, self.noise = tables, sorting, planner, noise
        self.path, self.extremes = path, extremes
        self.indices = device.empty((tables.n_indices,), "int32")
        self.codes = device.empty((tables.n_codes,), "int64")
        self.counts = device.empty((tables.n_counts,), "int32")
        self.planes: Hyperplanes | None = None

    def before(self, wave: int) -> DeviceArray:
        """The indices, with all that this wave of sweeps needs in its place."""
        step = self.sorting[wave]
        if step is None:  # leaves need none
            return self.indices
        if self.planes is None:
            self.planes = self._take_noise()
        self._hash(step, self.planes)
        grid, n_bits = (step.n_runs, step.longest), self.planner.recipe.lsh_bits
        sort_runs(self.device, step.runs, grid, n_bits, self.codes, self.indices, self.counts)
        return self.indices

    def _hash(self, step: SortingOnDevice, planes: Hyperplanes) -> None:
        largest = Largest(self.device, (self.query, self.key)) if self.extremes else None
        for number, (x, sides) in enumerate(((self.query, step.query_sides), (self.key, step.key_sides))):
            place = largest.place(number) if largest else NOTHING
            grid = step.n_runs // 2, step.longest
            hash_sides(self.device, self.layouts, x, sides, grid, planes, self.codes, place)
        if self.extremes and largest:
            self.extremes.expect(("query", "key"), largest.numbers())

    def _take_noise(self) -> Hyperplanes:
        """Put the known part of the indices and the sampled keys in their places; the hyperplanes on the device."""
        draw = self.noise()
        n_keys = np.array([stop - start for _, _, start, stop in self.planner.places])
        sampled = draw.keys(n_keys[:, None]).astype(np.int32).ravel()  # (heads, rectangles, m)
        self.device.fill(self.indices, np.concatenate([self.tables.indices, sampled]))
        return Hyperplanes.of(self.device, draw.planes.reshape(-1, *draw.planes.shape[2:]), self.query, self.path)
