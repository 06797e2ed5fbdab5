"""Processes of their own, for all tests that need one: none may outlive its time limit, with whatever it forked."""

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest


@pytest.fixture(scope="session")
def run_process():
    """Run a command in a process group of its own and return what it did; a test that waits longer fails.

    `check`: it must end with exit status 0. `environment` is added to this process's.
    """

    def run(command, *, cwd=None, timeout=300, check=True, **environment) -> subprocess.CompletedProcess:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        with subprocess.Popen(command, cwd=cwd, env=os.environ | environment, **pipes) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                with suppress(ProcessLookupError):  # usually all have ended
                    os.killpg(process.pid, signal.SIGKILL)
        assert not check or process.returncode == 0, f"exit status {process.returncode}\n{out}{err}"
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def run_python(run_process):
    """`run_process` for a script; warnings are errors."""

    def run(script, **options):
        return run_process([sys.executable, "-W", "error", "-c", textwrap.dedent(script)], **options)

    return run
