"""The threads of the numba backend: how many there are, the pieces of work for them, and the pool that runs these."""

from __future__ import annotations

import os
from collections import deque
from functools import cache
from queue import SimpleQueue
from threading import Condition, Thread

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
    """Call `kernel(*piece, **arguments)` for each piece of the work, on all threads; return when all are done.

    The calling thread works, too, so a call never depends on helpers: it finishes alone where none can be had.
    """
    job = _Job(kernel, work, arguments)
    helpers = min(n_threads(), len(work)) - 1
    if helpers > 0:
        tasks = _helpers(os.getpid(), n_threads() - 1)
        for _ in range(helpers):
            tasks.put(job.take_pieces)
    job.take_pieces()
    job.finish()


class _Job:
    """One call: the pieces that are left, and how many are under way."""

    def __init__(self, kernel, work, arguments):
        self.kernel, self.left, self.arguments = kernel, deque(work), arguments
        self.under_way, self.changed = 0, Condition()
        self.errors: list[BaseException] = []

    def take_pieces(self) -> None:
        """Do one piece after another, until none is left; a helper that comes late does nothing."""
        while (piece := self._next()) is not None:
            try:
                self.kernel(*piece, **self.arguments)
            except BaseException as error:
                self._stop(error)
            with self.changed:
                self.under_way -= 1
                self.changed.notify()

    def _next(self):
        with self.changed:
            if not self.left:
                return None
            self.under_way += 1
            return self.left.popleft()

    def _stop(self, error: BaseException) -> None:
        with self.changed:
            self.errors.append(error)
            self.left.clear()

    def finish(self) -> None:
        """Wait for the pieces of the helpers; raise the first error of any piece."""
        with self.changed:
            self.changed.wait_for(lambda: not self.under_way)
        if self.errors:
            raise self.errors[0]


@cache
def _helpers(process: int, threads: int) -> SimpleQueue:
    """The queue of so many helper threads of this process; a forked child has none of its parent's threads.

    They are daemons of our own and no ThreadPoolExecutor, which takes no more work once the main thread has ended, as
    in a function of `atexit`. They hold nothing while they wait.
    """
    tasks: SimpleQueue = SimpleQueue()

    def serve() -> None:
        while True:
            tasks.get()()

    try:
        for _ in range(threads):
            Thread(target=serve, name="hyperattention", daemon=True).start()
    except RuntimeError:  # no more threads are to be had: the system's limit, or the interpreter ends
        pass
    return tasks
