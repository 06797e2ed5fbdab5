"""The interface of backends: the iteration over heads."""

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.backends import each_head


def test_heads_are_taken_in_row_major_order():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 7, 4))
    plan = hr.make_plan(q, k, block_size=2, sample_size=2, rng=0)
    indices = [(index, head) for index, head, *_ in each_head(plan, q, k, v)]
    assert [index for index, _ in indices] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [head for _, head in indices] == list(plan.heads)
