"""The memory of a GPU as the library sees it: the largest entry, rows in another dtype, rows less their mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattention_ref.backends.cuda_cpp.device import STORAGE, Layouts
from hyperattention_ref.backends.cuda_cpp.memory import CudaMemory
from hyperattention_ref.foundation.memory import HOST

from .emulation.device import SCHEDULES, EmulatedDevice, from_bfloat, missing_compiler, to_bfloat
from .emulation.drawn import VIEWS, convert, largest, numbers, real, rounded, stored

pytestmark = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))

QUICK_PAIRS = {("float32", "bfloat16"), ("float64", "float16"), ("bfloat16", "float32")}
PAIRS = [
    pytest.param(storage, target, marks=() if (storage, target) in QUICK_PAIRS else pytest.mark.slow)
    for storage in STORAGE
    for target in STORAGE
]


# --- The operations of `foundation.memory` ---------------------------------------------------------------------------


def memory():
    device = EmulatedDevice()
    return CudaMemory(device, Layouts(device))


def on_device(*arrays):
    return [memory().from_host(x) for x in arrays]


@given(
    st.lists(st.integers(1, 70), min_size=2, max_size=3),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from(["plain", "nan", "infinity", "negative"]),
    st.integers(0, 99),
)
@settings(max_examples=25)
def test_the_largest_entries_are_those_of_the_host(shape, dtype, kind, seed):
    x, y = np.random.default_rng(seed).standard_normal((2, *shape)).astype(dtype)
    place = tuple(n // 2 for n in shape)
    x[place] = {"plain": x[place], "nan": np.nan, "infinity": -np.inf, "negative": -99}[kind]
    moved = on_device(x, y[..., ::-1])
    found, expected = memory().largest(dict(enumerate(moved)))(), HOST.largest({0: x, 1: y})()
    np.testing.assert_array_equal(found, expected)


def test_copies_in_another_dtype_have_the_numbers_of_the_host():
    x = np.random.default_rng(0).standard_normal((3, 70, 9)).astype(np.float32)
    (moved,) = on_device(x)
    assert memory().copy(moved, "float32") is moved
    for dtype in ("float16", "float64"):
        np.testing.assert_array_equal(memory().to_host(memory().copy(moved, dtype)), x.astype(dtype))
    rows = np.array([3, 69, 3, 0])
    np.testing.assert_array_equal(memory().to_host(memory().copy(moved[1], "float32", rows=rows)), x[1, rows])


@pytest.mark.parametrize("d", [1, 9, 300])
def test_centred_rows_are_a_multiple_of_those_of_the_host(d):
    x = 3 + np.random.default_rng(0).standard_normal((130, d)).astype(np.float32)
    found = memory().to_host(memory().centred(on_device(x)[0]))
    np.testing.assert_allclose(found, HOST.centred(x) * np.abs(x).max(), atol=2e-6)


def test_arrays_come_back_as_they_went():
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for y in (x, x[::2], x[:, ::-1], np.broadcast_to(x[:1], (5, 6)), x.T):
        (moved,) = on_device(y)
        strides = (stride // y.itemsize for stride in y.strides)
        assert all(n == 1 or a == b for n, a, b in zip(y.shape, moved.strides, strides, strict=True))
        np.testing.assert_array_equal(memory().to_host(moved), y)
    bits = to_bfloat(x)
    found = memory().to_host(EmulatedDevice().upload(bits, "bfloat16"))
    np.testing.assert_array_equal(found, from_bfloat(bits))


# --- Every dtype and layout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGE)
@given(
    st.integers(1, 300),
    st.integers(2, 40),
    st.sampled_from(sorted(VIEWS)),
    st.lists(st.sampled_from((0.0, -0.0, 1.0, -2.5, 1e-7, 60000.0, -60000.0, np.inf, -np.inf, np.nan, -np.nan))),
    st.sampled_from(SCHEDULES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_the_largest_entry_is_found_and_nan_beats_all(storage, n, d, view, specials, schedule, seed):
    rng = np.random.default_rng(seed)
    x = np.zeros((2, n, d)) if specials else rng.standard_normal((2, n, d))
    x.ravel()[rng.integers(x.size, size=len(specials))] = specials
    device = EmulatedDevice(schedule, 3)
    array = stored(x, storage, VIEWS[view])
    found, expected = largest(device, array), np.abs(numbers(array)).max()
    np.testing.assert_array_equal(found, expected)
    assert not np.signbit(found)


@pytest.mark.parametrize(("storage", "target"), PAIRS)
@given(
    st.integers(1, 140),
    st.integers(2, 40),
    st.sampled_from(sorted(VIEWS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(SCHEDULES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=20)
def test_rows_are_converted(storage, target, n, d, view, choose, centre, schedule, seed):
    rng = np.random.default_rng(seed)
    device = EmulatedDevice(schedule, 3)
    x = rng.standard_normal((2, n, d)) * 10.0 ** rng.integers(-9, 5, (2, n, d))
    x.ravel()[rng.integers(x.size, size=4)] = [0.0, -0.0, np.inf, np.nan]
    array = stored(x, storage, VIEWS[view])
    rows = rng.integers(array.shape[1], size=rng.integers(1, 150)).astype(np.int32) if choose else None
    center = rng.standard_normal((2, array.shape[2])).astype(real(target)) if centre else None
    expected = numbers(array).astype(np.result_type(real(storage), real(target)))
    expected = expected[:, rows] if choose else expected
    expected = rounded(expected - center[:, None] if centre else expected, target)
    found = numbers(convert(device, array, target, rows, center))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0]))


def test_a_double_is_rounded_once():
    """A double beside the middle of two numbers of 16 bits, so near that float32 does not see the difference."""
    device = EmulatedDevice()
    for target, unit in (("float16", 2.0**-10), ("bfloat16", 2.0**-7)):
        middle = 1 + unit / 2
        x = np.array([np.nextafter(middle, 2), middle, np.nextafter(middle, 1), 1e300, -1e300]).reshape(1, -1, 1)
        found = numbers(convert(device, stored(x, "float64"), target)).ravel().tolist()
        assert found == [1 + unit, 1, 1, np.inf, -np.inf]
