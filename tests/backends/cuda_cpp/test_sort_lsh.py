"""Hashing and sorting on the device, and the bugs that must be caught in these kernels and those of `memory`.

What runs is the source of `backends/cuda_cpp/kernels` on the emulated device; every launch is in `emulation/drawn.py`.
"""

import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattention_ref.backends.conformance.strategies import HashInputs
from hyperattention_ref.backends.cuda_cpp.device import STORAGE
from hyperattention_ref.backends.cuda_cpp.sort_lsh import Hyperplanes, three_parts
from hyperattention_ref.backends.cuda_cpp.tables import SIDE_FIELDS, Items, drawn_tables, head_sides
from hyperattention_ref.paper.definition_1_sorted_lsh import hamming_sorted_lsh, scaled_rows
from hyperattention_ref.plan.block_mask import BlockMask

from .emulation.bugs import Bug, no_barrier, planted, run_apart, run_sanitized
from .emulation.device import SCHEDULES, SOURCES, EmulatedDevice, from_bfloat, missing_compiler
from .emulation.drawn import CHECKS, VIEWS, check_runs, hash_sides, numbers, sort_runs, stored

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))

HASHED = [
    pytest.param(*pair, marks=() if pair in (("float32", "auto"), ("bfloat16", "auto")) else pytest.mark.slow)
    for pair in (*((storage, "auto") for storage in STORAGE), ("float16", "portable"), ("bfloat16", "portable"))
]
PARTS = [("bfloat16", "auto"), ("float16", "auto")]  # on tensor cores

# --- Sorting ---------------------------------------------------------------------------------------------------------


@st.composite
def run_sizes(draw):
    """(n, others, block_size) of a run: short, ragged, or of several chunks."""
    n = draw(st.one_of(st.integers(1, 9), st.integers(1, 700), st.sampled_from((4095, 4096, 4097, 8193))))
    others = draw(st.one_of(st.just(n), st.integers(1, 1000)))
    return n, others, draw(st.integers(1, others))


@given(
    st.lists(run_sizes(), min_size=1, max_size=5),
    st.one_of(st.integers(1, 20), st.just(62)),
    st.one_of(st.just(1), st.integers(2, 40), st.just(10**6)),
    st.sampled_from(SCHEDULES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=30)
def test_orders_are_those_of_a_stable_argsort(sizes, n_bits, n_different, schedule, seed):
    rng = np.random.default_rng(seed)
    some = rng.integers(2**n_bits, size=n_different)
    check_runs(EmulatedDevice(schedule, seed % 1000), sizes, n_bits, lambda n: rng.choice(some, n))


@given(run_sizes(), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_block_numbers_are_those_of_a_block_mask(size, seed):
    n_q, n_k, block_size = size
    rng = np.random.default_rng(seed)
    tables = drawn_tables(1, n_q, (), ((0, n_q, 0, n_k),), block_size=block_size, sample_size=0)
    codes = rng.integers(16, size=tables.n_codes)
    indices = np.full(tables.n_indices, -1, np.int32)
    (wave,) = tables.waves
    runs = wave.sorting.runs
    sort_runs(EmulatedDevice(), codes, runs, 4, indices)
    orders = [np.argsort(codes[part], kind="stable") for part in (slice(n_q), slice(n_q, None))]
    mask = BlockMask.from_orders(*orders, block_size)
    for run, order, blocks in zip(runs.records, orders, (mask.query_blocks(), mask.key_blocks()), strict=True):
        np.testing.assert_array_equal(indices[run["order"] :][: run["n"]], order)
        np.testing.assert_array_equal(indices[run["blocks"] :][: run["n"]], blocks)


# --- Hashing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("storage", "path"), HASHED)
@given(
    st.integers(1, 62),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 99), st.integers(1, 100), st.integers(0, 2)), min_size=1),
    st.sampled_from(sorted(VIEWS)),
    st.sampled_from(SCHEDULES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=20)
