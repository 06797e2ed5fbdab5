"""All kernels of the Numba backend, compiled before they are needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from hyperattention_ref.plan.block_lists import BlockLists
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.landmarks import Landmarks
from hyperattention_ref.plan.pages import Paging
from hyperattention_ref.plan.plan import Plan

from .backend import NumbaCPU


def warm_up() -> Iterator[tuple[str, float]]:
    """Call every operation on two tokens in float32 and float64; yield its name with the dtype, and the seconds.

    The call compiles what is not on disk yet; float16 is computed in float32.
    """
    for dtype in (np.float32, np.float64):
        for name, call in _calls(np.ones((2, 1), dtype)).items():
            start = time.perf_counter()
            call()
            yield f"{name}, {np.dtype(dtype).name}", time.perf_counter() - start


def _calls(x) -> dict[str, Callable]:
    """A call of each operation, with `x` for query, key and value."""
    backend, lse = NumbaCPU(), np.zeros(len(x), x.dtype)
    whole = Plan.from_orders([0, 1], [0, 1], block_size=1)
    lists = BlockLists.from_mask(np.ones((2, 2), dtype=bool), 2, 2, block_size=1, page_size=1)
    order, first = np.arange(2), np.array([0])
    view, landmarks = BlockMask.from_orders(order, order, 1), Landmarks(first, np.zeros(1), np.zeros((1, 1)))
    far = Rectangle(2, 2, (view,), exact_keys=first, landmarks=landmarks)
    listed = [Plan((), (HeadPlan(2, 2, rectangles, (), lists),)) for rectangles in ((), (far,))]
    causal = Plan.causal(2, 1, lambda start, split, stop: Rectangle(1, 1, query_start=split, key_start=start))

    def planned():
        for plan in (whole, *listed, causal):
            backend.planned_attention(x, x, x, plan, scale=1.0)

    def pick_level():
        level = Paging(2, 2, 1, True, 1, 0).level(1)
        backend.pick_level(x, x, level, np.array([[0, 1]]), top=1, lift=0.5, scale=1.0)

    return {
        "hash_codes": lambda: backend.hash_codes(x, np.ones((1, 1))),
        "exact_attention": lambda: backend.exact_attention(x, x, x, scale=1.0, is_causal=False),
        "planned_attention": planned,
        "attention_gradient": lambda: backend.attention_gradient(
            x, x, x, None, x, lse, x, lse, scale=1.0, is_causal=False
        ),
        "pick_level": pick_level,
        "attention_sums": lambda: backend.attention_sums(x, x, None, scale=1.0, is_causal=False),
        "transposed_attention": lambda: backend.transposed_attention(x, x, x, lse, scale=1.0, is_causal=False),
        "capped_sums": lambda: backend.capped_sums(x, x, None, np.array([0]), np.zeros(len(x)), scale=1.0),
    }
