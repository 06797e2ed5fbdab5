"""Where the calls of a benchmark run: the processor, and its best rates. `gpu.device.Gpu` does the same on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from hyperattention_ref.bench.cases import BenchSettings, CallSettings, Contestant, Heads, prepare
from hyperattention_ref.bench.timing import take_turns
from hyperattention_ref.foundation.results import Result

Call = Callable[[], Any]
Task = tuple[Call, float]
"""A call that competes for a ceiling, and what it does: operations, or bytes."""
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


class Device:
    """Where calls run: the processor, with NumPy and PyTorch. `gpu.device.Gpu` overrides every method."""

    def __init__(self, settings: BenchSettings):
        self.settings = settings

    def prepare(self, contestant: Contestant, settings: CallSettings, heads: Heads) -> Call:
        """The call to be timed."""
        return prepare(contestant, settings, heads)

    def finished(self, call: Call) -> Any:
        """What a call returns, once the device has done it."""
        return call()

    def on_host(self, heads: Heads) -> Heads:
        """The same numbers for NumPy."""
        return heads

    def rows(self, output, rows: list[np.ndarray]) -> np.ndarray:
        """Some rows of each head of an output, (heads, rows, d_v) float64, on the host."""
        return np.stack([x[index] for x, index in zip(output, rows, strict=True)]).astype(np.float64)

    def flaw(self, output, value) -> str | None:
        """What is wrong with an output as an array, which should be like the values; or None."""
        if output.shape != value.shape:
            return f"the output is {output.shape}, not {value.shape}"
        return None if np.isfinite(output).all() else "the output has entries that are not finite"

    def best_seconds(self, call: Call, runs: int) -> float:
        """The shortest of some runs of a call, after a first one."""
        call()
        return min(take_turns({"": call}, runs, self.settings.seconds)[""].seconds)

    def tasks(self) -> list[list[Task]]:
        """For products, exponentials and copies the calls that compete; NumPy uses one thread for the latter two."""
        rng, dtype = np.random.default_rng(self.settings.seed), np.dtype(self.settings.dtype)
        a, b = rng.standard_normal((2, SIDE, SIDE)).astype(dtype)
        x, copied = -rng.random(EXPONENTIALS).astype(dtype), np.ones(COPIED, dtype)
        c, y, copy = (np.empty_like(array) for array in (a, x, copied))
        libraries: list[tuple[Call, ...]] = [
            (lambda: np.matmul(a, b, out=c), lambda: np.exp(x, out=y), lambda: np.copyto(copy, copied))
        ]
        if find_spec("torch"):
            import torch

            ta, tb, tc, tx, ty, tcopied, tcopy = map(torch.from_numpy, (a, b, c, x, y, copied, copy))
            libraries.append(
                (lambda: torch.matmul(ta, tb, out=tc), lambda: torch.exp(tx, out=ty), lambda: tcopy.copy_(tcopied))
            )
        amounts = (2 * SIDE**3, EXPONENTIALS, 2 * copied.nbytes)
        return [[(call, n) for call in calls] for calls, n in zip(zip(*libraries, strict=True), amounts, strict=True)]


def measure_ceilings(device: Device) -> Ceilings:
    """Products of matrices, exponentials and copies: for each the best rate of any run of any call that competes."""

    def rate(calls: list[Task]) -> float:
        return max(amount / device.best_seconds(call, RUNS) for call, amount in calls)

    return Ceilings(*map(rate, device.tasks()))
