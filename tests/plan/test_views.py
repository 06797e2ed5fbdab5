"""Views: what each finds, and what it looks at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.backends import get_backend
from hyperattention_ref.plan.planner import make_plan
from hyperattention_ref.plan.recipe import RECIPES, Recipe


def problem(n_q, n_k=None, d=4, seed=0, lead=(), dtype=np.float64, size=1.0):
    g = np.random.default_rng(seed)
    n_k = n_q if n_k is None else n_k
    return tuple(
        (size * g.standard_normal((*lead, n, width))).astype(dtype) for n, width in ((n_q, d), (n_k, d), (n_k, 3))
    )


def dense_plan(head):
    """The mask of a whole head, pair by pair."""
    mask = np.zeros((head.n_q, head.n_k), dtype=bool)
    for a, c in head.leaves:
        mask[a:c, a:c] = np.tri(c - a, dtype=bool)
    for r in head.rectangles:
        mask[r.query_start : r.query_start + r.n_q, r.key_start : r.key_start + r.n_k] |= r.toarray()
    return mask


def only_rectangle(q, k, recipe, **options):
    (rectangle,) = make_plan(q, k, recipe=recipe, **options).heads[0].rectangles
    return rectangle


def test_centring_finds_the_pairs_that_two_cones_hide():
    g = np.random.default_rng(0)
    x = g.standard_normal((256, 16))
    q, k = x + 10 * g.standard_normal(16), x + 10 * g.standard_normal(16)
    hits = {
        view: np.mean(
            [
                np.diag(only_rectangle(q, k, Recipe(views=(view,), block_size=16), rng=s).toarray()).mean()
                for s in range(5)
            ]
        )
        for view in ("sort_lsh", "centred_sort_lsh")
    }
    assert hits["centred_sort_lsh"] > 0.9  # query i and key i have the same codes after centring
    assert hits["sort_lsh"] < 0.3


@pytest.mark.parametrize("size", [1e-300, 1.7e308])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_centring_survives_any_size_of_entries(size, backend):
    q, k, _ = problem(20)
    q, k = (x / np.abs(x).max() for x in (q, k))
    recipe = Recipe(views=("centred_sort_lsh",), block_size=4)
    plain, sized = (only_rectangle(s * q, s * k, recipe, rng=0, backend=backend).views[0] for s in (1.0, size))
    assert np.array_equal(plain.toarray(), sized.toarray())


def test_random_blocks_differ_by_head_and_look_at_nothing():
    q, k, _ = problem(40, lead=(2,))
    first, second = make_plan(q, k, recipe=Recipe(views=("random",), block_size=4), rng=0).heads
    assert not np.array_equal(first.rectangles[0].views[0].key_order, second.rectangles[0].views[0].key_order)
    blind = make_plan(0 * q, 0 * k, recipe=Recipe(views=("random",), block_size=4), rng=0).heads[0]
    assert np.array_equal(first.rectangles[0].toarray(), blind.rectangles[0].toarray())
    assert not np.array_equal(blind.rectangles[0].views[0].key_order, blind.rectangles[0].views[0].query_order)


def test_local_blocks_follow_the_position():
    q, k, _ = problem(6, 12)
    mask = only_rectangle(q, k, Recipe(views=("local",), block_size=4)).toarray()
    assert np.array_equal(mask, np.kron(np.eye(3), np.ones((2, 4))))


@given(n=st.integers(1, 70), window=st.integers(1, 20), first=st.integers(0, 5), leaf=st.integers(1, 20))
def test_causal_local_recipe_holds_the_sliding_window_and_the_sinks(n, window, first, leaf):
    q, k, _ = problem(n)
    recipe = Recipe(views=("local",), block_size=window, first_keys=first, sample_size=0)
    plan = make_plan(q, k, recipe=recipe, is_causal=True, min_seq_len=leaf)
    mask, i, j = dense_plan(plan.heads[0]), np.arange(n)[:, None], np.arange(n)
    assert mask[(j <= i) & (i - j < window)].all()
    assert mask[(j <= i) & (j < first)].all()
    for r in plan.heads[0].rectangles:
        kept = set(range(max(0, r.n_k - window), r.n_k)) | (
            set(range(min(first, r.n_k))) if r.key_start == 0 else set()
        )
        assert set(r.exact_keys) == kept
        assert r.views == ()


def test_backends_hash_for_the_views_and_for_nothing_else(monkeypatch):
    backend = get_backend("numpy")
    calls = []
    hash_codes = type(backend).hash_codes
    monkeypatch.setattr(
        type(backend), "hash_codes", lambda self, x, planes: calls.append(1) or hash_codes(self, x, planes)
    )
    for name in RECIPES:
        make_plan(*problem(20)[:2], recipe=name, backend=backend)
    assert len(calls) == 4  # "paper" and "centred", queries and keys
