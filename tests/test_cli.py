"""The command line: what the commands share, and what it needs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli

SMALL_VERIFY = """
import hyperattention_ref as hr
from hyperattention_ref import cli, proofs_checks
from hyperattention_ref.verify import sample_head_measures
one_head = hr.load_sample_heads()[:1]
hr.load_sample_heads = lambda: one_head
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


def commands():
    return [x.name or x.callback.__name__.replace("_", "-") for x in cli.app().registered_commands]


@pytest.mark.parametrize("name", commands())
def test_every_command_has_both_names_of_help(name):
    short, long = invoke(name, "-h"), invoke(name, "--help")
    assert short.exit_code == long.exit_code == 0
    assert "Usage:" in short.output
    assert short.output == long.output


def test_the_package_can_be_run(run_process):
    done = run_process([sys.executable, "-m", "hyperattention_ref", "--version"], check=False)
    assert (done.returncode, done.stdout) == (0, f"hyperattention-ref {hr.__version__}\n"), done.stderr


@pytest.mark.parametrize("absent", cli.NEEDED)
def test_without_the_extra_the_command_says_which_to_install(monkeypatch, capsys, absent):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert f"needs {absent}, which" in message
    assert 'pip install ".[report]" in a clone' in message


def test_version_and_usage_need_no_extra(monkeypatch, capsys):
    known = commands()
    monkeypatch.setitem(sys.modules, "typer", None)
    for arguments, words in ((["--version"], [hr.__version__]), (["-h"], known), (["verify", "--help"], ["verify"])):
        monkeypatch.setattr(sys, "argv", ["hyperattention", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        shown = capsys.readouterr().out.split()
        assert set(words) <= set(shown)


def test_importing_the_command_line_imports_nothing_of_the_extra(run_python):
    run_python(
        "import sys; from hyperattention_ref.cli import NEEDED as n; assert not {'numpy', *n} & set(sys.modules)"
    )


# --- what a terminal cannot show -------------------------------------------------------------------------------------

ENCODINGS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
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
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 64, 4))
    np.savez(path, query=query, key=key, value=value)
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
    assert result.stderr.startswith(b"hyperattention: /no/caf\\udce9.npz: No such file or directory; ")


def test_a_reader_who_has_enough_is_no_error(tmp_path):
    command = [sys.executable, "-c", SMALL_VERIFY, "verify", "--n", "64", "--trials", "1", "--out", tmp_path]
    running = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True)
    running.stdout.close()
    error = running.stderr.read()
    assert running.wait(timeout=120) == 1
    running.stderr.close()
    assert [line for line in error.splitlines() if not line[0].isdigit()] == []  # the progress alone
    assert (tmp_path / "report.html").exists()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

INTERRUPTED = {
    "verify": ((), "nothing is saved before the end; --quick takes seconds"),
    "measure": (("--demo", "--backend", "numpy"), "finished heads are in {out}; the same command goes on there"),
    "bench-heads": (
        ("--demo", "--backend", "numpy", "--against", "none", "--recipes", "landmarks"),
        "finished cases are in {out}; the same command goes on there",
    ),
    "bench": (
        ("--backend", "numpy", "--against", "none"),
        "finished cases are in {out}; the same command goes on there",
    ),
}


@pytest.fixture
def hearing_ctrl_c():
    """Child processes hear Ctrl-C, also where the tests run in the background of a shell, which ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a process group")
@pytest.mark.parametrize("name", INTERRUPTED)
@pytest.mark.usefixtures("hearing_ctrl_c")
def test_ctrl_c_says_what_is_saved_and_how_to_go_on(tmp_path, name):
    options, words = INTERRUPTED[name]
    command = [sys.executable, "-m", "hyperattention_ref", name, *options, "--out", tmp_path / "out"]
    running = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True, cwd=tmp_path)
    assert running.stderr.readline()  # the first line of the progress
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    out, error = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, "")
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(f"hyperattention: interrupted; {words.format(out=tmp_path / 'out')}")
