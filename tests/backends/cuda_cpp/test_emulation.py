"""The emulation of CUDA on a CPU computes what the PTX manual says, and shows what a GPU would leave to chance."""

import numpy as np
import pytest

from hyperattention_ref.backends.cuda_cpp.device import Kernel

from .emulation.device import (
    HERE,
    SCHEDULES,
    SOURCES,
    EmulatedDevice,
    KernelError,
    build,
    from_bfloat,
    missing_compiler,
    to_bfloat,
)

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


def run(name, *args, threads=64, shared_bytes=0, schedule="forwards"):
    device = EmulatedDevice(schedule, sources=HERE, flags=(f"-I{SOURCES}",))
    pointers = [np.uint64(x.ctypes.data) if isinstance(x, np.ndarray) else np.int32(x) for x in args]
    device.launch(Kernel("probes.cu", name, threads=threads, shared_bytes=shared_bytes), (1, 1), pointers)


@pytest.mark.parametrize("transposed", [0, 1])
def test_fragments_make_the_product_of_the_matrices(transposed):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 16, 16)).astype(np.float16)
    product = np.full((16, 16), np.nan, np.float32)
    run("product", a, b, product, transposed, threads=32)
    expected = a.astype(np.float64) @ (b if transposed else b.T).astype(np.float64)
    np.testing.assert_allclose(product, expected, atol=1e-5)


def test_products_of_pairs_are_rounded_to_bfloat():
    x, y = to_bfloat(np.random.default_rng(0).standard_normal((2, 128)))
    x[:6], y[:6] = (
        to_bfloat([2.0**-133, -(2.0**-130), 1.5, 0, np.inf, 3]),
        to_bfloat([2.0**127, 0.5, -2, 7, 2, 2.0**-126]),
    )
    result = np.zeros(64, np.uint32)
    run("pairs", x.view(np.uint32), y.view(np.uint32), result)
    np.testing.assert_array_equal(
        from_bfloat(result.view(np.uint16)), from_bfloat(to_bfloat(from_bfloat(x) * from_bfloat(y)))
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_orders_memory_in_every_schedule(schedule):
    result = np.zeros(64, np.float32)
    run("neighbour", result, 0, schedule=schedule)
    np.testing.assert_array_equal(result, (np.arange(64) + 37) % 64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_missing_barrier_shows(schedule):
    result = np.zeros(64, np.float32)
    run("neighbour", result, 1, schedule=schedule)
    assert np.isnan(result).any()


def test_a_copy_arrives_when_it_is_waited_for():
    x, result = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    run("copied", x, result, 0, shared_bytes=1040)
    np.testing.assert_array_equal(result, np.where(np.arange(64) % 2 == 0, 4 * np.arange(64) + 1, 0))
    run("copied", x, result, 1, shared_bytes=1040)
    assert np.isnan(result).all()


@pytest.mark.parametrize(("fault", "message"), [(2, "copies in flight"), (3, "no multiple of 16")])
def test_a_wrong_copy_is_refused(fault, message):
    x, result = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    with pytest.raises(KernelError, match=message):
        run("copied", x, result, fault, shared_bytes=1040)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("leave", [0, 1])
def test_lanes_that_part_are_a_deadlock(leave, schedule):
    with pytest.raises(KernelError, match=r"deadlock: .*shuffle"):
        run("parted", np.zeros(64, np.float32), leave, schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_match_finds_the_lanes_of_a_warp_with_the_same_number(schedule):
    x = np.random.default_rng(0).integers(-3, 4, 64).astype(np.int32)
    same = np.zeros(64, np.uint32)
    run("matched", x, same, -1, schedule=schedule)
    equal = (x.reshape(2, 32, 1) == x.reshape(2, 1, 32)) @ (1 << np.arange(32))
    np.testing.assert_array_equal(same, equal.ravel())


def test_a_match_of_some_lanes_is_refused():
    with pytest.raises(KernelError, match="matches of whole warps only"):
        run("matched", np.zeros(64, np.int32), np.zeros(64, np.uint32), 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("voter", [0, 31])
def test_a_vote_asks_the_lanes_of_a_warp(voter, schedule):
    x, result = np.zeros(64, np.int32), np.full(64, -1, np.int32)
    x[32 + voter] = 7
    run("voted", x, result, -1, schedule=schedule)
    assert result.astype(bool).tolist() == [False] * 32 + [True] * 32


def test_a_vote_of_some_lanes_is_refused():
    with pytest.raises(KernelError, match="votes of whole warps only"):
        run("voted", np.zeros(64, np.int32), np.zeros(64, np.int32), 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bits_are_counted_and_the_largest_number_wins(schedule):
    x = np.random.default_rng(1).integers(2**32, size=64, dtype=np.uint32)
    bits, largest = np.zeros(64, np.int32), np.zeros(1, np.uint32)
    run("counted", x, bits, largest, schedule=schedule)
    assert bits.tolist() == [int(number).bit_count() for number in x]
    assert largest == x.max() > 2**31  # not a signed number
    run("counted", x, bits, largest := np.full(1, 2**32 - 1, np.uint32))
    assert largest == 2**32 - 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_of_a_warp_orders_its_memory(schedule):
    result = np.zeros(64, np.float32)
    run("lane_neighbour", result, 0, schedule=schedule)
    np.testing.assert_array_equal(result % 32, (np.arange(64) + 17) % 32)
    run("lane_neighbour", result, 1, schedule=schedule)
    assert np.isnan(result).any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_that_wait_for_different_things_are_refused(schedule):
    with pytest.raises(KernelError, match="while other lanes wait in"):
        run("parted_warp", np.zeros(64, np.uint32), schedule=schedule)


def test_dynamic_shared_memory_has_the_size_of_the_launch():
    x, result = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    with pytest.raises(KernelError, match="needs 1040 bytes of shared memory, the launch gives 128"):
        run("copied", x, result, 0, shared_bytes=128)


def test_shared_memory_is_undefined_in_every_block():
    """What one block leaves there is not what the next one finds."""
    device, result = EmulatedDevice(sources=HERE, flags=(f"-I{SOURCES}",)), np.zeros(3, np.float32)
    device.launch(Kernel("probes.cu", "left_behind", threads=32), (3, 1), [np.uint64(result.ctypes.data)])
    assert np.isnan(result).all()


def test_what_does_not_compile_says_why():
    with pytest.raises(RuntimeError, match=r"g\+\+ refuses attend\.cu"):
        build(Kernel("attend.cu", "attend", ("STORAGE=nothing", "WIDTH=16")), SOURCES, ())
