"""Arrays on a GPU through the everyday functions, the literal algorithms and the measures; on the emulated device."""

import math
import sys
import types
from functools import cache
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import backends
from hyperattention_ref.backends import device_array
from hyperattention_ref.backends.device_array import DeviceArray, device_view, new_array, row_major
from hyperattention_ref.foundation import registry
from hyperattention_ref.foundation.backend import lacks
from hyperattention_ref.foundation.extremes import Extremes
from hyperattention_ref.foundation.memory import HOST, device_kind, memory_of
from hyperattention_ref.plan.recipe import RECIPES, preset
from hyperattention_ref.surveys.head import measure_head
from hyperattention_ref.surveys.settings import SurveySettings

from .cuda_cpp.emulation.device import EmulatedArray, EmulatedBackend, missing_compiler, to_bfloat

emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


@cache
def backend():
    return EmulatedBackend()


def on_device(*arrays):
    return [backend().memory.from_host(x) for x in arrays]


def heads(n_q, n_k, d=8, d_v=5, lead=(2,), dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*lead, n, e)).astype(dtype) for n, e in ((n_q, d), (n_k, d), (n_k, d_v))]


# --- Views -----------------------------------------------------------------------------------------------------------


def of_numpy(x: np.ndarray) -> DeviceArray:
    return DeviceArray(x, x.ctypes.data, x.dtype.name, x.shape, tuple(s // x.itemsize for s in x.strides), 0)


def assert_same(view: DeviceArray, x: np.ndarray):
    """The view shows the entries of x where they lie."""
    assert view.shape == x.shape
    assert (view.ndim, view.size, len(view)) == (x.ndim, x.size, len(x)) if x.ndim else view.ndim == 0
    if x.size:
        assert view.pointer == x.ctypes.data
        strides = tuple(s // x.itemsize for s in x.strides)
        assert all(n == 1 or a == b for n, a, b in zip(x.shape, view.strides, strides, strict=True))


@st.composite
def indices(draw, shape):
    """Integers, slices, new axes and an ellipsis, for an array of this shape."""
    items = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        whole = st.slices(n) if n else st.just(slice(None))
        items.append(draw(st.one_of(st.integers(-n, n - 1), whole) if n else whole))
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    if len(items) < len(shape) and draw(st.booleans()):
        items.append(Ellipsis)
    return tuple(items)


@given(st.data())
def test_slices_are_those_of_numpy(data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple))
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    if data.draw(st.booleans()):
        x = x[..., ::-1]
    index = data.draw(indices(shape))
    expected = x[(*index, *[...] * (Ellipsis not in index))]  # with an ellipsis a single entry is a view, too
    assert_same(of_numpy(x)[index], expected)


def test_an_index_outside_is_refused():
    with pytest.raises(IndexError):
        of_numpy(np.zeros((3, 2)))[3]


@given(outer=st.integers(1, 4), inner=st.integers(1, 4), n=st.integers(1, 3), d=st.integers(1, 3))
def test_an_axis_is_split_as_numpy_splits_it(outer, inner, n, d):
    x = np.zeros((outer * inner, n, d))[::-1]
    assert_same(of_numpy(x).reshape(outer, inner, n, d), x.reshape(outer, inner, n, d))
    assert_same(of_numpy(x).reshape(*x.shape), x)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 2, 3), (6, 3), (5, 2)])
def test_a_shape_that_might_need_a_copy_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(6, 2\) on a device cannot be viewed as"):
        of_numpy(np.zeros((6, 2))).reshape(*shape)


def test_broadcasts_have_stride_0_and_only_lengths_of_1_grow():
    x = np.zeros((2, 1, 3))
    assert_same(of_numpy(x).broadcast_to((2, 4, 3)), np.broadcast_to(x, (2, 4, 3)))
    with pytest.raises(ValueError, match="cannot be broadcast"):
        of_numpy(x).broadcast_to((2, 4, 4))


def test_contiguity_is_that_of_numpy():
    for x in (np.zeros((2, 3)), np.zeros((2, 3)).T, np.zeros((1, 3)).T, np.zeros((4, 3))[::2]):
        assert of_numpy(x).is_contiguous == x.flags.c_contiguous


