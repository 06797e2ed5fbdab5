"""The backend "numba-cuda" on a simulated device, and on a real one."""

import sys
from pathlib import Path

import pytest

from hyperattention_ref.backends.numba_cuda.backend import NumbaCuda

HERE = Path(__file__).parent
SUITE = HERE / "on_device.py"


def test_importing_the_backend_does_not_import_numba(run_python):
    run_python("import sys, hyperattention_ref.backends.numba_cuda.backend; assert 'numba' not in sys.modules")


@pytest.fixture
def run_suite(run_process):
    """`on_device.py` in a process of its own, because Numba chooses its device when it is imported."""

    def run(*options: str, simulate: bool) -> None:
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE), *options]
        environment = {"PYTHONPATH": str(HERE), "NUMBA_ENABLE_CUDASIM": str(int(simulate))}
        run_process(command, cwd=HERE.parent, timeout=3600, **environment)

    return run


def test_kernels_on_the_simulated_device(run_suite):
    run_suite(simulate=True)


@pytest.mark.slow
def test_kernels_on_the_simulated_device_at_length(run_suite):
    run_suite("-m", "slow", simulate=True)


@pytest.mark.gpu
def test_kernels_on_the_device(run_suite):
    assert NumbaCuda().unavailable() is None
    run_suite("-m", "", simulate=False)
