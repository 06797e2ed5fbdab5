"""The merge of partial attentions is a commutative monoid whose result is attention over the union."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import NEUTRAL, merge_attention

EPS = np.finfo(np.float64).eps


@st.composite
def parts(draw, count):
    """`count` partial attentions of 4 queries, d_v = 3; some of them empty for some of the queries."""
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 1.0, 80.0, 500.0]))
    empty_share = draw(st.sampled_from([0.0, 0.4, 1.0]))
    made = []
    for _ in range(count):
        lse = np.where(g.random(4) < empty_share, -np.inf, spread * g.uniform(-1, 1, 4))
        made.append((np.where(np.isfinite(lse)[:, None], g.standard_normal((4, 3)), 0.0), lse))
    return made


def assert_same(first, second):
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(first, second):
    """Associativity costs a few roundings of log-sum-exps up to 500: 3 exponents, each off by at most 1000 eps."""
    np.testing.assert_array_equal(np.isneginf(first[1]), np.isneginf(second[1]))
    met = np.isfinite(first[1])
    np.testing.assert_allclose(first[1][met], second[1][met], rtol=8 * EPS, atol=8 * EPS)
    np.testing.assert_allclose(first[0], second[0], rtol=0, atol=4000 * EPS * 5)


@given(parts(2))
def test_merge_is_commutative_bit_for_bit(pair):
    assert_same(merge_attention(*pair), merge_attention(*pair[::-1]))


@given(parts(3))
def test_merge_is_associative(three):
    a, b, c = three
    assert_close(merge_attention(merge_attention(a, b), c), merge_attention(a, merge_attention(b, c)))


@given(parts(1))
def test_neutral_element_changes_nothing(one):
    (part,) = one
    assert_same(merge_attention(part, NEUTRAL), part)
    assert_same(merge_attention(NEUTRAL, part), part)


def test_neutral_element_is_nothing_attended():
    assert (0.0, -np.inf) == NEUTRAL
    empty = np.zeros((2, 3)), np.full(2, -np.inf)
    assert_same(merge_attention(empty, empty), empty)


@given(
    n_q=st.integers(1, 6),
    n_k=st.integers(2, 12),
    seed=st.integers(0, 99),
    top=st.sampled_from([1.0, 80.0, 500.0]),
    data=st.data(),
)
def test_merging_disjoint_sets_of_keys_is_attention_over_their_union(n_q, n_k, seed, top, data):
    g = np.random.default_rng(seed)
    q, k, v = g.standard_normal((n_q, 3)), g.standard_normal((n_k, 3)), g.standard_normal((n_k, 2))
    q *= top / np.abs(q @ k.T).max()
    cut = data.draw(st.integers(1, n_k - 1))
    halves = [
        hr.exact_attention(q, k[s], v[s], scale=1.0, return_lse=True) for s in (slice(None, cut), slice(cut, None))
    ]
    out, lse = merge_attention(*halves)
    exact_out, exact_lse = hr.exact_attention(q, k, v, scale=1.0, return_lse=True)
    # logits up to 500 carry 4 roundings each, so weights are off by 2000 eps; d_v entries are at most about 4
    np.testing.assert_allclose(out, exact_out, atol=1e4 * EPS)
    np.testing.assert_allclose(lse, exact_lse, rtol=20 * EPS, atol=20 * EPS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_merge_keeps_the_dtype(dtype):
    out, lse = np.ones((2, 3), dtype), np.zeros(2, dtype)
    for second in ((out, lse), NEUTRAL):
        merged = merge_attention((out, lse), second)
        assert [x.dtype for x in merged] == [dtype, dtype]


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_merge_works_on_heads(lead):
    g = np.random.default_rng(0)
    first, second = ((g.standard_normal((*lead, 5, 2)), g.standard_normal((*lead, 5))) for _ in range(2))
    out, lse = merge_attention(first, second)
    weight = 1 / (1 + np.exp(second[1] - first[1]))[..., None]
    np.testing.assert_allclose(out, weight * first[0] + (1 - weight) * second[0], rtol=1e-13)
    np.testing.assert_allclose(lse, np.logaddexp(first[1], second[1]), rtol=1e-13, atol=1e-15)


def test_log_sum_exps_far_apart_neither_overflow_nor_vanish():
    first, second = (np.full((1, 1), 2.0), np.array([800.0])), (np.full((1, 1), 5.0), np.array([-800.0]))
    assert_same(merge_attention(first, second), first)


def test_inputs_are_left_alone():
    first, second = ((np.ones((2, 3)), np.zeros(2)) for _ in range(2))
    for x in (*first, *second):
        x.setflags(write=False)
    merge_attention(first, second)
