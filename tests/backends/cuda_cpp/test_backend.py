"""The launcher of the backend `cupy`: what it refuses, which path it takes; on a GPU, the whole of it."""

import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance import check_backend
from hyperattention_ref.backends.cuda_cpp import CupyBackend, backend
from hyperattention_ref.backends.cuda_cpp.backend import CudaBackend
from hyperattention_ref.foundation.memory import library_of

from .emulation.battery import battery, judge
from .emulation.device import DeviceWithoutKernels, EmulatedBackend, EmulatedDevice, missing_compiler

emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))
on_gpu = pytest.mark.skipif(CupyBackend().unavailable() is not None, reason=f"no GPU: {CupyBackend().unavailable()}")


def heads(device, dtype="float32", n=4, d=16, d_v=16):
    kind = np.uint16 if dtype == "bfloat16" else dtype
    return [device.upload(np.zeros((n, e), kind), dtype) for e in (d, d, d_v)]


def call(backend, arrays, **changes):
    options = {"scale": 1.0, "is_causal": False} | changes
    return backend.exact_attention(*arrays, **options)


# --- Without a GPU ---------------------------------------------------------------------------------------------------


def test_importing_the_backend_imports_neither_cupy_nor_torch(run_python, tmp_path):
    code = "import sys, hyperattention_ref.backends.cuda_cpp as b; b.CupyBackend(); print('cupy' in sys.modules)"
    result = run_python(code, cwd=tmp_path)
    assert result.stdout.split() == ["False"], result.stderr


def test_missing_cupy_is_a_reason_with_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "install the one for your driver" in CupyBackend().unavailable()
    with pytest.raises(ValueError, match=r"backend 'cupy' cannot run here: CuPy is not installed"):
        hr.exact_attention(*np.zeros((3, 4, 4)), backend=CupyBackend())
    with pytest.raises(RuntimeError, match=r"backend 'cupy' cannot run here: CuPy is not installed"):
        CupyBackend().hash_codes(np.zeros((4, 4)), np.zeros((2, 4)))


@pytest.mark.parametrize(("count", "reason"), [(None, "no usable NVIDIA driver"), (0, "no NVIDIA GPU"), (1, None)])
def test_missing_driver_or_gpu_is_a_reason(monkeypatch, count, reason):
    class CUDARuntimeError(RuntimeError):
        pass

    def get_device_count():
        if count is None:
            raise CUDARuntimeError("cudaErrorInsufficientDriver")
        return count

    runtime = types.SimpleNamespace(getDeviceCount=get_device_count, CUDARuntimeError=CUDARuntimeError)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    found = CupyBackend().unavailable()
    assert found is None if reason is None else reason in found


def test_unknown_path_is_refused():
    with pytest.raises(ValueError, match="path is 'fast'; it must be one of auto, portable, tensor"):
        CupyBackend(path="fast")


def test_host_arrays_are_refused():
    with pytest.raises(TypeError, match=r"query is a numpy.ndarray on the host; .* works on arrays that are on a GPU"):
        call(CudaBackend(DeviceWithoutKernels()), np.zeros((3, 4, 16), np.float32))


FUNCTIONS = {
    "exact_attention": hr.exact_attention,
    "hyper_attention": hr.hyper_attention,
    "attention_path": lambda *arrays, backend: backend.attention_path(*arrays),
}


