"""The Plan: every discrete decision of an attention call, made before any arithmetic.

Ten rules define it (docs, page "theory"). Rules 1-7 describe one `Rectangle` of queries by keys, rules 8 and 9 how a
`HeadPlan` tiles one head with exact causal leaves and rectangles, rule 10 the `Plan` of a batch of heads. Given the
same Plan, all backends agree within rounding.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hyperattention_ref import inputs
from hyperattention_ref.block_mask import BlockMask, index_array

FORMAT = 1
VIEW_ARRAYS = ("query_order", "key_order", "query_offsets", "key_offsets")
KEY_ARRAYS = ("exact_keys", "sampled_keys", "log_weights")


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Which pairs of n_q queries and n_k keys are computed exactly, and which keys stand for all the others.

    Derived: rules 1-7. Indices count from the rectangle's own first query and key.

    - M_ij = 1 iff j is in `exact_keys` or some view puts i and j in one block; such a pair counts once, weight 1.
    - Sampled key r contributes e^{log_weights[r]} A_{i, sampled_keys[r]} to query i unless M marks that pair. Repeated
      draws count each time.
    - With log_weights[r] = -log(m p), p the probability of that draw, the sampled sum is unbiased for every query.
    - The output of query i is numerator / denominator, its log-sum-exp log(denominator); nothing at all gives
      (0, minus infinity).

    Parameters
    ----------
    n_q, n_k : the rectangle's sides.
    views : BlockMasks of shape (n_q, n_k).
    exact_keys : distinct key indices, kept sorted.
    sampled_keys : m key indices, repetitions allowed.
    log_weights : (m,) finite float64.
    query_start, key_start : the place of the rectangle in its head.
    """

    n_q: int
    n_k: int
    views: tuple[BlockMask, ...] = ()
    exact_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    sampled_keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    log_weights: np.ndarray = field(default_factory=lambda: np.empty(0))
    query_start: int = 0
    key_start: int = 0

    def __post_init__(self):
        for name in ("n_q", "n_k"):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name)))
        object.__setattr__(self, "views", tuple(self.views))
        for view in self.views:
            if not isinstance(view, BlockMask):
                raise TypeError(f"a view is a {type(view).__name__}; it must be a BlockMask")
            if view.shape != (self.n_q, self.n_k):
                raise ValueError(f"a view has shape {view.shape}; it must be (n_q, n_k) = {(self.n_q, self.n_k)}")
        exact = np.sort(self._keys("exact_keys"))
        if np.any(exact[1:] == exact[:-1]):
            raise ValueError("exact_keys has repeated entries; it is a set: pass each key once")
        exact.setflags(write=False)
        object.__setattr__(self, "exact_keys", exact)
        object.__setattr__(self, "sampled_keys", self._keys("sampled_keys"))
        weights = np.array(self.log_weights, dtype=np.float64)
        if weights.shape != self.sampled_keys.shape or not np.all(np.isfinite(weights)):
            raise ValueError(
                f"log_weights has shape {weights.shape}; it must be one finite number for each of the "
                f"{self.sampled_keys.size} sampled_keys"
            )
        weights.setflags(write=False)
        object.__setattr__(self, "log_weights", weights)

    def _keys(self, name: str) -> np.ndarray:
        keys = index_array(name, getattr(self, name))
        if keys.size and (keys.min() < 0 or keys.max() >= self.n_k):
            raise ValueError(f"{name} runs from {keys.min()} to {keys.max()}; keys are numbered 0 .. {self.n_k - 1}")
        return keys

    def toarray(self) -> np.ndarray:
        """The dense (n_q, n_k) boolean mask M of exactly computed pairs."""
        return self.rows(np.arange(self.n_q))

    def rows(self, queries) -> np.ndarray:
        """The rows of M that belong to these queries, (len(queries), n_k) boolean."""
        mask = np.zeros((len(queries), self.n_k), dtype=bool)
        mask[:, self.exact_keys] = True
        for view in self.views:
            mask |= view.rows(queries)
        return mask

    @property
    def n_logits(self) -> int:
        """Number of logits that a backend evaluates, pairs seen by several views or draws counted each time."""
        return sum(view.nnz for view in self.views) + self.n_q * (self.exact_keys.size + self.sampled_keys.size)


