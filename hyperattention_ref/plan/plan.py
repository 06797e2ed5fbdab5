"""The Plan: every discrete decision of an attention call, made before any arithmetic.

Eleven rules define it (docs, page "theory"): those of `head_plan` for one head, and rule 10 for the `Plan` of a batch
of heads. Given the same Plan, all backends agree within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.backend import BLOCK_LISTS, LANDMARKS
from hyperattention_ref.plan import plan_file
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.landmarks import Landmarks
from hyperattention_ref.plan.tiling import causal_tiling


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

    @property
    def parts(self) -> set[str]:
        """The parts that not every backend can compute."""
        lists = {BLOCK_LISTS} if any(head.lists is not None for head in self.heads) else set()
        return lists | ({LANDMARKS} if self.landmarks else set())

    @property
    def n_logits(self) -> int:
        """Number of logits that a backend evaluates for all heads."""
        return sum(head.n_logits for head in self.heads)

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

    @property
    def landmarks(self) -> list[Landmarks]:
        """The landmarks of all rectangles that have some."""
        return [r.landmarks for head in self.heads for r in head.rectangles if r.landmarks is not None]

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

    def check_landmarks(self, d: int, scale: float, largest_key: float, dtype) -> None:
        """Refuse landmarks of another d, or with pilots whose logits may overflow."""
        limit = float(np.finfo(np.promote_types(dtype, np.float32)).max) / 4
        for landmarks in self.landmarks:
            if landmarks.d != d:
                raise ValueError(
                    f"landmarks of the plan have d = {landmarks.d} but the call has d = {d}: make a plan for these "
                    "inputs"
                )
            logits = abs(scale) * d * largest_key * landmarks.largest_pilot(scale, largest_key)
            if not logits <= limit:
                raise ValueError(
                    f"logits of the plan's landmarks may reach {logits:.3g} and overflow {np.dtype(dtype)}; rescale "
                    "query and key, pass float64, or use a recipe without landmarks"
                )

    def save(self, path) -> None:
        """Write the plan to one `.npz` file, whole or not at all; a file of that name is replaced."""
        plan_file.save(path, self.to_arrays())

    @classmethod
    def load(cls, path) -> Plan:
        """Read and validate a plan that `save` wrote. No pickle is involved."""
        return plan_file.load(path, cls.from_arrays)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The plan as named arrays, the content of its file."""
        return plan_file.to_arrays(self.shape, self.heads)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Plan:
        """Inverse of `to_arrays`; everything is validated again."""
        return cls(*plan_file.from_arrays(arrays))

    def __repr__(self) -> str:
        head = self.heads[0]
        kind = f"causal, {len(head.leaves)} leaves, " if self.is_causal else ""
        return f"Plan(shape={self.shape}, n_q={self.n_q}, n_k={self.n_k}, {kind}{len(head.rectangles)} rectangles)"
