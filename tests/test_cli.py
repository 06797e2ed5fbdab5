"""The command line: what the commands share, and what it needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli

SMALL_VERIFY = """
from hyperattention_ref import cli, proofs_checks
from hyperattention_ref.verify import sample_head_measures
proofs_checks.STATEMENTS, sample_head_measures.RUNS = ("algorithm_1",), 1
cli.main()
"""
"""A `verify` of seconds."""


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


# --- what a terminal cannot show -------------------------------------------------------------------------------------

ENCODINGS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def shell(script, *arguments, **environment):
    """Run a script that calls `cli.main`, in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", script, *map(os.fspath, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=300)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_character_that_the_output_lacks_ends_no_run(tmp_path, name):
    result = shell(SMALL_VERIFY, "verify", "--n", "64", "--trials", "1", "--out", tmp_path, **ENCODINGS[name])
    assert result.returncode == 0, result.stderr
    assert b"outcomes are as expected" in result.stdout
    assert b"Traceback" not in result.stderr
    assert "α" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_file_name_that_is_no_utf8_ends_no_run(tmp_path):
    path, out = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/caf\xe9.npz", b"/caf\xe9"))
    np.savez(path, **dict(zip(("query", "key", "value"), np.random.default_rng(0).standard_normal((3, 1, 64, 4)))))
    options = ("--recipes", "paper", "--budget", "8", "--backend", "numpy")
    result = shell("from hyperattention_ref.cli import main; main()", "measure", path, *options, "--out", out)
    assert result.returncode == 0, result.stderr
    assert b"caf?" in result.stdout
    assert r"caf\udce9.npz" in (Path(out) / "report.html").read_text(encoding="utf-8")
    assert json.loads((Path(out) / "measures.json").read_text(encoding="utf-8"))["file"] == Path(path).name


def test_a_refusal_can_name_any_file():
    script = "from hyperattention_ref.cli import main; main()"
    result = shell(script, "measure", "/no/caf\udce9.npz", PYTHONIOENCODING="ascii")
    assert result.returncode == 2
    assert result.stderr == b"hyperattention: /no/caf?.npz: No such file or directory\n"
