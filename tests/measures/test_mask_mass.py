import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.measures.mask_mass import captured_mass
from hyperattention_ref.plan.planner import make_plan
from hyperattention_ref.plan.recipe import Recipe, preset

EVERY_PART = Recipe(
    views=("sort_lsh", "centred_sort_lsh", "random", "local"),
    block_size=3,
    lsh_bits=5,
    first_keys=2,
    heavy_columns=2,
    pilot_rows=40,
    sample_size=5,
    sampling="importance",
)


def heads(n_q, n_k=None, lead=(), dtype=np.float64, size=1.0):
    """Random query and key."""
    rng = np.random.default_rng(0)
    shapes = (*lead, n_q, 4), (*lead, n_k or n_q, 4)
    return tuple((size * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def dense_plan(head):
    """The mask of a whole head, pair by pair."""
    mask = np.zeros((head.n_q, head.n_k), dtype=bool)
    for a, c in head.leaves:
        mask[a:c, a:c] = np.tri(c - a, dtype=bool)
    for r in head.rectangles:
        mask[r.query_start : r.query_start + r.n_q, r.key_start : r.key_start + r.n_k] |= r.toarray()
    return mask


@settings(max_examples=25)
@given(
    n_q=st.integers(1, 70),
    n_k=st.integers(1, 40),
    is_causal=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    logits=st.sampled_from([1, 80, 500]),
)
def test_captured_mass_is_the_masked_part_of_the_dense_softmax(n_q, n_k, is_causal, dtype, logits):
    n_k = n_q if is_causal else n_k
    q, k = heads(n_q, n_k, lead=(2,), dtype=dtype, size=logits**0.5)
    options = {"scale": 0.5, "is_causal": is_causal}
    p = hr.attention_probabilities(q.astype(float), k.astype(float), **options)
    plan = make_plan(q, k, recipe=EVERY_PART, min_seq_len=9, rng=0, **options)
    masks = np.stack([dense_plan(head) for head in plan.heads])
    expected = (p * masks).sum(axis=-1).mean(axis=-1)
    np.testing.assert_allclose(captured_mass(q, k, plan, **options), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(captured_mass(q, k, masks, **options), expected, rtol=1e-12, atol=1e-14)
    assert captured_mass(q[0], k[0], masks[0], **options) == pytest.approx(expected[0], rel=1e-12)


def test_captured_mass_takes_every_form_of_a_mask():
    from scipy.sparse import coo_array

    q, k = heads(50, 40, lead=(3,))
    view = hr.sort_lsh(q[0], k[0], 7, rng=0)
    by_form = [
        captured_mass(q, k, m)
        for m in (view, view.toarray(), coo_array(view.toarray()), hr.Plan.stack([hr.Plan.from_views([view])] * 3))
    ]
    assert all(np.array_equal(by_form[0], other) for other in by_form)
    assert by_form[0].shape == (3,)
    assert captured_mass(q[0], k[0], None) == 0
    assert captured_mass(q[0], k[0], np.ones((50, 40), dtype=bool)) == pytest.approx(1, abs=1e-14)


def test_captured_mass_knows_grouped_heads():
    q, k = heads(20, lead=(4,))[0], heads(20, lead=(2,))[1]
    plan = make_plan(q, k, recipe=EVERY_PART, rng=0, enable_gqa=True)
    unfolded = captured_mass(q, np.repeat(k, 2, axis=0), plan)
    assert np.array_equal(captured_mass(q, k, plan, enable_gqa=True), unfolded)


def test_captured_mass_forms_no_square_matrix():
    n = 3000
    q, k = heads(n)
    plan = make_plan(q, k, recipe=preset("local_heavy", 64), rng=0)
    tracemalloc.start()
    captured_mass(q, k, plan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n  # bytes: an eighth of a square float64 matrix, one boolean matrix


def test_bad_input_is_refused():
    q, k = heads(4)
    plan = make_plan(q, k)
    with pytest.raises(ValueError, match="mask has shape"):
        captured_mass(q, k, hr.BlockMask.from_orders([0], [0], 1))
    with pytest.raises(ValueError, match="mask has shape"):
        captured_mass(q[None], k[None], np.ones((2, 4, 4), dtype=bool))
    with pytest.raises(TypeError, match="mask has dtype float64"):
        captured_mass(q, k, np.ones((4, 4)))
    with pytest.raises(ValueError, match="is_causal = False but the call has True"):
        captured_mass(q, k, plan, is_causal=True)
