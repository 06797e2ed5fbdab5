"""A measure of one head, applied to arrays `(..., n, d)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from hyperattention_ref.foundation.results import Result

Measured = TypeVar("Measured", bound=Result)


def per_head(measure: Callable[[tuple[int, ...]], Measured], leading_shape: tuple[int, ...]) -> Measured:
    """Measure every head and stack the results.

    `measure(index)` is the result for the head at `index`. Without leading dimensions that result is returned;
    otherwise one of the same class, each field an array of shape `leading_shape` + the shape of one head's field.
    """
    results = [measure(index) for index in np.ndindex(leading_shape)]
    if not leading_shape:
        return results[0]
    fields: dict[str, np.ndarray | None] = {}
    for name in (field.name for field in dataclasses.fields(results[0])):
        if getattr(results[0], name) is None:  # not requested, so missing in every head
            fields[name] = None
            continue
        stacked = np.stack([getattr(result, name) for result in results])
        fields[name] = stacked.reshape(leading_shape + stacked.shape[1:])
    return type(results[0])(**fields)
