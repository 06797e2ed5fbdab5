"""The command line: what the commands share, and what it needs."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli


def invoke(*arguments, **environment):
    return CliRunner().invoke(cli.app(), list(map(str, arguments)), env={"COLUMNS": None} | environment)


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output == f"hyperattention-ref {hr.__version__}\n"


def test_backends_lists_every_backend_and_the_reason_of_each_absentee(monkeypatch):
    status = {"numpy": None, "gpu": "needs [cupy], which is not installed"}
    monkeypatch.setattr(hr, "backend_status", lambda: status)
    result = invoke("backends")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "numpy  can run here",
        "gpu  cannot run here: needs [cupy], which is not installed",
    ]


@pytest.mark.parametrize("absent", cli.NEEDED)
def test_without_the_extra_the_command_says_which_to_install(monkeypatch, capsys, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert f"needs {absent}, which" in message
    assert 'pip install "hyperattention-ref[report]"' in message


def test_importing_the_command_line_imports_nothing_of_the_extra():
    code = "import sys; from hyperattention_ref.cli import NEEDED; sys.exit(len({'numpy', *NEEDED} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
