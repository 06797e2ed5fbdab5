"""Compile the CUDA kernels without a GPU, and report their registers and spilled bytes.

    python -m hyperattention_ref.backends.cuda_cpp.footprint sm_90a

prints a table. It needs NVRTC alone: `pip install cuda-bindings nvidia-cuda-nvrtc==13.0.*`. (Newer releases of NVRTC
write PTX that a driver of CUDA 13.0 does not load; the cubins judged here do not depend on it.)
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from .backend import tensor_kernel
from .device import KERNELS, STORAGE, Kernel
from .sort_lsh import tensor_hash_kernel

WIDTHS = (16, 32, 64, 128, 256)
SORTING = tuple(Kernel("sort.cu", name) for name in ("count_digits", "scan_digits", "place_rows"))
SHARED = 232_448  # bytes that a block may have on an H200
HEADS = ((16, 16), (64, 64), (64, 128), (128, 128), (256, 16), (192, 192), (256, 256))
HASHED = (16, 64, 96, 128, 256)


@dataclass(frozen=True)
class Footprint:
    """What a compiled kernel needs: registers of a thread, and bytes that do not fit into them.

    An array that a thread indexes by run-time values does not fit either: it is in its stack frame.
    """

    kernel: Kernel
    registers: int
    spilled_bytes: int


def portable_kernels(storage: str) -> list[Kernel]:
    """Every variant of the kernels that run on any GPU, for arrays of one dtype; `SORTING` are for all."""
    macro = f"STORAGE={STORAGE[storage]}"
    fixed = [("hash.cu", "hash_codes"), ("row_sums.cu", "row_sums"), ("capped_sums.cu", "capped_sums")]
    fixed.append(("largest.cu", "largest"))
    wide = [("attend.cu", "attend"), ("columns.cu", "transposed")]
    return [
        *(Kernel(file, name, (macro,)) for file, name in fixed),
        Kernel("columns.cu", "column_sums", (macro, "WIDTH=16")),
        *(Kernel("convert.cu", "convert", (macro, f"TARGET={target}")) for target in STORAGE.values()),
        *(Kernel(file, name, (macro, f"WIDTH={width}")) for file, name in wide for width in WIDTHS),
    ]


def tensor_kernels(storage: str) -> list[Kernel]:
    """The kernels for tensor cores at some head dimensions; to attend also as GPUs with little shared memory do."""
    large = [tensor_kernel(storage, d, d_v, shared_limit=SHARED) for d, d_v in HEADS]
    small = [tensor_kernel(storage, d, d_v, shared_limit=0) for d, d_v in HEADS[1:4]]
    return [*large, *small, *(tensor_hash_kernel(storage, d) for d in HASHED)]


def compile_kernel(kernel: Kernel, architecture: str) -> Footprint:
    """Compile for a real architecture such as "sm_90a"; a RuntimeError with the compiler's message if it refuses.

    NVRTC then also assembles the machine code, so that ptxas can be asked for registers and spills.
    """
    from cuda.bindings import nvrtc

    def check(result, *values):
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"{kernel} for {architecture}: {result.name}\n{log()}")
        return values[0] if values else None

    def log() -> str:
        text = b" " * check(*nvrtc.nvrtcGetProgramLogSize(program))
        check(*nvrtc.nvrtcGetProgramLog(program, text))
        return text.decode().rstrip("\0 ")

    source = (KERNELS / kernel.file).read_bytes()
    program = check(*nvrtc.nvrtcCreateProgram(source, kernel.file.encode(), 0, [], []))
    options = [f"-arch={architecture}", "-std=c++17", f"-I{KERNELS}", "-ftz=true", "--ptxas-options=-v"]  # as CuPy does
    options += [f"-D{macro}" for macro in kernel.macros]
    check(*nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
    report = log()
    check(*nvrtc.nvrtcDestroyProgram(program))
    return _footprint(kernel, report)


def _footprint(kernel: Kernel, report: str) -> Footprint:
    """Out of what ptxas -v says of each function of the file."""
    for part in report.split("Compiling entry function")[1:]:
        if part.lstrip().startswith(f"'{kernel.name}'"):
            spilled = re.findall(r"(\d+) bytes (?:spill|stack frame)", part)
            (registers,) = re.findall(r"Used (\d+) registers", part)
            return Footprint(kernel, int(registers), sum(map(int, spilled)))
    raise RuntimeError(f"ptxas reports nothing about {kernel}:\n{report}")


def table(architecture: str) -> str:
    """Markdown: the kernels for float32 and float64, for bfloat16 on tensor cores, and for sorting."""
    kernels = portable_kernels("float32") + portable_kernels("float64") + tensor_kernels("bfloat16") + list(SORTING)
    lines = ["| kernel | variant | registers | spilled bytes |", "|---|---|---|---|"]
    for kernel in kernels:
        found = compile_kernel(kernel, architecture)
        variant = ", ".join(define.replace("=", " ") for define in kernel.defines)
        lines.append(f"| `{kernel.name}` | {variant or 'all'} | {found.registers} | {found.spilled_bytes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(*sys.argv[1:]))
