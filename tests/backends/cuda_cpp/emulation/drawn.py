"""Hashing, sorting, measuring and copying rows on the emulated device, and a battery of what they must compute."""

import numpy as np

from hyperattention_ref.backends.cuda_cpp import sort_lsh
from hyperattention_ref.backends.cuda_cpp.device import Layouts
from hyperattention_ref.backends.cuda_cpp.memory import CudaMemory, Largest
from hyperattention_ref.backends.cuda_cpp.tables import CHUNK, DIGITS, RUN_FIELDS, SIDE_FIELDS, Items
from hyperattention_ref.backends.device_array import DeviceArray
from hyperattention_ref.paper.definition_1_sorted_lsh import hamming_sorted_lsh

from .device import from_bfloat, in_place, to_bfloat

GAP = 3  # entries between the places of different runs: nothing may be written there


VIEWS = {
    "whole": lambda x: x,
    "rows backwards": lambda x: x[:, ::-1],
    "columns backwards": lambda x: x[..., ::-1],
    "every other column": lambda x: x[..., ::2],
    "not at a multiple of 16 bytes": lambda x: x[..., 1:],
    "turned": lambda x: x.swapaxes(1, 2),
    "one head many times": lambda x: np.broadcast_to(x[:1], x.shape),
    "one row many times": lambda x: np.broadcast_to(x[:, :1], x.shape),
}
"""Layouts of an array (heads, n, d)."""


def stored(x, storage: str, view=np.asarray) -> DeviceArray:
    """Numbers as a device array (heads, n, d) of that dtype; `view` may choose some of them, with other strides."""
    return in_place(view(to_bfloat(x) if storage == "bfloat16" else x.astype(storage)), storage)


def numbers(x: DeviceArray) -> np.ndarray:
    """A device array as NumPy shows it."""
    found = np.asarray(x.owner)
    return from_bfloat(found) if x.dtype == "bfloat16" else found


def real(storage: str) -> type:
    return np.float64 if storage == "float64" else np.float32


def hash_sides(device, x: DeviceArray, sides: Items, planes, codes: np.ndarray, path="auto") -> float:
    """Fill in the codes of these sides, and find their largest entry; planes are (sets, r, d), as they were drawn."""
    uploaded, found = sort_lsh.Hyperplanes.of(device, planes, x, path), Largest(device, [x])
    sort_lsh.hash_sides(Layouts(device), x, sides.uploaded(device), uploaded, in_place(codes), found.place(0))
    return found.numbers()()[0]


