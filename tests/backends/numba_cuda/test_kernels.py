"""Every Numba CUDA kernel compiles for every generation of devices and in the precision that is meant.

It needs no device and no driver, but the compiler that comes with numba-cuda.
"""

import contextlib
import functools
import inspect
import re
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
from numba import cuda, typeof
from numba.cuda import dispatcher

from hyperattention_ref.backends.device_array import DeviceArray
from hyperattention_ref.backends.numba_cuda import kernels
from hyperattention_ref.backends.numba_cuda.backend import NumbaCuda
from hyperattention_ref.backends.numba_cuda.device import NumbaDevice, Queue
from hyperattention_ref.backends.numba_cuda.memory import NumbaMemory
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan

REMEDY = "install it with: pip install '.[cuda]'"
pytest.importorskip("numba_cuda", reason=f"the package numba-cuda is missing; {REMEDY}")
pathfinder = pytest.importorskip("cuda.pathfinder")  # numba-cuda requires it
for library in ("nvvm", "nvrtc"):
    try:
        pathfinder.load_nvidia_dynamic_lib(library)
    except pathfinder.DynamicLibNotFoundError:
        pytest.skip(f"the CUDA library {library} is missing; {REMEDY}", allow_module_level=True)

CAPABILITIES = [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)]
DTYPES = [np.float16, np.float32, np.float64]
SOURCE = inspect.getsource(kernels)
KERNELS = re.findall(r"@cuda\.jit\ndef (\w+)", SOURCE)


@dataclass(frozen=True)
class Recorder(Queue):
    """A queue that only notes with which types the kernels would be launched, the first time."""

    signatures: dict = field(default_factory=dict)

    def empty(self, shape, dtype):
        return on_device(np.zeros(shape, dtype))

    def upload(self, x):
        return on_device(np.ascontiguousarray(x))

    def download(self, x):
        return host_array(x)

    def launch(self, name, n_blocks, *args):
        argument_types = tuple(typeof(host_array(x) if isinstance(x, DeviceArray) else x) for x in args)
        self.signatures.setdefault(name, argument_types)


class RecordingDevice(NumbaDevice):
    """A device that is always there, and whose queues record the types of arguments."""

    def __init__(self):
        super().__init__()
        self.signatures: dict[str, tuple] = {}

    def unavailable(self):
        return None

    @contextlib.contextmanager
    def queue(self, *arrays):
        yield Recorder(self.kernels, signatures=self.signatures)


def on_device(x: np.ndarray) -> DeviceArray:
    """Memory of the host that would be on the device."""
    strides = tuple(stride // x.itemsize for stride in x.strides)
    return DeviceArray(x, x.ctypes.data, x.dtype.name, x.shape, strides)


def host_array(x: DeviceArray) -> np.ndarray:
    return np.asarray(types.SimpleNamespace(__array_interface__=x.__cuda_array_interface__, owner=x))


@functools.cache
def signatures(dtype) -> dict:
    """The argument types of each kernel, as the backend launches it for inputs of this dtype with any strides."""
    q, k, v, y = (on_device(np.ones((2 * n, d), dtype)[::2]) for n, d in ((5, 3), (4, 3), (4, 2), (5, 2)))
    row = on_device(np.ones(5, np.promote_types(dtype, np.float32)))
    rectangle = Rectangle(5, 4, exact_keys=[1], sampled_keys=[0], log_weights=[0.0])
    backend = NumbaCuda(RecordingDevice())
    backend.planned_attention(q, k, v, Plan((), (HeadPlan(5, 4, (rectangle,)),)), scale=1.0)
    backend.attention_sums(q, k, rectangle, scale=1.0, is_causal=False)
    backend.transposed_attention(q, k, y, row, scale=1.0, is_causal=False)
    backend.capped_sums(q, k, rectangle, np.zeros(6, np.int64), row, scale=1.0)
    backend.hash_codes(q, np.ones((2, 3)))
    backend.memory.largest({"query": q})
    backend.memory.centred(q)
    return backend.device.signatures


@pytest.fixture(autouse=True)
def any_device(monkeypatch):
    """Numba asks the current device what to type device functions for; the code it makes of them is for all."""
    oldest = types.SimpleNamespace(compute_capability=CAPABILITIES[0])
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: oldest)


def ptx_of(kernel, signature, capability) -> str:
    ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=capability)
    return ptx


def float64_instructions(ptx: str) -> list[str]:
    return [line for line in ptx.splitlines() if re.search(r"^\s.*\.f64\b", line)]


def case(name, dtype, capability):
    """The default run takes float32, for the oldest and the newest device."""
    is_default = dtype == np.float32 and capability in (CAPABILITIES[0], CAPABILITIES[-1])
    marks = [] if is_default else [pytest.mark.slow]
    return pytest.param(name, dtype, capability, marks=marks, id=f"{name}-{np.dtype(dtype)}-{capability}")


@pytest.mark.parametrize(
    ("name", "dtype", "capability"),
    [case(name, dtype, cc) for dtype in DTYPES for cc in CAPABILITIES for name in KERNELS],
)
def test_kernel_compiles(name, dtype, capability):
    ptx = ptx_of(getattr(kernels, name), signatures(dtype)[name], capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    assert ".entry" in ptx
    assert ".local" not in ptx  # nothing spills to memory that only looks local
    if dtype != np.float64:
        assert not float64_instructions(ptx)


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", ["float16", "float64"])
def test_rows_are_converted_from_and_to_every_type(source, target):
    device = RecordingDevice()
    NumbaMemory(device).copy(on_device(np.ones((5, 6), source)[:, ::2]), target, rows=np.arange(2))
    ptx = ptx_of(kernels.convert, device.signatures["convert"], CAPABILITIES[0])
    assert ".local" not in ptx
    if np.float64 not in (source, np.dtype(target)):
        assert not float64_instructions(ptx)


def test_the_operations_launch_every_kernel():
    assert set(signatures(np.float32)) == set(KERNELS)


def test_a_python_literal_would_be_found():
    planted = types.ModuleType("planted")
    exec(
        compile(SOURCE.replace("            total = real(0)", "            total = 0.0"), "planted", "exec"),
        vars(planted),
    )
    assert float64_instructions(ptx_of(planted.attend, signatures(np.float32)["attend"], CAPABILITIES[0]))
