"""The tests of the backend "numba-cuda" that launch kernels: on the simulated device, or on a real one.

The device is chosen when Numba is imported, so `test_backend.py` runs this file in a process of its own.
"""

import contextlib
import inspect
import sys
import types
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config, cuda

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance import attention_inputs, check_backend, strategies
from hyperattention_ref.backends.conformance.examples import (
    AttentionInputs,
    CappedInputs,
    HashInputs,
    SumsInputs,
    TransposedInputs,
)
from hyperattention_ref.backends.conformance.strategies import LAYOUTS, _lay_out
from hyperattention_ref.backends.conformance.suite import _check_arithmetic, _check_codes
from hyperattention_ref.backends.numba_cuda import kernels as sound_kernels
from hyperattention_ref.backends.numba_cuda.backend import NumbaCuda
from hyperattention_ref.backends.numba_cuda.device import NumbaDevice
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.measures import hardness_parameters
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

SIMULATED = bool(config.ENABLE_CUDASIM)
if SIMULATED:
    import simulator

    simulator.install()
    sound_kernels.TILE, sound_kernels.PITCH = 4, 5  # several tiles, the last one ragged, in small arrays


class Launching(NumbaDevice):
    """A NumbaDevice that takes the simulated device for one, and any module for its kernels."""

    def __init__(self, kernels=sound_kernels):
        super().__init__()
        self._kernels = kernels

    @property
    def kernels(self):
        return self._kernels

    def unavailable(self):
        return None if SIMULATED else super().unavailable()


def launcher(kernels=sound_kernels) -> NumbaCuda:
    return NumbaCuda(Launching(kernels))


def on_device(*arrays: np.ndarray):
    """Views of copies on the device, with the strides of these arrays."""
    return [launcher().memory.from_host(x) for x in arrays]


def home(*arrays) -> list[np.ndarray]:
    """Copies on the host."""
    return [launcher().memory.to_host(x) for x in arrays]


# --- Conformance ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_arrays(monkeypatch):
    """The simulated device does a million steps in a second, not a trillion."""
    if SIMULATED:
        monkeypatch.setattr(strategies, "_lengths", lambda around=0: st.integers(1, 10))


def test_conforms():
    result = check_backend(launcher(), max_examples=6 if SIMULATED else 60)
    assert result.backend == "numba-cuda"
    assert 0 < result.worst_ratio <= 1


@pytest.mark.slow
def test_conforms_on_many_examples():
    assert check_backend(launcher(), max_examples=60, seed=1).worst_ratio <= 1


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
    got, needed = (launcher().exact_attention(*on_device(*x), scale=1, is_causal=True) for x in (views, plain))
    for x, y in zip(home(*got), home(*needed), strict=True):
        np.testing.assert_array_equal(x, y)


@settings(max_examples=8)
@given(attention_inputs(planned=True))
def test_a_head_gets_the_same_bits_alone_and_among_others(example):
    head = (0,) * (example.query.ndim - 2)
    q, k, v = (x[head] for x in example.arrays.values())
    heads = example.plan.heads[0], example.plan.heads[-1]
    both = [np.stack([x, x]) for x in (q, k, v)]
    together = home(*launcher().planned_attention(*on_device(*both), Plan((2,), heads), scale=example.scale))
    for h, head_plan in enumerate(heads):
        alone = launcher().planned_attention(*on_device(q, k, v), Plan((), (head_plan,)), scale=example.scale)
        for x, y in zip(home(*alone), together, strict=True):
            np.testing.assert_array_equal(x, y[h])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_may_be_as_large_as_the_input_checks_admit(dtype):
    q, k, v = rows(dtype=dtype)
    scale = 2.0 ** (np.finfo(dtype).maxexp - 2 - 3)  # a power of two, and signs: every logit is exact
    arrays = np.sign(q), np.sign(k), v
    with np.errstate(all="raise", under="ignore"):
        out, lse = home(*launcher().planned_attention(*on_device(*arrays), planned(crowded()), scale=scale))
        sums = launcher().attention_sums(*on_device(*arrays[:2]), crowded(), scale=scale, is_causal=False)
    needed_out, needed_lse = Reference().planned_attention(*arrays, planned(crowded()), scale=scale)
    np.testing.assert_allclose(out, needed_out, rtol=0, atol=1e-5)
    np.testing.assert_allclose(lse, needed_lse, rtol=1e-5)
    assert np.all(np.isfinite(home(sums.entropy)))


# --- The library on device arrays -------------------------------------------------------------------------------------

PAPER = {"block_size": 3, "sample_size": 4, "lsh_bits": 4, "rng": 0}
CENTRED = hr.Recipe(views=("centred_sort_lsh",), block_size=3, sample_size=4)
PILOT = hr.Recipe(views=("local",), block_size=3, heavy_columns=1, pilot_rows=3, sample_size=4, sampling="importance")
ALGORITHM_2 = {"kappa": 3.0, "epsilon": 0.5, "m": 5, "rng": 0}

