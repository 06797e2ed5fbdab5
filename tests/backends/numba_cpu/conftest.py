import os
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def run_python():
    """Run a script in a process of its own; return its output."""

    def run(script, **environment):
        code = textwrap.dedent(script)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], env=os.environ | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
