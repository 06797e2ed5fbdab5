"""How kernels are launched: on which grid, with how much shared memory, with arguments of which types."""

import re

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.backends.cuda_cpp.backend import tensor_kernel
from hyperattention_ref.backends.cuda_cpp.device import Kernel, launch

from .emulation.device import (
    SOURCES,
    DeviceWithoutKernels,
    EmulatedBackend,
    EmulatedDevice,
    missing_compiler,
    to_bfloat,
)

emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


class Recorder(DeviceWithoutKernels):
    def launch(self, kernel, blocks, args):
        self.blocks, self.args = blocks, args


def test_blocks_cover_the_rows_of_the_longest_item():
    device = Recorder()
    for rows, n, blocks in ((64, 64, 1), (64, 65, 2), (256, 65, 1), (128, 1000, 8)):
        launch(device, Kernel("some.cu", "some", rows=rows), (7, n), [])
        assert device.blocks == (7, blocks)


def test_arguments_become_the_types_of_the_kernels():
    device = Recorder()
    x = device.upload(np.zeros(3))
    launch(device, Kernel("some.cu", "some"), (1, 1), [x, None, 5, True, np.bool_(True), 0.5, np.int64(6), x.shape[0]])
    kinds = [np.uint64, np.uint64, np.int32, np.int32, np.int32, np.float64, np.int64, np.int32]
    assert [type(y) for y in device.args] == kinds
    assert [y.item() for y in device.args] == [x.pointer, 0, 5, 1, 1, 0.5, 6, 3]


def test_too_little_shared_memory_is_refused():
    device = DeviceWithoutKernels(shared_limit=48 * 1024)
    kernel = tensor_kernel("bfloat16", 256, 256, device.shared_limit())
    with pytest.raises(ValueError, match=r"attend_tensor needs 68704 bytes of shared memory, this device has 49152"):
        launch(device, kernel, (1, 1), [])
    assert device.launched == []


SCALARS = {"int": np.int32, "long long": np.int64, "double": np.float64}


def parameters(kernel) -> list[type]:
    """The types that the source of a kernel declares, an address being an unsigned number of 64 bits."""
    source = (SOURCES / kernel.file).read_text()
    (declared,) = re.findall(rf'extern "C" __global__ void[^;{{]*?\b{kernel.name}\(([^{{]*)\) {{', source)
    kinds = (" ".join(one.split()) for one in declared.split(","))
    return [np.uint64 if "*" in kind else SCALARS[kind.rpartition(" ")[0]] for kind in kinds]


class Strict(EmulatedDevice):
    """Launches what is packed as the source declares it, as a GPU would need it and would not check."""

    def launch(self, kernel, blocks, args):
        assert [type(x) for x in args] == parameters(kernel), kernel
        self.files = {*getattr(self, "files", ()), kernel.file}
        super().launch(kernel, blocks, args)


@emulated
@pytest.mark.parametrize("storage", ["float32", "float64", "bfloat16"])
def test_arguments_are_packed_as_the_kernels_declare_them(storage):
    backend = EmulatedBackend(device=Strict())
    q, k, v = np.random.default_rng(0).standard_normal((3, 40, 16))
    if storage == "bfloat16":
        q, k, v = (backend.device.upload(to_bfloat(x), storage) for x in (q, k, v))
    else:
        q, k, v = (backend.memory.from_host(x.astype(storage)) for x in (q, k, v))
    options = {"block_size": 8, "sample_size": 8, "min_seq_len": 16, "rng": 0, "backend": backend}
    for is_causal in (False, True):
        hr.exact_attention(q, k, v, is_causal=is_causal, backend=backend)
        hr.hyper_attention(q, k, v, is_causal=is_causal, **options)
    plan = hr.make_plan(q, k, recipe="centred", rng=0, backend=backend)
    hr.hyper_attention(q, k, v, plan=plan, backend=backend)
    hr.hardness(q, k, plan, backend=backend)
    hr.approx_d(q, k, None, kappa=2.0, epsilon=0.5, m=4, backend=backend)
    sums = backend.attention_sums(q, k, np.zeros((40, 40), bool), scale=0.2, is_causal=True)
    backend.transposed_attention(q, k, v, sums.log_total, scale=0.2, is_causal=True)
    everything = {path.name for path in SOURCES.glob("*.cu")}
    tensor_cores_only = {"attend_tensor.cu", "hash_tensor.cu"}
    assert backend.device.files == everything - (set() if storage == "bfloat16" else tensor_cores_only)
