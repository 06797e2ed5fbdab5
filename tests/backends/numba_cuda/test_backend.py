"""The backend "numba-cuda" on a simulated device, and on a real one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperattention_ref.backends.numba_cuda.backend import NumbaCuda

HERE = Path(__file__).parent
SUITE = HERE / "on_device.py"


def test_importing_the_backend_does_not_import_numba():
    code = "import sys, hyperattention_ref.backends.numba_cuda.backend; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def run_suite(*options: str, simulate: bool) -> None:
    """`on_device.py` in a process of its own, because Numba chooses its device when it is imported."""
    environment = {name: x for name, x in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    environment |= {"PYTHONPATH": str(HERE)} | ({"NUMBA_ENABLE_CUDASIM": "1"} if simulate else {})
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE), *options]
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_on_the_simulated_device():
    run_suite(simulate=True)


@pytest.mark.slow
def test_kernels_on_the_simulated_device_at_length():
    run_suite("-m", "slow", simulate=True)


@pytest.mark.gpu
def test_kernels_on_the_device():
    assert NumbaCuda().unavailable() is None
    run_suite("-m", "", simulate=False)
