"""The launcher of the backend `cupy`: what it refuses, which path it takes; on a GPU, the whole of it."""

import subprocess
import sys
import types

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.backends import cuda_launcher
from hyperattention_ref.backends.conformance import check_backend
from hyperattention_ref.backends.cuda_launcher import CudaBackend
from hyperattention_ref.backends.cuda_plan import exact_tables, plan_tables
from hyperattention_ref.backends.cupy_backend import CupyBackend
from hyperattention_ref.plan import Plan

from .cuda_emulation.battery import battery, from_bfloat, judge
from .cuda_emulation.device import EmulatedBackend, EmulatedDevice, missing_compiler

emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))
on_gpu = pytest.mark.skipif(CupyBackend().unavailable() is not None, reason=f"no GPU: {CupyBackend().unavailable()}")


class DeviceWithoutKernels(EmulatedDevice):
    """Refuses nothing and runs nothing: for what happens before a launch."""

    def launch(self, kernel, grid, threads, shared_bytes, args):
        self.launched.append(kernel.name)


def heads(device, dtype="float32", n=4, d=16, d_v=16):
    kind = np.uint16 if dtype == "bfloat16" else dtype
    return [device.upload(np.zeros((n, e), kind), dtype) for e in (d, d, d_v)]


def call(backend, arrays, **changes):
    options = {"scale": 1.0, "is_causal": False} | changes
    return backend.exact_attention(*arrays, **options)


# --- Without a GPU ---------------------------------------------------------------------------------------------------


def test_importing_the_backend_imports_neither_cupy_nor_torch(tmp_path):
    code = "import sys, hyperattention_ref.backends.cupy_backend as b; b.CupyBackend(); print('cupy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
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
    with pytest.raises(TypeError, match="query is a ndarray; device arrays are needed"):
        call(CudaBackend(DeviceWithoutKernels()), np.zeros((3, 4, 16), np.float32))


