"""The best rates of a device: products of matrices, exponentials and copies, measured in the run that they are for."""

from __future__ import annotations

from dataclasses import dataclass

from hyperattention_ref.bench.device import Device
from hyperattention_ref.foundation.results import Result

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


def measure_ceilings(device: Device) -> Ceilings:
    """For each of the three the best rate of any run of any call that competes."""

    def rate(calls) -> float:
        return max(amount / device.best_seconds(call, RUNS) for call, amount in calls)

    return Ceilings(*map(rate, device.tasks()))
