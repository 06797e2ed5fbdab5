"""The strategies of the conformance suite make valid plans, and arrays of every kind that they promise."""

import numpy as np
import pytest
from hypothesis import given, settings

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance import attention_inputs, plans
from hyperattention_ref.backends.conformance.examples import AttentionInputs
from hyperattention_ref.backends.conformance.strategies import LAYOUTS, _lay_out


@given(plans())
def test_plans_are_valid_and_survive_their_own_validation(plan):
    assert isinstance(plan, hr.Plan)
    again = hr.Plan.from_arrays(plan.to_arrays())
    assert [head.leaves for head in again.heads] == [head.leaves for head in plan.heads]


@pytest.mark.parametrize("planned", [False, True])
def test_strategies_reach_every_kind_they_promise(planned):
    seen = set()

    @settings(max_examples=300)
    @given(attention_inputs(planned=planned))
    def collect(example: AttentionInputs):
        q, k, v = example.query, example.key, example.value
        seen.add(q.dtype.name)
        seen.add("n_q != n_k" if q.shape[-2] != k.shape[-2] else "n_q == n_k")
        seen.add("d_v != d" if v.shape[-1] != q.shape[-1] else "d_v == d")
        seen.add("causal" if example.is_causal else "full")
        seen.add("n = 1" if q.shape[-2] == 1 else "past the tiles" if k.shape[-2] > 512 else "small")
        seen.add("batch" if q.ndim > 2 else "one head")
        for x in (q, k, v):
            seen.update({"stride 0"} if 0 in x.strides else {"negative stride"} if min(x.strides) < 0 else set())
            seen.update({"read-only"} if not x.flags.writeable else set())
            seen.update({"not contiguous"} if not x.flags.c_contiguous else set())
            is_plain = 0 not in x.strides and x.shape[-2] > 2
            seen.update({"equal rows"} if is_plain and x.any() and (x == x[..., :1, :]).all() else set())
            seen.update({"zero row"} if not x.any(axis=-1).all() else set())
        top = np.abs(example.scale * q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)).max()
        seen.add("logits near 500" if top > 400 else "logits near 80" if 60 < top < 100 else "other logits")
        rectangles = [r for head in example.plan.heads for r in head.rectangles] if example.plan else []
        for r in rectangles:
            seen.add("several views" if len(r.views) > 1 else "at most one view")
            seen.update({"exact keys"} if r.exact_keys.size else set())
            seen.update({"repeated draws"} if np.unique(r.sampled_keys).size < r.sampled_keys.size else set())
            seen.update({"large log-weights"} if np.abs(r.log_weights).max(initial=0) > 100 else set())
            seen.update({"m > n"} if r.sampled_keys.size > r.n_k else set())
            if r.landmarks is not None:
                seen.add("landmarks of no far key" if r.exact_keys.size == r.n_k else "landmarks")
                seen.update({"a law of one query"} if not r.landmarks.factor.any() else set())
            for view in r.views:
                sizes = np.diff(view.query_offsets), np.diff(view.key_offsets)
                seen.update({"empty block"} if any(0 in size for size in sizes) else set())
                seen.update({"ragged blocks"} if len(set(sizes[1].tolist())) > 1 else set())
        depths = {c - a for head in (example.plan.heads if example.plan else ()) for a, c in head.leaves}
        seen.update({"leaves of several sizes"} if len(depths) > 1 else set())

    collect()
    wanted = {"float16", "float32", "float64", "n_q != n_k", "n_q == n_k", "d_v != d", "causal", "full", "n = 1"}
    wanted |= {"past the tiles", "batch", "one head", "stride 0", "negative stride", "read-only", "not contiguous"}
    wanted |= {"zero row", "equal rows", "logits near 500", "logits near 80"}
    if planned:
        wanted |= {"several views", "exact keys", "repeated draws", "large log-weights", "m > n", "empty block"}
        wanted |= {"ragged blocks", "leaves of several sizes"}
        wanted |= {"landmarks", "landmarks of no far key", "a law of one query"}
    assert wanted <= seen


def test_every_layout_keeps_the_numbers_or_repeats_the_first_row_or_head():
    for layout in LAYOUTS:
        x = np.random.default_rng(0).standard_normal((2, 3, 4))
        want = {"one row": np.repeat(x[:, :1], 3, axis=1), "one head": np.repeat(x[:1], 2, axis=0)}.get(layout, x)
        np.testing.assert_array_equal(_lay_out(x.copy(), layout), want)