@pytest.mark.parametrize(
    ("index", "other", "error", "message"),
    [
        (1, np.zeros((4, 16)), TypeError, "key has dtype float64 and the first array float32"),
        (0, np.zeros((4, 16), np.int64), TypeError, "query has dtype int64; it must be one of float16, bfloat16"),
        (1, np.zeros((4, 8), np.float32), ValueError, "key has d = 8 and query d = 16"),
        (2, np.zeros((5, 16), np.float32), ValueError, "value has 5 rows and key 4"),
        (2, np.zeros((4, 257), np.float32), ValueError, "value has 257 columns; the CUDA kernels take at most 256"),
        (2, np.zeros((2, 4, 16), np.float32), ValueError, r"value has leading shape \(2,\)"),
        (0, np.zeros((0, 16), np.float32), ValueError, "with no empty dimension"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(index, other, error, message):
    device = DeviceWithoutKernels()
    arrays = heads(device)
    arrays[index] = device.upload(other)
    with pytest.raises(error, match=message):
        call(CudaBackend(device), arrays)
    assert device.launched == []


def test_causal_attention_of_unequal_lengths_is_refused():
    device = DeviceWithoutKernels()
    arrays = heads(device, n=4)[:1] + heads(device, n=5)[1:]
    with pytest.raises(ValueError, match="is_causal with 4 queries and 5 keys"):
        call(CudaBackend(device), arrays, is_causal=True)


def test_a_mask_of_another_shape_is_refused():
    device = DeviceWithoutKernels()
    q, k, _ = heads(device)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\); it must be \(n_q, n_k\) = \(4, 4\)"):
        CudaBackend(device).attention_sums(q, k, np.zeros((4, 5), bool), scale=1.0, is_causal=False)


def test_too_little_shared_memory_is_refused():
    device = DeviceWithoutKernels(shared_limit=48 * 1024)
    with pytest.raises(ValueError, match=r"attend_tensor needs 67840 bytes of shared memory, this device has 49152"):
        call(CudaBackend(device), heads(device, "bfloat16", d=256, d_v=256))
    assert device.launched == []


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
    arrays[1] = device.upload(np.zeros((4, 20), np.float16)[:, :16])
    with pytest.raises(ValueError, match=r"key has strides \(20, 1\)"):
        call(CudaBackend(device, "tensor"), arrays)


def test_too_many_rows_are_refused(monkeypatch):
    monkeypatch.setattr(cuda_launcher, "MAX_TILES", 2)
    device = DeviceWithoutKernels()
    with pytest.raises(ValueError, match="129 rows; the CUDA kernels take at most 128"):
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
    assert counts == [3 + 4, 3]  # where the rows of three arrays lie; sweeps, segments, indices, weights


def test_rectangles_of_a_causal_plan_run_in_waves_over_all_heads():
    q, k = np.random.default_rng(0).standard_normal((2, 3, 64, 8))
    plan = hr.make_plan(q, k, is_causal=True, min_seq_len=8, block_size=4, sample_size=4, rng=0)
    tables = plan_tables(plan)
    assert [len(wave) for wave in tables.waves] == [24, 12, 6, 3]  # 8 leaves, then 4, 2 and 1 rectangles of 3 heads
    assert sum(int(w["last"] @ w["n_q"]) for w in tables.waves) == 3 * 64  # every query is finished once
    assert sum(int(w["first"] @ w["n_q"]) for w in tables.waves) == 3 * 64


def test_exact_attention_carries_no_state():
    assert not exact_tables(12, 100, 100, True).carries


def test_an_empty_plan_still_finishes_its_queries():
    head = hr.HeadPlan(5, 6, (hr.Rectangle(5, 6),))
    (wave,) = plan_tables(Plan((), (head,))).waves
    assert wave["n_segments"].tolist() == [0]
    assert wave["last"].tolist() == [1]


@emulated
def test_results_have_the_dtypes_of_the_protocol():
    for dtype, lse_dtype in (("float16", np.float32), ("float32", np.float32), ("float64", np.float64)):
        out, lse = call(EmulatedBackend(), np.zeros((3, 4, 16), dtype))
        assert (out.dtype, lse.dtype) == (np.dtype(dtype), lse_dtype)


# --- With a GPU ------------------------------------------------------------------------------------------------------


class OnGpu(CupyBackend):
    """The backend with NumPy arrays at the outside, for the conformance suite."""

    name = "cupy on NumPy arrays"

    def hash_codes(self, x, planes):
        return super().hash_codes(self._move(x), planes).get()

    def exact_attention(self, q, k, v, **options):
        return self._back(super().exact_attention(*map(self._move, (q, k, v)), **options))

    def planned_attention(self, q, k, v, plan, **options):
        return self._back(super().planned_attention(*map(self._move, (q, k, v)), plan, **options))

    def attention_sums(self, q, k, mask, **options):
        sums = super().attention_sums(self._move(q), self._move(k), mask, **options)
        return type(sums)(**{name: x if isinstance(x, float) else x.get() for name, x in vars(sums).items()})

    def transposed_attention(self, q, k, y, lse, **options):
        return super().transposed_attention(*map(self._move, (q, k, y)), np.asarray(lse), **options).get()

    def capped_sums(self, q, k, mask, samples, log_caps, **options):
        return self._back(super().capped_sums(self._move(q), self._move(k), mask, samples, log_caps, **options))

    @staticmethod
    def _move(x):
        import cupy

        return cupy.asarray(x)

    @staticmethod
    def _back(results):
        return tuple(x.get() for x in results)


@pytest.mark.gpu
@on_gpu
def test_the_backend_conforms():
    assert check_backend(OnGpu(), max_examples=100).worst_ratio <= 1


@pytest.mark.gpu
@on_gpu
def test_tensor_cores_stay_within_the_rounding_of_bfloat16_on_the_gpu():
    torch = pytest.importorskip("torch")

    class Bfloat(CupyBackend):
        def call(self, one):
            q, k, v = (torch.from_numpy(np.array(x)).cuda().bfloat16() for x in one.arrays.values())
            if one.plan is None:
                return self.exact_attention(q, k, v, scale=one.scale, is_causal=one.is_causal)
            return self.planned_attention(q, k, v, one.plan, scale=one.scale)

    for one in battery():
        out, lse = Bfloat("tensor").call(one)
        assert out.is_cuda
        assert out.dtype == torch.bfloat16
        found = {"out": from_bfloat(out.view(torch.int16).cpu().numpy().view(np.uint16)), "lse": lse.cpu().numpy()}
        judge(one, found, "bfloat16")


@pytest.mark.gpu
@on_gpu
def test_host_arrays_are_refused_on_the_gpu():
    import cupy

    q = cupy.zeros((4, 16), cupy.float32)
    with pytest.raises(TypeError, match=r"key is a numpy\.ndarray; the backend 'cupy' needs device arrays"):
        CupyBackend().exact_attention(q, np.zeros((4, 16), np.float32), q, scale=1.0, is_causal=False)


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
