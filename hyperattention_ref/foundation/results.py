"""The base class of result objects."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    PerHead = Any
else:
    PerHead = float
"""The type of a field that is a number for one head, and an array of the leading shape for several. At run time it is
the type for one head, so that pydantic can read a stored head."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Base of the frozen dataclasses that functions return: a readable repr and `to_dict()`."""

    def to_dict(self) -> dict:
        """The fields in JSON types: arrays as nested lists, non-finite floats as strings."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        fields = ", ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in dataclasses.fields(self) if f.repr)
        return f"{type(self).__name__}({fields})"


def plain(x):
    """`x` in JSON types."""
    if isinstance(x, Result):
        return x.to_dict()
    if isinstance(x, np.ndarray | np.generic):
        x = x.tolist()
    if isinstance(x, dict):
        return {str(key): plain(item) for key, item in x.items()}
    if isinstance(x, list | tuple):
        return [plain(item) for item in x]
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    if x is None or isinstance(x, bool | int | float | str):
        return x
    return repr(x)


def _short(x) -> str:
    if isinstance(x, np.ndarray) and x.ndim:
        return f"array{x.shape}"
    if isinstance(x, float | np.floating):
        return f"{float(x):.6g}"
    if isinstance(x, tuple | list) and len(x) > 4:
        return f"{type(x).__name__} of {len(x)}"
    return repr(x)
