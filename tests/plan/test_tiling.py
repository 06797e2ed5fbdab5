"""Rules 8 and 9 of the Plan: the causal recursion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import BlockMask, HeadPlan, Plan, Rectangle

rng = np.random.default_rng


def inputs(n_q, n_k, d=3, d_v=2, seed=0):
    g = rng(seed)
    return g.standard_normal((n_q, d)), g.standard_normal((n_k, d)), g.standard_normal((n_k, d_v))


@given(n=st.integers(1, 300), least=st.integers(1, 40))
def test_rule_8_leaves_and_rectangles_tile_the_lower_triangle_once(n, least):
    leaves, rectangles = hr.causal_tiling(n, least)
    covered = np.zeros((n, n), dtype=int)
    for a, c in leaves:
        assert 1 <= c - a <= least
        covered[a:c, a:c] += np.tri(c - a, dtype=int)
    for a, s, c in rectangles:
        assert s == a + math.ceil((c - a) / 2)
        assert c - a > least
        covered[s:c, a:s] += 1
    np.testing.assert_array_equal(covered, np.tri(n, dtype=int))
    assert [a for a, _ in leaves] == sorted(a for a, _ in leaves)


def test_rule_8_exact_leaf_when_short_and_split_at_the_upper_half_when_odd():
    assert hr.causal_tiling(5, 5) == (((0, 5),), ())
    assert hr.causal_tiling(5, 4) == (((0, 3), (3, 5)), ((0, 3, 5),))
    assert hr.causal_tiling(1, 1) == (((0, 1),), ())


def test_rule_8_every_rectangle_has_its_own_plan():
    q, k, _ = inputs(40, 40)
    (head,) = hr.make_plan(q, k, is_causal=True, block_size=4, sample_size=6, min_seq_len=10, rng=0).heads
    assert [(r.key_start, r.query_start, r.query_start + r.n_q) for r in head.rectangles] == list(
        hr.causal_tiling(40, 10)[1]
    )
    for r in head.rectangles:
        assert r.sampled_keys.size == 6
        assert r.log_weights == pytest.approx(math.log(r.n_k / 6))
    draws = {tuple(r.sampled_keys.tolist()) for r in head.rectangles}
    assert len(draws) == len(head.rectangles)


@given(n=st.integers(1, 500), least=st.integers(1, 20))
def test_rule_9_a_row_lies_in_one_leaf_and_at_most_log2_n_rectangles_smallest_first(n, least):
    leaves, rectangles = hr.causal_tiling(n, least)
    for i in range(0, n, 7):
        mine = [c - a for a, s, c in rectangles if s <= i < c]
        assert mine == sorted(mine)
        assert len(mine) <= math.ceil(math.log2(n)) if n > 1 else not mine
        assert sum(a <= i < c for a, c in leaves) == 1


WRONG = {
    "no queries": (lambda: Rectangle(0, 3), ValueError, "n_q is 0; it must be at least 1"),
    "half a query": (lambda: Rectangle(1.5, 3), TypeError, "n_q is 1.5; it must be an integer"),
    "view of another shape": (
        lambda: Rectangle(3, 3, (BlockMask.from_orders([0, 1], [0, 1], 1),)),
        ValueError,
        r"a view has shape \(2, 2\); it must be \(n_q, n_k\) = \(3, 3\)",
    ),
    "view that is an array": (lambda: Rectangle(2, 2, (np.eye(2),)), TypeError, "a view is a ndarray"),
    "exact key too large": (lambda: Rectangle(3, 3, exact_keys=[3]), ValueError, "exact_keys runs from 3 to 3"),
    "sampled key negative": (
        lambda: Rectangle(3, 3, sampled_keys=[-1], log_weights=[0]),
        ValueError,
        r"sampled_keys runs from -1 to -1; keys are numbered 0 \.\. 2",
    ),
    "keys that are no integers": (lambda: Rectangle(3, 3, exact_keys=[0.5]), TypeError, "exact_keys has dtype float64"),
    "keys of a wrong rank": (lambda: Rectangle(3, 3, exact_keys=[[0]]), TypeError, "one-dimensional"),
    "weights without keys": (lambda: Rectangle(3, 3, log_weights=[0.0]), ValueError, "log_weights has shape"),
    "no permutation": (
        lambda: Plan.from_orders([0, 0], [0, 1], block_size=1),
        ValueError,
        "query_order is no permutation",
    ),
    "empty order": (lambda: Plan.from_orders([], [0, 1], block_size=1), ValueError, "query_order is no permutation"),
    "block size 0": (lambda: Plan.from_orders([0], [0], block_size=0), ValueError, "block_size is 0"),
    "offsets that end early": (
        lambda: BlockMask([0, 1], [0, 1], [0, 1], [0, 2]),
        ValueError,
        "query_offsets is .*must rise from 0 to 2",
    ),
    "sides with different blocks": (
        lambda: BlockMask([0, 1], [0, 1], [0, 1, 2], [0, 2]),
        ValueError,
        "query_offsets make 2 blocks and key_offsets 1",
    ),
    "no view and no shape": (lambda: Plan.from_views([]), ValueError, "views is empty and shape is None"),
    "two rectangles without leaves": (
        lambda: HeadPlan(2, 2, (Rectangle(2, 2), Rectangle(2, 2))),
        ValueError,
        "a plan without leaves must be one rectangle",
    ),
    "rectangle elsewhere": (
        lambda: HeadPlan(2, 2, (Rectangle(2, 2, key_start=1),)),
        ValueError,
        "a plan without leaves must be one rectangle",
    ),
    "causal with a hole": (lambda: HeadPlan(4, 4, (), ((0, 2), (2, 4))), ValueError, r"leaves the range \[0, 4\) open"),
    "causal with a piece too many": (lambda: HeadPlan(2, 2, (), ((0, 2), (0, 1))), ValueError, "outside the recursion"),
    "causal split elsewhere": (
        lambda: HeadPlan(4, 4, (Rectangle(3, 1, query_start=1),), ((0, 1), (1, 4))),
        ValueError,
        "open",
    ),
    "leaf that is no pair of integers": (
        lambda: HeadPlan(2, 2, (), ((0.7, 2.9),)),
        TypeError,
        "integer",
    ),
    "causal and not square": (lambda: HeadPlan(2, 3, (), ((0, 2),)), ValueError, "2 queries and 3 keys"),
    "heads of different lengths": (
        lambda: Plan((2,), tuple(HeadPlan(n, n, (Rectangle(n, n),)) for n in (2, 3))),
        ValueError,
        "heads differ",
    ),
    "fewer heads than the shape has": (
        lambda: Plan((2,), (HeadPlan(2, 2, (Rectangle(2, 2),)),)),
        ValueError,
        r"shape \(2,\) and 1 heads",
    ),
    "no head": (lambda: Plan((0,), ()), ValueError, r"shape \(0,\) and 0 heads"),
    "stack of nothing": (lambda: Plan.stack([]), ValueError, "stack needs at least one"),
    "stack of different shapes": (
        lambda: Plan.stack([Plan.from_views([], shape=(2, 2)), Plan.stack([Plan.from_views([], shape=(2, 2))])]),
        ValueError,
        "all of one shape",
    ),
}
