"""BlockLists: for each block of queries a list of pages of keys."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import BlockLists, HeadPlan, Plan, Rectangle, hyper_attention


@st.composite
def tables(draw):
    """(table of listed pages, arguments of from_mask)."""
    g = np.random.default_rng(draw(st.integers(0, 999)))
    is_causal, n_q = draw(st.booleans()), draw(st.integers(1, 30))
    n_k = n_q if is_causal else draw(st.integers(1, 30))
    block, page = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    table = g.random((-(-n_q // block), -(-n_k // page))) < draw(st.sampled_from((0, 0.3, 1)))
    return table, {"n_q": n_q, "n_k": n_k, "block_size": block, "page_size": page, "is_causal": is_causal}


@given(tables())
def test_dense_matrix_rows_pairs_blocks_and_count_agree(case):
    table, sizes = case
    lists = BlockLists.from_mask(table, **sizes)
    queries, keys = np.arange(lists.n_q), np.arange(lists.n_k)
    dense = table[queries // lists.block_size][:, keys // lists.page_size]
    if lists.is_causal:
        dense &= keys <= queries[:, None]
    np.testing.assert_array_equal(lists.toarray(), dense)
    np.testing.assert_array_equal(lists.rows(queries[::-2]), dense[::-2])
    np.testing.assert_array_equal(lists.pairs(queries[1::3], keys[::-1]), dense[1::3, ::-1])
    assert lists.nnz == dense.sum()
    from_blocks = np.zeros_like(dense)
    for rows, columns in lists.blocks():
        from_blocks[np.ix_(rows, columns)] = True
    assert not (dense & ~from_blocks).any()
    assert (from_blocks & ~dense).any(axis=1).sum() == 0 or lists.is_causal
    assert f"pages={table.sum()}" in repr(lists)


@given(tables())
def test_as_views_the_same_pairs_are_marked_once(case):
    table, sizes = case
    lists = BlockLists.from_mask(table, **sizes)
    if lists.is_causal:
        with pytest.raises(ValueError, match="lists are causal"):
            lists.views()
        return
    views = lists.views()
    assert len(views) == table.sum(axis=1).max(initial=0)
    total = sum((view.toarray().astype(int) for view in views), np.zeros(lists.shape, int))
    np.testing.assert_array_equal(total, lists.toarray())


@given(tables())
def test_copies_and_files_hold_the_same(case):
    table, sizes = case
    lists = BlockLists.from_mask(table, **sizes)
    plan = Plan((), (HeadPlan(lists.n_q, lists.n_k, (), (), lists),))
    again = Plan.from_arrays(plan.to_arrays()).heads[0].lists
    for twin in (copy.deepcopy(lists), pickle.loads(pickle.dumps(lists)), again):
        np.testing.assert_array_equal(twin.toarray(), lists.toarray())
        assert not twin.pages.flags.writeable
        assert (twin.block_size, twin.page_size, twin.is_causal) == (lists.block_size, lists.page_size, lists.is_causal)


SIZES = {"n_q": 6, "n_k": 4, "block_size": 2, "page_size": 2}
GOOD = SIZES | {"offsets": [0, 1, 1, 3], "pages": [1, 0, 1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"page_size": 0}, "page_size is 0; it must be at least 1"),
        ({"block_size": -1}, "block_size is -1"),
        ({"page_size": 2.0}, "page_size is 2.0; it must be an integer"),
        ({"is_causal": True}, "is_causal with 6 queries and 4 keys"),
        ({"is_causal": 1}, "is_causal is 1; it must be True or False"),
        ({"offsets": [0, 1, 3]}, "offsets has 3 entries for 3 blocks"),
        ({"offsets": [0, 1, 1, 2]}, "the number of pages"),
        ({"offsets": [0, 2, 1, 3]}, "offsets decreases"),
        ({"pages": [1, 0, 2]}, "pages runs from 0 to 2; it must be within 0 .. 1"),
        ({"pages": [-1, 0, 1]}, "pages runs from -1"),
        ({"pages": [1, 1, 0]}, "does not rise within each list"),
        ({"pages": [1, 0, 0]}, "does not rise within each list"),
        ({"pages": [1.0, 0.0, 1.0]}, "pages has dtype float64"),
    ],
)
def test_impossible_lists_are_refused(change, words):
    BlockLists(**GOOD)
    with pytest.raises((ValueError, TypeError)) as caught:
        BlockLists(**(GOOD | change))
    assert words in str(caught.value)


def test_a_head_has_lists_of_its_shape_and_no_leaves_beside():
    lists = BlockLists(**GOOD)
    with pytest.raises(ValueError, match=r"lists have shape \(6, 4\)"):
        HeadPlan(6, 6, (), (), lists)
    with pytest.raises(TypeError, match="lists is a Rectangle"):
        HeadPlan(6, 4, (), (), Rectangle(6, 4))
    square = BlockLists(4, 4, 2, 2, [0, 1, 3], [0, 0, 1], is_causal=True)
    with pytest.raises(ValueError, match="lists and leaves"):
        HeadPlan(4, 4, (), ((0, 4),), square)
    assert HeadPlan(4, 4, (), (), square).is_causal
    with pytest.raises(ValueError, match=r"rectangles .* outside the recursion"):
        HeadPlan(4, 4, (Rectangle(1, 1, query_start=3, key_start=1),), (), square)


def test_a_pair_in_no_part_is_dropped():
    lists = BlockLists(3, 3, 1, 1, [0, 1, 1, 3], [0, 1, 2], is_causal=True)
    plan = Plan((), (HeadPlan(3, 3, (), (), lists),))
    v = np.eye(3)
    out, lse = hyper_attention(np.zeros((3, 1)), np.zeros((3, 1)), v, is_causal=True, plan=plan, return_lse=True)
    np.testing.assert_allclose(out, [[1, 0, 0], [0, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(lse, [0, -np.inf, np.log(2)])
    assert plan.n_logits == 3


@pytest.mark.parametrize("name", ["numba-cuda", "cupy"])
def test_a_backend_without_block_lists_is_named(name, monkeypatch):
    from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
    from hyperattention_ref.foundation import registry

    kind = {"numba-cuda": "numba_cuda.backend:NumbaCuda", "cupy": "cuda_cpp.backend:CupyBackend"}[name]
    module, cls = kind.split(":")
    lacking = getattr(__import__(f"hyperattention_ref.backends.{module}", fromlist=[cls]), cls).lacks
    backend = type("OnTheHost", (BlockedNumpy,), {"name": name, "lacks": lacking})()
    assert registry.select(backend, None) is backend
    x = np.ones((20, 2))
    with pytest.raises(ValueError, match=f"block lists, which the backend '{name}' does not compute"):
        hyper_attention(x, x, x, recipe="pages", backend=backend)
