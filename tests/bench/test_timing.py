"""Times: turns, medians and quartiles."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.bench import timing


def test_turns_are_taken_and_slow_calls_stop_at_three(monkeypatch):
    now, order = [0.0], []
    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: order.append("rest"))
    monkeypatch.setattr(timing, "time", clock)

    def lasting(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    calls = {"slow": lasting("slow", 9.0), "middling": lasting("middling", 4.0), "quick": lasting("quick", 1.0)}
    times = timing.take_turns(calls, 7, 18.0)
    assert {name: len(runs.seconds) for name, runs in times.items()} == {"slow": 3, "middling": 5, "quick": 7}
    assert [name for name in order if name != "rest"][:6] == ["slow", "middling", "quick"] * 2
    assert order[::2] == ["rest"] * 15
    assert times["slow"].seconds == (9.0,) * 3


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_medians_and_quartiles_are_those_of_numpy(seconds):
    times = timing.Times.of(seconds)
    assert times.median == pytest.approx(np.median(seconds))
    ends = (0, 1) if len(seconds) < 4 else (0.25, 0.75)
    assert times.quartiles == pytest.approx(np.quantile(seconds, ends))
    assert times.to_dict() == {"seconds": seconds, "median": times.median, "quartiles": list(times.quartiles)}
