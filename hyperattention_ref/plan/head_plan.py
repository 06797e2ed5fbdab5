"""The plan of one head: which pairs are exact and which keys are sampled, rectangle by rectangle.

Rules 1-7 of the Plan (docs, page "theory") describe one `Rectangle` of queries by keys, rules 8 and 9 how a `HeadPlan`
tiles one head with exact causal leaves and rectangles, rule 11 its block lists.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.host_arrays import host_array
from hyperattention_ref.plan.block_lists import BlockLists
from hyperattention_ref.plan.block_mask import BlockMask, index_array
from hyperattention_ref.plan.landmarks import Landmarks
from hyperattention_ref.plan.tiling import split_point


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Which pairs of n_q queries and n_k keys are computed exactly, and which keys stand for all the others.

    Derived: rules 1-7. Indices count from the rectangle's own first query and key.

    - M_ij = 1 iff j is in `exact_keys` or some view puts i and j in one block; such a pair counts once, weight 1.
    - Sampled key r contributes e^{log_weights[r]} A_{i, sampled_keys[r]} to query i unless M marks that pair. Repeated
      draws count each time.
    - With log_weights[r] = -log(m p), p the probability of that draw, the sampled sum is unbiased for every query.
    - With `landmarks` every pair that M does not mark gets the estimate of `Landmarks` instead. Those of one query add
      up to its far part. It is dropped if its weight is no more than FLOOR of the landmarks' parts in absolute
      value, and its mean of values is moved into the smallest ball around the mean of the far values, those of no exact
      key, that holds them all.
    - The output of query i is numerator / denominator, its log-sum-exp log(denominator); nothing at all gives
      (0, minus infinity).

    Parameters
    ----------
    n_q, n_k : the rectangle's sides.
    views : BlockMasks of shape (n_q, n_k).
    exact_keys : distinct key indices, kept sorted.
    sampled_keys : m key indices, repetitions allowed.
    log_weights : (m,) finite float64.
    landmarks : Landmarks, whose keys are exact keys, or None; not together with sampled keys.
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
    landmarks: Landmarks | None = None

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
        weights = host_array("log_weights", self.log_weights).astype(np.float64)
        if weights.shape != self.sampled_keys.shape or not np.all(np.isfinite(weights)):
            raise ValueError(
                f"log_weights has shape {weights.shape}; it must be one finite number for each of the "
                f"{self.sampled_keys.size} sampled_keys"
            )
        weights.setflags(write=False)
        object.__setattr__(self, "log_weights", weights)
        if self.landmarks is not None:
            self._check_landmarks()

    def __reduce__(self):
        # A copy and an unpickled rectangle are made anew, so that they are checked, and as immutable as this one.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def _keys(self, name: str) -> np.ndarray:
        keys = index_array(name, getattr(self, name))
        if keys.size and (keys.min() < 0 or keys.max() >= self.n_k):
            raise ValueError(f"{name} runs from {keys.min()} to {keys.max()}; keys are numbered 0 .. {self.n_k - 1}")
        return keys

    def _check_landmarks(self) -> None:
        if not isinstance(self.landmarks, Landmarks):
            raise TypeError(f"landmarks is a {type(self.landmarks).__name__}; it must be Landmarks or None")
        if not np.isin(self.landmarks.keys, self.exact_keys).all():
            raise ValueError("landmarks has keys that are no exact_keys; add them there")
        if self.sampled_keys.size:
            raise ValueError(
                "landmarks and sampled_keys are both given, and both stand for the far keys; pass only one"
            )

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
    def is_exact(self) -> np.ndarray:
        """(n_k,) boolean, which keys are exact."""
        is_exact = np.zeros(self.n_k, dtype=bool)
        is_exact[self.exact_keys] = True
        return is_exact

    def block_numbers(self, *, exact_keys: bool) -> tuple[np.ndarray, np.ndarray]:
        """M as numbers, (views, n_q) and (views, n_k) int32: M_ij = 1 iff some view gives i and j the same number.

        With `exact_keys` the exact keys, if there are any, are the first of these views: every query and every exact
        key has the number 0, all other keys have -1. Without, they are left out.
        """
        query = [view.query_blocks() for view in self.views]
        key = [view.key_blocks() for view in self.views]
        if exact_keys and self.exact_keys.size:
            query.insert(0, np.zeros(self.n_q, np.int32))
            key.insert(0, np.where(self.is_exact, 0, -1))
        sides = ((query, self.n_q), (key, self.n_k))
        query_blocks, key_blocks = (np.array(x, np.int32).reshape(len(x), n) for x, n in sides)
        return query_blocks, key_blocks

    @property
    def place(self) -> tuple[int, int, int, int]:
        """(first query, past the last query, first key, past the last key) in the head."""
        query, key = self.query_start, self.key_start
        return query, query + self.n_q, key, key + self.n_k

    @property
    def rows_and_keys(self) -> tuple[slice, slice]:
        """Where the rectangle's queries and its keys are in the head."""
        first, stop, key_first, key_stop = self.place
        return slice(first, stop), slice(key_first, key_stop)

    @property
    def n_logits(self) -> int:
        """Number of logits that a backend evaluates, pairs seen by several views or draws counted each time.

        Landmarks add those of their pilots over the far keys, r (n_k - exact keys).
        """
        pilots = 0 if self.landmarks is None else self.landmarks.keys.size * (self.n_k - self.exact_keys.size)
        shared = self.n_q * (self.exact_keys.size + self.sampled_keys.size)
        return sum(view.nnz for view in self.views) + shared + pilots


