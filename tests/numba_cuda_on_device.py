"""The tests of the backend "numba-cuda" that launch kernels: on the simulated device, or on a real one.

The device is chosen when Numba is imported, so `test_numba_cuda.py` runs this file in a process of its own.
"""

import ctypes
import inspect
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config, cuda

from hyperattention_ref.backends import conformance_inputs, numba_cuda_kernels
from hyperattention_ref.backends.conformance import _check_arithmetic, _check_codes, check_backend
from hyperattention_ref.backends.conformance_inputs import (
    LAYOUTS,
    AttentionInputs,
    CappedInputs,
    HashInputs,
    SumsInputs,
    TransposedInputs,
    _lay_out,
    attention_inputs,
)
from hyperattention_ref.backends.numba_cuda_backend import Device, NumbaCuda
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.block_mask import BlockMask
from hyperattention_ref.measures.attention_sums import AttentionSums
from hyperattention_ref.plan import HeadPlan, Plan, Rectangle

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:
    import cuda_simulator

    cuda_simulator.install()
    numba_cuda_kernels.TILE, numba_cuda_kernels.PITCH = 4, 5  # several tiles, the last one ragged, in small arrays


class DeviceCopy:
    """A host array copied to the device together with its strides."""

    def __init__(self, x: np.ndarray):
        low, high = np.lib.array_utils.byte_bounds(x)
        description = x.__array_interface__
        self.memory = cuda.to_device(np.frombuffer(ctypes.string_at(low, high - low), np.uint8))
        pointer = self.memory.__cuda_array_interface__["data"][0] + description["data"][0] - low
        self.__cuda_array_interface__ = description | {"data": (pointer, False), "version": 3}


class Launcher(NumbaCuda):
    """NumbaCuda that takes the simulated device for one, and any module for its kernels."""

    def __init__(self, kernels=numba_cuda_kernels):
        self.kernels = kernels

    def unavailable(self):
        return None if SIMULATED else super().unavailable()

    def _device(self):
        super()._device()
        return Device(self.kernels)


class OnDevice:
    """A Launcher for NumPy arrays, as the conformance suite makes them: they are copied to the device and back."""

    name = NumbaCuda.name

    def __init__(self, kernels=numba_cuda_kernels):
        self.backend = Launcher(kernels)

    def unavailable(self):
        return self.backend.unavailable()

    def hash_codes(self, x, planes):
        return home(self.backend.hash_codes(DeviceCopy(x), planes))

    def exact_attention(self, q, k, v, **options):
        return home(self.backend.exact_attention(*map(DeviceCopy, (q, k, v)), **options))

    def planned_attention(self, q, k, v, plan, **options):
        return home(self.backend.planned_attention(*map(DeviceCopy, (q, k, v)), plan, **options))

    def attention_sums(self, q, k, mask, **options):
        return home(self.backend.attention_sums(DeviceCopy(q), DeviceCopy(k), mask, **options))

    def transposed_attention(self, q, k, y, lse, **options):
        return home(self.backend.transposed_attention(*map(DeviceCopy, (q, k, y, lse)), **options))

    def capped_sums(self, q, k, mask, samples, log_caps, **options):
        log_caps = DeviceCopy(log_caps)
        return home(self.backend.capped_sums(DeviceCopy(q), DeviceCopy(k), mask, samples, log_caps, **options))


def home(result):
    """Every device array of a result copied to the host."""
    if isinstance(result, tuple):
        return tuple(map(home, result))
    if isinstance(result, AttentionSums):
        return AttentionSums(**{name: home(x) for name, x in vars(result).items()})
    return result if isinstance(result, float) else result.copy_to_host()


# --- Conformance ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_arrays(monkeypatch):
    """The simulated device does a million steps in a second, not a trillion."""
    if SIMULATED:
        monkeypatch.setattr(conformance_inputs, "_lengths", lambda around=0: st.integers(1, 10))


def test_conforms():
    result = check_backend(OnDevice(), max_examples=6 if SIMULATED else 60)
    assert result.backend == "numba-cuda"
    assert 0 < result.worst_ratio <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_conforms_on_many_examples(seed):
    assert check_backend(OnDevice(), max_examples=60, seed=seed).worst_ratio <= 1


