"""BlockMask, and the kinds of masks that `dense_mask` accepts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from hyperattention_ref import BlockMask
from hyperattention_ref.plan.block_mask import dense_mask


@st.composite
def masks(draw):
    g = np.random.default_rng(draw(st.integers(0, 999)))
    n_q, n_k, cuts = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(0, 5))
    offsets = [np.r_[0, np.sort(g.integers(n + 1, size=cuts)), n] for n in (n_q, n_k)]
    return BlockMask(g.permutation(n_q), g.permutation(n_k), *offsets)


@given(masks())
def test_blocks_dense_matrix_and_count_agree(mask):
    dense = np.zeros(mask.shape, dtype=bool)
    for u in range(mask.n_blocks):
        queries, keys = mask.block(u)
        dense[np.ix_(queries, keys)] = True
    np.testing.assert_array_equal(mask.toarray(), dense)
    assert mask.nnz == dense.sum()
    assert mask.shape == (mask.n_q, mask.n_k)
    assert repr(mask) == (f"BlockMask(n_q={mask.n_q}, n_k={mask.n_k}, n_blocks={mask.n_blocks}, nnz={mask.nnz})")


@given(masks())
def test_every_kind_of_mask_gives_the_same_dense_array(mask):
    dense = mask.toarray()
    kinds = [dense, dense.tolist(), mask, *(make(dense) for make in SPARSE)]
    for kind in kinds:
        got = dense_mask(kind, *mask.shape)
        assert got.dtype == bool
        np.testing.assert_array_equal(got, dense)


SPARSE = [
    sparse.csr_array,
    sparse.csc_matrix,
    sparse.coo_array,
    lambda dense: sparse.lil_array(dense.astype(float) * 2),
    lambda dense: sparse.csr_matrix(dense.astype(int) * -3),
]


def test_none_marks_nothing():
    assert dense_mask(None, 2, 3).tolist() == [[False] * 3] * 2


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.zeros((2, 3), int), [[0, 1, 0], [1, 0, 0]], "mask"])
def test_masks_that_are_not_boolean_are_refused(wrong):
    with pytest.raises(TypeError, match=r"mask has dtype .*; it must be a BlockMask.*\.astype\(bool\)"):
        dense_mask(wrong, 2, 3)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 2), bool), np.zeros(3, bool), sparse.csr_array((3, 2)), BlockMask.from_orders([0], [0], 1)],
)
def test_masks_of_another_shape_are_refused(wrong):
    with pytest.raises(ValueError, match=r"mask has shape .*; it must be \(n_q, n_k\) = \(2, 3\)"):
        dense_mask(wrong, 2, 3)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("query_order", [0, 1, 3], "query_order is no permutation of 0 .. 2"),
        ("key_order", [0, 1, 1], "key_order is no permutation of 0 .. 2"),
        ("key_order", [0, 1, -1], "key_order is no permutation of 0 .. 2"),
        ("query_offsets", [0, 2, 1, 3], "query_offsets is .*; it must rise from 0 to 3"),
        ("key_offsets", [0, 1, 2], "key_offsets is .*; it must rise from 0 to 3"),
    ],
)
def test_orders_and_offsets_that_are_none_are_refused_by_name(name, wrong, message):
    right = {f"{side}_order": [0, 1, 2] for side in ("query", "key")}
    right |= {f"{side}_offsets": [0, 1, 2, 3] for side in ("query", "key")}
    with pytest.raises(ValueError, match=message):
        BlockMask(**(right | {name: wrong}))


@pytest.mark.parametrize("b", [1, 2, 5, 2**40, 2**63, 10**30])
def test_any_block_size_of_at_least_one_is_legal(b):
    mask = BlockMask.from_orders([0, 1, 2], [2, 1, 0], b)
    assert mask.nnz == sum(min(b, 3 - start) ** 2 for start in range(0, 3, min(b, 3)))


def test_blocks_are_read_only_copies():
    order = np.arange(3)
    mask = BlockMask.from_orders(order, order, 2)
    order[:] = 0
    assert mask.query_order.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        mask.key_offsets[0] = 1
    with pytest.raises(AttributeError):
        mask.query_order = order