@emulated
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("index", "other", "error", "message"),
    [
        (1, np.zeros((4, 16)), TypeError, r"dtypes differ \(query float32, key float64, value float32\)"),
        (0, np.zeros((4, 16), np.int64), TypeError, "query has dtype int64; it must be one of float16, bfloat16"),
        (1, np.zeros((4, 8), np.float32), ValueError, "query has d = 16 and key has d = 8"),
        (2, np.zeros((5, 16), np.float32), ValueError, "value has 5 rows and key has 4"),
        (2, np.zeros((2, 4, 16), np.float32), ValueError, r"query has leading shape \(\) and value has \(2,\)"),
        (0, np.zeros((0, 16), np.float32), ValueError, "with no empty dimension"),
        (0, np.zeros(16, np.float32), ValueError, r"query has shape \(16,\); it must be \(..., n, d\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_runs(function, index, other, error, message):
    device = DeviceWithoutKernels()
    arrays = heads(device)
    arrays[index] = device.upload(other)
    with pytest.raises(error, match=message):
        FUNCTIONS[function](*arrays, backend=EmulatedBackend(device=device))
    assert device.launched == []


def test_too_many_columns_of_values_are_refused():
    device = DeviceWithoutKernels()
    with pytest.raises(ValueError, match="value has 257 columns; the CUDA kernels take at most 256"):
        call(CudaBackend(device), heads(device, d_v=257))
    q, k, _ = heads(device)
    with pytest.raises(ValueError, match="y has 257 columns; the CUDA kernels take at most 256"):
        CudaBackend(device).transposed_attention(
            q, k, heads(device, d_v=257)[2], np.zeros(4), scale=1.0, is_causal=False
        )


@emulated
@pytest.mark.parametrize("function", [hr.exact_attention, hr.hyper_attention])
def test_causal_attention_of_unequal_lengths_is_refused(function):
    device = DeviceWithoutKernels()
    arrays = heads(device, n=4)[:1] + heads(device, n=5)[1:]
    with pytest.raises(ValueError, match="is_causal with 4 queries and 5 keys"):
        function(*arrays, is_causal=True, backend=EmulatedBackend(device=device))
    assert device.launched == []


MASKED = {
    "hardness": lambda q, k, mask, backend: hr.hardness(q, k, mask, backend=backend),
    "approx_d": lambda q, k, mask, backend: hr.approx_d(q, k, mask, kappa=2.0, epsilon=0.5, m=4, backend=backend),
}


@emulated
@pytest.mark.parametrize("function", MASKED)
@pytest.mark.parametrize("mask", [np.zeros((4, 5), bool), hr.Rectangle(4, 5)], ids=["dense", "rectangle"])
def test_a_mask_of_another_shape_is_refused(function, mask):
    device = DeviceWithoutKernels()
    q, k, _ = heads(device)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\); it must be"):
        MASKED[function](q, k, mask, EmulatedBackend(device=device))
    assert not {"row_sums", "capped_sums"} & set(device.launched)


@pytest.mark.parametrize(
    ("path", "dtype", "d", "capability", "kernel"),
    [
        ("auto", "bfloat16", 64, 90, "attend_tensor"),
        ("auto", "bfloat16", 64, 75, "attend"),
        ("auto", "bfloat16", 20, 90, "attend"),
        ("auto", "float16", 64, 90, "attend"),
        ("auto", "float32", 64, 90, "attend"),
        ("portable", "bfloat16", 64, 90, "attend"),
        ("tensor", "float16", 64, 80, "attend_tensor"),
    ],
)
def test_which_path_runs(path, dtype, d, capability, kernel):
    device = DeviceWithoutKernels(capability=capability)
    call(CudaBackend(device, path), heads(device, dtype, d=d, d_v=d))
    assert device.launched == [kernel]


@pytest.mark.parametrize(
    ("arrays", "capability", "message"),
    [
        ({"dtype": "float32"}, 90, "query has dtype float32; float16 or bfloat16 is needed"),
        ({"dtype": "bfloat16"}, 75, "compute capability 7.5; 8.0 is needed"),
        ({"dtype": "bfloat16", "d": 20}, 90, "query has d = 20; a multiple of 8 from 16 to 256"),
        ({"dtype": "bfloat16", "d_v": 8}, 90, "value has d = 8"),
    ],
)
def test_tensor_cores_are_refused_where_they_cannot_run(arrays, capability, message):
    device = DeviceWithoutKernels(capability=capability)
    with pytest.raises(ValueError, match=f"path='tensor' is impossible: .*{message}"):
        call(CudaBackend(device, "tensor"), heads(device, **arrays))


def test_strides_that_tensor_cores_cannot_take_are_refused():
    device = DeviceWithoutKernels()
    arrays = heads(device, "float16")
    arrays[1] = device.upload_view(np.zeros((4, 20), np.float16)[:, :16])
    with pytest.raises(ValueError, match=r"key has strides \(20, 1\)"):
        call(CudaBackend(device, "tensor"), arrays)


def test_too_many_rows_of_all_heads_are_refused():
    device = DeviceWithoutKernels()
    arrays = [replace(x, shape=(2**20, 4096, 16), strides=(0, 0, 1)) for x in heads(device)]
    with pytest.raises(ValueError, match=r"query has shape \(1048576, 4096, 16\), over 2147483647 rows; pass fewer"):
        call(CudaBackend(device), arrays)


def test_arrays_on_several_devices_are_refused():
    device = DeviceWithoutKernels()
    q, k, v = heads(device)
    with pytest.raises(ValueError, match=r"the devices differ \(query 0, key 1, value 0\).*move the arrays to one"):
        call(CudaBackend(device), [q, replace(k, device=1), v])


def test_too_many_rows_are_refused(monkeypatch):
    monkeypatch.setattr(backend, "MAX_LENGTH", 128)
    device = DeviceWithoutKernels()
    with pytest.raises(ValueError, match="query has 129 rows; the CUDA kernels take at most 128"):
        call(CudaBackend(device), heads(device, n=129))


def test_the_tables_of_a_plan_are_uploaded_once():
    device = DeviceWithoutKernels()
    uploaded = []
    device.upload = lambda x, dtype=None: uploaded.append(x.nbytes) or EmulatedDevice.upload(device, x, dtype)
    q, k = np.random.default_rng(0).standard_normal((2, 64, 16)).astype(np.float32)
    plan = hr.make_plan(q, k, block_size=16, sample_size=8, rng=0)
    backend = CudaBackend(device)
    arrays = heads(device, n=64)
    counts = []
    for _ in range(2):
        uploaded.clear()
        backend.planned_attention(*arrays, plan, scale=1.0)
        counts.append(len(uploaded))
    assert counts == [1 + 4, 0]  # where rows lie, the same for three arrays; sweeps, segments, indices, weights


@emulated
def test_results_have_the_dtypes_of_the_protocol():
    backend = EmulatedBackend()
    for dtype, lse_dtype in (("float16", np.float32), ("float32", np.float32), ("float64", np.float64)):
        out, lse = call(backend, [backend.memory.from_host(x) for x in np.zeros((3, 4, 16), dtype)])
        assert (out.dtype, lse.dtype) == (np.dtype(dtype), lse_dtype)


@pytest.mark.parametrize(
    ("path", "dtype", "d", "found", "reason"),
    [
        ("auto", "bfloat16", 64, "tensor", None),
        ("auto", "bfloat16", 20, "portable", "query has d = 20; a multiple of 8 from 16 to 256 is needed"),
        ("auto", "float16", 64, "portable", "path='auto' takes tensor cores for bfloat16 only"),
        ("portable", "bfloat16", 64, "portable", "path='portable' was asked for"),
        ("tensor", "float16", 64, "tensor", None),
    ],
)
def test_the_backend_tells_which_kernels_run_and_why(path, dtype, d, found, reason):
    device = DeviceWithoutKernels()
    told = CudaBackend(device, path).attention_path(*heads(device, dtype, d=d, d_v=d))
    assert told.path == found
    assert told.reason is None if reason is None else reason in told.reason


class Ledger(DeviceWithoutKernels):
    """Records how much memory is allocated, and allocates none."""

    def __init__(self):
        super().__init__()
        self.results = self.scratch = 0

    def empty(self, shape, dtype, like=None):
        entry = np.zeros(1, np.uint16 if dtype == "bfloat16" else dtype)
        if like is None:
            self.scratch += math.prod(shape) * entry.itemsize
        else:
            self.results += math.prod(shape) * entry.itemsize
        kept = np.broadcast_to(entry, shape)
        return replace(self.upload(entry, dtype), owner=kept, shape=shape, strides=(0,) * len(shape))

    def fill(self, x, values):
        pass


@pytest.mark.parametrize(("is_causal", "most"), [(False, 0.10), (True, 0.60)])
def test_memory_beside_inputs_and_output_of_a_long_call(is_causal, most):
    device = Ledger()
    x = replace(heads(device, "bfloat16")[0], shape=(12, 131072, 64), strides=(131072 * 64, 64, 1))
    hr.hyper_attention(x, x, x, is_causal=is_causal, rng=0, backend=EmulatedBackend(device=device))
    output = 12 * 131072 * 64 * 2
    assert device.results == output + 12 * 131072 * 4
    assert device.scratch + device.results - output <= most * 4 * output


# --- With a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
def test_the_backend_conforms():
    assert check_backend("cupy", max_examples=100).worst_ratio <= 1


@pytest.mark.gpu
@on_gpu
def test_tensor_cores_stay_within_the_rounding_of_bfloat16_on_the_gpu():
    torch = pytest.importorskip("torch")
    backend = CupyBackend("tensor")
    for one in battery():
        q, k, v = (torch.from_numpy(np.array(x)).cuda().bfloat16() for x in one.arrays.values())
        out, lse = replace(one, query=q, key=k, value=v).call(backend).values()
        assert out.is_cuda
        assert out.dtype == torch.bfloat16
        judge(one, {"out": out.float().cpu().numpy(), "lse": lse.cpu().numpy()}, "bfloat16")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("kind", ["cupy", "torch", "numba"])
def test_arrays_of_every_library_come_back_as_such(kind):
    move = {
        "cupy": lambda x: pytest.importorskip("cupy").asarray(x),
        "torch": lambda x: pytest.importorskip("torch").from_numpy(x).cuda(),
        "numba": lambda x: pytest.importorskip("numba.cuda").to_device(x),
    }[kind]
    host = np.random.default_rng(0).standard_normal((3, 2, 300, 32)).astype(np.float32)
    arrays = [move(x) for x in host]
    for is_causal in (False, True):
        options = {"is_causal": is_causal, "block_size": 32, "sample_size": 32, "min_seq_len": 64, "rng": 0}
        out, lse = hr.hyper_attention(*arrays, backend="cupy", return_lse=True, **options)
        assert {library_of(x) for x in (out, lse)} == {kind}
        found = CupyBackend().memory.to_host(out)
        np.testing.assert_allclose(found, hr.hyper_attention(*host, **options), atol=1e-5)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("is_causal", [False, True])
def test_noise_and_plan_give_the_same_bits_at_length(is_causal):
    cupy = pytest.importorskip("cupy")
    q, k, v = cupy.random.default_rng(0).standard_normal((3, 3, 20000, 64), dtype=cupy.float32)
    options = {"is_causal": is_causal, "backend": "cupy", "rng": 0}
    plan = hr.make_plan(q, k, **options)
    drawn = hr.hyper_attention(q, k, v, **options)
    assert (drawn == hr.hyper_attention(q, k, v, plan=plan, is_causal=is_causal, backend="cupy")).all()


@pytest.mark.gpu
@on_gpu
def test_measures_and_literal_algorithms_agree_with_the_host():
    cupy = pytest.importorskip("cupy")
    host = np.random.default_rng(0).standard_normal((3, 700, 32)).astype(np.float32)
    q, k, v = map(cupy.asarray, host)
    for is_causal in (False, True):
        found, expected = (
            hr.hardness(*x, is_causal=is_causal, rng=0, backend=b) for x, b in (((q, k), "cupy"), (host[:2], None))
        )
        for name in ("alpha", "log_kappa", "log_kappa_rescaled", "op_norm", "frobenius_norm"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4)
    mask = hr.sort_lsh(q, k, 32, rng=0, backend="cupy")
    options = {"kappa": 5.0, "epsilon": 0.5, "m": 100, "scale": 0.2, "rng": 0}
    found = hr.literal_hyper_attention(q, k, v, mask, backend="cupy", **options)
    np.testing.assert_allclose(found.estimate, hr.literal_hyper_attention(*host, mask, **options).estimate, atol=1e-9)


@pytest.mark.gpu
@on_gpu
def test_work_goes_to_the_current_stream_of_torch():
    torch = pytest.importorskip("torch")
    q, k, v = torch.randn(3, 2, 300, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    expected, _ = CupyBackend().exact_attention(q, k, v, scale=0.125, is_causal=True)
    with torch.cuda.stream(torch.cuda.Stream()):
        late = q.clone()
        found, _ = CupyBackend().exact_attention(late, k, v, scale=0.125, is_causal=True)
        late.zero_()
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
