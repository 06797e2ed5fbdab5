"""No test waits for ever: each process that one starts has a time limit, and takes with it what it forked."""

import ast
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_a_forked_child_that_hangs_ends_with_the_time_limit(run_python):
    """The child holds the pipes of its parent, which has ended."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_python("import os, time; time.sleep(0 if os.fork() else 10**6)", timeout=2)


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda path: str(path.relative_to(HERE)))
def test_every_process_that_a_test_starts_has_a_time_limit(path):
    """By `run_process`, `run_python`, or an argument `timeout`."""
    for call in [x for x in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(x, ast.Call)]:
        name = ast.unparse(call.func)
        assert name not in {"subprocess.call", "subprocess.check_call", "subprocess.check_output"}
        assert name != "os.fork" or not path.name.startswith("test_")  # a program that a test starts may fork
        assert name != "subprocess.run" or "timeout" in {x.arg for x in call.keywords}, ast.unparse(call)
