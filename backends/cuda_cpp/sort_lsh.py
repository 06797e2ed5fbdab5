"""Algorithm 1 on the device: hash codes, their stable order, the blocks that the order is cut into.

`hash.cu` and `sort.cu` fill in what `tables.drawn_tables` leaves open. The host sends noise only: hyperplanes, and keys
that were drawn before any data was seen. Rows of 16 bits are hashed on tensor cores, by `hash_tensor.cu`, where the
device has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hyperattention_ref.foundation.bfloat16 import bfloat16_bits, from_bfloat16_bits
from hyperattention_ref.paper.definition_1_sorted_lsh import scaled_rows
from hyperattention_ref.plan.noise import Draw

from ..device_array import DeviceArray
from .device import MAX_WIDTH, STORAGE, Device, Kernel, Layouts, launch, real, storage, tiles
from .memory import Largest
from .tables import CHUNK, DrawnTables, Items, Sorting

if TYPE_CHECKING:
    from hyperattention_ref.foundation.extremes import Extremes
    from hyperattention_ref.plan.planner import Planner

DIGIT_BITS = 8  # that `sort.cu` sorts by at a time
GROUP, PARTS = 8, 3  # of `hash_tensor.cu`: planes of a round, and parts of a plane
TENSOR_ROWS, TENSOR_STEP = 128, 32  # rows of a block, and what DEPTH is a multiple of


@dataclass(frozen=True, eq=False)
class Hyperplanes:
    """Sets of hyperplanes on a device, in the form that the kernel which hashes with them reads."""

    kernel: Kernel
    data: DeviceArray
    n_planes: int

    @classmethod
    def of(cls, device: Device, planes: np.ndarray, x: DeviceArray, path: str) -> Hyperplanes:
        """Of planes (sets, r, d), for rows of x.

        Tensor cores take rows of 16 bits, unless `path` is "portable" (`CudaBackend`). The strides of the rows do not
        matter: a head that is hashed alone must get the codes that it gets among others.
        """
        _, n_planes, d = planes.shape
        scaled = scaled_rows(planes)
        if path == "portable" or x.item_bytes > 2 or d > MAX_WIDTH or device.capability() < 80:
            kernel, data = Kernel("hash.cu", "hash_codes", (storage(x),)), np.ascontiguousarray(scaled, real(x))
        else:
            kernel, data = tensor_hash_kernel(x.dtype, d), three_parts(scaled, x.dtype)
        return cls(kernel, device.upload(data), n_planes)


def tensor_hash_kernel(dtype: str, d: int) -> Kernel:
    """The kernel that hashes rows of d columns on tensor cores."""
    defines = f"STORAGE={STORAGE[dtype]}", f"DEPTH={_depth(d)}"
    return Kernel("hash_tensor.cu", "hash_codes_tensor", defines, rows=TENSOR_ROWS)


def _depth(d: int) -> int:
    """How many columns the planes of `hash_tensor.cu` have."""
    return tiles(d, TENSOR_STEP) * TENSOR_STEP


def three_parts(planes: np.ndarray, dtype: str) -> np.ndarray:
    """Scaled planes (sets, r, d) as `hash_tensor.cu` takes them: the bits of numbers of 16 bits, padded with 0.

    Each part is what the parts before it leave of the float32 number, rounded. Three parts of bfloat16 leave nothing.
    Neither do those of float16 for entries down to 2^-16 of the largest one of the plane, which is brought into
    [2^14, 2^15); of smaller entries they leave at most 2^-39 of it.

    Returns
    -------
    (sets, groups of eight planes, 3, 8, depth) uint16
    """
    n_sets, n_planes, d = planes.shape
    depth = _depth(d)
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
    layouts: Layouts,
    x: DeviceArray,
    sides: Items,
    planes: Hyperplanes,
    codes: DeviceArray,
    largest: np.uint64 | None = None,
) -> None:
    """Fill in the codes, int64 on the device, of some sides of x.

    largest : a place of `Largest` for the largest absolute entry of all these rows.
    """
    args = [*layouts.matrix(x), sides.records, planes.data, x.shape[-1], planes.n_planes, codes, largest]
    launch(layouts.device, planes.kernel, sides.grid, args)


def sort_runs(device: Device, runs: Items, n_bits: int, codes, indices, counts: DeviceArray) -> None:
    """Fill in the orders and block numbers of runs of codes below 2^n_bits, eight bits at a time.

    `codes`, `indices` and `counts` are what the runs refer to.
    """
    n_passes = tiles(n_bits, DIGIT_BITS)
    spare = device.empty(codes.shape if n_passes > 1 else (0,), "int32")
    count, scan, place = (Kernel("sort.cu", x, rows=CHUNK) for x in ("count_digits", "scan_digits", "place_rows"))
    for number in range(n_passes):
        args = [runs.records, codes, number, n_passes, indices, spare, counts]
        launch(device, count, runs.grid, args)
        launch(device, scan, (runs.grid[0], 1), [runs.records, counts])
        launch(device, place, runs.grid, args)


class DrawnIndices:
    """The table of indices of `DrawnTables`, filled before each wave of sweeps with what it needs.

    Parameters
    ----------
    layouts : of the arrays, with their device.
    tables : uploaded, for the lengths of these heads.
    query, key : (..., n, d) arrays on the device.
    planner, noise : as in `CudaBackend.drawn_attention`.
    path : as in `CudaBackend`.
    extremes : gets the largest entries of query and key, which hashing finds; None if not all their rows are hashed.
    """

    def __init__(
        self,
        layouts: Layouts,
        tables: DrawnTables,
        *,
        query: DeviceArray,
        key: DeviceArray,
        planner: Planner,
        noise: Callable[[], Draw],
        path: str,
        extremes: Extremes | None,
    ):
        self.layouts, self.tables, self.query, self.key = layouts, tables, query, key
        self.planner, self.noise, self.path, self.extremes = planner, noise, path, extremes
        self.device = layouts.device
        self.indices = self.device.empty((tables.n_indices,), "int32")
        self.codes = self.device.empty((tables.n_codes,), "int64")
        self.counts = self.device.empty((tables.n_counts,), "int32")
        self.planes: Hyperplanes | None = None

    def before(self, wave: int) -> DeviceArray:
        """The indices, with all that this wave of sweeps needs in its place."""
        sorting = self.tables.waves[wave].sorting
        if sorting:  # leaves need none
            if self.planes is None:
                self.planes = self._upload_noise()
            self._hash(sorting, self.planes)
            n_bits = self.planner.recipe.lsh_bits
            sort_runs(self.device, sorting.runs, n_bits, self.codes, self.indices, self.counts)
        return self.indices

    def _hash(self, sorting: Sorting, planes: Hyperplanes) -> None:
        largest = Largest(self.device, (self.query, self.key)) if self.extremes else None
        for number, (x, sides) in enumerate(((self.query, sorting.query_sides), (self.key, sorting.key_sides))):
            place = largest.place(number) if largest else None
            hash_sides(self.layouts, x, sides, planes, self.codes, place)
        if self.extremes and largest:
            self.extremes.expect(("query", "key"), largest.numbers())

    def _upload_noise(self) -> Hyperplanes:
        """Put the known part of the indices and the sampled keys in their places; the hyperplanes on the device."""
        draw = self.noise()
        n_keys = np.array([stop - start for _, _, start, stop in self.planner.places])
        sampled = draw.keys(n_keys[:, None]).astype(np.int32).ravel()  # (heads, rectangles, m)
        self.device.fill(self.indices, np.concatenate([self.tables.indices, sampled]))
        return Hyperplanes.of(self.device, draw.planes.reshape(-1, *draw.planes.shape[2:]), self.query, self.path)