@dataclass(frozen=True, eq=False)
class HeadPlan:
    """How one head is tiled.

    Derived: rules 8 and 9. Without `leaves` the head is not causal and is one rectangle. With leaves it is the causal
    recursion on [0, n): a range is an exact causal leaf, or it is split at a + ceil((c - a)/2) into two ranges and the
    rectangle of its right queries and left keys. A row's result is the merge of its leaf and then its rectangles in
    the order in which they are stored, which `causal_tiling` makes smallest first.

    Parameters
    ----------
    n_q, n_k : lengths of the head.
    rectangles : Rectangles, placed by their query_start and key_start.
    leaves : pairs (a, c), exact causal attention on the range [a, c).
    """

    n_q: int
    n_k: int
    rectangles: tuple[Rectangle, ...]
    leaves: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rectangles", tuple(self.rectangles))
        object.__setattr__(self, "leaves", tuple((_index(a), _index(c)) for a, c in self.leaves))
        if self.is_causal:
            _check_causal_tiling(self)
        elif len(self.rectangles) != 1 or _place(self.rectangles[0]) != (0, self.n_q, 0, self.n_k):
            raise ValueError(
                f"a plan without leaves must be one rectangle that covers all {self.n_q} queries and {self.n_k} keys"
            )

    @property
    def is_causal(self) -> bool:
        return bool(self.leaves)

    def rows(self, queries) -> np.ndarray:
        """For these queries the pairs that are computed exactly, (len(queries), n_k) boolean; leaves are exact."""
        queries = np.asarray(queries)
        mask = np.zeros((len(queries), self.n_k), dtype=bool)
        for a, c in self.leaves:
            inside = (a <= queries) & (queries < c)
            mask[inside, a:c] = np.arange(a, c) <= queries[inside, None]
        for rectangle in self.rectangles:
            first, stop, key_first, key_stop = _place(rectangle)
            inside = (first <= queries) & (queries < stop)
            if inside.any():
                mask[inside, key_first:key_stop] = rectangle.rows(queries[inside] - first)
        return mask


