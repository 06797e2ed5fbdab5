"""The CUDA kernels, run on the CPU: they conform, in any order of threads, and planted bugs are caught.

What runs are the sources in `backends/cuda_cpp/kernels` and the launcher of the backend `cupy`; the device is emulated.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends import reference
from hyperattention_ref.backends.conformance import check_backend, plans
from hyperattention_ref.backends.conformance.strategies import AttentionInputs
from hyperattention_ref.backends.cuda_cpp.backend import tensor_kernel

from .emulation.battery import battery, judge, on_storage
from .emulation.bugs import Bug, no_barrier, planted, run_sanitized
from .emulation.device import (
    SCHEDULES,
    SOURCES,
    EmulatedArray,
    EmulatedBackend,
    EmulatedDevice,
    KernelError,
    build,
    from_bfloat,
    missing_compiler,
    to_bfloat,
)

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))
TENSOR_HEADS = ((16, 16), (24, 40), (72, 64), (136, 16))
LITTLE, MUCH = 101_376, 232_448  # bytes of shared memory that a block may have: tiles of 64 queries, or of 128


# --- Portable kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "path"), [*zip(SCHEDULES, 2 * ("portable", "auto"), strict=True)])
def test_portable_kernels_conform(schedule, path):
    """With "auto", rows of float16 are hashed on tensor cores."""
    backend = EmulatedBackend(path, EmulatedDevice(schedule, seed=1))
    assert check_backend(backend, max_examples=6, seed=SCHEDULES.index(schedule)).worst_ratio <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "path"), [*zip(SCHEDULES, 2 * ("auto", "portable"), strict=True)])
def test_portable_kernels_conform_on_many_examples(schedule, path):
    backend = EmulatedBackend(path, EmulatedDevice(schedule, seed=1))
    assert check_backend(backend, max_examples=100, seed=10 + SCHEDULES.index(schedule)).examples >= 500


@pytest.mark.parametrize("d_v", [16, 17, 33, 100, 256])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_width_of_values(dtype, d_v):
    rng = np.random.default_rng(d_v)
    q, k, v = (rng.standard_normal((70, d)).astype(dtype) for d in (256, 256, d_v))
    one = AttentionInputs(q, k, v, 1 / 16, True)
    exact, results = one.call(reference.Reference()), on_storage(one, EmulatedBackend(), "float32")
    for name, bound in one.bounds(exact, {"out": dtype, "lse": dtype}).items():
        assert np.all(np.abs(results[name] - exact[name]) <= bound)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_order_of_threads_changes_no_bit(schedule):
    for one in battery():
        backends = (EmulatedBackend(device=EmulatedDevice(s, seed=7)) for s in ("forwards", schedule))
        expected, found = (on_storage(one, backend, "float32") for backend in backends)
        for name, x in expected.items():
            assert x.tobytes() == found[name].tobytes()


# --- Tensor cores ----------------------------------------------------------------------------------------------------


def rounded_average(logits, v):
    """Softmax average as a careful NumPy user of bfloat16 writes it: the logits exact, the weights rounded."""
    top = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[:, 0]
    return from_bfloat(to_bfloat(weights)) @ v / np.where(total > 0, total, 1), lse


def numpy_in_bfloat(one: AttentionInputs) -> np.ndarray:
    """The output of the reference with weights and result rounded to bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "softmax_average", rounded_average)
        return from_bfloat(to_bfloat(one.call(reference.Reference())["out"]))


