"""The sums from one pass over all logits: panels against the dense reference, and the measures built on them."""

import dataclasses
import resource
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends import blocked_numpy, get_backend
from hyperattention_ref.measures import hardness_parameters

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
        patch.setattr(blocked_numpy, "TILE_QUERIES", 7)
        patch.setattr(blocked_numpy, "TILE_KEYS", 5)
        out = NUMPY.transposed_attention(q, k, y, lse, scale=scale, is_causal=is_causal)
    np.testing.assert_allclose(out, p.T @ y, atol=1e-10)


def test_what_the_mask_leaves_is_summed_even_where_it_underflows_beside_the_rest():
    q, k = np.array([[1.0]]), np.array([[0.0], [-2000.0], [-2001.0]])
    mask = np.array([[True, False, False]])
    sums = NUMPY.attention_sums(q, k, mask, scale=1.0, is_causal=False)
    assert sums.log_unmasked[0] == pytest.approx(-2000 + np.log1p(np.exp(-1)), rel=1e-14)
    assert sums.log_total[0] == 0


def test_perplexity_counts_the_keys_of_a_flat_row():
    k = np.array([[0.0]] * 7 + [[-1e4]] * 5)
    assert hr.hardness(np.ones((3, 1)), k, scale=1.0, rng=0).perplexity == pytest.approx([7, 7, 7])


@pytest.mark.parametrize("is_causal", [False, True])
def test_streamed_norm_is_the_dense_one_and_its_residual_bounds_the_distance(monkeypatch, is_causal):
    problem = hr.synthetic.gaussian(300, rng=0)
    dense = hr.hardness(problem.query, problem.key, scale=1.0, is_causal=is_causal, rng=0)
    monkeypatch.setattr(hardness_parameters, "DENSE_ENTRIES", 0)
    streamed = hr.hardness(problem.query, problem.key, scale=1.0, is_causal=is_causal, rng=0)
    assert streamed.op_norm == pytest.approx(dense.op_norm, rel=1e-12)
    p = hr.attention_probabilities(problem.query, problem.key, scale=1.0, is_causal=is_causal)
    squares = np.linalg.svd(p)[1] ** 2
    slack = 1e-12 * squares[0]
    assert np.abs(squares - streamed.op_norm**2).min() <= streamed.op_norm_residual + slack


def test_without_the_norm_its_fields_are_none():
    heads = np.random.default_rng(0).standard_normal((2, 3, 20, 4))
    h = hr.hardness(*heads, op_norm=False, rng=0)
    assert [h.op_norm, h.op_norm_residual, h.stable_rank] == [None] * 3
    assert h.alpha.shape == (3,)


def test_a_plan_masks_each_head_with_its_own_rectangle():
    q, k = np.random.default_rng(0).standard_normal((2, 3, 60, 8))
    plan = hr.make_plan(q, k, block_size=16, sample_size=4, rng=0)
    together = hr.hardness(q, k, plan, rng=1)
    for h, head_plan in enumerate(plan.heads):
        alone = hr.hardness(q[h], k[h], head_plan.rectangles[0].toarray(), rng=1)
        assert together.log_kappa[h] == pytest.approx(alone.log_kappa, rel=1e-13)


def test_a_causal_plan_or_one_for_other_shapes_is_refused():
    q, k = np.random.default_rng(0).standard_normal((2, 60, 8))
    causal = hr.make_plan(q, k, is_causal=True, min_seq_len=16, block_size=8, sample_size=4, rng=0)
    with pytest.raises(ValueError, match="the plan was made for is_causal"):
        hr.hardness(q, k, causal)
    with pytest.raises(ValueError, match="mask has shape"):
        hr.hardness(q, k[:50], hr.sort_lsh(q, k, 8, rng=0))


def test_causal_hardness_measures_the_rectangles_of_the_recursion():
    q, k = np.random.default_rng(0).standard_normal((2, 101, 8))
    parts = hr.causal_hardness(q, k, min_seq_len=30, rng=0)
    assert list(parts) == list(hr.causal_tiling(101, 30)[1])
    for (a, s, c), part in parts.items():
        assert part.alpha == pytest.approx(hr.hardness(q[s:c], k[a:s], rng=0).alpha)
    assert hr.causal_hardness(q, k, min_seq_len=101) == {}


def test_overflow_is_told_by_the_largest_logit():
    h = hr.hardness(np.ones((2, 1)), np.array([[12.0], [0.0]]), scale=1.0, rng=0)
    assert h.overflows == {"float16": True, "bfloat16": False, "float32": False}


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
