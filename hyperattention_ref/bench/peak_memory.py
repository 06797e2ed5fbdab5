"""The peak memory of one call, in a process of its own.

The process makes the inputs, runs the contestant once on tiny ones (so that libraries are loaded and code is compiled),
resets the peak of its resident memory, and calls. Where the system cannot reset the peak (outside Linux), the peak
before the call is subtracted instead, which hides a call that needs less than the inputs did when they were made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from hyperattention_ref.bench.cases import FAMILIES, BenchSettings, Contestant, make_heads, prepare
from hyperattention_ref.pages.threads import limited_threads

PROC = Path("/proc/self")
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Makes the GNU allocator give every large array back when it is freed; else the call could reuse unseen what is left
from before."""


def peak_memory(settings: BenchSettings, n: int, contestant: Contestant) -> int:
    """Bytes that the call adds to what is resident before it, its output included.

    Raises
    ------
    ChildProcessError : the process ends without an answer, most often because memory ran out; the message says how.
    """
    task = json.dumps([settings.to_dict(), n, contestant.engine, contestant.kind, contestant.budget])
    command = [sys.executable, "-m", "hyperattention_ref.bench.peak_memory", task]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | RETURN_MEMORY)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ChildProcessError(
            f"measuring the memory of {contestant.name} at n = {n} ended with code {done.returncode}: {last}; if there "
            "was too little memory, name smaller --n"
        )
    return int(done.stdout.splitlines()[-1])


def measure(task: str) -> int:
    """The task of `peak_memory`, in this process."""
    options, n, *fields = json.loads(task)
    settings, contestant = BenchSettings(**options), Contestant(*fields)
    with limited_threads(settings.threads):
        tiny = replace(settings, min_seq_len=16)
        prepare(contestant, tiny, make_heads(tiny, FAMILIES[0], 64))()
        call = prepare(contestant, settings, make_heads(settings, FAMILIES[0], n))
        before = _reset_peak()
        call()
        return max(0, _peak() - before)


def _reset_peak() -> int:
    """Start a new peak where the system can; bytes that count as there before."""
    if not os.access(PROC / "clear_refs", os.W_OK):
        return _peak()
    (PROC / "clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """The largest resident memory, bytes."""
    if (PROC / "status").exists():
        return _status("VmHWM")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    text = (PROC / "status").read_text(encoding="utf-8", errors="replace")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return 1024 * int(lines[name].split()[0])


if __name__ == "__main__":
    print(measure(sys.argv[1]))