@st.composite
def bfloat_inputs(draw) -> AttentionInputs:
    """Heads of bfloat16 numbers that tensor cores take, planned or exact; logits up to 80."""
    is_causal = draw(st.booleans())
    n_q = draw(st.one_of(st.integers(1, 9), st.integers(1, 150)))
    n_k = n_q if is_causal else draw(st.one_of(st.integers(1, 9), st.integers(1, 150)))
    d, d_v = draw(st.sampled_from(TENSOR_HEADS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factor = draw(st.sampled_from((0.0, 1.0, 4.0)))
    q, k, v = (
        from_bfloat(to_bfloat(f * rng.standard_normal((2, n, e))))
        for f, n, e in ((factor, n_q, d), (1.0, n_k, d), (1.0, n_k, d_v))
    )
    if draw(st.booleans()):
        k[:] = k[:, :1]
    plan = draw(st.one_of(st.none(), plans(shape=(2,), n_q=n_q, n_k=n_k, is_causal=is_causal, lists=False)))
    return AttentionInputs(q, k, v, d**-0.5, is_causal, plan)


@given(bfloat_inputs(), st.sampled_from(SCHEDULES), st.sampled_from((LITTLE, MUCH)))
@settings(max_examples=60)
def test_tensor_cores_stay_within_the_rounding_of_bfloat16(one, schedule, shared_limit):
    device = EmulatedDevice(schedule, seed=3, shared_limit=shared_limit)
    judge(one, on_storage(one, EmulatedBackend("tensor", device), "bfloat16"), "bfloat16")


@pytest.mark.parametrize("shared_limit", [LITTLE, MUCH])
def test_tensor_cores_are_within_four_times_the_error_of_numpy_in_bfloat16(shared_limit):
    backend = EmulatedBackend("tensor", EmulatedDevice(shared_limit=shared_limit))
    for one in battery():
        exact = one.call(reference.Reference())["out"]
        usual = np.abs(numpy_in_bfloat(one) - exact).max()
        found = np.abs(on_storage(one, backend, "bfloat16")["out"] - exact).max()
        assert 0 < found <= 4 * usual


@pytest.mark.parametrize("shared_limit", [LITTLE, MUCH])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_order_of_threads_changes_no_bit_on_tensor_cores(schedule, shared_limit):
    for one in battery():
        expected, found = (
            on_storage(one, EmulatedBackend("tensor", EmulatedDevice(s, 7, shared_limit=shared_limit)), "bfloat16")
            for s in ("forwards", schedule)
        )
        for name, x in expected.items():
            assert x.tobytes() == found[name].tobytes()


@pytest.mark.parametrize(("d", "d_v"), [(16, 16), (24, 40), (64, 128), (136, 16), (256, 256)])
@pytest.mark.parametrize("shared_limit", [LITTLE, MUCH])
def test_a_launch_with_another_size_of_shared_memory_does_not_compile(d, d_v, shared_limit):
    kernel = tensor_kernel("bfloat16", d, d_v, shared_limit)
    build(kernel, SOURCES, ())
    with pytest.raises(RuntimeError, match="the launch gives another size of shared memory"):
        build(replace(kernel, shared_bytes=kernel.shared_bytes - 16), SOURCES, ())


def test_tensor_cores_take_float16():
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((90, d)).astype(np.float16) for d in (32, 32, 48))
    backend = EmulatedBackend("tensor")
    on_device = (backend.memory.from_host(x) for x in (q, k, v))
    out, _ = backend.exact_attention(*on_device, scale=0.2, is_causal=True)
    exact, _ = reference.Reference().exact_attention(q, k, v, scale=0.2, is_causal=True)
    spread, _ = reference.Reference().exact_attention(q, k, np.abs(v), scale=0.2, is_causal=True)
    assert backend.device.launched == ["attend_tensor"]
    assert out.dtype == np.float16
    assert np.all(np.abs(out - exact) <= 1.1 * 2.0**-11 * (spread + np.abs(exact)) + 1e-5)


# --- Planted bugs ----------------------------------------------------------------------------------------------------


BOTH, TENSOR = ("float32", "bfloat16"), ("bfloat16",)


def tensor_bug(old: str, new: str) -> Bug:
    return Bug("attend_tensor.cu", old, new, TENSOR)


BUGS = {
    "operands are read before they are written": no_barrier("tile.cuh", "the buffers are filled"),
    "operands are overwritten too early": no_barrier("tile.cuh", "all have read what these buffers held before"),
    "values are read before they are written": no_barrier("tile.cuh", "the values are written"),
    "values are overwritten too early": no_barrier("tile.cuh", "all have read the values before"),
    "weights are written over operands in use": no_barrier("tile.cuh", "all have read the weights"),
    "queries are read before they are written": no_barrier("attend.cu", "the queries are known"),
    "a row is reduced over half its threads": Bug("tile.cuh", "lane = SIDE / 2", "lane = SIDE / 4"),
    "sums keep their old scale": Bug("attend.cu", "state.sums[r][c] *= decay;", "state.sums[r][c] *= 1;"),
    "the tail of keys counts": Bug("plan.cuh", "key[c] < 0 || ", ""),
    "the future counts": Bug("plan.cuh", "key[c] > query[r]", "key[c] > query[r] + 1"),
    "pairs of an earlier view count again": Bug("plan.cuh", "int view = 0;", "int view = inside ? views - 1 : 0;"),
    "samples of the last view count again": Bug("plan.cuh", "view < views;", "view < views - !inside;"),
    "samples of a whole block count again": Bug("plan.cuh", "is_one ? first_block : -1", "-1", BOTH),
    "samples of another view are left out": Bug("plan.cuh", "blocks.of_key(views, key)", "blocks.of_key(0, key)", BOTH),
    "a tile misses its last block": Bug("plan.cuh", "offsets[last_block + 1]", "offsets[last_block]", BOTH),
    "two blocks count as one": Bug("plan.cuh", "first_block == last_block", "first_block + 1 >= last_block", BOTH),
    "the diagonal tile counts as whole": Bug("plan.cuh", "place + n - 1 <= first_query", "place <= first_query"),
    "the last tile counts as whole": Bug("plan.cuh", "place + n <= end &&", "place <= end &&"),
    "log-weights are forgotten": Bug("attend.cu", "met ? weight * LOG2_E", "met ? weight * 0"),
    "the state is not taken up": Bug("attend.cu", "fresh = sweep.first ||", "fresh = true ||"),
    "the block of a sample is not asked for": Bug("attend.cu", "!exists || range.meets", "true || range.meets"),
    # --- tensor cores: which pairs count
    "a missing key counts": tensor_bug("met = number >= 0 && ", "met = "),
    "the next key counts": tensor_bug("- 8 * r > ahead", "- 8 * r > ahead + 1"),
    "the diagonal tile is plain": tensor_bug("smaller(range.end, start + 1)", "smaller(range.end, start + KEYS)"),
    "the last tile is plain": tensor_bug("begin + KEYS <= tile", "begin <= tile"),
    "weighted tiles are plain": tensor_bug("plain = segment.weights < 0 && ", "plain = "),
    "tiles with views are plain": tensor_bug(" && views == 0;", ";"),
    "an earlier view is not asked": tensor_bug("int view = 0; view < part.views", "int view = 1; view < part.views"),
    "the last view must not hold either": tensor_bug("must_hold = part.inside &&", "must_hold = false &&"),
    "queries have the blocks of another view": tensor_bug("blocks.of_query(0,", "blocks.of_query(1,"),
    "keys have the blocks of another view": tensor_bug("blocks.of_key(0,", "blocks.of_key(1,"),
    "block numbers of queries are not read": tensor_bug("    read_blocks(tile, n_parts, blocks);\n", ""),
    "block numbers are those of the tile before": tensor_bug("if (part.views > 0) stage", "if (begin == 0) stage"),
    "log-weights are not in the unit of products": tensor_bug("float>(LOG2_E) / unit", "float>(LOG2_E)"),
    "a negative scale is forgotten": tensor_bug("turn_queries(tile, factor < 0)", "turn_queries(tile, false)"),
    # --- tensor cores: the sequence of tiles
    "a copy is used too early": tensor_bug(
        "        wait_for_copies<0>();\n        __sync", "        wait_for_copies<1>();\n        __sync"
    ),
    "copies of other threads are not waited for": no_barrier("attend_tensor.cu", "this tile has arrived", TENSOR),
    "a buffer is filled while in use": tensor_bug(
        "fetch_next(tile.stage[current ^ 1]);", "fetch_next(tile.stage[current]);"
    ),
    "a buffer is filled before all are done with it": tensor_bug(
        "        add_weighted(state, pairs, stage);",
        "        if (more) fetch_next(tile.stage[current ^ 1]);\n        add_weighted(state, pairs, stage);",
    ),
    "the tables are read before they are written": no_barrier(
        "attend_tensor.cu", "the numbers of the queries,", TENSOR
    ),
    "the next segment begins where the last one ended": tensor_bug(
        "if (++part < n_parts) begin =", "if (++part < 0) begin ="
    ),
    "the next segment has the range of the last one": tensor_bug(
        "read_keys(key, tile.parts[next.part], next.begin, indices);\n    };",
        "read_keys(key, tile.parts[larger(next.part - 1, 0)], next.begin, indices);\n    };",
    ),
    "an empty segment ends the sweep": tensor_bug(
        "bool more = next.find(tile, n_parts);",
        "bool more = next.find(tile, n_parts) && next.part == 0;",
    ),
    "the keys of a tile are copied twice": tensor_bug(
        "        next.begin += KEYS;\n", "        next.begin += KEYS / 2;\n"
    ),
    # --- tensor cores: arithmetic
    "values are not transposed": tensor_bug("load_matrices_transposed(", "load_matrices("),
    "the second strip has the queries of the first": tensor_bug("_of_warp() + STRIP * s", "_of_warp()"),
    "a row is reduced over two of four lanes": tensor_bug("x = larger(x, __shfl_xor_sync(ALL_LANES, x, 1));", ""),
    "sums keep their scale when a top rises": tensor_bug("++c) entry(state.sums,", "c += 2) entry(state.sums,"),
    "a top never rises again": tensor_bug("largest > state.top[r] + SLACK", "state.top[r] < -1e29f"),
    "columns beyond d are copied": tensor_bug("exists = column < d;", "exists = true;"),
}


QUICK = (  # the others take as long and are much alike
    "values are read before they are written",
    "the tail of keys counts",
    "samples of the last view count again",
    "a copy is used too early",
    "a buffer is filled while in use",
    "the next segment has the range of the last one",
)


def survives(sources: Path, storage: str, schedule: str, shared_limit: int) -> bool:
    """Whether the battery finds nothing wrong with these sources in this order of threads."""
    device = EmulatedDevice(schedule, 3, sources, shared_limit=shared_limit, flags=("-Wno-error",))  # unused parameters
    backend = EmulatedBackend("tensor" if storage == "bfloat16" else "portable", device)
    try:
        for one in battery():
            judge(one, on_storage(one, backend, storage), storage)
    except (AssertionError, KernelError):
        return False
    return True


@pytest.mark.parametrize(("storage", "shared_limit"), [("float32", LITTLE), ("bfloat16", LITTLE), ("bfloat16", MUCH)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_sources_survive(storage, shared_limit, schedule):
    assert survives(SOURCES, storage, schedule, shared_limit)


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in BUGS])
def test_planted_bug_is_caught(name, tmp_path):
    sources = planted(BUGS[name], tmp_path)
    for storage in BUGS[name].storage:
        assert not all(survives(sources, storage, schedule, MUCH) for schedule in SCHEDULES)


# --- Addresses -------------------------------------------------------------------------------------------------------

SANITIZED = """
import sys
from pathlib import Path
from tests.backends.cuda_cpp.emulation.battery import battery, judge, on_storage
from tests.backends.cuda_cpp.emulation.device import EmulatedBackend, EmulatedDevice

for storage, path in (("float32", "portable"), ("bfloat16", "tensor")):
    for one in battery():
        limit = 232_448  # bytes of shared memory
        device = EmulatedDevice(sources=Path(sys.argv[1]), shared_limit=limit, flags=("-fsanitize=address", "-g"))
        judge(one, on_storage(one, EmulatedBackend(path, device), storage), storage)
print("all addresses are fine")
"""


@pytest.mark.slow
def test_every_address_is_within_its_array():
    result = run_sanitized(SANITIZED, SOURCES)
    assert result.stdout.strip() == "all addresses are fine", result.stderr[-3000:]


OUTSIDE = {
    "a missing query is stored": Bug("attend.cu", "if (query < 0) continue;"),
    "a missing query of a ragged tile is stored": Bug("attend_tensor.cu", "row > last ? -1", "row > last + 1 ? -1"),
    "shared memory ends too early": Bug("tile.cuh", "const int row = e / DEPTH", "const int row = e / DEPTH + 64"),
    "a row too many is read": Bug(
        "attend.cu", "place < sweep.n_q ? query_at(place) : -1", "place <= sweep.n_q ? place : -1"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_address_outside_is_caught(name, tmp_path):
    result = run_sanitized(SANITIZED, planted(OUTSIDE[name], tmp_path))
    assert result.returncode != 0
    assert "ERROR: AddressSanitizer: heap-buffer-overflow" in result.stderr


def test_the_library_is_the_same_through_the_public_door():
    """hyper_attention with the emulated backend is hyper_attention."""
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 100, 16)).astype(np.float32)
    plan = hr.make_plan(q, k, block_size=16, sample_size=16, rng=0)
    backend = EmulatedBackend()
    on_device = (backend.memory.from_host(x) for x in (q, k, v))
    found = hr.hyper_attention(*on_device, plan=plan, backend=backend)
    assert isinstance(found, EmulatedArray)
    np.testing.assert_allclose(found, hr.hyper_attention(q, k, v, plan=plan, backend="reference"), atol=1e-5)