# --- Libraries -------------------------------------------------------------------------------------------------------


class Foreign:
    """An array of some library, described by the CUDA array interface; its memory is NumPy's."""

    def __init__(self, x, **more):
        self.x, self.more = x, more

    @property
    def __cuda_array_interface__(self):
        return self.x.__array_interface__ | self.more


class Exchanged:
    """An array that offers DLPack only."""

    def __init__(self, device_type):
        self.device_type = device_type

    def __dlpack_device__(self):
        return self.device_type, 0


def test_arrays_on_a_gpu_are_told_from_all_others():
    assert device_kind(Foreign(np.zeros(3))).endswith(".Foreign")
    assert device_kind(Exchanged(2)).endswith(".Exchanged")
    for x in (np.zeros(3), [1.0], 2.0, None, Exchanged(1)):
        assert device_kind(x) is None


def test_strides_of_the_array_interface_are_read():
    x = np.zeros((4, 6), np.float32)
    for y in (x, x[::2], x[:, ::-3], np.broadcast_to(x[:1], (5, 6))):
        assert_same(device_view("x", Foreign(y), "b"), y)


def test_dlpack_alone_needs_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(TypeError, match="offers DLPack only, which CuPy reads: install CuPy"):
        device_view("x", Exchanged(2), "cupy")


def library(name, **members):
    """An array class of a stand-in for a library."""
    kind = type("Tensor", (), members)
    kind.__module__ = f"{name}.somewhere"
    return kind()


