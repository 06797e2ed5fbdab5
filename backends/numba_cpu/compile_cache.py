"""Compiling: kernels are kept on disk, or in memory where that fails; a word is said before the first compiles."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import config
from numba.core.caching import FunctionCache, NullCache
from numba.core.compiler_lock import global_compiler_lock

# A fork waits until no thread compiles: its child would inherit the compiler's lock, and wait for ever.
if hasattr(os, "register_at_fork"):
    _let_go = global_compiler_lock.release
    os.register_at_fork(before=global_compiler_lock.acquire, after_in_parent=_let_go, after_in_child=_let_go)

NOTICE = "compiling for this machine, 10 to 40 s; `hyperattention warmup` does all of it beforehand, once"
DAMAGES = (OSError, EOFError, pickle.UnpicklingError)
"""What a full disk, a folder that cannot be read or written, and a file that was cut raise."""


class CompileCache:
    """What Numba asks for a kernel before it compiles, and gives what it has compiled.

    Derived: Numba's own cache, whose errors would end the call: a folder that fails makes a warning instead.
    """

    def __init__(self, function):
        try:
            self.disk: Any = FunctionCache(function)
        except RuntimeError:
            self.disk = NullCache()
            folder = config.CACHE_DIR or str(Path(__file__).parent / "__pycache__")  # type: ignore[attr-defined]
            warn_once(folder, "nor in any other folder that Numba tries")

    @property
    def cache_path(self) -> str | None:
        """The folder, for the statistics of Numba's dispatchers."""
        return self.disk.cache_path

    def load_overload(self, signature, context):
        """The code for a signature, or None, after a notice, if it must be compiled."""
        found = None
        with suppress(*DAMAGES):
            found = self.disk.load_overload(signature, context)
        if found is None:
            announce()
        return found

    def save_overload(self, signature, result) -> None:
        """Keep the code for a signature; where that fails there is none for any, so that no older code is read."""
        try:
            self.disk.save_overload(signature, result)
        except DAMAGES as error:
            # The index is written before the code: it may name a file with code of an earlier release.
            with suppress(OSError):
                Path(self.disk._cache_file._index_path).unlink(missing_ok=True)
            warn_once(self.disk.cache_path, str(error))


@cache
def warn_once(folder: str, reason: str) -> None:
    """Say that code is not kept, and what to do."""
    warnings.warn(
        f"compiled code cannot be kept in {folder} ({reason}), so that every process compiles again: make room there, "
        "or set NUMBA_CACHE_DIR to a folder that can be written",
        stacklevel=2,
    )


@cache
def announce() -> None:
    """Say once in a process why the first calls take so long: to who watches a terminal, and else to the log."""
    if sys.stderr and sys.stderr.isatty():
        print(f"hyperattention: {NOTICE}", file=sys.stderr)
    else:
        logging.getLogger("hyperattention_ref").info(NOTICE)
