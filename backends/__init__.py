"""Backends: interchangeable arithmetic for one interface.

A backend is an object with the attributes of `Backend`. It makes no decision and draws no random number: everything of
that kind is in the `Plan` it is given. Built in are

- `reference`: the definition, dense and in float64 (`reference.py`);
- `numpy`: tiles of NumPy (`blocked_numpy.py`);
- `numba`: compiled for the CPU (`numba_cpu/`), the default;
- `numba-cuda`: kernels in Python for NVIDIA GPUs (`numba_cuda/`);
- `cupy`: kernels in CUDA C++ (`cuda_cpp/`).

Other packages add theirs through the entry-point group `hyperattention_ref.backends` and prove them with
`conformance.check_backend`.
"""

from hyperattention_ref.foundation.backend import AttentionSums, Backend, each_head
from hyperattention_ref.foundation.registry import (
    ENTRY_POINT_GROUP,
    available_backends,
    backend_status,
    get_backend,
    select,
)

__all__ = [
    "ENTRY_POINT_GROUP",
    "AttentionSums",
    "Backend",
    "available_backends",
    "backend_status",
    "each_head",
    "get_backend",
    "select",
]
