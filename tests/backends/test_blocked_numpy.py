"""The NumPy backend: its panels and tiles against the dense reference, what it computes, and what memory it takes."""

import dataclasses
import resource
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends import blocked_numpy, get_backend, tiles
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import plans

NUMPY, REFERENCE = get_backend("numpy"), get_backend("reference")


def assert_close(sums, exact, rtol):
    """Every field, absolutely where it is below 1; equal infinities agree."""
    for field in dataclasses.fields(exact):
        x, y = np.asarray(getattr(sums, field.name)), np.asarray(getattr(exact, field.name))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol, err_msg=field.name)


@st.composite
def problems(draw):
    """(q, k, mask, scale, is_causal); the mask is a Rectangle, its dense matrix, or None."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    is_causal = draw(st.booleans())
    n_q = draw(st.integers(1, 40))
    n_k = n_q if is_causal else draw(st.integers(1, 40))
    q, k = rng.standard_normal((n_q, 5)), rng.standard_normal((n_k, 5))
    if draw(st.booleans()):
        q[rng.integers(n_q)] = 0
        k[:] = k[0]
    views = [
        hr.BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), int(rng.integers(1, n_k + 2)))
        for _ in range(draw(st.integers(0, 2)))
    ]
    exact_keys = np.flatnonzero(rng.random(n_k) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    rectangle = hr.Rectangle(n_q, n_k, tuple(views), exact_keys=exact_keys)
    mask = draw(st.sampled_from([None, rectangle, rectangle.toarray()]))
    return q, k, mask, draw(st.sampled_from([0.3, 40.0, 3000.0])), is_causal


@given(problem=problems(), rows=st.integers(1, 9))
def test_panels_of_any_height_give_the_dense_sums(problem, rows):
    q, k, mask, scale, is_causal = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked_numpy, "PANEL_BYTES", rows * len(k) * 8)
        sums = NUMPY.attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
    exact = REFERENCE.attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
    # logits of size x are wrong by x times some units of rounding, and so are logarithms; P by as much relatively
    largest = max(1.0, abs(exact.logit_min), abs(exact.logit_max))
    assert_close(sums, exact, rtol=1e-14 * largest)


@given(problem=problems(), seed=st.integers(0, 99))
def test_the_transposed_product_is_that_of_the_dense_matrix(problem, seed):
    q, k, _, scale, is_causal = problem
    y = np.random.default_rng(seed).standard_normal((len(q), 3))
    p = hr.attention_probabilities(q, k, scale=scale, is_causal=is_causal)
    _, lse = hr.exact_attention(q, k, k, scale=scale, is_causal=is_causal, return_lse=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_QUERIES", 7)
        patch.setattr(tiles, "TILE_KEYS", 5)
        out = NUMPY.transposed_attention(q, k, y, lse, scale=scale, is_causal=is_causal)
    np.testing.assert_allclose(out, p.T @ y, atol=1e-10)


def test_what_the_mask_leaves_is_summed_even_where_it_underflows_beside_the_rest():
    q, k = np.array([[1.0]]), np.array([[0.0], [-2000.0], [-2001.0]])
    mask = np.array([[True, False, False]])
    sums = NUMPY.attention_sums(q, k, mask, scale=1.0, is_causal=False)
    assert sums.log_unmasked[0] == pytest.approx(-2000 + np.log1p(np.exp(-1)), rel=1e-14)
    assert sums.log_total[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_131072_tokens_take_little_memory():
    """A slice of the queries meets every key; the panel does not depend on how many queries there are."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1024, 64), dtype=np.float32)
    k = rng.standard_normal((131072, 64), dtype=np.float32)
    mask = hr.sort_lsh(q, k, 256, rng=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hr.hardness(q, k, mask, op_norm=False, rng=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def agree(query, key, mask, scale, is_causal=False):
    """Panels and dense float64 agree to 1e-10, relatively and in the log domain, alpha's whole curve included."""
    q, k = query.astype(np.float64), key.astype(np.float64)
    common = {"scale": scale, "is_causal": is_causal, "rng": 0}
    streamed, dense = (hr.hardness(q, k, mask, backend=backend, **common) for backend in ("numpy", "reference"))
    for name in ("alpha_curve", "log_kappa", "log_kappa_rescaled", "frobenius_norm", "op_norm", "perplexity"):
        np.testing.assert_allclose(getattr(streamed, name), getattr(dense, name), rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("n", [255, pytest.param(2048, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", hr.synthetic.FAMILIES)
def test_panels_agree_with_dense_float64_on_every_family(family, n):
    problem = hr.synthetic.FAMILIES[family](n, rng=0)
    agree(problem.query, problem.key, problem.mask, problem.scale)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("h", range(6))
def test_panels_agree_with_dense_float64_on_every_real_head(h, is_causal):
    head = hr.load_sample_heads()[h]
    agree(head.query, head.key, None, head.scale, is_causal)


# --- what is computed -------------------------------------------------------------------------------------------------


def count_logits(monkeypatch):
    """Record the shape of every tile of logits that the NumPy backend evaluates."""
    shapes = []
    fold = blocked_numpy.RunningSoftmax.fold

    def counting(self, rows, logits, v):
        shapes.append(logits.shape)
        fold(self, rows, logits, v)

    monkeypatch.setattr(blocked_numpy.RunningSoftmax, "fold", counting)
    return shapes


@settings(max_examples=30)
@given(plan=plans(shape=(), is_causal=False, lists=False), data=st.data())
def test_numpy_evaluates_the_logits_of_the_plan_and_no_other(plan, data):
    q, k = np.ones((plan.n_q, 2)), np.ones((plan.n_k, 2))
    with pytest.MonkeyPatch.context() as patch:
        shapes = count_logits(patch)
        BlockedNumpy().planned_attention(q, k, k, plan, scale=1.0)
    (rectangle,) = plan.heads[0].rectangles
    assert sum(rows * keys for rows, keys in shapes) == rectangle.n_logits


@pytest.mark.parametrize("is_causal", [False, True])
def test_numpy_tiles_stay_small_whatever_the_length(monkeypatch, is_causal):
    q = np.ones((3000, 2), np.float32)
    shapes = count_logits(monkeypatch)
    BlockedNumpy().exact_attention(q, q, q, scale=1.0, is_causal=is_causal)
    assert max(rows * keys for rows, keys in shapes) <= tiles.TILE_QUERIES * tiles.TILE_KEYS
    evaluated = sum(rows * keys for rows, keys in shapes)
    if is_causal:
        assert evaluated <= 3000 * (3000 + tiles.TILE_QUERIES) / 2
    else:
        assert evaluated == 3000**2
