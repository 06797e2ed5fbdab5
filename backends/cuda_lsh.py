"""Algorithm 1 on the device: hash codes, their stable order, the blocks that the order is cut into.

`hash.cu` and `sort.cu` fill in what `cuda_plan.drawn_tables` leaves open. All that the host sends is noise:
hyperplanes, and keys drawn before any data was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hyperattention_ref.backends.cuda_device import Device, Kernel, Layouts, integers, launch, real, storage, tiles
from hyperattention_ref.backends.cuda_plan import CHUNK, DIGITS, DrawnTables, Sorting
from hyperattention_ref.backends.device_array import DeviceArray
from hyperattention_ref.definition_1 import scaled_rows
from hyperattention_ref.draw import Draw

if TYPE_CHECKING:
    from hyperattention_ref.recipe import Planner

DIGIT_BITS, SORT_WARPS = 8, 8
COUNT_BYTES, SCAN_BYTES = 4 * SORT_WARPS * (DIGITS + 1), 4 * DIGITS  # of the structs Tile and Sums in `sort.cu`


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


def hash_sides(
    device: Device, layouts: Layouts, x: DeviceArray, sides: DeviceArray, grid: tuple[int, int], planes, codes
) -> None:
    """Fill in the codes of some sides of x; `grid` is how many there are and how many rows the longest one has.

    planes : (sets, r, d) on the device, what `upload_planes` returned.
    codes : int64, on the device.
    """
    _, n_planes, d = planes.shape
    args = [*layouts.matrix(x), sides, planes, *integers(d, n_planes), codes]
    launch(device, Kernel("hash.cu", "hash_codes", (storage(x),)), 0, (grid[0], tiles(grid[1])), args)


def upload_planes(device: Device, planes: np.ndarray, x: DeviceArray) -> DeviceArray:
    """Hyperplanes (sets, r, d) as the hash kernel for rows of x takes them."""
    return device.upload(np.ascontiguousarray(scaled_rows(planes), real(x)))


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
    ):
        self.device, self.layouts, self.query, self.key = device, layouts, query, key
        self.tables, self.sorting, self.planner, self.noise = tables, sorting, planner, noise
        self.indices = device.empty((tables.n_indices,), "int32")
        self.codes = device.empty((tables.n_codes,), "int64")
        self.counts = device.empty((tables.n_counts,), "int32")
        self.planes: DeviceArray | None = None

    def before(self, wave: int) -> DeviceArray:
        """The indices, with all that this wave of sweeps needs in its place."""
        step = self.sorting[wave]
        if step is None:  # leaves need none
            return self.indices
        if self.planes is None:
            self.planes = self._take_noise()
        for x, sides in ((self.query, step.query_sides), (self.key, step.key_sides)):
            grid = step.n_runs // 2, step.longest
            hash_sides(self.device, self.layouts, x, sides, grid, self.planes, self.codes)
        grid, n_bits = (step.n_runs, step.longest), self.planner.recipe.lsh_bits
        sort_runs(self.device, step.runs, grid, n_bits, self.codes, self.indices, self.counts)
        return self.indices

    def _take_noise(self) -> DeviceArray:
        """Put the known part of the indices and the sampled keys in their places; the hyperplanes on the device."""
        draw = self.noise()
        n_keys = np.array([stop - start for _, _, start, stop in self.planner.places])
        sampled = draw.keys(n_keys[:, None]).astype(np.int32).ravel()  # (heads, rectangles, m)
        self.device.fill(self.indices, np.concatenate([self.tables.indices, sampled]))
        return upload_planes(self.device, draw.planes.reshape(-1, *draw.planes.shape[2:]), self.query)
