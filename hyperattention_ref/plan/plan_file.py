"""The file of a Plan: the decisions of all heads as named arrays in one `.npz` file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hyperattention_ref.foundation.named_file import named_file
from hyperattention_ref.foundation.npz_file import NpzFile
from hyperattention_ref.foundation.whole_file import whole_file
from hyperattention_ref.plan.block_lists import BlockLists
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.landmarks import Landmarks

FORMAT = 2
VIEW_ARRAYS = ("query_order", "key_order", "query_offsets", "key_offsets")
LIST_ARRAYS = ("offsets", "pages")
KEY_ARRAYS = {"exact_keys": "iu", "sampled_keys": "iu", "log_weights": "f"}
"""The arrays of a rectangle, and the kinds of their dtypes."""
LANDMARK_ARRAYS = {"keys": "iu", "mean": "f", "factor": "f"}
"""The arrays of landmarks; a rectangle without landmarks has none of them."""
Loaded = TypeVar("Loaded")


def save(path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays, all or nothing."""
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle


def load(path, build: Callable[[dict[str, np.ndarray]], Loaded]) -> Loaded:
    """What `build` makes of the arrays in a file; a ValueError or TypeError if it holds no valid plan."""
    path = Path(path)
    with named_file(path, "holds no valid plan", "it must be a file from Plan.save"), NpzFile(path) as file:
        return build({name: file.read(name) for name in file.members})


def to_arrays(shape: tuple[int, ...], heads: tuple[HeadPlan, ...]) -> dict[str, np.ndarray]:
    """The plans of all heads as named arrays."""
    arrays = {"format": np.array(FORMAT), "shape": np.array(shape, np.int64)}
    arrays["lengths"] = np.array([heads[0].n_q, heads[0].n_k])
    for h, head in enumerate(heads):
        arrays[f"{h}/leaves"] = np.array(head.leaves, np.int64).reshape(-1, 2)
        arrays[f"{h}/places"] = np.array([r.place for r in head.rectangles], np.int64).reshape(-1, 4)
        arrays[f"{h}/views"] = np.array([len(r.views) for r in head.rectangles], np.int64)
        arrays[f"{h}/lists"] = _sizes(head.lists)
        if head.lists is not None:
            arrays |= {f"{h}/lists/{name}": getattr(head.lists, name) for name in LIST_ARRAYS}
        for r, rectangle in enumerate(head.rectangles):
            for name in KEY_ARRAYS:
                arrays[f"{h}/{r}/{name}"] = getattr(rectangle, name)
            if rectangle.landmarks is not None:
                for name in LANDMARK_ARRAYS:
                    arrays[f"{h}/{r}/landmarks/{name}"] = getattr(rectangle.landmarks, name)
            for u, view in enumerate(rectangle.views):
                for name in VIEW_ARRAYS:
                    arrays[f"{h}/{r}/{u}/{name}"] = getattr(view, name)
    return arrays


def _sizes(lists: BlockLists | None) -> np.ndarray:
    """(block size, page size, is causal) of the lists; empty if there are none."""
    sizes = [] if lists is None else [lists.block_size, lists.page_size, lists.is_causal]
    return np.array(sizes, np.int64)


def from_arrays(arrays: dict[str, np.ndarray]) -> tuple[tuple[int, ...], tuple[HeadPlan, ...]]:
    """Inverse of `to_arrays`; everything is validated again."""
    left = _Arrays(arrays)
    (version,) = left.integers("format", ())
    if version != FORMAT:
        raise ValueError(f"the plan has format {version}; this version reads format {FORMAT}")
    shape = tuple(left.integers("shape", (None,)))
    n_q, n_k = left.integers("lengths", (2,))
    heads = tuple(_head(left, str(h), n_q, n_k) for h in range(math.prod(shape)))
    left.check_empty()
    return shape, heads


def _head(left: _Arrays, place: str, n_q: int, n_k: int) -> HeadPlan:
    places, counts = left.integers(f"{place}/places", (None, 4)), left.integers(f"{place}/views", (None,))
    if len(places) != len(counts):
        raise ValueError(f"{place}/views has {len(counts)} counts for {len(places)} rectangles")
    rectangles = (_rectangle(left, f"{place}/{r}", *x) for r, x in enumerate(zip(places, counts, strict=True)))
    leaves = tuple(left.integers(f"{place}/leaves", (None, 2)))
    return HeadPlan(n_q, n_k, tuple(rectangles), leaves, _lists(left, f"{place}/lists", n_q, n_k))


def _lists(left: _Arrays, place: str, n_q: int, n_k: int) -> BlockLists | None:
    sizes = left.integers(place, (None,))
    if not sizes:
        return None
    if len(sizes) != 3 or sizes[2] > 1:
        raise ValueError(f"{place} is {sizes}; it must be the block size, the page size, and 1 if causal or else 0")
    block_size, page_size, is_causal = sizes
    arrays = {name: left.take(f"{place}/{name}", "iu") for name in LIST_ARRAYS}
    return BlockLists(n_q, n_k, block_size, page_size, **arrays, is_causal=bool(is_causal))


def _rectangle(left: _Arrays, place: str, corners: list[int], n_views: int) -> Rectangle:
    first, stop, key_first, key_stop = corners
    views = tuple(
        BlockMask(**{name: left.take(f"{place}/{u}/{name}", "iu") for name in VIEW_ARRAYS}) for u in range(n_views)
    )
    keys: dict[str, Any] = {name: left.take(f"{place}/{name}", kind) for name, kind in KEY_ARRAYS.items()}
    keys |= {"query_start": first, "key_start": key_first, "landmarks": _landmarks(left, f"{place}/landmarks")}
    return Rectangle(stop - first, key_stop - key_first, views, **keys)


def _landmarks(left: _Arrays, place: str) -> Landmarks | None:
    if not left.has(f"{place}/keys"):
        return None
    return Landmarks(**{name: left.take(f"{place}/{name}", kind) for name, kind in LANDMARK_ARRAYS.items()})


class _Arrays:
    """The arrays of a plan, each taken once, so that what is left over belongs to no part of it."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._left = dict(arrays)

    def take(self, name: str, kinds: str) -> np.ndarray:
        """An array with a dtype of one of these kinds."""
        if name not in self._left:
            raise ValueError(f"the plan lacks {name}")
        x = np.asarray(self._left.pop(name))
        if x.dtype.kind not in kinds:
            raise TypeError(f"{name} has dtype {x.dtype}; it must hold {'numbers' if 'f' in kinds else 'integers'}")
        return x

    def has(self, name: str) -> bool:
        """Whether an array is left to take."""
        return name in self._left

    def integers(self, name: str, shape: tuple[int | None, ...]) -> list:
        """Integers from zero, as lists; None in the shape stands for any number of them."""
        x = self.take(name, "iu")
        if x.ndim != len(shape) or any(need not in (None, size) for need, size in zip(shape, x.shape, strict=True)):
            needed = str(shape).replace("None", "any")
            raise ValueError(f"{name} has shape {x.shape}; it must have shape {needed}")
        if x.size and x.min() < 0:
            raise ValueError(f"{name} goes down to {x.min()}; it must hold integers from zero")
        return x.tolist() if shape else [x.item()]

    def check_empty(self) -> None:
        """Refuse arrays that nobody took."""
        if self._left:
            raise ValueError(f"the plan has {next(iter(self._left))!r:.60}, which belongs to no part of it")
