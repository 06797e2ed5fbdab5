"""Errors about what a file holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 600
"""Characters of a message, which may quote the file."""


@contextmanager
def named_file(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Whatever is wrong with the file's content becomes an error of one line that names the file.

    It is a TypeError if it was one, an OSError if the system refuses to read, and else a ValueError: a damaged file can
    fail in any way while it is read.

    Parameters
    ----------
    path : the file.
    what : what is wrong, such as "holds no valid plan".
    remedy : what to do, unless every error says so itself.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise ValueError(_line(path, what, remedy, error)) from error
        if error.filename is None:
            error.filename = str(path)
        raise
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_line(path, what, remedy, error)) from error


def utf8_text(path: Path) -> str:
    """The text of a file in UTF-8."""
    with named_file(path, "is no text in UTF-8", "save it in UTF-8"):
        return path.read_text(encoding="utf-8")


def _line(path: Path, what: str, remedy: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    return f"{path} {what} ({text})" + (f"; {remedy}" if remedy else "")
