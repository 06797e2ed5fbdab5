"""NVIDIA's compiler takes every variant of the CUDA kernels, for every generation, and spills no register.

It needs no GPU, but NVRTC: `pip install cuda-bindings nvidia-cuda-nvrtc==13.0.*`.
"""

import re
from pathlib import Path

import pytest

from hyperattention_ref.backends.cuda_cpp import footprint
from hyperattention_ref.backends.cuda_cpp.backend import tensor_kernel
from hyperattention_ref.backends.cuda_cpp.device import Kernel
from hyperattention_ref.backends.cuda_cpp.footprint import (
    SHARED,
    SORTING,
    compile_kernel,
    portable_kernels,
    tensor_kernels,
)
from hyperattention_ref.backends.cuda_cpp.sort_lsh import tensor_hash_kernel

PAGE = Path(__file__).parents[3] / "docs" / "gpu_cuda.md"


def nvrtc_version():
    """(major, minor), or the reason why there is none."""
    try:
        from cuda.bindings import nvrtc

        return nvrtc.nvrtcVersion()[1:]
    except (ImportError, RuntimeError) as error:
        return f"NVRTC is missing ({error}); pip install cuda-bindings nvidia-cuda-nvrtc==13.0.*"


VERSION = nvrtc_version()
pytestmark = pytest.mark.skipif(isinstance(VERSION, str), reason=str(VERSION))

PORTABLE = [*portable_kernels("float32"), *portable_kernels("float64"), *portable_kernels("bfloat16")[:9], *SORTING]
HALVES = [tensor_kernel("float16", 64, 64, SHARED), *(tensor_hash_kernel("float16", d) for d in (64, 128))]
TENSOR = [*tensor_kernels("bfloat16"), *HALVES]
QUICK = [
    *(kernel for kernel in portable_kernels("float32") if not kernel.defines[1:] or "WIDTH=64" in kernel.defines),
    *SORTING,
    tensor_kernel("bfloat16", 64, 64, SHARED),
    tensor_hash_kernel("bfloat16", 64),
]


def label(kernel):
    return "-".join([kernel.name, *kernel.defines])


def assert_lean(kernel, architecture):
    found = compile_kernel(kernel, architecture)
    assert 0 < found.registers <= 255
    assert found.spilled_bytes == 0, f"{kernel} for {architecture} spills {found.spilled_bytes} bytes"


@pytest.mark.parametrize("kernel", QUICK, ids=label)
def test_the_usual_variants_compile_without_spilling(kernel):
    assert_lean(kernel, "sm_90a")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90a", "sm_100", "sm_120"])
@pytest.mark.parametrize("kernel", PORTABLE, ids=label)
def test_portable_variants_compile_without_spilling(kernel, architecture):
    assert_lean(kernel, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100", "sm_120"])
@pytest.mark.parametrize("kernel", TENSOR, ids=label)
def test_tensor_variants_compile_without_spilling(kernel, architecture):
    assert_lean(kernel, architecture)


def test_what_does_not_compile_says_why():
    with pytest.raises(
        RuntimeError, match=r"for sm_90a: NVRTC_ERROR_COMPILATION\n.*identifier \"nothing\" is undefined"
    ):
        compile_kernel(Kernel("attend.cu", "attend", ("STORAGE=nothing", "WIDTH=16")), "sm_90a")


def test_spilling_is_seen(tmp_path, monkeypatch):
    """A kernel held to 32 registers spills, and the report says so."""
    for path in footprint.KERNELS.iterdir():
        text = path.read_text()
        (tmp_path / path.name).write_text(
            re.sub(r"__launch_bounds__\(THREADS, .*\)", "__launch_bounds__(256, 8)", text)
        )
    monkeypatch.setattr(footprint, "KERNELS", tmp_path)
    kernel = next(kernel for kernel in portable_kernels("float32") if kernel.name == "attend")
    found = compile_kernel(kernel, "sm_90a")
    assert found.registers == 32
    assert found.spilled_bytes > 0


@pytest.mark.slow
@pytest.mark.skipif(VERSION != (13, 0), reason=f"the table was made with NVRTC 13.0, this is {VERSION}")
def test_the_table_in_the_documentation_is_current():
    assert footprint.table("sm_90a") in PAGE.read_text(encoding="utf-8")
