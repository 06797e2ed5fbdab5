"""JSON from files that others may have written or damaged."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST = 2**24
"""Bytes of JSON that are read; far above what this library writes, far below what hurts."""


def read(path: Path) -> Any:
    """What a file of JSON says; see `parse`."""
    with open(path, "rb") as file:
        return parse(file.read(LARGEST + 1))


def parse(content: str | bytes) -> Any:
    """What a JSON text says.

    Raises
    ------
    ValueError : it is no JSON in UTF-8, is too long or nested too deeply, or has a key twice, NaN or an infinity.
    """
    if len(content) > LARGEST:
        raise ValueError(f"the JSON has more than {LARGEST} bytes, which are the most that are read")
    try:
        text = content.decode() if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"the JSON is not in UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no valid JSON ({error})") from None


def entries(name: str, x, expected: Iterable[str]) -> dict[str, Any]:
    """`x` as an object with exactly the expected entries."""
    expected = set(expected)
    if not (isinstance(x, dict) and x.keys() == expected):
        found = f"the entries {', '.join(map(ascii, x)) or '(none)':.200}" if isinstance(x, dict) else f"{x!r:.40}"
        raise ValueError(f"{name} has {found}; it must have exactly {', '.join(sorted(expected))}")
    return x


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    x: dict[str, Any] = {}
    for key, value in pairs:
        if key in x:
            raise ValueError(f"the JSON has the key {key!r:.60} twice")
        x[key] = value
    return x


def _refuse_constant(name: str):
    raise ValueError(f"the JSON has {name}, which is no JSON")
