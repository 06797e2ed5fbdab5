"""The largest entries of arrays, by which the door refuses what is not finite or too large.

A backend on a GPU may find them while it reads the arrays for another purpose; the door then asks for them last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from hyperattention_ref.foundation.memory import Memory


class Extremes:
    """max |x| of some arrays, each sought once, and read where it is needed: a GPU looks while the host goes on."""

    def __init__(self, memory: Memory, arrays: dict):
        self._memory, self._arrays = memory, arrays
        self._begun: list[tuple[tuple[str, ...], Callable[[], list[float]]]] = []

    def begin(self, *names: str) -> None:
        """Begin to look through these arrays."""
        self.expect(names, self._memory.largest({name: self._arrays[name] for name in names}))

    def expect(self, names: tuple[str, ...], numbers: Callable[[], list[float]]) -> None:
        """Somebody who reads these arrays anyhow looks through them; `numbers` waits for what is found."""
        self._begun.append((names, numbers))

    @cached_property
    def values(self) -> list[float]:
        """The numbers, sought now where nobody has begun; a ValueError if any entry is not finite."""
        sought = {name for names, _ in self._begun for name in names}
        if rest := [name for name in self._arrays if name not in sought]:
            self.begin(*rest)
        found = {name: x for names, numbers in self._begun for name, x in zip(names, numbers(), strict=True)}
        for name in self._arrays:
            if not math.isfinite(found[name]):
                raise ValueError(
                    f"{name} has non-finite entries; all must be finite: look for NaN or infinity upstream"
                )
        return [found[name] for name in self._arrays]
