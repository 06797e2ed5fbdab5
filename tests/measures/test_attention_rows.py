import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.measures.attention_rows import PANEL, attention_rows, draw_rows, mask_rows, number_of_rows
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.proofs_checks.verdict import clopper_pearson

shapes = {"n_q": st.integers(1, 80), "n_k": st.integers(1, 40), "seed": st.integers(0, 99)}


def logits_as_inputs(logits, dtype=np.float64):
    """Query and key whose logits at scale 1 are the given matrix."""
    return np.asarray(logits, dtype), np.eye(np.shape(logits)[1], dtype=dtype)


def dense(logits, causal=False):
    """Log row sums and P, by long doubles."""
    logits = np.asarray(logits, np.longdouble)
    if causal:
        logits = np.where(np.tri(len(logits), dtype=bool), logits, -np.inf)
    top = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - top).sum(axis=1, keepdims=True)
    return (top + np.log(sums))[:, 0].astype(float), (np.exp(logits - top) / sums).astype(float)


def gathered(q, k, rows, **options):
    panels = list(attention_rows(q, k, rows, **options))
    return [np.concatenate(parts) for parts in zip(*panels, strict=True)]


@given(**shapes, spread=st.sampled_from([0, 1, 80, 500, 5000]), causal=st.booleans())
def test_rows_are_those_of_the_dense_matrix(n_q, n_k, seed, spread, causal):
    rng = np.random.default_rng(seed)
    n_q = n_k if causal else n_q
    logits = spread * rng.uniform(-1, 1, size=(n_q, n_k))
    rows = rng.integers(n_q, size=2 * n_q)  # any order, repetitions too
    given_rows, log_a, log_sums, p = gathered(*logits_as_inputs(logits), rows, scale=1.0, is_causal=causal)
    expected_sums, expected_p = dense(logits, causal)
    np.testing.assert_array_equal(given_rows, rows)
    np.testing.assert_allclose(log_sums, expected_sums[rows], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(p, expected_p[rows], rtol=1e-11, atol=1e-300)
    expected_logits = np.where(np.tri(n_q, n_k, dtype=bool), logits, -np.inf) if causal else logits
    np.testing.assert_allclose(log_a, expected_logits[rows], rtol=1e-15)


def test_no_panel_has_more_rows_than_it_may():
    q, k = np.random.default_rng(0).normal(size=(2, 100, 3))
    sizes = [panel.probabilities.shape for panel in attention_rows(q, k, np.arange(100), scale=1.0)]
    assert sizes == [(PANEL, 100)] * 3 + [(100 - 3 * PANEL, 100)]


def test_the_inputs_type_is_kept_and_sums_are_float64():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3000, 8)).astype(np.float32)
    panel = next(attention_rows(q, k, np.arange(5), scale=0.5))
    assert {panel.logits.dtype, panel.probabilities.dtype} == {np.dtype(np.float32)}
    assert panel.log_sums.dtype == np.float64
    log_sums, p = dense(0.5 * q[:5].astype(float) @ k.T.astype(float))
    # Logits up to about 10 carry a few units of 6e-8 times 10; a float32 sum of 3000 terms would not show here, but
    # its logarithm stored as float32 would.
    np.testing.assert_allclose(panel.log_sums, log_sums, atol=2e-6)
    np.testing.assert_allclose(panel.probabilities, p, rtol=1e-5)


def test_views_with_any_strides_are_read():
    wide = np.random.default_rng(0).normal(size=(2, 30, 8))
    q, k = wide[:, ::-3, ::2]
    rows = np.arange(10)
    for view, copy in zip(gathered(q, k, rows, scale=1.0), gathered(q.copy(), k.copy(), rows, scale=1.0), strict=True):
        np.testing.assert_allclose(view, copy, rtol=1e-13)


# --- drawing ------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 60), seed=st.integers(0, 99), heads=st.integers(1, 4), data=st.data())
def test_drawn_rows_are_distinct_and_ascending(n, seed, heads, data):
    s = data.draw(st.integers(1, n))
    for rows in draw_rows(seed, n, s, heads):
        assert rows.shape == (s,)
        assert np.all(np.diff(rows) > 0)
        assert 0 <= rows[0] <= rows[-1] < n


def test_every_row_is_as_likely_as_any_other():
    counts = np.bincount(np.concatenate(draw_rows(0, 8, 3, 4000)), minlength=8)
    for count in counts:
        low, high = clopper_pearson(int(count), 4000)
        assert low <= 3 / 8 <= high


def test_a_head_does_not_depend_on_how_many_follow():
    for few, many in zip(draw_rows(3, 100, 10, 2), draw_rows(3, 100, 10, 5), strict=False):
        np.testing.assert_array_equal(few, many)


def test_a_generator_gives_new_rows_each_time_and_a_seed_the_same():
    generator = np.random.default_rng(0)
    first, second = (draw_rows(generator, 1000, 10, 1)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(draw_rows(5, 1000, 10, 1)[0], draw_rows(5, 1000, 10, 1)[0])


def test_no_stream_is_one_that_a_plan_uses_for_the_same_seed():
    drawn = draw_rows(0, 10**6, 5, 3)
    ours = streams(0, 3) + [g for stream in streams(0, 3) for g in stream.spawn(3)]
    for stream in [np.random.default_rng(0), *ours]:
        rows = np.sort(stream.choice(10**6, 5, replace=False))
        assert all(not np.array_equal(rows, own) for own in drawn)


def test_the_default_is_1024_rows_or_all():
    assert (number_of_rows(None, 10), number_of_rows(None, 10**6), number_of_rows(7, 7)) == (10, 1024, 7)
    for rows, error in ((8, ValueError), (0, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="rows is"):
            number_of_rows(rows, 7)


# --- rows of masks ------------------------------------------------------------------------------------------------


@given(**shapes)
def test_rows_of_every_form_of_a_mask(n_q, n_k, seed):
    rng = np.random.default_rng(seed)
    views = [BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), 3) for _ in range(2)]
    rectangle = Rectangle(n_q, n_k, tuple(views), exact_keys=[n_k - 1], sampled_keys=[0], log_weights=[0.0])
    plan = Plan.from_views(views, exact_keys=[n_k - 1])
    boolean = rng.random((n_q, n_k)) < 0.3
    rows = rng.integers(n_q, size=5)
    for mask, expected in (
        (views[0], views[0].toarray()),
        (rectangle, rectangle.toarray()),
        (plan, rectangle.toarray()),
        (plan.heads[0], rectangle.toarray()),
        (boolean, boolean),
        (scipy.sparse.coo_array(boolean.astype(float)), boolean),
    ):
        rows_of_mask = mask_rows(mask, n_q, n_k)(rows)
        assert rows_of_mask.dtype == bool
        np.testing.assert_array_equal(rows_of_mask, expected[rows])
    assert mask_rows(None, n_q, n_k) is None


def test_masks_that_do_not_fit_are_refused():
    fits = BlockMask.from_orders(range(4), range(6), 2)
    plan = Plan.from_views([fits])
    for mask in (fits, Rectangle(4, 6), fits.toarray(), scipy.sparse.csr_array(fits.toarray()), plan):
        with pytest.raises(ValueError, match="mask has shape"):
            mask_rows(mask, 6, 4)
    with pytest.raises(ValueError, match="plan of one head"):
        mask_rows(Plan.stack([plan, plan]), 4, 6)
    with pytest.raises(TypeError, match="mask has dtype"):
        mask_rows(fits.toarray().astype(float), 4, 6)
