"""The peak memory of a call is measured in a process of its own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from hyperattention_ref.bench import peak_memory as memory
from hyperattention_ref.bench.cases import EXACT, WHOLE, Contestant
from tests.bench.planted import SMALL


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call_in_a_process_of_its_own():
    settings = replace(SMALL, dim=64, min_seq_len=512)
    output = 4096 * 64 * 4
    for kind in (EXACT, WHOLE):
        peak = memory.peak_memory(settings, 4096, Contestant("numpy", kind))
        assert output <= peak < 4096**2 * 4


def test_a_process_that_dies_is_an_error_that_says_how(monkeypatch):
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9, stderr=""))
    words = r"numpy: exact at n = 64 ended with code -9: no message; .* smaller --n"
    with pytest.raises(ChildProcessError, match=words):
        memory.peak_memory(SMALL, 64, Contestant("numpy", EXACT))
