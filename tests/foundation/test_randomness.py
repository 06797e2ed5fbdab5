"""The state of a generator decides every result and is advanced; streams are independent of each other."""

import pickle

import numpy as np
import pytest
from scipy import stats

import hyperattention_ref as hr
from hyperattention_ref.foundation.randomness import generator, streams

G = np.random.default_rng(0)
Q, K, V = (G.standard_normal((2, 40, 4)) for _ in range(3))
IMPORTANCE = hr.preset("local_heavy_importance", 16)
PAPER = {"kappa": 2.0, "epsilon": 0.5, "m": 5}
CALLS = {
    "hyper_attention": lambda rng: hr.hyper_attention(Q, K, V, block_size=8, sample_size=8, rng=rng),
    "causal hyper_attention": lambda rng: hr.hyper_attention(Q, K, V, is_causal=True, min_seq_len=8, rng=rng),
    "make_plan": lambda rng: hr.make_plan(Q, K, recipe=IMPORTANCE, rng=rng).heads[0].rectangles,
    "sort_lsh": lambda rng: hr.sort_lsh(Q[0], K[0], block_size=4, rng=rng),
    "approx_d": lambda rng: hr.approx_d(Q[0], K[0], None, **PAPER, rng=rng),
    "causal_approx_d": lambda rng: hr.causal_approx_d(Q[0], K[0], **PAPER, min_seq_len=8, rng=rng),
    "literal_hyper_attention": lambda rng: (
        hr.literal_hyper_attention(Q[0], K[0], V[0], None, **PAPER, rng=rng).estimate
    ),
    "row_norm_sample": lambda rng: hr.row_norm_sample(V[0], 9, rng=rng),
    "hardness": lambda rng: hr.hardness(Q, K, rng=rng).log_kappa_rescaled,
    "certify": lambda rng: hr.certify(Q[0], K[0], V[0], V[0], rows=9, rng=rng).output,
    "gaussian": lambda rng: hr.synthetic.gaussian(20, rng=rng),
}
BIT_GENERATORS = {
    "PCG64": np.random.PCG64,
    "Philox by key": lambda seed: np.random.Philox(key=seed),  # has no seed sequence and cannot spawn
    "SFC64": np.random.SFC64,
    "MT19937": np.random.MT19937,
}


def kind_name(x) -> str:
    """A test's name, the same in every process; a repr may hold an address."""
    return type(x).__name__


def same(a, b) -> bool:
    return pickle.dumps(a) == pickle.dumps(b)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_equal_states_give_equal_results_and_a_call_advances_the_state(call, kind):
    run, bits = CALLS[call], BIT_GENERATORS[kind](3)
    rng = np.random.Generator(bits)
    state = bits.state
    first = run(rng)
    assert not same(bits.state, state)
    second = run(rng)
    bits.state = state
    assert same(run(rng), first)
    assert same(run(rng), second)
    assert not same(first, second)


@pytest.mark.parametrize("call", CALLS)
def test_a_jumped_or_advanced_generator_is_another_one(call):
    run = CALLS[call]
    jumped = [run(np.random.Generator(np.random.PCG64(0).jumped(3))) for _ in range(2)]
    assert same(*jumped)
    fresh, advanced = np.random.default_rng(0), np.random.default_rng(0)
    advanced.random(1000)
    assert not same(run(fresh), run(advanced))
    assert not same(run(np.random.default_rng(0)), jumped[0])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "equivalent", [np.int64(7), np.random.SeedSequence(7), np.random.default_rng(7), np.random.PCG64(7)], ids=kind_name
)
def test_a_seed_is_the_generator_that_numpy_makes_of_it(call, equivalent):
    expected = CALLS[call](7)
    fresh = np.random.PCG64(7) if isinstance(equivalent, np.random.BitGenerator) else equivalent
    fresh = np.random.default_rng(7) if isinstance(equivalent, np.random.Generator) else fresh
    assert same(CALLS[call](fresh), expected)


@pytest.mark.parametrize("call", CALLS)
def test_none_is_fresh_entropy(call):
    assert not same(CALLS[call](None), CALLS[call](None))


def test_streams_do_not_depend_on_how_many_follow_and_a_purpose_sets_them_apart():
    few, many, others = streams(0, 2), streams(0, 5), streams(0, 2, purpose=7)
    drawn = [[stream.integers(2**62) for stream in one] for one in (few, many, others)]
    assert drawn[0] == drawn[1][:2]
    assert len({*drawn[1], *drawn[2], np.random.default_rng(0).integers(2**62)}) == 8


def test_streams_are_independent():
    """Bits that agree in neighbouring streams, and in one stream of neighbouring seeds, are binomial."""
    bits = np.array([[s.integers(2, size=200) for s in streams(seed, 8)] for seed in range(8)])
    for axis in (0, 1):
        agree = int((np.diff(bits, axis=axis) == 0).sum())
        total = np.diff(bits, axis=axis).size
        assert stats.binomtest(agree, total).pvalue > 1e-6


@pytest.mark.parametrize(
    "wrong",
    [True, False, np.True_, -1, 1.0, "0", b"0", {}, object(), [True], np.random.RandomState(0), np.random],
    ids=kind_name,
)
def test_what_is_no_rng(wrong):
    with pytest.raises(TypeError, match=r"rng is .*; it must be None, an integer seed or a numpy.random.Generator"):
        generator(wrong)
