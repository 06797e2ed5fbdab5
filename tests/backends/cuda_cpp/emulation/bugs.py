"""Bugs that are planted into the sources, and addresses that are watched: what every battery must catch."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .device import SOURCES


@dataclass(frozen=True)
class Bug:
    """A change to one source, and the storage whose kernels it touches."""

    file: str
    old: str
    new: str = ""
    storage: tuple[str, ...] = field(default=("float32",))


def no_barrier(file: str, reason: str, storage=("float32",), barrier="__syncthreads") -> Bug:
    """The barrier with this comment left out."""
    return Bug(file, f"{barrier}();  // {reason}", f"// {reason}", storage)


def planted(bug: Bug, folder: Path) -> Path:
    """The sources with the bug in them."""
    sources = Path(shutil.copytree(SOURCES, folder / "cuda"))
    text = (sources / bug.file).read_text()
    assert bug.old in text
    (sources / bug.file).write_text(text.replace(bug.old, bug.new))
    return sources


def run_apart(script: str, *arguments, timeout=600, **environment) -> subprocess.CompletedProcess:
    """A script in a process of its own, which a wrong address may end."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    root = Path(__file__).parents[4]
    env = os.environ | environment
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=timeout)


def run_sanitized(script: str, sources: Path) -> subprocess.CompletedProcess:
    """A script under AddressSanitizer; its argument is the folder of the sources."""
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True, timeout=60
    )
    if not Path(library.stdout.strip()).is_absolute():
        pytest.skip("g++ comes without AddressSanitizer (libasan)")
    return run_apart(script, sources, ASAN_OPTIONS="detect_leaks=0", LD_PRELOAD=library.stdout.strip())
