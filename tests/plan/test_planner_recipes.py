"""make_plan with every other recipe: exact keys and samples."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.plan.planner import make_plan
from hyperattention_ref.plan.recipe import Recipe


def problem(n_q, n_k=None, d=4, seed=0, lead=(), dtype=np.float64, size=1.0):
    g = np.random.default_rng(seed)
    n_k = n_q if n_k is None else n_k
    return tuple(
        (size * g.standard_normal((*lead, n, width))).astype(dtype) for n, width in ((n_q, d), (n_k, d), (n_k, 3))
    )


def only_rectangle(q, k, recipe, **options):
    (rectangle,) = make_plan(q, k, recipe=recipe, **options).heads[0].rectangles
    return rectangle


@given(n=st.integers(1, 60), is_causal=st.booleans(), seed=st.integers(0, 99))
def test_default_plan_is_planes_then_uniforms_from_one_stream_per_head(n, is_causal, seed):
    q, k, _ = problem(n, lead=(2,), seed=seed)
    options = {"block_size": 5, "sample_size": 7, "lsh_bits": 6}
    plan = make_plan(q, k, is_causal=is_causal, min_seq_len=8, rng=seed, **options)
    for h, stream in enumerate(streams(seed, 2)):
        rectangles = plan.heads[h].rectangles
        noise = stream.standard_normal((len(rectangles), 6, 4)), stream.random((len(rectangles), 7))
        for r, planes, uniforms in zip(rectangles, *noise, strict=True):
            rows = q[h][r.query_start : r.query_start + r.n_q], k[h][r.key_start : r.key_start + r.n_k]
            query_order, key_order = (np.argsort(hr.hamming_sorted_lsh(x, planes), kind="stable") for x in rows)
            (view,) = r.views
            assert np.array_equal(view.query_order, query_order)
            assert np.array_equal(view.key_order, key_order)
            assert np.array_equal(view.toarray(), hr.BlockMask.from_orders(query_order, key_order, 5).toarray())
            assert np.array_equal(r.sampled_keys, (uniforms * r.n_k).astype(int))
            assert np.array_equal(r.log_weights, np.full(7, np.log(r.n_k / 7)))
            assert r.exact_keys.size == 0


@pytest.mark.parametrize("views", [(), ("random",), ("random", "centred_sort_lsh")])
def test_pilot_and_random_orders_leave_planes_and_uniforms_alone(views):
    """One seed and one sample size: whatever else a recipe draws, the same uniforms choose its keys."""
    q, k, _ = problem(50)

    def rectangles(**options):
        recipe = Recipe(sample_size=9, **options)
        return make_plan(q, k, recipe=recipe, is_causal=True, min_seq_len=9, rng=1).heads[0].rectangles

    plain, ours = rectangles(), rectangles(views=views)
    pilot = rectangles(views=views, sampling="importance")
    assert len(plain) > 3
    for p, r, i in zip(plain, ours, pilot, strict=True):
        assert np.array_equal(r.sampled_keys, p.sampled_keys)
        assert all(np.array_equal(u.toarray(), w.toarray()) for u, w in zip(r.views, i.views, strict=True))
        by_uniform = np.argsort(p.sampled_keys, kind="stable")
        steps = np.diff(p.sampled_keys[by_uniform]) > 0  # both sorts of keys rise with the uniform
        assert np.all(np.diff(i.sampled_keys[by_uniform])[steps] >= 0)


@pytest.mark.parametrize("views", [(), ("local",), ("random",)])
@pytest.mark.parametrize("heavy", [0, 2])
def test_importance_sampling_is_unbiased_by_enumeration(views, heavy):
    """Rule 6: averaged over all m-tuples of keys, numerator and denominator are those of exact attention."""
    q, k, v = problem(5, 6, seed=2)
    recipe = Recipe(
        views=views, block_size=2, heavy_columns=heavy, pilot_rows=3, sample_size=400, sampling="importance"
    )
    many = only_rectangle(q, k, recipe, rng=0)
    law = dict(zip(many.sampled_keys.tolist(), np.exp(-many.log_weights) / 400, strict=True))
    assert set(law) == set(range(6)) - set(many.exact_keys.tolist())
    assert sum(law.values()) == pytest.approx(1, rel=1e-12)
    assert len(set(law.values())) > 1
    a = np.exp(0.5 * q @ k.T)
    numerator, denominator = 0, 0
    for pair in itertools.product(law, repeat=2):
        p = np.array([law[key] for key in pair])
        drawn = {"sampled_keys": list(pair), "log_weights": -np.log(2 * p)}
        plan = hr.Plan.from_views(many.views, shape=(5, 6), exact_keys=many.exact_keys, **drawn)
        out, lse = hr.hyper_attention(q, k, v, plan=plan, backend="reference", return_lse=True)
        denominator = denominator + p.prod() * np.exp(lse)
        numerator = numerator + p.prod() * out * np.exp(lse)[:, None]
    np.testing.assert_allclose(denominator, a.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(numerator, a @ v, rtol=1e-12, atol=1e-13)


@given(n_k=st.integers(1, 30), heavy=st.integers(0, 5), seed=st.integers(0, 50))
def test_importance_draws_follow_the_law_that_their_weights_state(n_k, heavy, seed):
    """Key j is drawn for uniforms in [p_0 + .. + p_{j-1}, p_0 + .. + p_j); the weights and the formula agree on p."""
    q, k, _ = problem(8, n_k, seed=seed)
    m = 300
    recipe = Recipe(views=(), heavy_columns=heavy, pilot_rows=99, sample_size=m, sampling="importance")
    r = only_rectangle(q, k, recipe, rng=seed)
    others = np.setdiff1d(np.arange(n_k), r.exact_keys)
    assert r.exact_keys.size == min(heavy, n_k)
    if others.size == 0:
        assert r.sampled_keys.size == 0
        return
    roots = np.sqrt((hr.attention_probabilities(q, k) ** 2).sum(axis=0))[others]  # the pilot saw every row
    p = (roots / roots.sum() + 1 / others.size) / 2
    stream = streams(seed, 1)[0]
    stream.standard_normal((recipe.lsh_bits, 4))
    place = np.searchsorted(others, r.sampled_keys)
    np.testing.assert_allclose(r.log_weights, -np.log(m * p[place]), rtol=1e-10, atol=1e-10)
    edges = np.append(0, np.cumsum(p))
    uniforms = stream.random(m)
    assert np.all(uniforms >= edges[place] - 1e-12)
    assert np.all(uniforms <= edges[place + 1] + 1e-12)


@given(n_k=st.integers(2, 40), first=st.integers(1, 20), seed=st.integers(0, 20))
def test_uniform_samples_avoid_the_exact_keys_and_weigh_by_how_many_are_left(n_k, first, seed):
    q, k, _ = problem(4, n_k)
    r = only_rectangle(q, k, Recipe(views=(), first_keys=first, sample_size=11), rng=seed)
    assert r.exact_keys.tolist() == list(range(min(first, n_k)))
    assert not set(r.exact_keys) & set(r.sampled_keys)
    if n_k > first:
        np.testing.assert_allclose(r.log_weights, np.log(n_k - first) - np.log(11), atol=1e-12)


def test_a_pilot_for_heavy_columns_alone_leaves_the_samples_uniform():
    q, k, _ = problem(9, 30)
    r = only_rectangle(q, k, Recipe(views=(), heavy_columns=4, sample_size=11), rng=0)
    np.testing.assert_allclose(r.log_weights, np.log(26) - np.log(11), atol=1e-12)


def test_a_pilot_that_sees_no_mass_elsewhere_leaves_the_uniform_law():
    """All mass on one exact key: the other masses underflow to 0, and the law is uniform, not NaN."""
    k = np.zeros((6, 1))
    k[2] = 1
    recipe = Recipe(views=(), heavy_columns=1, sample_size=50, sampling="importance")
    r = only_rectangle(np.full((4, 1), 1500.0), k, recipe, rng=0)
    assert r.exact_keys.tolist() == [2]
    np.testing.assert_allclose(r.log_weights, np.log(5 / 50))


@pytest.mark.parametrize("sinks", [[0], [17, 90], [3, 4, 60, 127]])
@pytest.mark.parametrize("is_causal", [False, True])
def test_planted_sinks_are_the_heavy_columns(sinks, is_causal):
    n, g = 128, np.random.default_rng(0)
    q, k = 0.3 * g.standard_normal((2, n, 8))
    q[:, 0], k[:, 0] = 1, 0
    k[sinks, 0] = 20
    recipe = Recipe(views=(), heavy_columns=len(sinks), pilot_rows=4, sample_size=0)
    plan = make_plan(q, k, recipe=recipe, is_causal=is_causal, min_seq_len=16, rng=0)
    for r in plan.heads[0].rectangles:
        inside = [j - r.key_start for j in sinks if r.key_start <= j < r.key_start + r.n_k]
        assert set(inside) <= set(r.exact_keys)
        assert r.exact_keys.size == len(sinks)


def test_heavy_columns_come_on_top_of_the_first_keys():
    q, k = np.ones((8, 1)), np.zeros((8, 1))
    k[0], k[5] = 9, 4
    recipe = Recipe(views=(), first_keys=1, heavy_columns=1, sample_size=0)
    assert only_rectangle(q, k, recipe, rng=0).exact_keys.tolist() == [0, 5]


def test_scale_decides_what_is_heavy():
    q, k = np.array([[1.0]]), np.array([[1.0], [-1.0]])
    recipe = Recipe(views=(), heavy_columns=1, sample_size=0)
    heavy = [only_rectangle(q, k, recipe, scale=scale).exact_keys.tolist() for scale in (None, 1, -1)]
    assert heavy == [[0], [0], [1]]
    v = np.array([[1.0], [2.0]])
    assert hr.hyper_attention(q, k, v, recipe=recipe, scale=-1) == [[2.0]]