@dataclass(frozen=True, eq=False)
class HeadPlan:
    """How one head is tiled.

    Derived: rules 8, 9 and 11. A head that is not causal is one rectangle. A causal head is the recursion on [0, n): a
    range is an exact causal leaf, or it is split at a + ceil((c - a)/2) into two ranges and the rectangle of its right
    queries and left keys. A row's result is the merge of its leaf and then its rectangles in the order in which they
    are stored, which `causal_tiling` makes smallest first.

    The pairs of `lists` come before all others: a rectangle takes them neither as exact nor as sampled pairs. A head
    with lists has no leaves, for the lists may hold the diagonal, and needs no rectangle: a pair that is in no part is
    dropped.

    Parameters
    ----------
    n_q, n_k : lengths of the head.
    rectangles : Rectangles, placed by their query_start and key_start.
    leaves : pairs (a, c), exact causal attention on the range [a, c).
    lists : BlockLists of the whole head, causal if it is; or None.
    """

    n_q: int
    n_k: int
    rectangles: tuple[Rectangle, ...]
    leaves: tuple[tuple[int, int], ...] = ()
    lists: BlockLists | None = None

    def __post_init__(self):
        object.__setattr__(self, "rectangles", tuple(self.rectangles))
        object.__setattr__(self, "leaves", tuple((_index(a), _index(c)) for a, c in self.leaves))
        if self.lists is not None:
            _check_lists(self)
        if self.is_causal:
            _check_causal_tiling(self)
            return
        is_one = len(self.rectangles) == 1 and self.rectangles[0].place == (0, self.n_q, 0, self.n_k)
        if not is_one and (self.lists is None or self.rectangles):
            raise ValueError(
                f"a plan without leaves must be one rectangle that covers all {self.n_q} queries and {self.n_k} keys"
            )

    @property
    def is_causal(self) -> bool:
        return bool(self.leaves) or (self.lists is not None and self.lists.is_causal)

    @property
    def is_exact(self) -> bool:
        """Whether the head is one exact causal leaf."""
        return self.leaves == ((0, self.n_q),)

    @property
    def n_logits(self) -> int:
        """Number of logits that a backend evaluates, pairs seen by several views or draws counted each time."""
        leaves = sum(math.comb(c - a + 1, 2) for a, c in self.leaves)
        return leaves + (self.lists.nnz if self.lists else 0) + sum(r.n_logits for r in self.rectangles)

    def listed(self, rectangle: Rectangle, queries, keys) -> np.ndarray:
        """The (len(queries), len(keys)) boolean tile of listed pairs, counted from the rectangle's first of each."""
        if self.lists is None:
            return np.zeros((len(queries), len(keys)), dtype=bool)
        return self.lists.pairs(np.asarray(queries) + rectangle.query_start, np.asarray(keys) + rectangle.key_start)

    def rows(self, queries) -> np.ndarray:
        """For these queries the pairs that are computed exactly, (len(queries), n_k) boolean; leaves are exact."""
        queries = np.asarray(queries)
        mask = np.zeros((len(queries), self.n_k), dtype=bool)
        if self.lists is not None:
            mask |= self.lists.rows(queries)
        for a, c in self.leaves:
            inside = (a <= queries) & (queries < c)
            mask[inside, a:c] = np.arange(a, c) <= queries[inside, None]
        for rectangle in self.rectangles:
            first, stop, key_first, key_stop = rectangle.place
            inside = (first <= queries) & (queries < stop)
            if inside.any():
                mask[inside, key_first:key_stop] |= rectangle.rows(queries[inside] - first)
        return mask


def _index(x) -> int:
    """An end of a leaf as an int; the tiling is checked afterwards."""
    try:
        return operator.index(x)
    except TypeError:
        raise TypeError(f"a leaf has the end {x!r}; its ends must be integers") from None


def _check_lists(head: HeadPlan) -> None:
    if not isinstance(head.lists, BlockLists):
        raise TypeError(f"lists is a {type(head.lists).__name__}; it must be BlockLists or None")
    if head.lists.shape != (head.n_q, head.n_k):
        raise ValueError(f"lists have shape {head.lists.shape}; it must be (n_q, n_k) = {(head.n_q, head.n_k)}")
    if head.leaves:
        raise ValueError("the plan has lists and leaves; put the pairs of the leaves into the lists")


def _check_causal_tiling(head: HeadPlan) -> None:
    """The leaves and rectangles must be those of one recursion on [0, n); beside lists a range may stay empty."""
    inputs.causal_lengths(head.n_q, head.n_k)
    leaves, places = set(head.leaves), {r.place for r in head.rectangles}
    if len(leaves) < len(head.leaves) or len(places) < len(head.rectangles):
        raise ValueError("the causal plan has a leaf or a rectangle twice")

    def recurse(a: int, c: int) -> None:
        if (a, c) in leaves:
            leaves.remove((a, c))
            return
        split = split_point(a, c)
        if split == c or (split, c, a, split) not in places:
            if head.lists is not None:
                return
            raise ValueError(
                f"the causal plan leaves the range [{a}, {c}) open; it needs the leaf ({a}, {c}) or the rectangle of "
                f"queries [{split}, {c}) by keys [{a}, {split})"
            )
        places.remove((split, c, a, split))
        recurse(a, split)
        recurse(split, c)

    recurse(0, head.n_q)
    if leaves or places:
        raise ValueError(
            f"the causal plan has leaves {sorted(leaves)} and rectangles {sorted(places)} outside the recursion"
        )