@dataclass(frozen=True, eq=False)
class Plan:
    """The decisions for a batch of heads: one HeadPlan for each query head.

    Derived: rule 10. Build it with `make_plan`, or by hand with `from_orders`, `from_views`, `causal` and `stack`.

    Parameters
    ----------
    shape : leading shape of the query array; () for a single head (n, d).
    heads : HeadPlans in row-major order of `shape`, all for the same lengths and all causal or none.
    """

    shape: tuple[int, ...]
    heads: tuple[HeadPlan, ...]

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "heads", tuple(self.heads))
        if not self.heads or len(self.heads) != np.prod(self.shape, dtype=int):
            raise ValueError(f"shape {self.shape} and {len(self.heads)} heads do not match; each head needs its plan")
        kinds = {(head.n_q, head.n_k, head.is_causal) for head in self.heads}
        if len(kinds) > 1:
            raise ValueError(f"heads differ in (n_q, n_k, is_causal): {sorted(kinds)}; they must be equal")

    @property
    def n_q(self) -> int:
        return self.heads[0].n_q

    @property
    def n_k(self) -> int:
        return self.heads[0].n_k

    @property
    def is_causal(self) -> bool:
        return self.heads[0].is_causal

    @property
    def most_draws(self) -> int:
        """The most sampled keys that one query can meet."""
        return max(sum(r.sampled_keys.size for r in head.rectangles) for head in self.heads)

    @classmethod
    def from_orders(
        cls, query_order, key_order, *, block_size: int, exact_keys=(), sampled_keys=(), log_weights=()
    ) -> Plan:
        """Plan of one head from two orders, cut into blocks of `block_size` keys.

        `order[p]` is the input index at sorted position p; keys are numbered as in the input; one log-weight for each
        sampled key.
        """
        view = BlockMask.from_orders(query_order, key_order, block_size)
        return cls.from_views([view], exact_keys=exact_keys, sampled_keys=sampled_keys, log_weights=log_weights)

    @classmethod
    def from_views(
        cls, views: Sequence[BlockMask], *, shape=None, exact_keys=(), sampled_keys=(), log_weights=()
    ) -> Plan:
        """Plan of one head from any number of views; `shape` = (n_q, n_k) is needed when there is none."""
        if shape is None:
            if not views:
                raise ValueError("views is empty and shape is None; pass shape=(n_q, n_k) or at least one view")
            shape = views[0].shape
        n_q, n_k = shape
        rectangle = Rectangle(n_q, n_k, tuple(views), exact_keys, sampled_keys, log_weights)
        return cls((), (HeadPlan(n_q, n_k, (rectangle,)),))

    @classmethod
    def causal(cls, n: int, min_seq_len: int, fill: Callable[[int, int, int], Rectangle]) -> Plan:
        """Causal plan of one head.

        `fill(start, split, stop)` gives the Rectangle of queries [split, stop) by keys [start, split).
        """
        leaves, triples = causal_tiling(n, min_seq_len)
        rectangles = tuple(fill(*triple) for triple in triples)
        return cls((), (HeadPlan(n, n, rectangles, leaves),))

    @classmethod
    def stack(cls, plans: Sequence[Plan]) -> Plan:
        """One plan for several equally shaped ones, along a new first axis."""
        shapes = {plan.shape for plan in plans}
        if len(shapes) != 1:
            raise ValueError(f"plans have shapes {sorted(shapes)}; stack needs at least one, all of one shape")
        return cls((len(plans), *shapes.pop()), tuple(head for plan in plans for head in plan.heads))

    def check_fits(self, lead: tuple[int, ...], n_q: int, n_k: int, is_causal: bool, dtype=np.float64) -> None:
        """Refuse inputs that this plan was not made for; `dtype` is the type that must hold its log-weights."""
        have = {"heads": self.shape, "n_q": self.n_q, "n_k": self.n_k, "is_causal": self.is_causal}
        need = {"heads": tuple(lead), "n_q": n_q, "n_k": n_k, "is_causal": bool(is_causal)}
        wrong = [f"{key} = {have[key]} but the call has {need[key]}" for key in have if have[key] != need[key]]
        if wrong:
            raise ValueError(f"the plan was made for {'; '.join(wrong)}: make a plan for these inputs")
        work = np.promote_types(dtype, np.float32)
        largest = max((np.abs(r.log_weights).max(initial=0) for head in self.heads for r in head.rectangles), default=0)
        if not largest <= np.finfo(work).max / 4:
            raise ValueError(f"log_weights of the plan reach {largest:.3g} and may overflow {work}; use smaller ones")

    def save(self, path) -> None:
        """Write the plan to one `.npz` file, by way of a temporary file that is renamed."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                np.savez(file, **self.to_arrays())  # type: ignore[arg-type]  # its keyword allow_pickle is none of ours
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path) -> Plan:
        """Read and validate a plan that `save` wrote. No pickle is involved."""
        with open(path, "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    return cls.from_arrays(dict(arrays))
            except Exception as error:  # a file that is damaged or something else can fail in any way while it is read
                raise ValueError(f"{path} holds no valid plan ({error}); it must be a file from Plan.save") from error

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The plan as named arrays, the content of its file."""
        arrays = {"format": np.array(FORMAT), "shape": np.array(self.shape, np.int64)}
        arrays["lengths"] = np.array([self.n_q, self.n_k])
        for h, head in enumerate(self.heads):
            arrays[f"{h}/leaves"] = np.array(head.leaves, np.int64).reshape(-1, 2)
            arrays[f"{h}/places"] = np.array([_place(r) for r in head.rectangles], np.int64).reshape(-1, 4)
            arrays[f"{h}/views"] = np.array([len(r.views) for r in head.rectangles], np.int64)
            for r, rectangle in enumerate(head.rectangles):
                for name in KEY_ARRAYS:
                    arrays[f"{h}/{r}/{name}"] = getattr(rectangle, name)
                for u, view in enumerate(rectangle.views):
                    for name in VIEW_ARRAYS:
                        arrays[f"{h}/{r}/{u}/{name}"] = getattr(view, name)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Plan:
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
                place = {"query_start": first, "key_start": key_first}
                rectangles.append(Rectangle(stop - first, key_stop - key_first, views, **keys, **place))
            heads.append(HeadPlan(n_q, n_k, tuple(rectangles), tuple(arrays[f"{h}/leaves"].tolist())))
        return cls(shape, tuple(heads))

    def __repr__(self) -> str:
        head = self.heads[0]
        kind = f"causal, {len(head.leaves)} leaves, " if self.is_causal else ""
        return f"Plan(shape={self.shape}, n_q={self.n_q}, n_k={self.n_k}, {kind}{len(head.rectangles)} rectangles)"