# name: (the call for q, k, v and a backend, the shape of a head in front, the backend to agree with)
CALLS = {
    "exact": (lambda *qkv, **b: hr.exact_attention(*qkv, return_lse=True, **b), (2,), "numpy"),
    "paper": (lambda *qkv, **b: hr.hyper_attention(*qkv, **PAPER, return_lse=True, **b), (2,), "numpy"),
    "causal": (lambda *qkv, **b: hr.hyper_attention(*qkv, **PAPER, is_causal=True, min_seq_len=4, **b), (2,), "numpy"),
    "centred": (lambda *qkv, **b: hr.hyper_attention(*qkv, recipe=CENTRED, rng=0, **b), (2,), "numpy"),
    "pilot": (lambda *qkv, **b: hr.hyper_attention(*qkv, recipe=PILOT, rng=0, **b), (), "numpy"),
    "hardness": (lambda q, k, _, **b: hr.hardness(q, k, rng=0, **b), (2,), "numpy"),
    "algorithm 2": (lambda q, k, _, **b: hr.approx_d(q, k, None, rescale_rows=True, **ALGORITHM_2, **b), (), None),
    "algorithm 3": (lambda *qkv, **b: hr.literal_hyper_attention(*qkv, BANDS, **ALGORITHM_2, **b), (), None),
}
BANDS = BlockMask.from_orders(np.arange(9), np.arange(9), 3)


@pytest.mark.parametrize("name", CALLS)
def test_the_library_takes_device_arrays(name):
    call, lead, other = CALLS[name]
    dtype = np.float64 if other is None else np.float32
    arrays = [np.random.default_rng(3).standard_normal((*lead, 9, d)).astype(dtype) for d in (5, 5, 4)]
    found = call(*map(cuda.to_device, arrays), backend=launcher())
    agree(found, call(*arrays, backend=other), 1e-12 if dtype == np.float64 else 1e-5)


def test_the_norm_of_p_is_found_from_products_on_the_device(monkeypatch):
    monkeypatch.setattr(hardness_parameters, "DENSE_ENTRIES", 0)
    q, k, _ = rows(7, 7, 3)
    found = hr.hardness(*map(cuda.to_device, (q, k)), is_causal=True, rng=0, backend=launcher())
    agree(found, hr.hardness(q, k, is_causal=True, rng=0, backend="numpy"), 1e-5)


def test_grouped_queries_share_their_keys_on_the_device():
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal((heads, 5, 3)).astype(np.float16) for heads in (4, 2, 2)]
    found = hr.exact_attention(*map(cuda.to_device, arrays), enable_gqa=True, backend=launcher())
    agree(found, hr.exact_attention(*arrays, enable_gqa=True, backend="numpy"), 1e-3)


def agree(found, needed, tolerance):
    """Results with the same numbers, on the device or the host, field by field."""
    if isinstance(needed, tuple | list):
        assert len(found) == len(needed)
        for x, y in zip(found, needed, strict=True):
            agree(x, y, tolerance)
    elif isinstance(needed, np.ndarray | float | int):
        on_host = found if isinstance(found, np.ndarray | float | int) else home(found)[0]
        np.testing.assert_allclose(on_host, needed, rtol=tolerance, atol=tolerance)
    elif hasattr(needed, "__dict__"):
        for name, x in vars(needed).items():
            agree(getattr(found, name), x, tolerance)


