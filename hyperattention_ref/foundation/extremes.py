"""The largest entries of arrays, from which input checks detect entries that are not finite or too large.

A GPU backend may find them while it reads the arrays for another purpose; the checks then read them last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hyperattention_ref.foundation.lazy_property import lazy_property
from hyperattention_ref.foundation.memory import Memory


class Extremes:
    """max |x| of named arrays, each computed once and read when needed: a GPU computes while the host goes on."""

    def __init__(self, memory: Memory, arrays: dict):
        self._memory, self._arrays = memory, arrays
        self._pending: list[tuple[tuple[str, ...], Callable[[], list[float]]]] = []

    def begin(self, *names: str) -> None:
        """Start computing max |x| of these arrays."""
        self.expect(names, self._memory.largest({name: self._arrays[name] for name in names}))

    def expect(self, names: tuple[str, ...], numbers: Callable[[], list[float]]) -> None:
        """Register `numbers`, which waits for max |x| of these arrays, computed by the caller."""
        self._pending.append((names, numbers))

    @lazy_property
    def values(self) -> list[float]:
        """max |x| of all arrays, computing those not started yet; a ValueError if any entry is not finite."""
        pending = {name for names, _ in self._pending for name in names}
        if rest := [name for name in self._arrays if name not in pending]:
            self.begin(*rest)
        largest = {name: x for names, numbers in self._pending for name, x in zip(names, numbers(), strict=True)}
        for name in self._arrays:
            if not math.isfinite(largest[name]):
                raise ValueError(
                    f"{name} has non-finite entries; all must be finite: look for NaN or infinity upstream"
                )
        return [largest[name] for name in self._arrays]