def test_codes_of_sides_are_those_of_definition_1(storage, path, n_planes, d, sides, view, schedule, seed):
    """Small integers: no sign depends on rounding."""
    rng = np.random.default_rng(seed)
    device = EmulatedDevice(schedule, 3)
    x = stored(rng.integers(-3, 4, (2, 100, d + 1)).astype(float), storage, VIEWS[view])
    planes = rng.integers(-3, 4, (3, n_planes, x.shape[2])).astype(float)
    places, expected = [], []
    for head, start, n, number in sides:
        first, stop = start % x.shape[1], min(start % x.shape[1] + n, x.shape[1])
        places.append((head, first, stop - first, number, sum(map(len, expected))))
        expected.append(hamming_sorted_lsh(numbers(x)[head, first:stop].astype(float), planes[number]))
    codes = np.full(sum(map(len, expected)), -1, np.int64)
    largest = hash_sides(device, x, Items.of(SIDE_FIELDS, places), planes, codes, path)
    np.testing.assert_array_equal(codes, np.concatenate(expected))
    assert largest == max(np.abs(numbers(x)[h, first : first + n]).max() for h, first, n, _, _ in places)


@pytest.mark.parametrize("storage", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@given(
    st.sampled_from((1, 2, 15, 17, 129, 200)),
    st.sampled_from((16, 24, 63, 64, 72, 256)),
    st.one_of(st.integers(1, 62), st.just(8)),
    st.sampled_from(SCHEDULES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_tensor_cores_hash_rows_of_any_scale_to_float32_accuracy(storage, n, d, n_planes, schedule, seed):
    rng = np.random.default_rng(seed)
    device = EmulatedDevice(schedule, 3)
    scales = (2.0**-120, 1, 2.0**124) if storage == "bfloat16" else (2.0**-8, 1, 2.0**12)
    rows = rng.standard_normal((1, n, d)).clip(-4, 4)
    rows[:, rng.random(n) < 0.2] = 0
    planes = rng.standard_normal((1, n_planes, d))
    moderate = numbers(stored(rows, storage)).astype(np.float16 if storage == "float16" else np.float32)
    decided = HashInputs(moderate, planes[0]).decided()
    expected = hamming_sorted_lsh(moderate, planes[0])
    for scale in scales:
        array, codes = stored(scale * moderate.astype(float), storage), np.full((1, n), -1, np.int64)
        hash_sides(device, array, head_sides(1, n), planes, codes)
        np.testing.assert_array_equal(codes[decided], expected[decided])
    assert device.launched == ["hash_codes_tensor"] * 3


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_the_hash_does_not_depend_on_the_scale_of_a_row(storage):
    """To the last bit: rows that are nearly orthogonal to a plane."""
    rng = np.random.default_rng(0)
    planes = rng.standard_normal((1, 62, 64))
    x = numbers(stored(rng.standard_normal((1, 128, 64)), storage)).astype(float)
    x[0, :, 0] -= (x @ planes[0].T)[0, np.arange(128), np.arange(128) % 62] / planes[0, np.arange(128) % 62, 0]
    x = numbers(stored(x.clip(-7, 7), storage)).astype(float)
    x[np.abs(x) < 2.0**-6] = 0  # so that no scale loses bits
    found = []
    for exponent in (-110, -40, 0, 9, 124) if storage == "bfloat16" else (-6, 0, 12):
        codes = np.full((1, 128), -1, np.int64)
        hash_sides(EmulatedDevice(), stored(np.ldexp(x, exponent), storage), head_sides(1, 128), planes, codes)
        found.append(codes)
    for codes in found[1:]:
        np.testing.assert_array_equal(codes, found[0])


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_rows_below_the_normal_numbers_are_hashed(storage):
    least = 2.0 ** (-133 if storage == "bfloat16" else -24)
    x = np.random.default_rng(0).integers(-4, 5, (1, 40, 33)).astype(float)
    planes, codes = np.random.default_rng(1).standard_normal((1, 8, 33)), np.full((1, 40), -1, np.int64)
    assert hash_sides(EmulatedDevice(), stored(least * x, storage), head_sides(1, 40), planes, codes) == 4 * least
    np.testing.assert_array_equal(codes, hamming_sorted_lsh(x, planes[0]))


@pytest.mark.parametrize(
    ("storage", "path"), [("float32", "auto"), ("float64", "auto"), ("bfloat16", "portable"), *PARTS]
)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_hashing_finds_what_is_not_finite(storage, path, bad):
    for place in ((0, 0, 0), (1, 129, 16), (1, 64, 5)):
        x = np.random.default_rng(0).standard_normal((2, 130, 17))
        x[place] = bad
        codes = np.full((2, 130), -1, np.int64)
        largest = hash_sides(EmulatedDevice(), stored(x, storage), head_sides(2, 130), np.ones((1, 9, 17)), codes, path)
        assert np.isnan(largest) if np.isnan(bad) else largest == np.inf
        assert np.all((codes >= 0) & (codes < 2**9))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 40), st.sampled_from([x for x, _ in PARTS]))
def test_three_parts_make_a_float32_number(seed, n_planes, d, storage):
    rng = np.random.default_rng(seed)
    planes = scaled_rows(rng.standard_normal((2, n_planes, d)) * 2.0 ** rng.integers(-30, 1, (2, n_planes, d)))
    parts = three_parts(planes, storage)
    depth = -(-d // 32) * 32
    assert parts.shape == (2, -(-n_planes // 8), 3, 8, depth)
    assert parts.dtype == np.uint16
    found = from_bfloat(parts) if storage == "bfloat16" else np.ldexp(parts.view(np.float16).astype(float), -15)
    total = found.sum(axis=2, dtype=float).reshape(2, -1, depth)
    error = np.abs(total[:, :n_planes, :d] - planes.astype(np.float32))
    assert np.all(error <= (0 if storage == "bfloat16" else 2.0**-40))
    assert np.all((error == 0) | (np.abs(planes) < 2.0**-16))
    assert not total[:, n_planes:].any()
    assert not total[..., d:].any()


def test_the_kernel_that_hashes_depends_on_the_path_the_device_the_type_and_d_alone():
    def kernel(storage, path="auto", d=64, capability=80, view=lambda x: x):
        x = stored(np.zeros((1, 9, d + 1)), storage, lambda x: view(x)[..., :d])
        return Hyperplanes.of(EmulatedDevice(capability=capability), np.ones((1, 3, d)), x, path).kernel.name

    for storage in ("float16", "bfloat16"):
        for view in VIEWS.values():
            assert kernel(storage, d=9, view=view) == "hash_codes_tensor"
        assert kernel(storage, "tensor", d=256) == "hash_codes_tensor"
        assert kernel(storage, "portable") == kernel(storage, capability=75) == kernel(storage, d=257) == "hash_codes"
    assert kernel("float32", "tensor") == kernel("float64") == "hash_codes"


def test_the_sides_of_whole_heads_are_all_their_rows():
    x, planes = np.random.default_rng(0).standard_normal((2, 3, 70, 24))[:, :, :, :12]
    device, codes = EmulatedDevice(), np.full((3, 70), -1, np.int64)
    hash_sides(device, stored(x, "float32"), head_sides(3, 70), planes[:1, :9], codes)
    np.testing.assert_array_equal(codes, hamming_sorted_lsh(x, planes[0, :9]))


# --- Planted bugs ----------------------------------------------------------------------------------------------------

BUGS = {
    "counts are read before they are there": no_barrier("sort.cu", "all warps have counted"),
    "places are read before they are known": no_barrier("sort.cu", "all places are known"),
    "counts grow before they are read": no_barrier("sort.cu", "all lanes have read the counts", barrier="__syncwarp"),
    "sums are read before they are there": no_barrier("sort.cu", "the sums are written"),
    "sums grow before they are read": no_barrier("sort.cu", "all have read the sums"),
    "sums are read before they have grown": no_barrier("sort.cu", "the sums have grown"),
    "later lanes come first": Bug("sort.cu", "same & ((1u << lane) - 1)", "same & ~((2u << lane) - 1)"),
    "the earlier rounds are forgotten": Bug("sort.cu", "counts[digit[round]] + __popc(earlier)", "__popc(earlier)"),
    "the tail counts": Bug("sort.cu", "pass.digit(place) : NO_DIGIT", "pass.digit(place) : 0"),
    "the last row is left out": Bug("sort.cu", "if (place >= n) continue;", "if (place >= n - 1) continue;"),
    "half the digits": Bug("sort.cu", "& (DIGITS - 1)", "& (DIGITS / 2 - 1)"),
    "the first digit first": Bug("sort.cu", "shift(BITS * pass)", "shift(BITS * (n_passes - 1 - pass))"),
    "every pass starts anew": Bug("sort.cu", "from = pass == 0 ?", "from = pass >= 0 ?"),
    "the last pass ends elsewhere": Bug("sort.cu", "to = is_odd ? order : other", "to = is_odd ? other : order"),
    "chunks begin alike": Bug(
        "sort.cu", "counts[chunk_place(run) + threadIdx.x];", "counts[run.counts + threadIdx.x];"
    ),
    "blocks of the others": Bug("sort.cu", "sorted * run.others / run.n / run.block_size", "sorted / run.block_size"),
    "a product of 32 bits": Bug("sort.cu", "sorted * run.others", "int(unsigned(sorted) * unsigned(run.others))"),
    "blocks in sorted order": Bug("sort.cu", "indices[run.blocks + row]", "indices[run.blocks + sorted]"),
    "sums of eight threads": Bug("hash.cu", "add_up<SIDE / 2>", "add_up<SIDE / 4>"),
    "a thread keeps the wrong half": Bug("hash.cu", "(keeps_upper ? upper : lower)", "(keeps_upper ? lower : upper)"),
    "the first planes are forgotten": Bug("hash.cu", "pattern << GROUP | signs", "signs"),
    "signs of two threads of four": Bug("hash.cu", "signs |= __shfl_xor_sync(ALL_LANES, signs, 2);"),
    "planes that do not exist count": Bug("hash.cu", "pattern >> (plane - n_planes)", "pattern"),
    "rows are not scaled": Bug("hash.cu", "* first[r] * second[r]"),
    "one set of planes": Bug("hash.cu", "planes += side.planes * n_planes * d;"),
    "sides start at the first row": Bug("hash.cu", "side.start + start", "start"),
    "rows of the next side": Bug("hash.cu", "&& x / 4 < n_rows"),
    "the head of another side": Bug("hash.cu", "side.head", "blockIdx.x % 2"),
    "only the last row of a thread is looked at": Bug(
        "hash.cu", "of_all = larger(of_all, largest)", "of_all = largest"
    ),
    "the third part is forgotten": Bug("hash_tensor.cu", "part < PARTS;", "part < PARTS - 1;"),
    "the first part is forgotten": Bug("hash_tensor.cu", "sums[i] += small[i];", "sums[i] = small[i];"),
    "planes are read in another order": Bug(
        "hash_tensor.cu", "plane.pair[p], plane.pair[p + 1]", "plane.pair[p + 1], plane.pair[p]"
    ),
    "the upper rows come twice": Bug("hash_tensor.cu", "rows[1][i].pair[p + 1]}", "rows[0][i].pair[p + 1]}"),
    "rows keep their scale on tensor cores": Bug("hash_tensor.cu", "rescale(STORAGE(), rows[r], of_row[r]);"),
    "a factor is not a normal number": Bug("hash_tensor.cu", "larger(248 - exponent, 1)", "larger(248 - exponent, 0)"),
    "columns beyond d are looked at": Bug("hash_tensor.cu", " || column >= d) continue", ") continue"),
    "columns beyond d are looked at one by one": Bug("hash_tensor.cu", "&& column + j < d"),
    "rows of any place are read in pieces": Bug("hash_tensor.cu", "is_aligned(d))", "is_aligned(d) || d == 70)"),
    "rows beyond the last are looked at": Bug("hash_tensor.cu", "row >= n_rows || "),
    "lower numbers are not looked at": Bug("hash_tensor.cu", ", pieces[i].pair[p] << 17)", ", 0u)"),
    "the sign counts on tensor cores": Bug(
        "hash_tensor.cu", "larger(pieces[i].pair[p] << 1,", "larger(pieces[i].pair[p],"
    ),
    "two lanes of four are looked at": Bug(
        "hash_tensor.cu", "doubled = larger(doubled, __shfl_xor_sync(ALL_LANES, doubled, 2));"
    ),
    "signs of two lanes of four": Bug("hash_tensor.cu", "signs | __shfl_xor_sync(ALL_LANES, signs, 2)", "signs"),
    "planes of a lane change places": Bug("hash_tensor.cu", "(i < 2 ? 1 - i : 11 - i)", "(i < 2 ? i : 6 + i)"),
    "the first round is forgotten": Bug("hash_tensor.cu", "pattern << GROUP |"),
    "planes that do not exist count on tensor cores": Bug(
        "hash_tensor.cu", "pattern >> (GROUP * n_groups - n_planes)", "pattern"
    ),
    "one set of planes on tensor cores": Bug("hash_tensor.cu", "side.planes * n_groups", "0 * n_groups"),
    "one group of planes": Bug("hash_tensor.cu", "++i, planes += PARTS * GROUP * DEPTH)", "++i)"),
    "sides start at the first row on tensor cores": Bug("hash_tensor.cu", "side.start + start", "start"),
    "rows of the next side on tensor cores": Bug("hash_tensor.cu", "&& row < n_rows"),
    "the head of another side on tensor cores": Bug("hash_tensor.cu", "side.head", "blockIdx.x % 2"),
    "half of the rows": Bug("hash_tensor.cu", "larger(of_row[0], of_row[1])", "of_row[0]"),
    "warps are read before they have looked": no_barrier("magnitude.cuh", "all warps have looked"),
    "the last warp is left out": Bug("magnitude.cuh", "warp < WARPS", "warp < WARPS - 1"),
    "the sign counts": Bug("magnitude.cuh", "& 0x7fffffffu"),
    "a block replaces the others": Bug("magnitude.cuh", "atomicMax(result, bits)", "*result = bits"),
    "columns beyond the last 16 bytes": Bug("plan.cuh", "&& d % WHOLE == 0"),
    "rows beyond the last": Bug("largest.cu", "smaller(ROWS, n - start)", "smaller(ROWS, n + 1 - start)"),
    "the list of rows is ignored": Bug("convert.cu", "rows ? rows[start + r]", "false ? rows[start + r]"),
    "one center for all": Bug("convert.cu", "static_cast<long long>(blockIdx.x) * d + j];", "j];"),
    "doubles are rounded twice": Bug("numbers.cuh", "narrow(rounded_to_odd(x), result)", "narrow(float(x), result)"),
}
QUICK = ("later lanes come first", "the third part is forgotten")


SURVIVES = """
import sys
from pathlib import Path
from tests.backends.cuda_cpp.emulation.device import SCHEDULES, EmulatedDevice, KernelError
from tests.backends.cuda_cpp.emulation.drawn import CHECKS

def survives(schedule, checks):
    device = EmulatedDevice(schedule, 3, Path(sys.argv[1]), flags=("-Wno-error",))  # a bug may leave a name unused
    try:
        for check in checks:
            check(device)
    except (AssertionError, KernelError):
        return False
    return True

checks = [CHECKS[sys.argv[2]]] if sys.argv[2] in CHECKS else CHECKS.values()
print(all(survives(schedule, checks) for schedule in SCHEDULES))
"""


@pytest.mark.parametrize("file", CHECKS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_sources_survive(file, schedule):
    CHECKS[file](EmulatedDevice(schedule, 3))


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in BUGS])
def test_planted_bug_is_caught(name, tmp_path):
    try:
        result = run_apart(SURVIVES, planted(BUGS[name], tmp_path), BUGS[name].file, timeout=200)
    except subprocess.TimeoutExpired:
        return  # rows that are placed wrongly may be placed anywhere: on the allocator's lists, which then never end
    crashed = result.returncode < 0
    assert crashed or result.stdout.strip() == "False", result.stderr[-3000:]


# --- Addresses -------------------------------------------------------------------------------------------------------

SANITIZED = """
import sys
from pathlib import Path
from tests.backends.cuda_cpp.emulation.device import EmulatedDevice
from tests.backends.cuda_cpp.emulation.drawn import CHECKS

for check in CHECKS.values():
    check(EmulatedDevice(sources=Path(sys.argv[1]), flags=("-fsanitize=address", "-g")))
print("all addresses are fine")
"""


@pytest.mark.slow
def test_every_address_is_within_its_array():
    result = run_sanitized(SANITIZED, SOURCES)
    assert result.stdout.strip() == "all addresses are fine", result.stderr[-3000:]


OUTSIDE = {
    "counts lie a chunk too far": Bug("sort.cu", "+ blockIdx.y * DIGITS", "+ (blockIdx.y + 1) * DIGITS"),
    "shared memory ends too early": Bug("sort.cu", "i <= NO_DIGIT;", "i <= NO_DIGIT + LANES;"),
    "planes beyond the last are read": Bug("hash.cu", "plane + p < n_planes ?", "plane + p < n_planes + 8 ?"),
    "a round of planes too many": Bug("hash_tensor.cu", "i < n_groups;", "i <= n_groups;"),
    "a row too many is hashed": Bug("hash_tensor.cu", "row >= n_rows ||", "row > n_rows ||"),
    "a row too many is converted": Bug("convert.cu", "if (r < n_rows) narrow", "if (r <= n_rows) narrow"),
    "tiles are whole": Bug("largest.cu", "smaller(ROWS, n - start)", "smaller(ROWS, n)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_address_outside_is_caught(name, tmp_path):
    result = run_sanitized(SANITIZED, planted(OUTSIDE[name], tmp_path))
    assert result.returncode != 0
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in result.stderr
