"""The file of a Plan: the decisions of all heads as named arrays in one `.npz` file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from hyperattention_ref.foundation.whole_file import whole_file
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle

FORMAT = 1
VIEW_ARRAYS = ("query_order", "key_order", "query_offsets", "key_offsets")
KEY_ARRAYS = ("exact_keys", "sampled_keys", "log_weights")
Loaded = TypeVar("Loaded")


def save(path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, all or nothing."""
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle


def load(path, build: Callable[[dict[str, np.ndarray]], Loaded]) -> Loaded:
    """What `build` makes of the arrays in a file; a ValueError if it holds no valid plan."""
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return build(dict(arrays))
        except Exception as error:  # a file that is damaged or something else can fail in any way while it is read
            raise ValueError(f"{path} holds no valid plan ({error}); it must be a file from Plan.save") from error


def to_arrays(shape: tuple[int, ...], heads: tuple[HeadPlan, ...]) -> dict[str, np.ndarray]:
    """The plans of all heads as named arrays."""
    arrays = {"format": np.array(FORMAT), "shape": np.array(shape, np.int64)}
    arrays["lengths"] = np.array([heads[0].n_q, heads[0].n_k])
    for h, head in enumerate(heads):
        arrays[f"{h}/leaves"] = np.array(head.leaves, np.int64).reshape(-1, 2)
        arrays[f"{h}/places"] = np.array([r.place for r in head.rectangles], np.int64).reshape(-1, 4)
        arrays[f"{h}/views"] = np.array([len(r.views) for r in head.rectangles], np.int64)
        for r, rectangle in enumerate(head.rectangles):
            for name in KEY_ARRAYS:
                arrays[f"{h}/{r}/{name}"] = getattr(rectangle, name)
            for u, view in enumerate(rectangle.views):
                for name in VIEW_ARRAYS:
                    arrays[f"{h}/{r}/{u}/{name}"] = getattr(view, name)
    return arrays


def from_arrays(arrays: dict[str, np.ndarray]) -> tuple[tuple[int, ...], tuple[HeadPlan, ...]]:
    """Inverse of `to_arrays`; everything is validated again."""
    if arrays["format"] != FORMAT:
        raise ValueError(f"the plan has format {arrays['format']}; this version reads format {FORMAT}")
    shape = tuple(arrays["shape"].tolist())
    n_q, n_k = arrays["lengths"].tolist()
    heads = []
    for h in range(int(np.prod(shape, dtype=int))):
        rectangles = []
        for r, (first, stop, key_first, key_stop) in enumerate(arrays[f"{h}/places"].tolist()):
            views = tuple(
                BlockMask(**{name: arrays[f"{h}/{r}/{u}/{name}"] for name in VIEW_ARRAYS})
                for u in range(arrays[f"{h}/views"][r])
            )
            keys: dict[str, Any] = {name: arrays[f"{h}/{r}/{name}"] for name in KEY_ARRAYS}
            start = {"query_start": first, "key_start": key_first}
            rectangles.append(Rectangle(stop - first, key_stop - key_first, views, **keys, **start))
        heads.append(HeadPlan(n_q, n_k, tuple(rectangles), tuple(arrays[f"{h}/leaves"].tolist())))
    return shape, tuple(heads)
