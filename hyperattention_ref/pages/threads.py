"""One number of threads for every library, so that times can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any


def available_cores() -> int:
    """Cores that this process may use, and Numba with it: its threads are limited by NUMBA_NUM_THREADS."""
    from numba import config

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Give NumPy's BLAS, Numba and Torch so many threads each, and what they had before afterwards."""
    import numba
    from threadpoolctl import threadpool_limits

    libraries: list[Any] = [numba]
    if find_spec("torch"):
        import torch  # before any limit is set: loaded afterwards, its attention takes five times as long

        libraries.append(torch)
    with threadpool_limits(threads), ExitStack() as stack:
        for library in libraries:
            stack.callback(library.set_num_threads, library.get_num_threads())
            library.set_num_threads(threads)
        yield
