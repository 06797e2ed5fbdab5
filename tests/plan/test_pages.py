"""Routed pages: the near pages of each block, and those that it picks by the lifted score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import Recipe, exact_attention, hyper_attention, make_plan, preset
from hyperattention_ref.backends import get_backend
from hyperattention_ref.plan.pages import BRANCHES, KEPT, Paging, page_lists, pick_pages


@st.composite
def pagings(draw):
    """Small ones, and ones of so many pages that groups of blocks pick first."""
    size, most = draw(st.sampled_from([(None, 60), (None, 60), (1, 300)]))
    is_causal, n_q = draw(st.booleans()), draw(st.integers(1, most))
    n_k = n_q if is_causal else draw(st.integers(1, most))
    size = draw(st.integers(1, 9)) if size is None else size
    return Paging(n_q, n_k, size, is_causal, draw(st.integers(0, 30)), draw(st.integers(0, 9)))


def page_sizes(paging):
    """(pages,) keys of each page."""
    return np.array([min(paging.size, paging.n_k - first) for first in range(0, paging.n_k, paging.size)])


def far_pages(paging, merged=1):
    """(blocks, pages) boolean, page by page: the far pages, where `merged` are one; and the page kept in any case."""
    exists = np.arange(paging.n_pages) < paging.existing()[:, None]
    (first, stop), page = paging.windows(), np.arange(paging.n_pages)
    is_near = (first[:, None] <= page) & (page < stop[:, None])
    far, own = np.zeros((paging.n_blocks, -(-paging.n_pages // merged)), bool), [None] * paging.n_blocks
    for b, s in np.ndindex(far.shape):
        inside = slice(s * merged, (s + 1) * merged)
        far[b, s] = np.any(exists[b, inside] & ~is_near[b, inside]) and s >= paging.first_pages // merged
        if far[b, s] and paging.is_causal and (s + 1) * merged > b:
            far[b, s], own[b] = False, s
    return far, own


def literal_scores(q_mean, k_mean, far, sizes, candidates, is_causal, lift, scale):
    """The formulas of pick_level, page by page: for each block the logarithm of the score of each candidate."""
    shares = []
    for b, is_far in enumerate(far):
        pages = [p for p in np.flatnonzero(is_far) if p in candidates[b]]
        mass = {p: math.exp(scale * q_mean[b] @ k_mean[p]) * sizes[p] for p in pages}
        shares.append({p: x / sum(mass.values()) for p, x in mass.items()})
    result = []
    for b, share in enumerate(shares):
        seen = range(b + 1) if is_causal else range(len(far))
        score = {}
        for p, x in share.items():
            given = [shares[other].get(p, 0) for other in seen if far[other, p]]
            score[p] = math.log(x) - lift * math.log((sum(given) + 4 / len(share)) / (len(given) + 4))
        result.append(score)
    return result


def literal_picks(q_mean, k_mean, paging, top, lift, scale):
    """The set of pages that each block picks, and the scores from which it picks them."""
    candidates = [range(paging.n_pages)] * paging.n_blocks
    for level in paging.levels(top):
        m, wanted = level.merged, top if level.merged == 1 else KEPT * top
        far, own = far_pages(paging, m)
        mean = np.array([k_mean[p : p + m].mean(axis=0) for p in range(0, paging.n_pages, m)])
        sizes = [page_sizes(paging)[p : p + m].sum() for p in range(0, paging.n_pages, m)]
        scores = literal_scores(q_mean, mean, far, sizes, candidates, paging.is_causal, lift, scale)
        picked = []
        for s, kept in zip(scores, own, strict=True):
            by_score = sorted(s, key=lambda p: (-s[p], p))
            picked.append(set(by_score[:wanted] if kept is None else [*by_score[: wanted - 1], kept]))
        candidates = [{BRANCHES * p + i for p in pages for i in range(BRANCHES)} for pages in picked]
    return picked, scores


def literal_lists(q, k, paging, top, lift, scale):
    """The set of pages of each block."""
    means = [np.array([x[i : i + paging.size].mean(0) for i in range(0, len(x), paging.size)]) for x in (q, k)]
    picked = literal_picks(*means, paging, top, lift, scale)[0] if top else [set()] * paging.n_blocks
    return [set(np.flatnonzero(near)) | pages for near, pages in zip(paging.near(), picked, strict=True)]


@given(pagings(), st.integers(0, 5), st.sampled_from((0.0, 0.8, 1.0)), st.integers(0, 99))
def test_lists_are_those_of_the_formulas(paging, top, lift, seed):
    g = np.random.default_rng(seed)
    q, k = g.standard_normal((paging.n_q, 3)), g.standard_normal((paging.n_k, 3))
    lists = page_lists(q, k, paging, top=top, lift=lift, scale=0.7, backend=get_backend("numpy"))
    assert (lists.block_size, lists.page_size, lists.is_causal) == (paging.size, paging.size, paging.is_causal)
    found = [set(lists.pages_of(b)) for b in range(lists.n_blocks)]
    assert found == literal_lists(q, k, paging, top, lift, 0.7)


@given(pagings(), st.integers(1, 3))
def test_levels_hold_what_blocks_may_pick(paging, top):
    levels = paging.levels(top)
    assert levels[-1].merged == 1
    for level in levels:
        assert level.merged == 1 or level.n_pages >= BRANCHES * KEPT * top
        far, own = far_pages(paging, level.merged)
        pages = np.arange(level.n_pages)
        np.testing.assert_array_equal([level.is_far(b, pages) for b in range(paging.n_blocks)], far)
        np.testing.assert_array_equal(level.own, [level.n_pages if page is None else page for page in own])
        np.testing.assert_array_equal(level.far_counts(), far.sum(axis=1))
        n = 1 + len(far) // 2
        counts = np.maximum(level.pickers() + n, 0) if level.is_causal else level.pickers()
        counted = far[:n].sum(axis=0) if level.is_causal else far.sum(axis=0)
        np.testing.assert_array_equal(counts[level.first_pages :], counted[level.first_pages :])


@given(pagings())
def test_near_pages_hold_the_window_and_the_first_keys(paging):
    near, (far, _) = paging.near(), far_pages(paging)
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
    expected = lists.nnz + paging.n_scores(top)
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
    expected, found = (pick_pages(q, k, paging, **choice, backend=get_backend(name)) for name in ("numpy", "numba"))
    assert found.shape == expected.shape
    literal, scores = literal_picks(q, k, paging, **choice)
    for b in range(paging.n_blocks):
        one, other = (set(pages[b].tolist()) - {paging.n_pages} for pages in (expected, found))
        assert len(one) == len(other)
        if len(paging.levels(top)) == 1 and one != other and not ties:
            assert max(abs(scores[b][p] - scores[b][r]) for p in one - other for r in other - one) < 2e-4
        assert ties or one == literal[b]


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_compiled_choice_is_the_same_at_every_level(is_causal):
    q, k = np.random.default_rng(0).standard_normal((2, 3000, 8))
    paging = Paging(3000, 3000, 1, is_causal, 20, 3)
    assert [level.merged for level in paging.levels(2)] == [64, 16, 4, 1]
    choice = {"top": 2, "lift": 0.8, "scale": 0.3}
    expected, found = (pick_pages(q, k, paging, **choice, backend=get_backend(name)) for name in ("numpy", "numba"))
    other = [len(set(x) ^ set(y)) for x, y in zip(expected.tolist(), found.tolist(), strict=True)]
    assert np.mean(other) < 0.01  # rounding may swap pages of nearly equal score


def test_a_search_from_coarse_to_fine_finds_pages_that_stand_out():
    """Each of 64 blocks wants one page of one key among 2048."""
    g, n = np.random.default_rng(0), 4096
    q, k = 0.3 * g.standard_normal((2, n, 16))
    pairs = list(zip(range(n // 2, n, n // 128), g.permutation(n // 2)[:64].tolist(), strict=True))
    for block, page in pairs:
        q[block], k[page] = (x := 4 * g.standard_normal(16)), x
    paging = Paging(n, n, 1, True, 16, 1)
    assert len(paging.levels(8)) > 2
    lists = page_lists(q, k, paging, top=8, lift=0.8, scale=0.25, backend=get_backend("numba"))
    assert np.mean([page in lists.pages_of(block) for block, page in pairs]) > 0.95