def sort_runs(device, codes: np.ndarray, runs: Items, n_bits: int, indices: np.ndarray) -> None:
    """Fill in the orders and block numbers of these runs."""
    last = runs.records[-1]
    counts = device.empty((int(last["counts"]) + -(-int(last["n"]) // CHUNK) * DIGITS,), "int32")
    sort_lsh.sort_runs(device, runs.uploaded(device), n_bits, in_place(codes), in_place(indices), counts)


def memory(device) -> CudaMemory:
    return CudaMemory(device, Layouts(device))


def largest(device, x: DeviceArray) -> float:
    """The largest absolute entry."""
    return memory(device).largest({"x": x})()[0]


def convert(device, x: DeviceArray, target: str, rows=None, center=None) -> DeviceArray:
    """These rows less the center, in another dtype."""
    return memory(device).converted(x, target, rows=rows, center=None if center is None else in_place(center))


# --- What they must compute ------------------------------------------------------------------------------------------


def rounded(x, target: str) -> np.ndarray:
    """Numbers rounded once to that dtype, ties to even, as NumPy shows them."""
    x = np.asarray(x)
    if target != "bfloat16":
        with np.errstate(over="ignore"):
            return x.astype(target)
    if x.dtype == np.float64:  # a float32 towards zero, its last bit set if something was lost
        with np.errstate(over="ignore"):
            nearest = x.astype(np.float32)
        bits = nearest.view(np.uint32) - (np.abs(nearest) > np.abs(x))
        x = np.where(nearest == x, nearest, (bits | 1).astype(np.uint32).view(np.float32))
    return np.where(np.isnan(x), np.float32(np.nan), from_bfloat(to_bfloat(x)))


def check_runs(device, sizes, n_bits: int, codes_of) -> None:
    """Sort runs of these (n, others, block_size), their codes codes_of(n); an AssertionError if anything is wrong."""
    runs, expected = [], []
    place = n_counts = 0
    codes = np.full(sum(n + GAP for n, _, _ in sizes), -1, np.int64)
    for n, others, block_size in sizes:
        codes[place : place + n] = codes_of(n)
        runs.append((n, place, 2 * place, 2 * place + n + GAP, others, block_size, n_counts))
        order = np.argsort(codes[place : place + n], kind="stable")
        blocks = np.empty(n, np.int32)
        blocks[order] = np.arange(n) * others // n // block_size
        expected += [order, [-1] * GAP, blocks, [-1] * GAP]
        n_counts += -(-n // CHUNK) * DIGITS
        place += n + GAP
    indices = np.full(2 * place, -1, np.int32)
    sort_runs(device, codes, Items.of(RUN_FIELDS, runs), n_bits, indices)
    np.testing.assert_array_equal(indices, np.concatenate(expected))


def check_sort(device) -> None:
    """Several runs and chunks, one pass and three; few different codes, so that stability matters."""
    rng = np.random.default_rng(2)
    sizes = [(1, 1, 1), (5000, 5000, 48), (700, 300, 7), (8211, 400_000, 256)]
    check_runs(device, sizes, 3, lambda n: rng.integers(8, size=n))
    check_runs(device, sizes[1:3], 20, lambda n: rng.choice(rng.integers(2**20, size=90), n))


def check_sides(device, x, planes, storage: str, path: str, view=np.asarray) -> None:
    """Sides of two heads (2, 150, d) and three sets of planes, of which `view` chooses the columns."""
    array, planes = stored(x, storage, view), view(planes)
    rows = numbers(array).astype(float)
    places = [(0, 3, 130, 2, 200), (1, 0, 150, 0, 5), (1, 149, 1, 1, 400), (0, 70, 64, 1, 335)]
    expected = np.full(405, -1, np.int64)
    for head, start, n, number, place in places:
        expected[place : place + n] = hamming_sorted_lsh(rows[head, start : start + n], planes[number])
    codes = np.full(405, -1, np.int64)
    largest = hash_sides(device, array, Items.of(SIDE_FIELDS, places), planes, codes, path)
    np.testing.assert_array_equal(codes, expected)
    assert largest == max(np.abs(rows[0, 3:134]).max(), np.abs(rows[1]).max())


def check_hash(device) -> None:
    """Small integers, so that no sign depends on rounding; sums of both signs that overflow."""
    rng = np.random.default_rng(3)
    x = rng.integers(-4, 5, (2, 150, 72)).astype(float)
    planes = rng.integers(-4, 5, (3, 20, 72)).astype(float)
    planes[2, 0] = 1
    check_sides(device, x, planes, "float32", "auto")
    check_sides(device, x, planes, "float16", "portable")
    x[0, 3] = np.where(np.arange(72) % 16 < 8, 1, -1) * np.finfo(np.float32).max
    check_sides(device, x, planes, "float32", "auto")


def check_hash_tensor(device) -> None:
    """Small integers; rows and planes whose products need every bit of the planes, at every scale of the rows.

    The last columns of the memory are not those of the array, and are NaN.
    """
    rng = np.random.default_rng(6)
    for storage, scales in (("bfloat16", (2.0**-126, 1.0, 2.0**125)), ("float16", (2.0**-24, 1.0, 2.0**13))):
        for d, width in ((72, 72), (72, 80), (70, 73)):
            x = rng.integers(-4, 5, (2, 150, width)).astype(float)
            planes = rng.integers(-4, 5, (3, 20, width)).astype(float)
            planes[:, ::3] = 1 + 2.0**-10 + 2.0 ** -rng.integers(3, 24, (3, 7, width))
            x[:, ::5] = 0
            for row in x[:, ::5].reshape(-1, width):  # two entries that cancel but for the last bits of the planes
                row[rng.choice(d, 2, replace=False)] = 1, -1
            x[0, 4, :d] = np.where(np.arange(d) % 16 < 8, 4, -4)
            x *= rng.choice(scales, (2, 150, 1))
            x[1, 40, d - 1 - width % 2] = -7 * scales[-1]  # the largest of all
            x[..., d:] = np.nan
            check_sides(device, x, planes, storage, "auto", lambda x, d=d: x[..., :d])


def check_largest(device) -> None:
    """The largest entry in the first and in the last place, by whole pieces and by single entries."""
    rng = np.random.default_rng(4)
    for storage, d, width in (("float32", 20, 20), ("bfloat16", 24, 32), ("bfloat16", 20, 24), ("float64", 3, 3)):
        for place in ((0, 0, 0), (1, 299, d - 1), (1, 200, 1)):
            x = rng.integers(-7, 8, (2, 310, width)).astype(float)
            x[place] = -9
            x[:, 300:] = x[..., d:] = 100  # not of the array
            assert largest(device, stored(x, storage, lambda x, d=d: x[:, :300, :d])) == 9


def check_convert(device) -> None:
    """A cast, a choice of rows, and rows less their center."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 90, 37))
    x[0, 0, :3] = np.nextafter(1 + 2.0**-11, 2), 3e38, np.nan  # the first is near a tie of float16
    rows = rng.integers(90, size=70).astype(np.int32)
    for storage, target in (("float32", "bfloat16"), ("float64", "float16"), ("bfloat16", "float32")):
        center = rng.standard_normal((2, 37)).astype(real(target))
        array = stored(x, storage)
        wide = numbers(array).astype(np.float64 if storage == "float64" else np.float32)
        for numbers_of_rows in (None, rows):
            for middle in (None, center):
                expected = wide if numbers_of_rows is None else wide[:, numbers_of_rows]
                expected = expected if middle is None else expected - middle[:, None]
                found = convert(device, array, target, numbers_of_rows, middle)
                np.testing.assert_array_equal(numbers(found), rounded(expected, target))


CHECKS = {
    "hash.cu": check_hash,
    "hash_tensor.cu": check_hash_tensor,
    "sort.cu": check_sort,
    "largest.cu": check_largest,
    "convert.cu": check_convert,
}
