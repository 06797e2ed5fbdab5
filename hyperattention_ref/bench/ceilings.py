"""What this machine can do at most: products of matrices, exponentials and copies, measured in the same run.

Each is the best of what NumPy and, where it is installed, PyTorch reach in any run, on as many threads as the
contestants have. NumPy's exponential and copy use one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from hyperattention_ref.bench.cases import BenchSettings
from hyperattention_ref.bench.timing import take_turns
from hyperattention_ref.foundation.results import Result

SIDE = 2048
"""Of the square matrices that are multiplied."""
EXPONENTIALS = 2**20
"""Numbers in the array of exponentials: with its result it fits into a last-level cache, as tiles of logits do."""
COPIED = 2**26
"""Numbers in the array that is copied: more than any cache holds."""
RUNS = 15


@dataclass(frozen=True, repr=False)
class Ceilings(Result):
    """The best rates: floating-point operations, exponentials and bytes (read and written) per second."""

    flops: float
    exponentials: float
    bytes: float

    def share(self, seconds: float, flops: float, exponentials: float) -> float:
        """The least time that the products and exponentials of a call take, one after the other, over its time."""
        return (flops / self.flops + exponentials / self.exponentials) / seconds


def measure_ceilings(settings: BenchSettings) -> Ceilings:
    """The three rates in the type of the settings."""
    rates = []
    for calls, amount in _tasks(np.dtype(settings.dtype), settings.seed):
        for call in calls:
            call()
        times = take_turns(dict(enumerate(calls)), RUNS, settings.seconds)
        rates.append(amount / min(min(runs) for runs in times.values()))
    return Ceilings(*rates)


def _tasks(dtype: np.dtype, seed: int) -> Iterator[tuple[tuple[Callable, ...], float]]:
    """For each rate the calls that compete, one of each library, and what one call does."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, SIDE, SIDE)).astype(dtype)
    x, copied = -rng.random(EXPONENTIALS).astype(dtype), np.ones(COPIED, dtype)
    c, y, copy = (np.empty_like(array) for array in (a, x, copied))
    libraries: list[tuple[Callable, ...]] = [
        (lambda: np.matmul(a, b, out=c), lambda: np.exp(x, out=y), lambda: np.copyto(copy, copied))
    ]
    if find_spec("torch"):
        import torch

        ta, tb, tc, tx, ty, tcopied, tcopy = map(torch.from_numpy, (a, b, c, x, y, copied, copy))
        libraries.append(
            (
                lambda: torch.matmul(ta, tb, out=tc),
                lambda: torch.exp(tx, out=ty),
                lambda: tcopy.copy_(tcopied),
            )
        )
    yield from zip(zip(*libraries, strict=True), (2 * SIDE**3, EXPONENTIALS, 2 * copied.nbytes), strict=True)
