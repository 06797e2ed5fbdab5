"""Rule 10 of the Plan, and its validation."""

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref import BlockMask, HeadPlan, Plan, Rectangle

rng = np.random.default_rng


def inputs(n_q, n_k, d=3, d_v=2, seed=0):
    g = rng(seed)
    return g.standard_normal((n_q, d)), g.standard_normal((n_k, d)), g.standard_normal((n_k, d_v))


def same_head(first: HeadPlan, second: HeadPlan) -> bool:
    arrays = [Plan((), (head,)).to_arrays() for head in (first, second)]
    return arrays[0].keys() == arrays[1].keys() and all(np.array_equal(arrays[0][x], arrays[1][x]) for x in arrays[0])


@pytest.mark.parametrize("is_causal", [False, True])
def test_rule_10_the_plan_of_a_head_does_not_depend_on_how_many_heads_follow(is_causal):
    q, k = rng(0).standard_normal((2, 6, 30, 4))
    options = {"is_causal": is_causal, "block_size": 4, "sample_size": 5, "min_seq_len": 8, "rng": 7}
    all_heads = hr.make_plan(q, k, **options).heads
    for count in (1, 2, 5):
        fewer = hr.make_plan(q[:count], k[:count], **options).heads
        assert all(same_head(x, y) for x, y in zip(fewer, all_heads, strict=False))
    assert same_head(hr.make_plan(q[0], k[0], **options).heads[0], all_heads[0])
    assert not same_head(all_heads[0], all_heads[1])


def test_rule_10_heads_with_equal_inputs_have_their_own_draws():
    q, k = rng(0).standard_normal((2, 20, 4))
    plan = hr.make_plan(np.stack([q, q]), np.stack([k, k]), block_size=4, sample_size=5, rng=0)
    first, second = (head.rectangles[0] for head in plan.heads)
    assert first.sampled_keys.tolist() != second.sampled_keys.tolist()


def test_rule_10_a_batch_is_one_plan_per_head_in_row_major_order():
    q, k, v = rng(0).standard_normal((3, 2, 3, 12, 4))
    plan = hr.make_plan(q, k, block_size=4, sample_size=3, rng=1)
    assert plan.shape == (2, 3)
    out = hr.hyper_attention(q, k, v, plan=plan)
    for h, index in enumerate(np.ndindex(2, 3)):
        one = hr.hyper_attention(q[index], k[index], v[index], plan=Plan((), (plan.heads[h],)))
        np.testing.assert_array_equal(out[index], one)


def test_rule_10_grouped_query_heads_have_a_plan_per_query_head():
    g = rng(0)
    q, k = g.standard_normal((2, 6, 10, 4)), g.standard_normal((2, 3, 10, 4))
    plan = hr.make_plan(q, k, enable_gqa=True, block_size=3, sample_size=4, rng=5)
    assert plan.shape == (2, 6)
    assert len(plan.heads) == 12
    repeated = hr.make_plan(q, np.repeat(k, 2, axis=1), block_size=3, sample_size=4, rng=5)
    assert all(same_head(x, y) for x, y in zip(plan.heads, repeated.heads, strict=True))


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


@pytest.mark.parametrize("what", WRONG)
def test_plans_are_validated_when_built(what):
    build, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        build()


def test_plans_cannot_be_changed_and_do_not_follow_the_arrays_they_were_made_from():
    order, keys, weights = np.arange(4), np.array([1, 2]), np.zeros(2)
    plan = Plan.from_orders(order, order, block_size=2, sampled_keys=keys, log_weights=weights)
    (rectangle,) = plan.heads[0].rectangles
    order[:], keys[:], weights[:] = 0, 0, 9
    assert rectangle.views[0].query_order.tolist() == [0, 1, 2, 3]
    assert rectangle.sampled_keys.tolist() == [1, 2]
    assert rectangle.log_weights.tolist() == [0, 0]
    for array in (rectangle.sampled_keys, rectangle.exact_keys, rectangle.log_weights, rectangle.views[0].key_order):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        plan.shape = (2,)


def test_plans_by_hand_are_plans_of_one_head():
    plan = Plan.from_orders([1, 0, 2], [2, 1, 0, 3], block_size=3, exact_keys=[3], sampled_keys=[0], log_weights=[1.5])
    assert plan.shape == ()
    assert (plan.n_q, plan.n_k, plan.is_causal) == (3, 4, False)
    # the query at sorted position p belongs to block floor(floor(4 p / 3) / 3): 0, 0, 0
    assert plan.heads[0].rectangles[0].toarray().tolist() == [[True, True, True, True]] * 3
    causal = Plan.causal(5, 2, lambda a, s, c: Rectangle(c - s, s - a, exact_keys=[0], query_start=s, key_start=a))
    assert causal.is_causal
    assert len(causal.heads[0].rectangles) == 2
    stacked = Plan.stack([Plan.stack([plan, plan, plan])] * 2)
    assert stacked.shape == (2, 3)
    assert len(stacked.heads) == 6


def test_a_plan_for_other_shapes_is_refused():
    q, k, v = inputs(6, 8)
    plan = hr.make_plan(q, k, block_size=2, sample_size=2, rng=0)
    for args, message in (
        ((q[:5], k, v), "the plan was made for n_q = 6 but the call has 5"),
        ((q, k[:7], v[:7]), "the plan was made for n_k = 8 but the call has 7"),
        ((q[None], k[None], v[None]), r"the plan was made for heads = \(\) but the call has \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            hr.hyper_attention(*args, plan=plan)
    with pytest.raises(ValueError, match="is_causal = False but the call has True"):
        hr.hyper_attention(q, k[:6], v[:6], is_causal=True, plan=hr.make_plan(q, k[:6], rng=0))
