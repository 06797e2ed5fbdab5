"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, EISDIR
from pathlib import Path
from typing import IO

PARTIAL = ".*.partial"
"""Pattern of the names of temporary files. Only a process that was killed leaves one behind."""


@contextmanager
def whole_file(path) -> Iterator[IO[bytes]]:
    """A new binary file that becomes `path` when the block ends without an error; else `path` stays as it was.

    The temporary file is in the same folder under a name of its own, so that several processes can write one file: the
    last one wins. A file that is replaced leaves its permissions; a link stays a link, and what it points to is
    replaced. An OSError names `path`, never the temporary file.
    """
    target = Path(path)
    real = Path(os.path.realpath(target))
    partial = real.parent / f".{real.name[:32]}.{secrets.token_hex(8)}.partial"
    try:
        mode = _mode(real)
        with open(partial, "xb") as file:
            yield file
        if mode is not None:
            partial.chmod(mode)
        os.replace(partial, real)
    except OSError as error:
        # A failed write has no file name at all; the caller's own errors about other files keep theirs.
        if error.errno is None or error.filename not in (None, str(partial), str(real)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def write_whole(path, content: bytes) -> None:
    """Write a file of this content, whole or not at all."""
    with whole_file(path) as file:
        file.write(content)


def _mode(path: Path) -> int | None:
    """Permissions of the file to replace; None if there is none. Devices and folders are not replaced."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(EISDIR, "is a folder; name a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(EINVAL, "is no regular file; name another", str(path))
    return stat.S_IMODE(mode) & 0o777
