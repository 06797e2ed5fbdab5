"""Rules 8 and 9 of the Plan: the causal recursion."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr

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
