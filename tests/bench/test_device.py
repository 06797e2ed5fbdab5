"""The best rates of the processor, and shares of them."""

import pytest

from hyperattention_ref.bench import device
from hyperattention_ref.bench.device import Ceilings, Device, measure_ceilings
from tests.bench.planted import SMALL, TICK


def test_ceilings_are_rates_and_shares_their_sum(monkeypatch):
    for name in ("SIDE", "EXPONENTIALS", "COPIED"):
        monkeypatch.setattr(device, name, 8)
    for calls in Device(SMALL).tasks():
        assert len(calls) in (1, 2)
        for call, amount in calls:
            assert amount > 0
            call()
    assert measure_ceilings(Device(SMALL)) == Ceilings(2 * 8**3 / TICK, 8 / TICK, 2 * 8 * 4 / TICK)
    assert Ceilings(2.0, 4.0, 1.0).share(10.0, flops=6.0, exponentials=8.0) == pytest.approx(0.5)
