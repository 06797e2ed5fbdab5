"""A measure of one head, applied to arrays `(..., n, d)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from hyperattention_ref.foundation.results import Result

Measured = TypeVar("Measured", bound=Result)


def per_head(measure: Callable[[tuple[int, ...]], Measured], leading_shape: tuple[int, ...]) -> Measured:
    """Measure every head and stack the results.

    `measure(index)` is the result for the head at `index`. Without leading dimensions that result is returned;
    otherwise one of the same class, each field an array of shape `leading_shape` + the shape of one head's field.
    Fields that are results themselves are stacked in the same way.
    """
    results = [measure(index) for index in np.ndindex(leading_shape)]
    return _stacked(results, leading_shape) if leading_shape else results[0]


def _stacked(items: list, leading_shape: tuple[int, ...]) -> Any:
    first = items[0]
    if first is None:  # not requested, so missing in every head
        return None
    if isinstance(first, Result):
        names = [field.name for field in dataclasses.fields(first)]
        return type(first)(**{n: _stacked([getattr(x, n) for x in items], leading_shape) for n in names})
    stacked = np.stack(items)
    return stacked.reshape(leading_shape + stacked.shape[1:])