# --- Properties -------------------------------------------------------------------------------------------------------


def rows(n_q=10, n_k=9, d=6, d_v=5, dtype=np.float32):
    """Queries, keys and values that leave the last tile ragged on every side."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((n_q, d), (n_k, d), (n_k, d_v)))


def crowded(n_q=10, n_k=9) -> Rectangle:
    """Two views that share pairs, exact keys, and draws that repeat, that the mask has, and that are far too heavy."""
    rng = np.random.default_rng(1)
    views = [BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), b) for b in (2, 3)]
    sampled = rng.integers(n_k, size=14)
    return Rectangle(n_q, n_k, tuple(views), rng.permutation(n_k)[:2], sampled, rng.standard_normal(14))


def planned(rectangle: Rectangle) -> Plan:
    return Plan((), (HeadPlan(rectangle.n_q, rectangle.n_k, (rectangle,)),))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_strides_change_no_bit(layout, dtype):
    views = [_lay_out(np.stack([x, x[::-1]]), layout) for x in rows(7, 7, dtype=dtype)]
    plain = [np.ascontiguousarray(x) for x in views]
    got, needed = (OnDevice().exact_attention(*x, scale=1, is_causal=True) for x in (views, plain))
    for x, y in zip(got, needed, strict=True):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=8)
@given(attention_inputs(planned=True))
def test_a_head_gets_the_same_bits_alone_and_among_others(example):
    head = (0,) * (example.query.ndim - 2)
    q, k, v = (x[head] for x in example.arrays.values())
    heads = example.plan.heads[0], example.plan.heads[-1]
    both = [np.stack([x, x]) for x in (q, k, v)]
    together = OnDevice().planned_attention(*both, Plan((2,), heads), scale=example.scale)
    for h, head_plan in enumerate(heads):
        alone = OnDevice().planned_attention(q, k, v, Plan((), (head_plan,)), scale=example.scale)
        for x, y in zip(alone, together, strict=True):
            np.testing.assert_array_equal(x, y[h])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_may_be_as_large_as_the_door_lets_pass(dtype):
    q, k, v = rows(dtype=dtype)
    scale = 2.0 ** (np.finfo(dtype).maxexp - 2 - 3)  # a power of two, and signs: every logit is exact
    call = np.sign(q), np.sign(k), v, planned(crowded())
    with np.errstate(all="raise", under="ignore"):
        out, lse = OnDevice().planned_attention(*call, scale=scale)
        sums = OnDevice().attention_sums(*call[:2], crowded(), scale=scale, is_causal=False)
    needed_out, needed_lse = Reference().planned_attention(*call, scale=scale)
    np.testing.assert_allclose(out, needed_out, rtol=0, atol=1e-5)
    np.testing.assert_allclose(lse, needed_lse, rtol=1e-5)
    assert np.all(np.isfinite(sums.entropy))


@pytest.mark.parametrize(
    ("library", "constructor", "device"), [("cupy", "asarray", {}), ("torch", "as_tensor", {"device": "its device"})]
)
def test_results_are_arrays_of_the_callers_library(library, constructor, device, monkeypatch):
    module = types.ModuleType(library)
    setattr(module, constructor, lambda x, **options: (library, options, x.copy_to_host()))
    monkeypatch.setitem(sys.modules, library, module)
    of_library = type("array", (DeviceCopy,), {"__module__": library, "device": "its device"})
    options = {"scale": 0.5, "is_causal": False}
    plain = Launcher().exact_attention(*map(DeviceCopy, rows()), **options)
    in_library = Launcher().exact_attention(*map(of_library, rows()), **options)
    for x, (name, where, y) in zip(plain, in_library, strict=True):
        assert (name, where) == (library, device)
        np.testing.assert_array_equal(x.copy_to_host(), y)


def test_the_stream_of_an_array_is_no_hindrance():
    arrays = [DeviceCopy(x) for x in rows()]
    for x in arrays:
        x.__cuda_array_interface__["stream"] = 1
    Launcher().exact_attention(*arrays, scale=0.5, is_causal=False)


# --- Planted bugs -----------------------------------------------------------------------------------------------------


def examples() -> dict:
    """One call of each kernel, with the check that the conformance suite makes of it."""
    q, k, v = rows()
    r, rng = crowded(), np.random.default_rng(2)
    scale, dense = 0.7, rng.random((len(q), len(k))) < 0.3
    caps = (scale * q.astype(np.float64) @ k.T.astype(np.float64)).mean(axis=1)
    _, lse = Reference().exact_attention(q, q, q, scale=scale, is_causal=True)
    hashed = np.vstack([q, np.zeros_like(q[:1])])
    y = rng.standard_normal((len(q), 6)).astype(np.float32)
    return {
        "planned": (AttentionInputs(q, k, v, scale, False, planned(r)), _check_arithmetic),
        "causal": (AttentionInputs(q, q, q, scale, True), _check_arithmetic),
        "no key": (AttentionInputs(q, k, v, scale, False, planned(Rectangle(10, 9))), _check_arithmetic),
        "sums": (SumsInputs(q, k, r, scale, False), _check_arithmetic),
        "dense sums": (SumsInputs(q, k, dense, scale, False), _check_arithmetic),
        "causal sums": (SumsInputs(q, q, None, scale, True), _check_arithmetic),
        "transposed": (TransposedInputs(q, q, y, lse, scale, True), _check_arithmetic),
        "capped": (CappedInputs(q, k, r, r.sampled_keys, caps, scale), _check_arithmetic),
        "hash": (HashInputs(hashed, rng.standard_normal((9, 6))), _check_codes),
    }


def kernels_with(old: str, new: str, *, occurrence: int | None = None) -> types.ModuleType:
    """The module of the kernels with a piece of its source replaced: the only one, or one of several occurrences."""
    parts = inspect.getsource(numba_cuda_kernels).split(old)
    assert len(parts) == 2 or occurrence is not None, f"{old!r} occurs {len(parts) - 1} times"
    at = (occurrence or 0) + 1
    module = types.ModuleType("planted")
    exec(compile(old.join(parts[:at]) + new + old.join(parts[at:]), "planted", "exec"), module.__dict__)
    module.TILE, module.PITCH = numba_cuda_kernels.TILE, numba_cuda_kernels.PITCH
    return module


BARRIER = "cuda.syncthreads()"
BARRIERS = inspect.getsource(numba_cuda_kernels).count(BARRIER)

# name: (the example that shows it, what is replaced, by what, a word of the report)
PLANTED = {
    "rows longer than d": (
        "planned",
        "b[other, e]) if other >= 0 and e < a.shape[1]",
        "b[other, e]) if other >= 0",
        "index",
    ),
    "values beyond d_v": ("planned", "if other >= 0 and e < values.shape[1] else", "if other >= 0 else", "index"),
    "queries beyond the last": ("planned", "i = queries[p] if p < tiles[block, 1] else -1", "i = queries[p]", "index"),
    "last key counted again": (
        "planned",
        "j = keys[s] if s < stop_key else -1",
        "j = keys[min(s, stop_key - 1)]",
        "index",
    ),
    "keys of the next range": ("planned", "if tile + y < stop_key else -1  # the key that it loads", "", "index"),
    "barrier that some threads miss": (
        "planned",
        "    largest = top[i] if",
        "    if i < 0:\n        return\n    largest = top[i] if",
        "barrier",
    ),
    "every thread of a row stores": (
        "planned",
        "    if i >= 0 and x == 0:\n        top[i]",
        "    if i >= 0:\n        top[i]",
        "race",
    ),
    "former views not excluded": ("planned", "key_blocks, earlier)", "key_blocks, 0)", "gate"),
    "exact keys not excluded": ("planned", "for view in range(n_views):", "for view in range(1, n_views):", "gate"),
    "last view not excluded": ("planned", "for view in range(n_views):", "for view in range(n_views - 1):", "gate"),
    "whole tile taken for a block": ("planned", "if counts and view >= 0:", "if False:", "gate"),
    "log-weight forgotten": ("planned", "logit += log_weights[s]", "pass", "gate"),
    "log-weight subtracted": ("planned", "logit += log_weights[s]", "logit -= log_weights[s]", "gate"),
    "denominator not rescaled": ("planned", "decay * denominator + part", "denominator + part", "gate"),
    "sums not rescaled": ("planned", "decay * sums[row, e] + total", "sums[row, e] + total", "gate"),
    "maximum forgotten between launches": ("planned", "largest = top[i] if i >= 0 else", "largest =", "gate"),
    "diagonal hidden": (
        "causal",
        "counts = i >= 0 and j >= 0 and not (is_causal and j > i)\n        if",
        "counts = i >= 0 and j >= 0 and not (is_causal and j >= i)\n        if",
        "gate",
    ),
    "future seen": (
        "causal",
        "counts = i >= 0 and j >= 0 and not (is_causal and j > i)\n        if",
        "counts = i >= 0 and j >= 0\n        if",
        "gate",
    ),
    "state not cleared": ("planned", "            sums[i, e] = real(0)\n", "            pass\n", "gate|nan"),
    "division by no key": ("no key", "total[i] if total[i] > 0 else sums.dtype.type(1)", "total[i]", "raised|nan"),
    "finite maximum for no key": (
        "no key",
        "return top + math.log(total) if total > 0 else top",
        "return top + math.log(total) if total > 0 else -1e30",
        "gate",
    ),
    "mask of views ignored": (
        "sums",
        "marked = is_marked(i, j, query_blocks, key_blocks, query_blocks.shape[0])",
        "marked = False",
        "gate",
    ),
    "dense mask ignored": (
        "dense sums",
        "if not (marked or (dense.size > 0 and dense[i, j])):\n                top_u",
        "if not marked:\n                top_u",
        "gate",
    ),
    "spread not moved": ("sums", "decay * spread_2 + decay * total_2 * rise", "decay * spread_2", "gate"),
    "future summed": (
        "causal sums",
        "if i >= 0 and j >= 0 and not (is_causal and j > i):\n            p =",
        "if i >= 0 and j >= 0:\n            p =",
        "gate",
    ),
    "first queries skipped": (
        "causal sums",
        "for tile in range(first if is_causal else 0, n_q, TILE):  # the",
        "for tile in range(first + TILE, n_q, TILE):  # the",
        "gate",
    ),
    "squares of sums": ("sums", "total_2 += p * p", "total_2 += p", "gate"),
    "lse forgotten": (
        "transposed",
        "weights[y, x] = math.exp(logit - real(lse[i]))",
        "weights[y, x] = math.exp(logit)",
        "gate",
    ),
    "transposed future": (
        "transposed",
        "weights[y, x] = math.exp(logit - real(lse[i])) if counts",
        "weights[y, x] = math.exp(logit - real(lse[i])) if i >= 0 and j >= 0",
        "gate",
    ),
    "cap ignored": ("capped", "min(logit, cap)", "logit", "gate"),
    "marked draws counted": (
        "capped",
        "marked = is_marked(i, s, query_blocks, key_blocks, query_blocks.shape[0])",
        "marked = False",
        "gate",
    ),
    "zero row in the top bucket": ("hash", "bit ^= product > 0", "bit ^= product >= 0", "Definition 1"),
    "Gray rank without exclusive or": ("hash", "bit ^= product > 0", "bit = product > 0", "Definition 1"),
}


@pytest.mark.parametrize("name", examples())
def test_without_a_bug_nothing_is_reported(name):
    example, check = examples()[name]
    check(OnDevice(), example)


@pytest.mark.skipif(not SIMULATED, reason="a broken kernel may do anything to a real device")
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug):
    shown_by, old, new, word = PLANTED[bug]
    example, check = examples()[shown_by]
    with pytest.raises(AssertionError, match=word):
        check(OnDevice(kernels_with(old, new)), example)


@pytest.mark.skipif(not SIMULATED, reason="a broken kernel may do anything to a real device")
@pytest.mark.parametrize("occurrence", range(BARRIERS))
def test_every_barrier_is_needed(occurrence):
    backend = OnDevice(kernels_with(BARRIER, "pass", occurrence=occurrence))
    reports = (report(backend, *shown) for shown in examples().values())
    assert any("race" in text or "before it is written" in text for text in reports)


def report(backend, example, check) -> str:
    """What the check of an example has to say against a backend."""
    try:
        check(backend, example)
    except AssertionError as error:
        return str(error)
    return ""
