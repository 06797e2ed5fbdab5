"""Rules 1 to 7 and 9 of the Plan: one rectangle, and the merge of those of a head."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import BlockMask, Plan, Rectangle
from hyperattention_ref.backends.conformance import plans
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.plan.merge import NEUTRAL

rng = np.random.default_rng


REFERENCE = Reference()


def inputs(n_q, n_k, d=3, d_v=2, seed=0):
    g = rng(seed)
    return g.standard_normal((n_q, d)), g.standard_normal((n_k, d)), g.standard_normal((n_k, d_v))


def attend(plan, q, k, v):
    """(numerator, denominator) of the reference backend with scale 1: the sums that rules 3 and 4 define."""
    out, lse = hr.hyper_attention(q, k, v, scale=1.0, plan=plan, backend=REFERENCE, return_lse=True)
    return out * np.exp(lse)[:, None], np.exp(lse)


def sums(q, k, v, terms):
    """The same from a list of (weight, mask) pairs: weight times the A of the marked pairs, (n_q, n_k) each."""
    a = np.exp(q @ k.T)
    total = sum(weight * marked * a for weight, marked in terms)
    return total @ v, total.sum(axis=1)


def assert_sums(got, want):
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_rule_1_views_are_orders_and_offsets_with_ragged_and_empty_blocks():
    view = BlockMask([2, 0, 3, 1, 4], [1, 0, 3, 2], [0, 2, 2, 5, 5], [0, 1, 3, 3, 4])
    assert view.query_blocks().tolist() == [0, 2, 0, 2, 2]
    assert view.key_blocks().tolist() == [1, 0, 3, 1]
    plan = Plan.from_views([view])
    mask = np.array(view.query_blocks())[:, None] == np.array(view.key_blocks())
    np.testing.assert_array_equal(plan.heads[0].rectangles[0].toarray(), mask)
    assert mask.sum() == 2 == view.nnz  # block 0 holds 2 x 1 pairs; blocks 1, 2 and 3 have one empty side
    q, k, v = inputs(5, 4)
    assert_sums(attend(plan, q, k, v), sums(q, k, v, [(1, mask)]))


@given(plans(shape=(), is_causal=False, lists=False))
def test_rule_1_block_numbers_match_orders_and_offsets(plan):
    for view in plan.heads[0].rectangles[0].views:
        for blocks, order, offsets in (
            (view.query_blocks(), view.query_order, view.query_offsets),
            (view.key_blocks(), view.key_order, view.key_offsets),
        ):
            for u in range(view.n_blocks):
                members = order[offsets[u] : offsets[u + 1]]
                np.testing.assert_array_equal(np.sort(members), np.flatnonzero(blocks == u))


@given(plans(shape=(), is_causal=False, lists=False))
def test_rules_1_and_2_block_numbers_of_a_rectangle_are_its_mask(plan):
    (rectangle,) = plan.heads[0].rectangles
    masks = {}
    for exact_keys in (True, False):
        query, key = rectangle.block_numbers(exact_keys=exact_keys)
        masks[exact_keys] = (query[:, :, None] == key[:, None]).any(axis=0)
    views = [view.toarray() for view in rectangle.views]
    np.testing.assert_array_equal(masks[False], np.any(views, axis=0) if views else np.zeros_like(masks[False]))
    np.testing.assert_array_equal(masks[True], rectangle.toarray())
    np.testing.assert_array_equal(np.flatnonzero(rectangle.is_exact), rectangle.exact_keys)


def test_rule_2_exact_keys_are_a_set_and_sampled_keys_a_multiset_with_finite_weights():
    rectangle = Rectangle(4, 6, exact_keys=[5, 0, 3], sampled_keys=[2, 2, 1], log_weights=[0.5, -1, 0.5])
    assert rectangle.exact_keys.tolist() == [0, 3, 5]
    assert rectangle.sampled_keys.tolist() == [2, 2, 1]
    assert rectangle.log_weights.tolist() == [0.5, -1, 0.5]
    with pytest.raises(ValueError, match="exact_keys has repeated entries; it is a set"):
        Rectangle(4, 6, exact_keys=[0, 1, 1])
    for weights in ([0.0, math.inf], [math.nan, 0.0], [0.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="log_weights"):
            Rectangle(4, 6, sampled_keys=[1, 2], log_weights=weights)


def test_rule_2_a_log_weight_of_zero_means_nothing_special():
    q, k, v = inputs(4, 6)
    once = np.zeros((4, 6))
    once[:, 2] = 1
    exact = Plan.from_views([], shape=(4, 6), exact_keys=[2])
    assert_sums(attend(exact, q, k, v), sums(q, k, v, [(1, once)]))
    sampled_twice = Plan.from_views([], shape=(4, 6), sampled_keys=[2, 2], log_weights=[0, 0])
    assert_sums(attend(sampled_twice, q, k, v), sums(q, k, v, [(2, once)]))
    exact_and_sampled = Plan.from_views([], shape=(4, 6), exact_keys=[2], sampled_keys=[2], log_weights=[0])
    assert_sums(attend(exact_and_sampled, q, k, v), sums(q, k, v, [(1, once)]))


def test_rule_3_a_pair_in_two_views_and_among_the_exact_keys_counts_once():
    q, k, v = inputs(6, 6)
    view = BlockMask.from_orders(np.arange(6), np.arange(6), 3)
    shifted = BlockMask.from_orders(np.arange(6), np.roll(np.arange(6), 1), 3)
    plan = Plan.from_views([view, shifted, view], exact_keys=[0, 4])
    mask = view.toarray() | shifted.toarray()
    mask[:, [0, 4]] = True
    np.testing.assert_array_equal(plan.heads[0].rectangles[0].toarray(), mask)
    for backend in hr.available_backends():
        out, lse = hr.hyper_attention(q, k, v, scale=1.0, plan=plan, backend=backend, return_lse=True)
        assert_sums((out * np.exp(lse)[:, None], np.exp(lse)), sums(q, k, v, [(1, mask)]))


def test_rule_4_repeated_draws_count_each_time_and_masked_draws_not_at_all():
    q, k, v = inputs(4, 5)
    view = BlockMask([0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 2, 4], [0, 2, 5])  # queries 0, 1 hold keys 0, 1
    drawn, weights = [1, 4, 4, 0], [0.3, -1.2, 0.7, 2.0]
    plan = Plan.from_views([view], exact_keys=[0], sampled_keys=drawn, log_weights=weights)
    mask = plan.heads[0].rectangles[0].toarray()
    terms = [(1, mask)]
    for j, w in zip(drawn, weights, strict=True):
        draw = np.zeros((4, 5))
        draw[:, j] = 1
        terms.append((math.exp(w), draw * ~mask))
    assert_sums(attend(plan, q, k, v), sums(q, k, v, terms))


@pytest.mark.parametrize(("n_k", "m"), [(7, 3), (3, 7), (1, 1)])
def test_rule_5_uniform_draws_weigh_n_over_m_whatever_is_masked(n_k, m):
    q, k, _ = inputs(5, n_k)
    for block_size in (1, 2, n_k):
        (rectangle,) = hr.make_plan(q, k, block_size=block_size, sample_size=m, rng=0).heads[0].rectangles
        assert rectangle.sampled_keys.shape == (m,)
        np.testing.assert_allclose(rectangle.log_weights, -math.log(m * (1 / n_k)), rtol=1e-15, atol=1e-15)


LAWS = {
    "uniform": lambda n_k, exact: np.full(n_k, 1 / n_k),
    "uniform on the keys that are not exact": lambda n_k, exact: ~exact / np.sum(~exact),
    "any law": lambda n_k, exact: np.arange(1.0, n_k + 1) / np.arange(1.0, n_k + 1).sum(),
}


def each_outcome(n_k, m, p):
    """All draws of m keys and their probabilities."""
    for draw in itertools.product(range(n_k), repeat=m):
        if (probability := math.prod(p[j] for j in draw)) > 0:
            yield np.array(draw), probability


@pytest.mark.parametrize("law", LAWS)
def test_rule_6_the_sampled_sums_are_unbiased_for_every_query(law):
    """Exact enumeration of all draws: their mean is the unmasked sum, for numerator and denominator."""
    n_q, n_k, m = 4, 5, 3
    q, k, v = inputs(n_q, n_k)
    view = BlockMask.from_orders([3, 1, 0, 2], [2, 0, 4, 1, 3], 2)
    exact = np.arange(n_k) == 1
    p = LAWS[law](n_k, exact)
    if law.startswith("uniform on"):
        np.testing.assert_allclose(-math.log(m * p[0]), math.log((n_k - 1) / m))  # rule 5
    mean = [np.zeros((n_q, 2)), np.zeros(n_q)]
    total = 0.0
    for draw, probability in each_outcome(n_k, m, p):
        plan = Plan.from_views(
            [view], exact_keys=np.flatnonzero(exact), sampled_keys=draw, log_weights=-np.log(m * p[draw])
        )
        total += probability
        for mean_of, part in zip(mean, attend(plan, q, k, v), strict=True):
            mean_of += probability * part
    assert total == pytest.approx(1, abs=1e-12)
    assert_sums(mean, sums(q, k, v, [(1, np.ones((n_q, n_k)))]))


def test_rule_6_the_ratio_is_biased_by_one_over_m():
    """The exact bias of the output, over all counts of the three keys: doubling m halves it."""
    n_k = 3
    q, k, v = inputs(4, n_k)
    exact = hr.exact_attention(q, k, v, scale=0.5)
    biases = []
    for m in (8, 16, 32):
        bias = np.zeros_like(exact)
        for first, second in itertools.combinations(range(m + 2), 2):
            counts = [first, second - first - 1, m + 1 - second]
            probability = math.factorial(m) / math.prod(map(math.factorial, counts)) / n_k**m
            draw = np.repeat(np.arange(n_k), counts)
            plan = Plan.from_views([], shape=(4, n_k), sampled_keys=draw, log_weights=np.full(m, math.log(n_k / m)))
            out = hr.hyper_attention(q, k, v, scale=0.5, plan=plan, backend=REFERENCE)
            bias += probability * (out - exact)
        biases.append(np.abs(bias).max())
    assert biases[0] > 1e-3
    np.testing.assert_allclose(np.array(biases[:-1]) / biases[1:], 2, rtol=0.1)


def test_rule_7_output_is_numerator_over_denominator_and_lse_its_log():
    q, k, v = inputs(3, 4)
    plan = Plan.from_views([], shape=(3, 4), exact_keys=[1, 2])
    out, lse = hr.hyper_attention(q, k, v, scale=1.0, plan=plan, return_lse=True)
    a = np.exp(q @ k[[1, 2]].T)
    np.testing.assert_allclose(out, a @ v[[1, 2]] / a.sum(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(lse, np.log(a.sum(axis=1)), rtol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rule_7_a_query_that_meets_nothing_gives_the_neutral_element(backend, dtype):
    q, k, v = (x.astype(dtype) for x in inputs(3, 2))
    half = BlockMask([0, 1, 2], [0, 1], [0, 2, 3], [0, 0, 2])  # queries 0 and 1 share a block with no key
    for plan, empty in ((Plan.from_views([half]), [0, 1]), (Plan.from_views([], shape=(3, 2)), [0, 1, 2])):
        out, lse = hr.hyper_attention(q, k, v, plan=plan, backend=backend, return_lse=True)
        assert np.all(out[empty] == NEUTRAL[0])
        assert np.all(lse[empty] == NEUTRAL[1])
        assert np.all(np.isfinite(np.delete(lse, empty)))


def test_rule_7_as_many_samples_as_keys_is_not_exact():
    q, k, v = inputs(6, 8)
    out = hr.hyper_attention(q, k, v, block_size=1, sample_size=8, rng=0)
    assert np.abs(out - hr.exact_attention(q, k, v)).max() > 1e-3


@given(plans(shape=(), is_causal=True, lists=False), st.integers(0, 9))
def test_rule_9_a_row_is_the_merge_of_its_leaf_and_then_its_rectangles_in_stored_order(plan, seed):
    q, k, v = inputs(plan.n_q, plan.n_q, seed=seed)
    (head,) = plan.heads
    how = {"scale": 1.0, "return_lse": True, "backend": "numpy"}  # a backend that merges through log-sum-exps
    out, lse = np.zeros((plan.n_q, 2)), np.full(plan.n_q, -np.inf)
    for a, c in head.leaves:
        out[a:c], lse[a:c] = hr.exact_attention(q[a:c], k[a:c], v[a:c], is_causal=True, **how)
    for r in head.rectangles:
        rows, keys = slice(r.query_start, r.query_start + r.n_q), slice(r.key_start, r.key_start + r.n_k)
        alone = Plan.from_views(
            r.views,
            shape=(r.n_q, r.n_k),
            exact_keys=r.exact_keys,
            sampled_keys=r.sampled_keys,
            log_weights=r.log_weights,
        )
        part = hr.hyper_attention(q[rows], k[keys], v[keys], plan=alone, **how)
        out[rows], lse[rows] = hr.merge_attention((out[rows], lse[rows]), part)
    got = hr.hyper_attention(q, k, v, is_causal=True, plan=plan, **how)
    np.testing.assert_array_equal(got[0], out)  # bit for bit: the order is fixed
    np.testing.assert_array_equal(got[1], lse)


@given(plans(shape=()))
def test_number_of_logits_counts_pairs_of_views_and_draws_each_time(plan):
    (head,) = plan.heads
    for r in head.rectangles:
        pairs = sum(int(view.toarray().sum()) for view in r.views)
        assert r.n_logits == pairs + r.n_q * (r.exact_keys.size + r.sampled_keys.size)
    in_leaves = sum(int(np.tri(c - a).sum()) for a, c in head.leaves)
    listed = int(head.lists.toarray().sum()) if head.lists else 0
    assert head.n_logits == in_leaves + listed + sum(r.n_logits for r in head.rectangles)