def causal_tiling(n: int, min_seq_len: int):
    """Leaves and rectangles of the causal recursion on [0, n).

    Paper: Algorithm 4. Derived: rule 8, ranges longer than min_seq_len are split at a + ceil((c - a)/2).

    Returns
    -------
    leaves : tuple of (a, c), in order of their rows.
    rectangles : tuple of (a, split, c), queries [split, c) by keys [a, split); those that share rows smallest first.
    """
    n, min_seq_len = inputs.count("n", n), inputs.count("min_seq_len", min_seq_len)
    leaves, rectangles = [], []

    def recurse(a: int, c: int) -> None:
        if c - a <= min_seq_len:
            leaves.append((a, c))
            return
        split = split_point(a, c)
        recurse(a, split)
        recurse(split, c)
        rectangles.append((a, split, c))

    recurse(0, n)
    return tuple(leaves), tuple(rectangles)


def split_point(a: int, c: int) -> int:
    """a + ceil((c - a)/2): the left half of an odd range is the longer one, so that no row is padded."""
    return a + -(-(c - a) // 2)


def _index(x) -> int:
    """An end of a leaf as an int; the tiling is checked afterwards."""
    try:
        return operator.index(x)
    except TypeError:
        raise TypeError(f"a leaf has the end {x!r}; its ends must be integers") from None


def _place(rectangle: Rectangle) -> tuple[int, int, int, int]:
    """(first query, past the last query, first key, past the last key)."""
    query, key = rectangle.query_start, rectangle.key_start
    return query, query + rectangle.n_q, key, key + rectangle.n_k


def _check_causal_tiling(head: HeadPlan) -> None:
    """The leaves and rectangles must be exactly those of one recursion on [0, n)."""
    inputs.causal_lengths(head.n_q, head.n_k)
    leaves, places = list(head.leaves), [_place(r) for r in head.rectangles]

    def recurse(a: int, c: int) -> None:
        if (a, c) in leaves:
            leaves.remove((a, c))
            return
        split = split_point(a, c)
        if split == c or (split, c, a, split) not in places:
            raise ValueError(
                f"the causal plan leaves the range [{a}, {c}) open; it needs the leaf ({a}, {c}) or the rectangle of "
                f"queries [{split}, {c}) by keys [{a}, {split})"
            )
        places.remove((split, c, a, split))
        recurse(a, split)
        recurse(split, c)

    recurse(0, head.n_q)
    if leaves or places:
        raise ValueError(f"the causal plan has leaves {leaves} and rectangles {places} outside the recursion")
