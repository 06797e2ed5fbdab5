"""Algorithm 1: sortLSH."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref import BlockMask, hamming_sorted_lsh, sort_lsh

sizes = st.integers(1, 60)


def problem(n_q, n_k, d=4, seed=0):
    g = np.random.default_rng(seed)
    return g.standard_normal((n_q, d)), g.standard_normal((n_k, d))


@given(n_q=sizes, n_k=sizes, b=st.integers(1, 80), r=st.integers(1, 12), seed=st.integers(0, 99))
def test_mask_is_the_definition_line_by_line(n_q, n_k, b, r, seed):
    q, k = problem(n_q, n_k, seed=seed)
    planes = np.random.default_rng(seed + 1).standard_normal((r, 4))
    mask = sort_lsh(q, k, b, planes=planes)
    # lines 1 and 2: positions in a stable sort by bucket, by counting the rows that come before
    position = []
    for x in (q, k):
        code = hamming_sorted_lsh(x, planes)
        before = (code[None, :] < code[:, None]) | (
            (code[None, :] == code[:, None]) & (np.arange(len(x)) < np.arange(len(x))[:, None])
        )
        position.append(before.sum(axis=1))
    # line 3, with the derived rule for n_q != n_k
    query_block = (position[0] * n_k // n_q) // b
    key_block = position[1] // b
    np.testing.assert_array_equal(mask.toarray(), query_block[:, None] == key_block[None, :])
    assert mask.shape == (n_q, n_k)
    assert mask.nnz == mask.toarray().sum()


@given(n=sizes, b=st.integers(1, 80))
def test_nonzeros_of_a_square_mask(n, b):
    q, k = problem(n, n)
    mask = sort_lsh(q, k, b, rng=0)
    assert mask.nnz == (n // b) * b**2 + (n % b) ** 2


@given(n=sizes, b=st.integers(1, 80))
def test_one_block_holds_everything_when_b_is_at_least_n(n, b):
    q, k = problem(n, n)
    assert sort_lsh(q, k, n + b, rng=0).toarray().all()


@given(n_q=sizes, n_k=sizes, b=st.integers(1, 80))
def test_every_query_meets_a_block_of_keys_when_lengths_differ(n_q, n_k, b):
    q, k = problem(n_q, n_k)
    met = sort_lsh(q, k, b, rng=0).toarray().sum(axis=1)
    last = n_k % b or min(b, n_k)
    assert set(met.tolist()) <= {min(b, n_k), last}


def test_equal_rows_keep_their_order_and_fall_into_consecutive_blocks():
    q = np.ones((6, 3))
    mask = sort_lsh(q, q, 2, rng=0)
    assert mask.query_order.tolist() == list(range(6))
    np.testing.assert_array_equal(mask.toarray(), np.kron(np.eye(3), np.ones((2, 2))) == 1)


def test_zero_vectors_come_first():
    q, k = problem(20, 20)
    q[[3, 17]] = 0
    mask = sort_lsh(q, k, 4, lsh_bits=6, rng=0)
    codes = hamming_sorted_lsh(q, np.random.default_rng(0).standard_normal((6, 4)))
    zero_bucket = np.flatnonzero(codes == 0)
    assert {3, 17} <= set(zero_bucket.tolist()) == set(mask.query_order[: zero_bucket.size].tolist())


def test_queries_and_keys_are_hashed_by_the_same_planes():
    q, _ = problem(40, 40)
    mask = sort_lsh(q, q.copy(), 5, lsh_bits=30, rng=3)
    assert np.all(np.diag(mask.toarray()))  # the same vector on both sides lands in the same block


def test_planes_from_a_seed_are_gaussian_rows_of_that_generator():
    q, k = problem(30, 20)
    drawn = np.random.default_rng(5).standard_normal((7, 4))
    first, second = sort_lsh(q, k, 4, lsh_bits=7, rng=5), sort_lsh(q, k, 4, planes=drawn)
    np.testing.assert_array_equal(first.toarray(), second.toarray())
    assert isinstance(first, BlockMask)


def test_a_generator_is_used_and_advanced():
    q, k = problem(30, 30)
    g = np.random.default_rng(5)
    first, second = sort_lsh(q, k, 4, rng=g), sort_lsh(q, k, 4, rng=g)
    assert not np.array_equal(first.toarray(), second.toarray())
    np.testing.assert_array_equal(first.toarray(), sort_lsh(q, k, 4, rng=5).toarray())


def test_a_seed_gives_the_same_mask_in_another_process(run_python, tmp_path):
    code = (
        "import numpy as np, hyperattention_ref as hr;"
        "q, k = np.random.default_rng(0).standard_normal((2, 50, 4));"
        "mask = hr.sort_lsh(q, k, 7, rng=11); print(mask.query_order.tolist(), mask.key_order.tolist())"
    )
    done = run_python(code, cwd=tmp_path)
    q, k = np.random.default_rng(0).standard_normal((2, 50, 4))
    mask = sort_lsh(q, k, 7, rng=11)
    assert done.stdout.split("\n")[0] == f"{mask.query_order.tolist()} {mask.key_order.tolist()}"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_narrow_dtypes_are_accepted(dtype):
    q, k = (x.astype(dtype) for x in problem(12, 9))
    np.testing.assert_array_equal(
        sort_lsh(q, k, 3, rng=0).toarray(), sort_lsh(q.astype(np.float64), k.astype(np.float64), 3, rng=0).toarray()
    )


def test_near_pairs_share_blocks_more_often_than_chance():
    g = np.random.default_rng(0)
    q = g.standard_normal((400, 16))
    k = q + 0.1 * g.standard_normal((400, 16))
    share = np.mean([np.diag(sort_lsh(q, k, 20, rng=seed).toarray()).mean() for seed in range(10)])
    assert share > 5 * 20 / 400
