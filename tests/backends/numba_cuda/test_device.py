"""The device of the backend "numba-cuda": what it says where there is none, and which arrays it refuses."""

import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from numba import cuda

import hyperattention_ref as hr
from hyperattention_ref.backends.device_array import DeviceArray
from hyperattention_ref.backends.numba_cuda.backend import NumbaCuda
from hyperattention_ref.backends.numba_cuda.device import NumbaDevice


class NoDevice(NumbaDevice):
    """A NumbaDevice up to the point at which it would need one."""

    def unavailable(self):
        return None


def described(shape=(2, 5, 3), dtype=np.float32, device=None):
    """What the backend sees of an array before it touches a device."""
    return SimpleNamespace(__cuda_array_interface__=np.empty(shape, dtype).__array_interface__, device=device)


def on(number: int):
    return described(device=SimpleNamespace(id=number))


def call(q, k, v):
    return NumbaCuda(NoDevice()).exact_attention(q, k, v, scale=1.0, is_causal=False)


# --- What it says -----------------------------------------------------------------------------------------------------


def test_reason_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "cannot be imported" in NumbaCuda().unavailable()
    assert "pip install" in NumbaCuda().unavailable()


def test_reason_in_the_simulator(monkeypatch):
    monkeypatch.setattr(numba.config, "ENABLE_CUDASIM", 1)
    assert "unset it" in NumbaCuda().unavailable()


def test_reason_without_the_package(monkeypatch):
    monkeypatch.setattr(cuda, "implementation", "Built-in")
    assert "numba-cuda is missing" in NumbaCuda().unavailable()
    assert "pip install" in NumbaCuda().unavailable()


def test_reason_without_a_driver(monkeypatch):
    monkeypatch.setattr(cuda, "implementation", "NVIDIA")
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "cuda_error", lambda: "Error at driver init:\n\nno library:")
    assert "(Error at driver init: no library)" in NumbaCuda().unavailable()
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    assert NumbaCuda().unavailable() is None


def test_every_call_says_why_there_is_no_device(monkeypatch):
    monkeypatch.setattr(NumbaDevice, "unavailable", lambda self: "the reason")
    q = k = v = y = described()
    both = {"scale": 1.0, "is_causal": False}
    calls = [
        lambda backend: backend.hash_codes(q, np.eye(3)),
        lambda backend: backend.exact_attention(q, k, v, **both),
        lambda backend: backend.planned_attention(q, k, v, None, scale=1.0),
        lambda backend: backend.attention_sums(q, k, None, **both),
        lambda backend: backend.transposed_attention(q, k, y, None, **both),
        lambda backend: backend.capped_sums(q, k, None, None, None, scale=1.0),
        lambda backend: backend.memory.view("query", q),
        lambda backend: backend.memory.to_host(q),
    ]
    assert NumbaCuda().unavailable() == "the reason"
    for operation in calls:
        with pytest.raises(RuntimeError, match="'numba-cuda' cannot run here: the reason"):
            operation(NumbaCuda())


# --- What it refuses --------------------------------------------------------------------------------------------------


def test_host_arrays_are_refused_with_the_remedy():
    message = r"query is a numpy.ndarray on the host; the backend 'numba-cuda' works on arrays .*pass cupy.asarray"
    with pytest.raises(TypeError, match=message):
        call(np.zeros((2, 5, 3)), described(), described())
    with pytest.raises(TypeError, match=message):
        hr.exact_attention(*np.zeros((3, 5, 3)), backend=NumbaCuda(NoDevice()))
    q = described((5, 3))
    with pytest.raises(TypeError, match=r"y is a numpy\.ndarray on the host"):
        NumbaCuda(NoDevice()).transposed_attention(q, q, np.zeros((5, 2)), np.zeros(5), scale=1.0, is_causal=False)


def test_mixed_types_are_refused():
    with pytest.raises(TypeError, match=r"dtypes differ \(query float32, key float64, value float32\); all must be"):
        call(described(), described(dtype=np.float64), described())


@pytest.mark.parametrize("dtype", [np.int32, "V2"])  # JAX describes bfloat16 as two bytes of no type
def test_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match="it must be one of float16, float32, float64: convert it"):
        call(*[described(dtype=dtype)] * 3)


def test_bfloat16_is_refused_with_the_remedy():
    x = DeviceArray(None, 0, "bfloat16", (4, 3), (3, 1), 0)
    with pytest.raises(TypeError, match=r"query has dtype bfloat16; .* use the backend 'cupy', or convert it to "):
        call(x, x, x)
    with pytest.raises(TypeError, match="x has dtype bfloat16"):
        NumbaCuda(NoDevice()).memory.view("x", x)


def test_mixed_devices_are_refused():
    message = r"the devices differ \(query 0, key 1, value 0\); all must be the same: move the arrays to one"
    with pytest.raises(ValueError, match=message):
        call(on(0), on(1), on(0))


def test_another_device_than_the_current_one_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "get_current_device", lambda: SimpleNamespace(id=0))
    message = "arrays are on device 1, and the current device of Numba is 0: call numba.cuda.select_device"
    with pytest.raises(ValueError, match=message):
        call(on(1), on(1), on(1))
    memory = NumbaCuda(NoDevice()).memory
    with pytest.raises(ValueError, match=message):
        memory.copy(memory.view("x", on(1)), "float64")
    with pytest.raises(ValueError, match=r"the devices differ \(query 0, key 1, value 0\)"):
        hr.exact_attention(on(0), on(1), on(0), backend=NumbaCuda(NoDevice()))
