"""The machine and the versions of a run, for the head of its report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def environment(packages: Iterable[str]) -> dict[str, str | int]:
    """The processor, the system, and the versions of Python and of packages, by name."""
    facts: dict[str, str | int] = {"processor": _processor(), "cores": os.cpu_count() or 1}
    facts |= {"system": f"{platform.system()} {platform.machine()}", "Python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    """The model of the processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
