"""The reference backend against the rules, one pair at a time."""

import numpy as np
from hypothesis import assume, given

from hyperattention_ref.backends import each_head
from hyperattention_ref.backends.conformance import attention_inputs
from hyperattention_ref.backends.conformance.error_bound import error_bounds, head_terms
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.foundation.backend import LANDMARKS


def by_the_rules(q, k, v, head_plan, scale):
    """(out, lse) of one head in extended precision, pair by pair by rules 1-9 and 11; no matrix product, no merge."""
    q, k, v = (x.astype(np.longdouble) for x in (q, k, v))
    out, lse = np.zeros((len(q), v.shape[1]), np.longdouble), np.full(len(q), -np.inf, np.longdouble)
    terms = [[] for _ in q]
    for a, c in head_plan.leaves:
        for i in range(a, c):
            terms[i] += [(j, 0.0) for j in range(a, i + 1)]
    listed = [set() for _ in q]
    if (lists := head_plan.lists) is not None:
        for i in range(len(q)):
            pages = lists.pages_of(i // lists.block_size).tolist()
            keys = {p * lists.page_size + j for p in pages for j in range(lists.page_size)}
            listed[i] = {j for j in keys if j < len(k) and (j <= i or not lists.is_causal)}
            terms[i] += [(j, 0.0) for j in listed[i]]
    for r in head_plan.rectangles:
        blocks = [(view.query_blocks(), view.key_blocks()) for view in r.views]
        for i in range(r.n_q):
            exact = set(r.exact_keys.tolist())
            for query_block, key_block in blocks:
                exact |= set(np.flatnonzero(key_block == query_block[i]).tolist())
            drawn = zip(r.sampled_keys.tolist(), r.log_weights, strict=True)
            met = [(j, 0.0) for j in exact] + [(j, w) for j, w in drawn if j not in exact]
            elsewhere = listed[r.query_start + i]
            met = [(r.key_start + j, w) for j, w in met if r.key_start + j not in elsewhere]
            terms[r.query_start + i] += met
    for i, met in enumerate(terms):
        if met:
            keys, weights = np.array([j for j, _ in met]), np.array([w for _, w in met], np.longdouble)
            x = scale * (q[i] * k[keys]).sum(axis=1) + weights
            a = np.exp(x - x.max())
            out[i], lse[i] = a @ v[keys] / a.sum(), x.max() + np.log(a.sum())
    return out, lse


@given(attention_inputs(planned=True, lacking={LANDMARKS}))
def test_reference_is_the_rules_one_pair_at_a_time(example):
    assume(example.query.shape[-2] * example.key.shape[-2] <= 5000)
    out, lse = example.call(Reference()).values()
    for index, head, q, k, v in each_head(example.plan, example.query, example.key, example.value):
        exact_out, exact_lse = by_the_rules(q, k, v, head, example.scale)
        terms = head_terms(q, k, example.scale, head_plan=head)
        bound_out, bound_lse = error_bounds(terms, v, out[index], lse[index], np.float64, np.float64)
        met = np.isfinite(exact_lse)
        np.testing.assert_array_equal(np.isneginf(lse[index]), ~met)
        assert np.all(out[index][~met] == 0)
        assert np.all(np.abs(out[index] - exact_out) <= bound_out)
        assert np.all(np.abs(lse[index][met] - exact_lse[met]) <= bound_lse[met])


@given(attention_inputs())
def test_reference_exact_attention_is_softmax(example):
    assume(example.query.shape[-2] * example.key.shape[-2] <= 5000)
    out, lse = example.call(Reference()).values()
    for index, _, q, k, v in each_head(None, example.query, example.key, example.value):
        q1, k1, v1 = (x.astype(np.longdouble) for x in (q, k, v))
        x = example.scale * (q1[:, None] * k1).sum(axis=2)
        if example.is_causal:
            x[np.triu_indices(len(q), 1)] = -np.inf
        a = np.exp(x - x.max(axis=1, keepdims=True))
        terms = head_terms(q, k, example.scale, is_causal=example.is_causal)
        bound_out, bound_lse = error_bounds(terms, v, out[index], lse[index], np.float64, np.float64)
        assert np.all(np.abs(a @ v1 / a.sum(axis=1, keepdims=True) - out[index]) <= bound_out)
        assert np.all(np.abs(x.max(axis=1) + np.log(a.sum(axis=1)) - lse[index]) <= bound_lse)