def test_torch_is_asked_directly_since_its_interface_does_not_know_bfloat16(monkeypatch):
    x = library(
        "torch",
        is_cuda=True,
        requires_grad=False,
        dtype="torch.bfloat16",
        shape=(2, 3),
        device=types.SimpleNamespace(index=1),
        data_ptr=lambda self: 64,
        stride=lambda self: (1, 2),
    )
    torch = types.SimpleNamespace(Tensor=type(x), is_grad_enabled=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", torch)
    view = device_view("x", x, "cupy")
    assert (view.pointer, view.dtype, view.shape, view.strides, view.device) == (64, "bfloat16", (2, 3), (1, 2), 1)
    assert device_kind(x) == "torch.Tensor"
    x.requires_grad = True
    with pytest.raises(TypeError, match=r"requires a gradient, and none is computed here: .* x\.detach"):
        device_view("x", x, "cupy")


MAKERS = {"torch": "torch", "cupy": "cupy", "numba": "numba", "jax": "cupy"}
DEFAULTS = {"torch": "cupy", "cupy": "cupy", "jax": "cupy", "numba": "numba-cuda"}


@pytest.mark.parametrize(("owner", "maker"), MAKERS.items())
def test_new_arrays_come_from_the_library_of_the_caller(monkeypatch, owner, maker):
    created = []

    class Library:
        def __init__(self, name):
            self.name = name

        def empty(self, shape, dtype, device):
            created.append((self.name, shape, dtype, device))
            return np.zeros(shape, dtype)

        def view(self, x):
            return of_numpy(x)

    known = {name: Library(name) for name in ("torch", "cupy", "numba")}
    monkeypatch.setattr(device_array, "LIBRARIES", known)
    like = DeviceArray(library(owner), 0, "float32", (1,), (1,), 3)
    assert new_array((2, 2), "float32", like, otherwise="cupy").shape == (2, 2)
    assert created == [(maker, (2, 2), "float32", 3)]


@pytest.mark.parametrize(("owner", "name"), DEFAULTS.items())
def test_the_default_backend_is_that_of_the_array(monkeypatch, owner, name):
    monkeypatch.setattr(registry, "get_backend", lambda name: name)
    assert backends.select(None, library(owner, __cuda_array_interface__={})) == name
    assert backends.select(None, np.zeros(3)) == "numba"


# --- Everyday attention ----------------------------------------------------------------------------------------------


@emulated
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_exact_attention_is_that_of_the_host(lead, is_causal):
    host = heads(40, 40 if is_causal else 33, lead=lead)
    out, lse = hr.exact_attention(*on_device(*host), is_causal=is_causal, backend=backend(), return_lse=True)
    assert {type(out), type(lse)} == {EmulatedArray}
    expected = hr.exact_attention(*host, is_causal=is_causal, return_lse=True)
    for found, exact in zip((out, lse), expected, strict=True):
        np.testing.assert_allclose(np.asarray(found), exact, atol=2e-6)


@emulated
def test_grouped_queries_share_their_keys():
    q, (k, v) = heads(30, 30, lead=(2, 4))[0], heads(30, 30, lead=(2, 2))[1:]
    moved = on_device(q, k, v)
    for function, options in (
        (hr.exact_attention, {}),
        (hr.hyper_attention, {"block_size": 8, "sample_size": 4, "rng": 0}),
    ):
        found = function(*moved, enable_gqa=True, backend=backend(), **options)
        assert found.shape == (2, 4, 30, 5)
        np.testing.assert_allclose(np.asarray(found), function(q, k, v, enable_gqa=True, **options), atol=2e-6)


@emulated
@given(
    n_q=st.one_of(st.integers(1, 9), st.integers(1, 150)),
    n_k=st.one_of(st.integers(1, 9), st.integers(1, 150)),
    b=st.integers(1, 70),
    m=st.integers(1, 90),
    bits=st.sampled_from([1, 3, 8, 9, 20, 62]),
    leaf=st.integers(1, 60),
    is_causal=st.booleans(),
    storage=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    lead=st.sampled_from([(), (3,), (2, 2)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_noise_and_plan_give_the_same_bits(n_q, n_k, b, m, bits, leaf, is_causal, storage, lead, seed):
    n_k = n_q if is_causal else n_k
    host = heads(n_q, n_k, d=16, d_v=16, lead=lead, seed=seed)
    if storage == "bfloat16":
        moved = [backend().device.upload(to_bfloat(x), storage) for x in host]
    else:
        moved = on_device(*(x.astype(storage) for x in host))
    options = {"is_causal": is_causal, "backend": backend()}
    decisions = {"block_size": b, "sample_size": m, "lsh_bits": bits, "min_seq_len": leaf, "rng": seed}
    plan = hr.make_plan(*moved[:2], **options, **decisions)
    drawn = hr.hyper_attention(*moved, **options, **decisions, return_lse=True)
    planned = hr.hyper_attention(*moved, **options, plan=plan, return_lse=True)
    for found, expected in zip(drawn, planned, strict=True):
        assert found.tobytes() == expected.tobytes()


@emulated
@pytest.mark.parametrize("is_causal", [False, True])
def test_blocks_without_samples_need_no_plan_either(is_causal):
    moved = on_device(*heads(60, 60))
    recipe = hr.Recipe(block_size=8, sample_size=0)
    assert recipe.is_plain
    options = {"is_causal": is_causal, "recipe": recipe, "min_seq_len": 20, "rng": 0, "backend": backend()}
    plan = hr.make_plan(*moved[:2], **options)
    planned = hr.hyper_attention(*moved, is_causal=is_causal, plan=plan, backend=backend())
    assert hr.hyper_attention(*moved, **options).tobytes() == planned.tobytes()


@emulated
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_decides_as_on_the_host(name, is_causal):
    host = heads(60, 60, d=16)
    options = {"is_causal": is_causal, "recipe": preset(name, 16), "min_seq_len": 20, "rng": 0}
    plan = hr.make_plan(*on_device(*host[:2]), backend=backend(), **options)
    expected = hr.make_plan(*host[:2], **options)
    for one, other in zip(plan.heads, expected.heads, strict=True):
        np.testing.assert_array_equal(one.rows(np.arange(60)), other.rows(np.arange(60)))
    if lacks(backend(), plan.parts):
        with pytest.raises(ValueError, match=r"which the backend .* does not compute"):
            hr.hyper_attention(*on_device(*host), backend=backend(), **options)
        return
    found = hr.hyper_attention(*on_device(*host), backend=backend(), **options)
    np.testing.assert_allclose(np.asarray(found), hr.hyper_attention(*host, **options), atol=2e-6)


@emulated
def test_the_noise_is_drawn_while_the_device_computes_leaves():
    host = heads(60, 60, lead=())
    events = []

    class Watched(EmulatedBackend):
        def drawn_attention(self, q, k, v, noise, planner, **options):
            watched = lambda: events.append(list(self.device.launched)) or noise()  # noqa: E731
            return super().drawn_attention(q, k, v, watched, planner, **options)

    hr.hyper_attention(*on_device(*host), is_causal=True, min_seq_len=20, backend=Watched(), rng=0)
    assert events == [["largest"] * 3 + ["attend"]]


SORTED = ["count_digits", "scan_digits", "place_rows", "attend"]


@emulated
def test_rows_that_are_hashed_are_not_searched_again():
    host, options = heads(60, 60), {"block_size": 16, "sample_size": 8, "rng": 0}

    def launched(storage="float32", **more):
        one = EmulatedBackend()
        arrays = [one.device.upload(to_bfloat(x), storage) if storage == "bfloat16" else x for x in host]
        hr.hyper_attention(*(arrays if storage == "bfloat16" else on_device(*host)), backend=one, **more)
        return one.device.launched

    plan = hr.make_plan(*host[:2], block_size=16, sample_size=8, rng=0)
    assert launched(**options) == ["largest", "hash_codes", "hash_codes", *SORTED]
    assert launched("bfloat16", **options)[:3] == ["largest", "hash_codes_tensor", "hash_codes_tensor"]
    assert launched(plan=plan) == ["largest"] * 3 + ["attend"]
    causal = launched(is_causal=True, min_seq_len=32, **options)  # the first queries and the last keys are not hashed
    assert causal == ["largest"] * 3 + ["attend", "hash_codes", "hash_codes", *SORTED]
    assert launched(is_causal=True, min_seq_len=64, **options) == ["largest"] * 3 + ["attend"]


@emulated
def test_each_array_is_searched_once():
    memory, looked = backend().memory, []

    class Watched:
        def largest(self, named):
            looked.append(list(named))
            return memory.largest(named)

    q, k, v = on_device(*(np.full((2, d), d, np.float32) for d in (3, 4, 5)))
    extremes = Extremes(Watched(), {"query": q, "key": k, "value": v})
    assert not looked
    extremes.begin("value")
    extremes.expect(("query",), lambda: [7.0])
    assert extremes.values == extremes.values == [7, 4, 5]
    assert looked == [["value"], ["key"]]
    broken = Extremes(memory, {"query": q, "key": k})
    broken.expect(("key",), lambda: [math.nan])
    with pytest.raises(ValueError, match="key has non-finite entries"):
        _ = broken.values


@emulated
def test_tables_of_a_shape_are_sent_once():
    one = EmulatedBackend()
    sent = []
    upload = one.device.upload
    one.device.upload = lambda x, dtype=None: sent.append(x.nbytes) or upload(x, dtype)
    moved, counts = on_device(*heads(64, 64, lead=())), []
    for seed in range(3):
        sent.clear()
        hr.hyper_attention(*moved, block_size=16, sample_size=8, backend=one, rng=seed)
        counts.append(len(sent))
    assert counts[1:] == [3, 3]  # places for the largest entries, of values and of what is hashed; the hyperplanes


# --- Literal algorithms and measures ---------------------------------------------------------------------------------


@emulated
def test_literal_algorithms_are_those_of_the_host():
    host = [x[0] for x in heads(60, 60, d=16)]
    moved = on_device(*host)
    mask = hr.sort_lsh(*moved[:2], 16, rng=0, backend=backend())
    np.testing.assert_array_equal(mask.toarray(), hr.sort_lsh(*host[:2], 16, rng=0).toarray())
    options = {"kappa": 5.0, "epsilon": 0.5, "m": 20, "rng": 0, "scale": 0.25, "rescale_rows": True}
    for masked in (mask, mask.toarray(), None):
        found, expected = (
            hr.literal_hyper_attention(*x, masked, backend=b, **options) for x, b in ((moved, backend()), (host, None))
        )
        np.testing.assert_allclose(found.diagonal.log_d, expected.diagonal.log_d, atol=1e-12)
        np.testing.assert_allclose(found.estimate, expected.estimate, atol=1e-12)
    options |= {"min_seq_len": 16, "block_size": 8}
    found, expected = (
        hr.causal_literal_hyper_attention(*x, backend=b, **options) for x, b in ((moved, backend()), (host, None))
    )
    np.testing.assert_allclose(found.estimate, expected.estimate, atol=1e-12)


@emulated
@pytest.mark.parametrize("is_causal", [False, True])
def test_hardness_is_that_of_the_host(is_causal, monkeypatch):
    host = heads(50, 50, dtype=np.float64)
    mask = None if is_causal else hr.make_plan(*host[:2], block_size=8, sample_size=4, rng=0)
    for entries in (2**24, 0):  # ||P|| of the dense matrix, or from products on the device
        monkeypatch.setattr("hyperattention_ref.measures.hardness_parameters.DENSE_ENTRIES", entries)
        found, expected = (
            hr.hardness(*x, mask, is_causal=is_causal, rng=0, backend=b)
            for x, b in ((on_device(*host[:2]), backend()), (host[:2], None))
        )
        for name, x in vars(expected).items():
            if name != "heavy_columns":
                np.testing.assert_allclose(getattr(found, name), x, rtol=1e-9, err_msg=name)
    parts = hr.causal_hardness(*on_device(*host[:2]), min_seq_len=20, rng=0, op_norm=False, backend=backend())
    expected = hr.causal_hardness(*host[:2], min_seq_len=20, rng=0, op_norm=False)
    for place, part in parts.items():
        np.testing.assert_allclose(part.log_kappa, expected[place].log_kappa, rtol=1e-9)


@emulated
def test_a_survey_runs_on_the_device(monkeypatch):
    point = EntryPoint("emulated", f"{EmulatedBackend.__module__}:EmulatedBackend", backends.ENTRY_POINT_GROUP)
    monkeypatch.setitem(registry._BUILT_IN, "emulated", point)
    facts = vars(hr.load_sample_heads()[0])
    names = ("query", "key", "value", "scale", "is_causal", "layer", "head")
    head = hr.AttentionMap(**{name: facts[name] for name in names}, model="", source="")
    options = {"n": 64, "recipes": ("paper", "local_heavy"), "budget": 16}
    found, expected = (measure_head(head, SurveySettings(backend=b, **options)) for b in ("emulated", None))
    assert found.verdict == expected.verdict
    for name in options["recipes"]:
        pair = (x.recipes[name].relative_frobenius_estimate for x in (found, expected))
        np.testing.assert_allclose(*pair, rtol=1e-4)


# --- Bad input -------------------------------------------------------------------------------------------------------

HOST_FUNCTIONS = {
    "certify": lambda q, k, v: hr.certify(q, k, v, v),
    "estimate_hardness": lambda q, k, v: hr.estimate_hardness(q, k),
    "spectral_error": lambda q, k, v: hr.spectral_error(q, k, v, v),
    "captured_mass": lambda q, k, v: hr.captured_mass(q, k, None),
    "oracle_attention": lambda q, k, v: hr.oracle_attention(q, k, v, 4),
    "nystrom_attention": lambda q, k, v: hr.nystrom_attention(q, k, v, 4),
    "attention_probabilities": lambda q, k, v: hr.attention_probabilities(q, k),
    "operator_norm": lambda q, k, v: hr.operator_norm(q),
    "hamming_sorted_lsh": lambda q, k, v: hr.hamming_sorted_lsh(q, np.ones((2, 8))),
    "exact_attention": lambda q, k, v: hr.exact_attention(q, k, v, backend="numba"),
    "hyper_attention": lambda q, k, v: hr.hyper_attention(q, k, v, backend="numpy"),
    "approx_d": lambda q, k, v: hr.approx_d(q, k, None, kappa=2.0, epsilon=0.5, m=4),
    "hardness": lambda q, k, v: hr.hardness(q, k, backend="reference"),
}


@pytest.mark.parametrize("name", HOST_FUNCTIONS)
def test_arrays_on_a_gpu_are_refused_on_the_host_with_the_remedy(name):
    q, k, v = (Foreign(x) for x in heads(6, 6, lead=(), d_v=8))
    with pytest.raises(TypeError, match=r"is a .*Foreign on a GPU, and this call works on the host: .* copy the"):
        HOST_FUNCTIONS[name](q, k, v)


REMEDIES = {"cupy": "cupy.asnumpy", "torch": "x.cpu()", "bfloat16": "x.float().cpu()", "jax": "its own library"}


@pytest.mark.parametrize(("kind", "remedy"), REMEDIES.items())
def test_the_remedy_is_that_of_the_library(kind, remedy, monkeypatch):
    name = "torch" if kind == "bfloat16" else kind
    x = library(name, is_cuda=True, dtype=kind, __cuda_array_interface__={})
    if name == "torch":
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=type(x)))
    with pytest.raises(TypeError) as caught:
        hr.operator_norm(x)
    assert remedy in str(caught.value)


@emulated
@pytest.mark.parametrize("function", [hr.exact_attention, hr.hyper_attention])
def test_host_arrays_are_refused_on_the_device(function):
    host = heads(6, 6)
    moved = on_device(*host)
    for place, name in enumerate(("query", "key", "value")):
        mixed = [*moved[:place], host[place], *moved[place + 1 :]]
        with pytest.raises(TypeError, match=rf"{name} is a numpy\.ndarray on the host; .* copies none there: pass"):
            function(*mixed, backend=backend())
    for measure in (hr.hardness, hr.make_plan, lambda *x, **options: hr.sort_lsh(*x, 2, **options)):
        with pytest.raises(TypeError, match=r"query is a numpy\.ndarray on the host"):
            measure(*host[:2], backend=backend())


@emulated
@pytest.mark.parametrize("function", [hr.exact_attention, hr.hyper_attention])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_refused_on_the_device(function, bad):
    host = heads(6, 6)
    for place, name in enumerate(("query", "key", "value")):
        broken = [x.copy() for x in host]
        broken[place][0, 3, 1] = bad
        with pytest.raises(ValueError, match=f"{name} has non-finite entries"):
            function(*on_device(*broken), backend=backend())


@emulated
@pytest.mark.parametrize("min_seq_len", [None, 16, 64])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e30])
def test_a_single_bad_entry_anywhere_is_refused(bad, storage, min_seq_len):
    """Also in the queries and keys that a causal plan does not hash."""
    causal = {"is_causal": True, "min_seq_len": min_seq_len} if min_seq_len else {}
    for name in ("query", "key"):
        for place in ((0, 0, 0), (1, 39, 15), (0, 20, 7)):
            broken = dict(zip(("query", "key", "value"), heads(40, 40, d=16, d_v=16), strict=True))
            other = "key" if name == "query" else "query"
            broken[name][place], broken[other][1, 3, 3] = bad, 1e9
            moved = on_device(*broken.values())
            if storage == "bfloat16":
                moved = [backend().device.upload(to_bfloat(x), storage) for x in broken.values()]
            message = "logits may overflow float32" if np.isfinite(bad) else f"{name} has non-finite entries"
            with pytest.raises(ValueError, match=message):
                hr.hyper_attention(*moved, backend=backend(), block_size=8, sample_size=4, **causal)


@emulated
def test_shapes_types_and_sizes_are_refused_as_on_the_host():
    q, k, v = heads(6, 6)
    cases = [
        ((q, k[..., :3], v), ValueError, "query has d = 8 and key has d = 3"),
        ((q, k.astype(np.float64), v), TypeError, "dtypes differ"),
        ((q.astype(np.int64), k, v), TypeError, "query has dtype int64; it must be one of float16"),
        ((q[0], k, v), ValueError, "leading shape"),
        ((1e30 * q, 1e30 * k, v), ValueError, "logits may overflow float32"),
    ]
    for arrays, error, message in cases:
        with pytest.raises(error, match=message):
            hr.exact_attention(*on_device(*arrays), backend=backend())


def test_a_backend_without_memory_is_one_of_the_host():
    assert memory_of(backends.get_backend("numpy")) is HOST
    assert row_major((2, 3, 4)) == (12, 4, 1)
