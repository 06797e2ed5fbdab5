"""The ten rules of the Plan, its file, and its validation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import BlockMask, HeadPlan, Plan, Rectangle
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


# --- rules 1 to 7: one rectangle ------------------------------------------------------------------


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


@given(plans(shape=(), is_causal=False))
def test_rule_1_block_numbers_match_orders_and_offsets(plan):
    for view in plan.heads[0].rectangles[0].views:
        for blocks, order, offsets in (
            (view.query_blocks(), view.query_order, view.query_offsets),
            (view.key_blocks(), view.key_order, view.key_offsets),
        ):
            for u in range(view.n_blocks):
                members = order[offsets[u] : offsets[u + 1]]
                np.testing.assert_array_equal(np.sort(members), np.flatnonzero(blocks == u))


def test_rule_2_exact_keys_are_a_set_and_sampled_keys_a_multiset_with_finite_weights():
    rectangle = Rectangle(4, 6, exact_keys=[5, 0, 3], sampled_keys=[2, 2, 1], log_weights=[0.5, -1, 0.5])
    assert rectangle.exact_keys.tolist() == [0, 3, 5]
    assert rectangle.sampled_keys.tolist() == [2, 2, 1]
    assert rectangle.log_weights.tolist() == [0.5, -1, 0.5]
    with pytest.raises(ValueError, match="exact_keys has repeated entries; it is a set"):
        Rectangle(4, 6, exact_keys=[1, 1])
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


# --- rules 8 and 9: the causal tiling -------------------------------------------------------------


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


@given(plans(shape=(), is_causal=True), st.integers(0, 9))
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


@given(n=st.integers(1, 500), least=st.integers(1, 20))
def test_rule_9_a_row_lies_in_one_leaf_and_at_most_log2_n_rectangles_smallest_first(n, least):
    leaves, rectangles = hr.causal_tiling(n, least)
    for i in range(0, n, 7):
        mine = [c - a for a, s, c in rectangles if s <= i < c]
        assert mine == sorted(mine)
        assert len(mine) <= math.ceil(math.log2(n)) if n > 1 else not mine
        assert sum(a <= i < c for a, c in leaves) == 1


# --- rule 10: heads -------------------------------------------------------------------------------


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


# --- the file -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(plans())
def test_saving_and_loading_keeps_every_bit(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("plan") / "plan.npz"
    plan.save(path)
    loaded = Plan.load(path)
    before, after = plan.to_arrays(), loaded.to_arrays()
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert (x.dtype, x.shape, x.tobytes()) == (after[name].dtype, after[name].shape, after[name].tobytes())
    assert repr(loaded) == repr(plan)


def test_a_loaded_plan_gives_the_same_bits(tmp_path):
    q, k, v = rng(0).standard_normal((3, 2, 50, 4))
    plan = hr.make_plan(q, k, is_causal=True, block_size=4, sample_size=5, min_seq_len=8, rng=0)
    plan.save(tmp_path / "plan.npz")
    loaded = Plan.load(str(tmp_path / "plan.npz"))
    np.testing.assert_array_equal(*(hr.hyper_attention(q, k, v, is_causal=True, plan=p) for p in (plan, loaded)))


def test_the_file_is_one_npz_without_pickle(tmp_path):
    q, k = rng(0).standard_normal((2, 12, 4))
    hr.make_plan(q, k, block_size=4, sample_size=5, rng=0).save(tmp_path / "plan.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.npz"]  # nothing partial is left
    with np.load(tmp_path / "plan.npz", allow_pickle=False) as file:
        assert all(not file[name].dtype.hasobject for name in file.files)


def test_saving_replaces_an_older_file_and_leaves_it_alone_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "plan.npz"
    old, new = (Plan.from_views([], shape=(2, 2), exact_keys=[j]) for j in (0, 1))
    old.save(path)
    new.save(path)
    assert Plan.load(path).heads[0].rectangles[0].exact_keys.tolist() == [1]

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="disk full"):
        old.save(path)
    assert Plan.load(path).heads[0].rectangles[0].exact_keys.tolist() == [1]
    assert [x.name for x in tmp_path.iterdir()] == ["plan.npz"]


@pytest.fixture
def saved(tmp_path):
    q, k = rng(0).standard_normal((2, 12, 4))
    path = tmp_path / "plan.npz"
    hr.make_plan(q, k, is_causal=True, block_size=2, sample_size=3, min_seq_len=4, rng=0).save(path)
    return path


def test_a_file_damaged_anywhere_is_refused_or_harmless(saved):
    """One byte turned at many places: a ValueError that names the file, or (padding, time stamps) the same plan."""
    good, arrays = saved.read_bytes(), Plan.load(saved).to_arrays()
    messages = []
    for place in range(0, len(good), 97):
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        saved.write_bytes(bytes(damaged))
        try:
            loaded = Plan.load(saved).to_arrays()
        except ValueError as error:
            messages.append(str(error))
        else:
            assert all(np.array_equal(arrays[name], loaded[name]) for name in arrays)
    assert len(messages) > len(good) / 97 / 2
    assert all(str(saved) in message for message in messages)


@pytest.mark.parametrize("content", ["empty", "text", "half", "all but one byte", "array", "other archive", "pickle"])
def test_a_file_that_holds_no_plan_is_refused_with_its_name(saved, content):
    good = saved.read_bytes()
    if content in ("empty", "text", "half", "all but one byte"):
        parts = {"empty": b"", "text": b"no plan at all", "half": good[: len(good) // 2], "all but one byte": good[:-1]}
        saved.write_bytes(parts[content])
    else:
        with open(saved, "wb") as file:
            if content == "array":
                np.save(file, np.arange(3))
            elif content == "other archive":
                np.savez(file, a=np.arange(3))
            else:
                arrays = Plan.from_views([], shape=(2, 2), exact_keys=[0]).to_arrays()
                arrays["0/0/exact_keys"] = np.array([[1], [1, 2]], dtype=object)
                np.savez(file, **arrays)
    with pytest.raises(ValueError, match=r"plan\.npz .*plan") as caught:
        Plan.load(saved)
    assert str(saved) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Plan.load(saved.with_name("absent.npz"))


TAMPERED = {
    "another format": {"format": np.array(2)},
    "a format that is no number": {"format": np.array([1, 1])},
    "three lengths": {"lengths": np.array([12, 12, 12])},
    "wrong lengths": {"lengths": np.array([12, 13])},
    "too many heads": {"shape": np.array([2])},
    "no head": {"shape": np.array([0])},
    "a view too many": {"0/views": np.array([2, 1, 1])},
    "no view counts": {"0/views": np.array([], np.int64)},
    "flat places": {"0/places": np.array([1, 2, 3, 4])},
    "flat leaves": {"0/leaves": np.array([0, 12])},
    "an open range": {"0/leaves": np.array([[0, 3]])},
    "a key that is not there": {"0/0/sampled_keys": np.array([0, 1, 99])},
    "too few weights": {"0/0/log_weights": np.zeros(2)},
    "an infinite weight": {"0/0/log_weights": np.array([0, 0, np.inf])},
    "keys that are no integers": {"0/0/exact_keys": np.array([0.5])},
    "an order that is no permutation": {"0/0/0/query_order": np.zeros(3, np.int64)},
    "offsets that fall": {"0/0/0/key_offsets": np.array([0, 3, 2, 3])},
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_plan_with_impossible_content_is_refused(saved, what):
    arrays = Plan.load(saved).to_arrays()
    assert TAMPERED[what].keys() <= arrays.keys()
    with open(saved, "wb") as file:
        np.savez(file, **(arrays | TAMPERED[what]))
    with pytest.raises((ValueError, TypeError)) as caught:
        Plan.load(saved)
    assert caught.type in (ValueError, TypeError)


# --- validation -----------------------------------------------------------------------------------


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


@given(plans(shape=()))
def test_number_of_logits_counts_pairs_of_views_and_draws_each_time(plan):
    for r in plan.heads[0].rectangles:
        pairs = sum(int(view.toarray().sum()) for view in r.views)
        assert r.n_logits == pairs + r.n_q * (r.exact_keys.size + r.sampled_keys.size)


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