@pytest.mark.parametrize("entry", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(entry):
    q, k, v = rows()
    k[-1, -1] = entry
    with pytest.raises(ValueError, match="key has non-finite entries"):
        hr.exact_attention(*map(cuda.to_device, (q, k, v)), backend=launcher())


def test_logits_that_overflow_are_refused():
    q, k, v = rows()
    with pytest.raises(ValueError, match="logits may overflow float32"):
        hr.exact_attention(*map(cuda.to_device, (1e30 * q, 1e30 * k, v)), backend=launcher())


def test_the_mean_of_huge_rows_is_finite():
    x = 1e30 * rows()[0]
    (centred,) = home(launcher().memory.centred(*on_device(x)))
    np.testing.assert_allclose(centred, x - x.mean(axis=0), atol=1e25)


# --- Libraries and streams --------------------------------------------------------------------------------------------

in_the_simulator = pytest.mark.skipif(not SIMULATED, reason="the stand-ins have the memory of the host")


class Library(types.ModuleType):
    """A stand-in for a library whose current stream is number 7; its arrays are NumPy's below."""

    stream = 7

    def __init__(self, name: str):
        super().__init__(name)
        self.array = type("array", (StandIn,), {"__module__": name})
        stream = types.SimpleNamespace(ptr=self.stream, cuda_stream=self.stream)
        self.cuda = types.SimpleNamespace(
            Device=lambda number: contextlib.nullcontext(),
            current_stream=lambda number: stream,
            get_current_stream=lambda: stream,
        )
        self.Tensor, self.device = self.array, lambda kind, number: number

    def __getattr__(self, name):
        return np.dtype(name)  # torch.float32

    def empty(self, shape, dtype, device=0):
        return self.array(np.full(shape, 77, dtype))


class StandIn:
    """What the readers in `device_array` ask of a torch tensor, a CuPy array, and any other."""

    is_cuda, requires_grad = True, False

    def __init__(self, memory: np.ndarray):
        self.memory, self.shape, self.strides, self.itemsize = memory, memory.shape, memory.strides, memory.itemsize
        self.device = types.SimpleNamespace(index=0, id=0)
        self.data = types.SimpleNamespace(ptr=memory.ctypes.data)

    @property
    def dtype(self):
        return f"torch.{self.memory.dtype}" if type(self).__module__ == "torch" else self.memory.dtype

    @property
    def __cuda_array_interface__(self):
        return self.memory.__array_interface__

    def data_ptr(self):
        return self.memory.ctypes.data

    def stride(self):
        return tuple(stride // self.itemsize for stride in self.strides)


class Watched:
    """The kernels, which note the streams in which they are launched."""

    def __init__(self, log: list):
        self.log = log

    def __getattr__(self, name):
        kernel = getattr(sound_kernels, name)
        return kernel if isinstance(kernel, int) else self._noting(kernel)

    def _noting(self, kernel):
        def configured(_, configuration):
            self.log.append(("launch", getattr(configuration[2], "pointer", 0)))
            return kernel[configuration]

        return type("Noting", (), {"__getitem__": configured})()


@pytest.fixture
def log(monkeypatch):
    """What is launched, copied and waited for, with the number of the stream."""
    noted: list = []
    copy = simulator.FakeCUDAArray.copy_to_device

    def copy_to_device(self, x, stream=0):
        noted.append(("copy", getattr(stream, "pointer", 0)))
        copy(self, x, stream)

    monkeypatch.setattr(simulator.FakeCUDAArray, "copy_to_device", copy_to_device)
    monkeypatch.setattr(cuda, "synchronize", lambda: noted.append(("wait", "for all")))
    return noted


def attention(arrays, kernels=sound_kernels):
    return launcher(kernels).planned_attention(*arrays, planned(crowded()), scale=0.5)


@in_the_simulator
@pytest.mark.parametrize(("name", "stream", "numba_name"), [("torch", 7, 7), ("cupy", 7, 7), ("torch", 0, 1)])
def test_work_and_results_are_those_of_the_callers_library(name, stream, numba_name, monkeypatch, log):
    monkeypatch.setattr(Library, "stream", stream)
    monkeypatch.setitem(sys.modules, name, Library(name))
    needed = home(*attention(on_device(*rows())))
    log.clear()
    results = attention([sys.modules[name].array(x) for x in rows()], Watched(log))
    assert {kind for kind, _ in log} == {"launch", "copy"}
    assert {number for _, number in log} == {numba_name}
    for x, y in zip(results, needed, strict=True):
        assert type(x) is sys.modules[name].array
        np.testing.assert_array_equal(x.memory, y)


@in_the_simulator
def test_numba_arrays_are_worked_on_in_the_default_stream(log):
    results = attention(map(cuda.to_device, rows()), Watched(log))
    assert {number for _, number in log} == {0}
    assert all(isinstance(x, simulator.FakeCUDAArray) for x in results)


@in_the_simulator
@pytest.mark.parametrize("libraries", [("jax",) * 3, ("torch", "numba", "numba"), ("torch", "cupy", "torch")])
def test_the_device_is_synchronised_for_foreign_libraries_before_and_after(libraries, monkeypatch, log):
    for name in {"torch", "cupy"} & set(libraries):
        monkeypatch.setitem(sys.modules, name, Library(name))
    array = {name: cuda.to_device if name == "numba" else Library(name).array for name in libraries}
    array |= {name: sys.modules[name].array for name in {"torch", "cupy"} & set(libraries)}
    attention([array[name](x) for name, x in zip(libraries, rows(), strict=True)], Watched(log))
    waits = [i for i, (kind, _) in enumerate(log) if kind == "wait"]
    assert waits == [0, len(log) - 1]


@in_the_simulator
def test_host_arrays_live_until_they_have_been_read(monkeypatch):
    copies, passed = [], []

    class Event(simulator.Event):
        def query(self):
            return bool(passed)

    def copy_to_device(self, x, stream=0):
        copies.append(weakref.ref(x))
        np.copyto(self._ary, x)

    monkeypatch.setattr(cuda, "event", Event)
    backend, arrays = launcher(), on_device(*rows())
    monkeypatch.setattr(simulator.FakeCUDAArray, "copy_to_device", copy_to_device)
    for _ in range(2):
        backend.planned_attention(*arrays, planned(crowded()), scale=0.5)
    assert copies
    assert all(copy() is not None for copy in copies)
    passed.append(True)
    former = copies.copy()
    backend.planned_attention(*arrays, planned(crowded()), scale=0.5)
    assert all(copy() is None for copy in former)


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
        "largest": (rng.uniform(-1, 1, (19, 6)).astype(np.float16), check_largest),
        "convert": (q, check_convert),
    }


def check_largest(backend, x):
    """The largest entry is found wherever it stands, and never lost in NaN."""
    for place in ((0, 0), (9, 3), (-1, -1)):
        for entry in (-9, np.nan, np.inf):
            marked = x.copy()
            marked[place] = entry
            (found,) = backend.memory.largest({"x": on_device(marked)[0]})()
            assert found == (9 if entry == -9 else np.inf), f"the largest of {entry} at {place} is {found}"


def check_convert(backend, x):
    """Rows, layouts and columns come as NumPy has them; centred rows have the mean 0."""
    memory, chosen, (view,) = backend.memory, np.array([7, 0, 7, 9]), on_device(x)
    copied = memory.copy(view, "float64", rows=chosen)
    np.testing.assert_array_equal(memory.to_host(copied), x[chosen].astype(np.float64), "the rows")
    np.testing.assert_array_equal(memory.to_host(view[::-2, 1::2]), x[::-2, 1::2], "the view")
    centred = memory.to_host(memory.centred(view))
    np.testing.assert_allclose(centred, x - x.mean(axis=0), atol=1e-6, err_msg="the mean")


def kernels_with(old: str, new: str, *, occurrence: int | None = None) -> types.ModuleType:
    """The module of the kernels with a piece of its source replaced: the only one, or one of several occurrences."""
    parts = inspect.getsource(sound_kernels).split(old)
    assert len(parts) == 2 or occurrence is not None, f"{old!r} occurs {len(parts) - 1} times"
    at = (occurrence or 0) + 1
    module = types.ModuleType("planted")
    exec(compile(old.join(parts[:at]) + new + old.join(parts[at:]), "planted", "exec"), module.__dict__)
    module.TILE, module.PITCH = sound_kernels.TILE, sound_kernels.PITCH
    return module


BARRIER = "cuda.syncthreads()"
BARRIERS = inspect.getsource(sound_kernels).count(BARRIER)

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
    "sign kept": ("largest", "entry = abs(real(rows[i, e]))", "entry = real(rows[i, e])", "the largest"),
    "NaN swallowed": ("largest", "entry if entry < real(math.inf) else real(math.inf)", "entry", "the largest"),
    "last rows skipped": ("largest", "rows.shape[0]), TILE):", "rows.shape[0] - 1), TILE):", "the largest"),
    "rows of the next block": ("largest", "first + y, min(", "first + y, max(", "index"),
    "threads left out": ("largest", "for r in range(TILE):", "for r in range(2):", "the largest"),
    "every thread stores its own": ("largest", "    if x == 0 and y == 0:\n", "    if True:\n", "race"),
    "wrong row": ("convert", "row = rows[i] if rows.size > 0 else i", "row = i", "the rows"),
    "column forgotten": ("convert", "entry = real(values[row, e])", "entry = real(values[row, 0])", "the rows"),
    "rows beyond the last copied": ("convert", "if i < out.shape[0]:", "if True:", "index"),
    "center forgotten": ("convert", "entry -= center[e]", "pass", "the mean"),
    "center of one column": ("convert", "entry -= center[e]", "entry -= center[0]", "the mean"),
}


@pytest.mark.parametrize("name", examples())
def test_without_a_bug_nothing_is_reported(name):
    example, check = examples()[name]
    check(launcher(), example)


@pytest.mark.skipif(not SIMULATED, reason="a broken kernel may do anything to a real device")
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug):
    shown_by, old, new, word = PLANTED[bug]
    example, check = examples()[shown_by]
    with pytest.raises(AssertionError, match=word):
        check(launcher(kernels_with(old, new)), example)


@pytest.mark.skipif(not SIMULATED, reason="a broken kernel may do anything to a real device")
@pytest.mark.parametrize("occurrence", range(BARRIERS))
def test_every_barrier_is_needed(occurrence):
    backend = launcher(kernels_with(BARRIER, "pass", occurrence=occurrence))
    reports = (report(backend, *shown) for shown in examples().values())
    assert any("race" in text or "before it is written" in text for text in reports)


def report(backend, example, check) -> str:
    """What the check of an example has to say against a backend."""
    try:
        check(backend, example)
    except AssertionError as error:
        return str(error)
    return ""
