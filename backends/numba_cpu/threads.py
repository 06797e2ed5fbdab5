"""The threads of the numba backend: how many there are, the pieces of work for them, and the pool that runs these."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

PIECES = 8
"""Pieces of work for each thread: enough that a slow piece at the end costs little."""


def n_threads() -> int:
    """What `numba.set_num_threads` or NUMBA_NUM_THREADS says, but no more than the cores this process may use."""
    from numba import config
    from numba.np.ufunc import parallel

    # get_num_threads would start Numba's own threads if they are not running yet
    is_started = parallel._is_initialized
    wanted = parallel.get_num_threads() if is_started else config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted, cores))


def pieces(n: int, *, multiple: int = 64, at_most: int | None = None) -> list[tuple[int, int]]:
    """(first, stop) of consecutive pieces of range(n), in multiples of a tile."""
    size = -(-n // (n_threads() * PIECES * multiple)) * multiple
    size = max(multiple, min(size, at_most or size))
    return [(first, min(first + size, n)) for first in range(0, n, size)]


def run(kernel, work, **arguments) -> None:
    """Call `kernel(*piece, **arguments)` for each piece of the work, on all threads; return when all are done."""
    if len(work) == 1 or n_threads() == 1:
        for piece in work:
            kernel(*piece, **arguments)
    else:
        list(_pool(os.getpid(), n_threads()).map(lambda piece: kernel(*piece, **arguments), work))


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The pool of this process for this number of threads; a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="hyperattention")
