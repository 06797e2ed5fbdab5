"""Retrieval texts: what is scored occurs before, at no aligned distance."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.perplexity.settings import TEXTS, PerplexitySettings
from hyperattention_ref.perplexity.texts import PIECE, made_text

lengths = st.integers(130, 700)


def made(retrieval, n, start=0, last=None, seed=0):
    ids = np.random.default_rng(1).permutation(1000)[: n + 5]
    options = {"n": n, "min_seq_len": 16, "budget": 8, "retrieval": retrieval, "last": last, "seed": seed}
    return ids[:n], made_text(ids[:n], start, PerplexitySettings(**options))


@given(st.sampled_from(TEXTS), lengths, st.integers(0, 1), st.one_of(st.none(), st.integers(32, 60)))
def test_a_text_has_n_tokens_and_keeps_its_beginning(retrieval, n, start, last):
    ids, text = made(retrieval, n, start, last)
    assert text.ids.shape == (n,)
    np.testing.assert_array_equal(text.ids[: n // 3], ids[: n // 3])
    assert 1 <= text.first < n
    assert last is None or text.first >= n - last
    if retrieval == "original":
        np.testing.assert_array_equal(text.ids, ids)
        assert text.first == (1 if last is None else n - last)


@given(lengths, st.integers(0, 1))
def test_a_repeated_stretch_lies_at_a_prime_distance(n, start):
    _, text = made("repeated", n, start)
    period = text.first - start - 1
    assert all(period % divisor for divisor in range(2, period))
    assert n // 2 - 40 < period <= (n - start) // 2
    np.testing.assert_array_equal(text.ids[start + period :], text.ids[start : n - period])


@given(lengths, st.integers(0, 1), st.integers(0, 3))
def test_shuffled_pieces_are_those_of_the_stretch_in_another_order(n, start, seed):
    _, text = made("shuffled", n, start, seed=seed)
    stretch, rest = np.split(text.ids[start:], [text.first - start - 1])
    assert set(rest) <= set(stretch)
    steps = np.diff([np.flatnonzero(stretch == x)[0] for x in rest])
    assert np.sum(steps != 1) <= -(-len(stretch) // PIECE)
    pieces = {stretch[a] for a in range(0, len(stretch), PIECE)}
    assert {x for x, step in zip(rest[1:], steps, strict=True) if step != 1} <= pieces


def test_the_seed_decides_the_order_of_pieces():
    same, again, other = (made("shuffled", 400, seed=seed)[1].ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()
