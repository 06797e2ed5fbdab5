"""Which cases run, and in which order."""

from dataclasses import replace

import pytest

from hyperattention_ref.bench.gpu.cases import GpuSettings
from hyperattention_ref.bench.gpu.run import jobs
from tests.bench.gpu.stand_in import SMALL


def test_cases_come_in_order_of_importance():
    settings = GpuSettings()
    names = list(jobs(None, settings, ["cupy", "numba-cuda"]))
    assert names[:4] == ["ceilings", "conformance-cupy", "bfloat16-d64-full-n4096", "bfloat16-d64-causal-n4096"]
    assert names[12:18] == [
        "bfloat16-d64-full-n131072", "bfloat16-d64-causal-n131072", "bfloat16-d64-full-n1048576",
        "conformance-numba-cuda", "float32-d64-full-n4096", "float32-d64-causal-n4096",
    ]  # fmt: skip
    assert names[-1] == "bfloat16-d128-full-n1048576"
    assert len(names) == len(set(names)) == 3 + 2 * 13 + 6


def test_a_backend_that_cannot_run_takes_no_part():
    assert not any("bfloat16" in name for name in jobs(None, GpuSettings(), ["numba-cuda"]))
    (case,) = {job.run.args[1].backends for name, job in jobs(None, GpuSettings(), ["cupy"]).items() if "-d" in name}
    assert case == ("cupy",)
    assert "conformance-numba-cuda" in jobs(None, GpuSettings(n=(32768,)), ["cupy", "numba-cuda"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": (1,)}, "n is 1"),
        ({"heads": 0}, "heads is 0"),
        ({"dims": (0,)}, "dim is 0"),
        ({"examples": 1000}, "examples is 1000"),
        ({"seconds": 0}, "seconds is 0"),
        ({"backends": ("numba",)}, "'numba' does not run on a GPU; it must be one of cupy, numba-cuda"),
        ({"n": ()}, "nothing to time"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **change)
