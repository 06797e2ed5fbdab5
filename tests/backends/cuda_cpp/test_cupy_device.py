"""CuPy itself, without a GPU: the backend imports, says why it cannot run, and uses what this CuPy has."""

import inspect
import re

import ml_dtypes
import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.backends.cuda_cpp import CupyBackend, cupy_device
from hyperattention_ref.backends.cuda_cpp.cupy_device import _as_cupy
from hyperattention_ref.backends.device_array import DeviceArray, device_view

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: run `make cuda`")
without_gpu = pytest.mark.skipif(CupyBackend().unavailable() is None, reason="there is a GPU: the tests marked gpu run")

HOST = np.zeros((4, 6), np.float32)


def in_no_memory(shape=(3, 4), strides=(16, 4), dtype=np.float32):
    """A CuPy array at some address, which must not be read."""
    memory = cupy.cuda.UnownedMemory(4096, 4096, None, 0)
    return cupy.ndarray(shape, dtype, memptr=cupy.cuda.MemoryPointer(memory, 256), strides=strides)


@without_gpu
def test_the_reason_names_what_is_missing_and_every_call_gives_it():
    assert re.search("driver|NVIDIA GPU", CupyBackend().unavailable())
    with pytest.raises(ValueError, match=r"backend 'cupy' cannot run here: .*; available: .*numba"):
        hr.exact_attention(HOST, HOST, HOST, backend="cupy")
    with pytest.raises(ValueError, match="backend 'cupy' cannot run here"):
        hr.hyper_attention(in_no_memory(), in_no_memory(), in_no_memory())
    with pytest.raises(RuntimeError, match="backend 'cupy' cannot run here"):
        CupyBackend().exact_attention(HOST, HOST, HOST, scale=1.0, is_causal=False)


@without_gpu
def test_importing_cupy_and_asking_for_the_backends_needs_no_gpu(run_python):
    code = "import cupy, hyperattention_ref as hr; print(hr.backend_status()['cupy'] is None)"
    result = run_python(code)
    assert result.stdout.split() == ["False"], result.stderr


def test_arrays_are_read_where_they_lie():
    view = device_view("x", in_no_memory(strides=(4, 16)), "cupy")
    assert (view.pointer, view.dtype, view.shape, view.strides, view.device) == (4352, "float32", (3, 4), (1, 4), 0)


def test_views_become_arrays_of_cupy_at_their_address():
    x = DeviceArray(object(), 4352, "float32", (2, 3), (-4, 0), 0)
    found = _as_cupy(x, "float32")
    assert (found.data.ptr, found.shape, found.strides, found.dtype) == (4352, (2, 3), (-16, 0), np.float32)


def test_this_cupy_has_all_names_that_the_backend_uses():
    source = inspect.getsource(cupy_device)
    names = set(re.findall(r"\bcupy((?:\.\w+)+)", source)) | set(re.findall(r"\bruntime(\.\w+)", source))
    for name in names - {".asarray", ".ndarray"}:
        place = cupy.cuda.runtime if hasattr(cupy.cuda.runtime, name[1:]) else cupy
        for part in name[1:].split("."):
            place = getattr(place, part)
    assert all(hasattr(cupy.RawKernel, x) for x in ("compile", "max_dynamic_shared_size_bytes"))


def test_bfloat16_of_ml_dtypes_is_known_by_name():
    x = in_no_memory(strides=(8, 2), dtype=ml_dtypes.bfloat16)
    assert device_view("x", x, "cupy").dtype == "bfloat16"
