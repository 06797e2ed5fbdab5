"""Routed pages: the near pages of each block, and those that it picks by the lifted score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import Recipe, exact_attention, hyper_attention, make_plan, preset
from hyperattention_ref.backends import get_backend
from hyperattention_ref.plan.pages import Paging, page_lists, pick_pages


@st.composite
def pagings(draw):
    is_causal, n_q = draw(st.booleans()), draw(st.integers(1, 60))
    n_k = n_q if is_causal else draw(st.integers(1, 60))
    return Paging(n_q, n_k, draw(st.integers(1, 9)), is_causal, draw(st.integers(0, 30)), draw(st.integers(0, 9)))


def literal_scores(q_mean, k_mean, paging, lift, scale):
    """The formulas of pick_pages, page by page: for each block the logarithm of the score of each far page."""
    _, far = paging.masks(np.arange(paging.n_blocks))
    shares = []
    for b in range(paging.n_blocks):
        mass = {p: math.exp(scale * q_mean[b] @ k_mean[p]) * paging.page_sizes[p] for p in np.flatnonzero(far[b])}
        shares.append({p: x / sum(mass.values()) for p, x in mass.items()})
    result = []
    for b, share in enumerate(shares):
        seen = shares[: b + 1] if paging.is_causal else shares
        score = {}
        for p, x in share.items():
            given = [other[p] for other in seen if p in other]
            score[p] = math.log(x) - lift * math.log((sum(given) + 4 / len(share)) / (len(given) + 4))
        result.append(score)
    return result


def literal_lists(q, k, paging, top, lift, scale):
    """The set of pages of each block."""
    means = [np.array([x[i : i + paging.size].mean(0) for i in range(0, len(x), paging.size)]) for x in (q, k)]
    near, _ = paging.masks(np.arange(paging.n_blocks))
    picked = [sorted(s, key=lambda p: (-s[p], p))[:top] for s in literal_scores(*means, paging, lift, scale)]
    return [set(np.flatnonzero(near[b])) | set(picked[b]) for b in range(paging.n_blocks)]


@given(pagings(), st.integers(0, 5), st.sampled_from((0.0, 0.8, 1.0)), st.integers(0, 99))
def test_lists_are_those_of_the_formulas(paging, top, lift, seed):
    g = np.random.default_rng(seed)
    q, k = g.standard_normal((paging.n_q, 3)), g.standard_normal((paging.n_k, 3))
    lists = page_lists(q, k, paging, top=top, lift=lift, scale=0.7, backend=get_backend("numpy"))
    assert (lists.block_size, lists.page_size, lists.is_causal) == (paging.size, paging.size, paging.is_causal)
    found = [set(lists.pages_of(b)) for b in range(lists.n_blocks)]
    assert found == literal_lists(q, k, paging, top, lift, 0.7)


@given(pagings())
def test_near_pages_hold_the_window_and_the_first_keys(paging):
    near, far = paging.masks(np.arange(paging.n_blocks))
    assert not (near & far).any()
    pairs = np.repeat(np.repeat(near, paging.size, 0), paging.size, 1)[: paging.n_q, : paging.n_k]
    i, j = np.arange(paging.n_q)[:, None], np.arange(paging.n_k)
    if paging.is_causal:
        assert (pairs | (j > i) | (i - j >= max(paging.window, 1)))[:, paging.first_keys :].all()
        assert (pairs | (j > i))[:, : paging.first_keys].all()
    else:
        assert near.sum(axis=1).max() <= -(-paging.window // paging.size) + paging.first_pages
        assert (near | far).all()


@given(pagings(), st.integers(0, 5))
def test_logits_are_counted_as_the_lists_have_them(paging, top):
    g = np.random.default_rng(0)
    q, k = g.standard_normal((paging.n_q, 3)), g.standard_normal((paging.n_k, 3))
    lists = page_lists(q, k, paging, top=top, lift=0.8, scale=1.0, backend=get_backend("numpy"))
    _, far = paging.masks(np.arange(paging.n_blocks))
    expected = lists.nnz + (far.sum() if top else 0)
    if paging.n_q % paging.size == 0 and paging.n_k % paging.size == 0:
        assert paging.n_logits(top) == expected
    else:
        assert paging.n_logits(top) >= expected


def test_a_page_that_one_block_alone_wants_is_picked_before_one_that_all_want():
    n, size = 512, 8
    g = np.random.default_rng(0)
    q, k = np.zeros((n, 3)), 0.1 * g.standard_normal((n, 3))
    q[:, 0] = 1
    k[64:72, 0] = 5  # everybody's
    q[400:408, 1], k[200:208, 1] = 2, 2  # block 50 wants page 25
    paging = Paging(n, n, size, True, 16, 0)
    for lift, expected in ((0.0, 8), (0.8, 25)):
        lists = page_lists(q, k, paging, top=1, lift=lift, scale=1.0, backend=get_backend("numpy"))
        assert expected in lists.pages_of(50)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", ["zero", "equal", "500", "float16"])
def test_degenerate_heads_give_finite_right_results(kind, is_causal):
    g = np.random.default_rng(1)
    x = g.standard_normal((3, 150, 4))
    if kind == "zero":
        x[:2] = 0
    elif kind == "equal":
        x[:2] = x[:2, :1]
    q, k, v = x.astype(np.float16 if kind == "float16" else np.float64)
    scale = 500 / np.abs(q.astype(float) @ k.astype(float).T).max() if kind == "500" else 1.0
    options = {"is_causal": is_causal, "scale": float(scale)}
    out = hyper_attention(q, k, v, recipe=preset("pages", 40), min_seq_len=8, rng=0, **options)
    assert np.isfinite(out).all()
    everything = Recipe(views=(), sample_size=0, window=8, pages=1000)
    exact = hyper_attention(q, k, v, recipe=everything, min_seq_len=8, rng=0, **options)
    np.testing.assert_allclose(exact, exact_attention(q, k, v, **options), atol=2e-3 if kind == "float16" else 1e-12)


@pytest.mark.parametrize("size", [1e4, 1e8, 1e60])
def test_logits_of_any_size_are_ranked_in_float64(size):
    q, k, v = np.random.default_rng(0).standard_normal((3, 300, 4))
    recipe, options = preset("pages", 40), {"is_causal": True, "min_seq_len": 8, "rng": 0}
    found, expected = (make_plan(size * q, size * k, recipe=recipe, backend=b, **options) for b in ("numba", "numpy"))
    np.testing.assert_array_equal(found.heads[0].lists.pages, expected.heads[0].lists.pages)
    assert np.isfinite(hyper_attention(size * q, size * k, v, is_causal=True, plan=found)).all()


def test_short_causal_heads_are_exact_and_long_ones_have_lists_alone():
    q, k = np.random.default_rng(0).standard_normal((2, 100, 4))
    short = make_plan(q, k, is_causal=True, recipe=preset("pages", 32), min_seq_len=100).heads[0]
    assert short.is_exact
    assert short.lists is None
    (long,) = make_plan(q, k, is_causal=True, recipe=preset("pages", 32), min_seq_len=99).heads
    assert long.lists is not None
    assert (long.leaves, long.rectangles) == ((), ())
    mixed = Recipe(views=("sort_lsh",), block_size=4, sample_size=3, window=16, pages=2)
    (both,) = make_plan(q, k, is_causal=True, recipe=mixed, min_seq_len=99).heads
    covered = both.lists.toarray()
    for r in both.rectangles:
        covered[r.rows_and_keys] = True
    i, j = np.arange(100)[:, None], np.arange(100)
    assert (covered | (j > i) | (i - j < 32)).all()  # beyond twice the window rectangles stand for everything


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"page_size": 0}, "page_size is 0; it must be at least 1"),
        ({"pages": -1}, "pages is -1; it must be at least 0"),
        ({"window": 2.5}, "window is 2.5; it must be an integer"),
        ({"lift": 1.5}, "lift is 1.5; it must be within 0 and 1"),
        ({"lift": "x"}, "lift is 'x'; it must be a real number"),
        ({"views": (), "sample_size": 0}, "the recipe finds no key at all"),
    ],
)
def test_impossible_recipes_are_refused(change, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        Recipe(**change)
    assert words in str(caught.value)


@given(pagings(), st.integers(1, 5), st.sampled_from((0.0, 0.8, 1.0)), st.integers(0, 99), st.booleans())
def test_the_compiled_choice_is_the_same_up_to_nearly_equal_scores(paging, top, lift, seed, ties):
    g = np.random.default_rng(seed)
    q, k = g.standard_normal((paging.n_blocks, 3)), g.standard_normal((paging.n_pages, 3))
    if ties:
        q, k = np.round(q), np.zeros_like(k)
    choice = {"top": top, "lift": lift, "scale": 0.7}
    expected, found = pick_pages(q, k, paging, **choice), get_backend("numba").pick_pages(q, k, paging, **choice)
    assert found.shape == expected.shape
    for b in range(paging.n_blocks):
        one, other = (set(pages[b].tolist()) - {paging.n_pages} for pages in (expected, found))
        assert len(one) == len(other)
        if one != other and not ties:
            scores = literal_scores(q, k, paging, lift, 0.7)[b]
            assert max(abs(scores[p] - scores[r]) for p in one - other for r in other - one) < 2e-4
