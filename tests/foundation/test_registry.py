"""The registry of backends, the reference against the rules written out, and the error bound itself."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import backends
from hyperattention_ref.backends import blocked_numpy
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import attention_inputs, plans
from hyperattention_ref.backends.conformance.error_bound import error_bounds, head_terms
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.foundation import registry


def heads(seed=0, shape=(12, 4), dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((3, *shape)).astype(dtype)


# --- registry -------------------------------------------------------------------------------------


class Mine(BlockedNumpy):
    name = "mine"


class Absent(BlockedNumpy):
    name = "absent"

    def unavailable(self):
        return "needs a device that is not here"


class RaisesWhenAsked(BlockedNumpy):
    name = "raises"

    def unavailable(self):
        raise OSError("driver missing")


def register(monkeypatch, *classes):
    points = [EntryPoint(cls.name, f"{__name__}:{cls.__name__}", backends.ENTRY_POINT_GROUP) for cls in classes]
    points.append(EntryPoint("broken", "no_such_module:Backend", backends.ENTRY_POINT_GROUP))
    known = {backends.ENTRY_POINT_GROUP: points}
    monkeypatch.setattr(registry, "entry_points", lambda *, group: known.get(group, []))


def test_built_in_backends_are_available():
    status = hr.backend_status()
    assert status["reference"] is None
    assert status["numpy"] is None
    assert {"reference", "numpy"} <= set(hr.available_backends())


def test_every_absentee_has_its_reason_and_harms_no_other(monkeypatch):
    built_in = hr.available_backends()
    register(monkeypatch, Mine, Absent, RaisesWhenAsked)
    status = hr.backend_status()
    assert hr.available_backends() == [*built_in, "mine"]
    assert status["absent"] == "needs a device that is not here"
    assert "driver missing" in status["raises"]
    assert "no_such_module" in status["broken"]


def test_an_absent_backend_is_refused_with_its_reason_never_replaced(monkeypatch):
    register(monkeypatch, Absent)
    q, k, v = heads()
    with pytest.raises(ValueError, match=r"'absent' cannot run here: needs a device.*available: reference, numpy"):
        hr.exact_attention(q, k, v, backend="absent")
    with pytest.raises(ValueError, match="no_such_module"):
        hr.exact_attention(q, k, v, backend="broken")
    with pytest.raises(ValueError, match=r"backend 'nobody' is unknown; known here: reference, numpy, .*absent"):
        hr.exact_attention(q, k, v, backend="nobody")


def test_an_instance_that_cannot_run_is_refused():
    q, k, v = heads()
    with pytest.raises(ValueError, match="needs a device that is not here"):
        hr.exact_attention(q, k, v, backend=Absent())


def test_entry_point_cannot_replace_a_built_in_backend(monkeypatch):
    point = EntryPoint("numpy", f"{__name__}:Mine", backends.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    with pytest.raises(RuntimeError, match=r"redefines the backend 'numpy'"):
        hr.available_backends()


@pytest.mark.parametrize("wrong", [BlockedNumpy, 3, object(), ["numpy"]])
def test_backend_must_be_a_name_or_an_instance(wrong):
    q, k, v = heads()
    for call in (hr.exact_attention, hr.hyper_attention):
        with pytest.raises(TypeError, match=r"backend is .*must be None, a name or an object"):
            call(q, k, v, backend=wrong)
    with pytest.raises(TypeError, match="backend is"):
        hr.make_plan(q, k, backend=wrong)


def test_none_picks_numba_and_an_instance_is_obeyed():
    q, k, v = heads()
    np.testing.assert_array_equal(hr.exact_attention(q, k, v), hr.exact_attention(q, k, v, backend="numba"))
    asked = []

    class Spy(BlockedNumpy):
        def exact_attention(self, *args, **kwargs):
            asked.append("exact")
            return super().exact_attention(*args, **kwargs)

        def hash_codes(self, *args):
            asked.append("hash")
            return super().hash_codes(*args)

        def planned_attention(self, *args, **kwargs):
            asked.append("planned")
            return super().planned_attention(*args, **kwargs)

    hr.exact_attention(q, k, v, backend=Spy())
    hr.hyper_attention(q, k, v, rng=0, backend=Spy())
    assert asked == ["exact", "hash", "hash", "planned"]


# --- the reference, against the rules one pair at a time ------------------------------------------


def by_the_rules(q, k, v, head_plan, scale):
    """(out, lse) of one head in extended precision, pair by pair as rules 1-9 say; no matrix product, no merge."""
    q, k, v = (x.astype(np.longdouble) for x in (q, k, v))
    out, lse = np.zeros((len(q), v.shape[1]), np.longdouble), np.full(len(q), -np.inf, np.longdouble)
    terms = [[] for _ in q]
    for a, c in head_plan.leaves:
        for i in range(a, c):
            terms[i] += [(j, 0.0) for j in range(a, i + 1)]
    for r in head_plan.rectangles:
        blocks = [(view.query_blocks(), view.key_blocks()) for view in r.views]
        for i in range(r.n_q):
            exact = set(r.exact_keys.tolist())
            for query_block, key_block in blocks:
                exact |= set(np.flatnonzero(key_block == query_block[i]).tolist())
            drawn = zip(r.sampled_keys.tolist(), r.log_weights, strict=True)
            met = [(j, 0.0) for j in exact] + [(j, w) for j, w in drawn if j not in exact]
            terms[r.query_start + i] += [(r.key_start + j, w) for j, w in met]
    for i, met in enumerate(terms):
        if met:
            keys, weights = np.array([j for j, _ in met]), np.array([w for _, w in met], np.longdouble)
            x = scale * (q[i] * k[keys]).sum(axis=1) + weights
            a = np.exp(x - x.max())
            out[i], lse[i] = a @ v[keys] / a.sum(), x.max() + np.log(a.sum())
    return out, lse


@given(attention_inputs(planned=True))
def test_reference_is_the_rules_one_pair_at_a_time(example):
    assume(example.query.shape[-2] * example.key.shape[-2] <= 5000)
    out, lse = example.call(Reference()).values()
    for index, head, q, k, v in backends.each_head(example.plan, example.query, example.key, example.value):
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
    for index, _, q, k, v in backends.each_head(None, example.query, example.key, example.value):
        q1, k1, v1 = (x.astype(np.longdouble) for x in (q, k, v))
        x = example.scale * (q1[:, None] * k1).sum(axis=2)
        if example.is_causal:
            x[np.triu_indices(len(q), 1)] = -np.inf
        a = np.exp(x - x.max(axis=1, keepdims=True))
        terms = head_terms(q, k, example.scale, is_causal=example.is_causal)
        bound_out, bound_lse = error_bounds(terms, v, out[index], lse[index], np.float64, np.float64)
        assert np.all(np.abs(a @ v1 / a.sum(axis=1, keepdims=True) - out[index]) <= bound_out)
        assert np.all(np.abs(x.max(axis=1) + np.log(a.sum(axis=1)) - lse[index]) <= bound_lse)


# --- the error bound ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_bound_is_a_bound_and_not_a_vacuous_one(dtype):
    q, k, v = heads(seed=1, shape=(200, 16), dtype=dtype)
    scale = 0.25
    out, lse = Reference().exact_attention(q, k, v, scale=scale, is_causal=False)
    bound_out, bound_lse = error_bounds(head_terms(q, k, scale), v, out, lse, dtype, dtype)
    terms = 200
    u = np.finfo(dtype).eps / 2
    assert np.all(bound_out <= 40 * terms * u * np.abs(v).max())
    assert np.all(bound_lse <= 20 * terms * u)
    rounded = BlockedNumpy().exact_attention(q, k, v, scale=scale, is_causal=False)
    if dtype == np.float32:
        assert (np.abs(rounded[0] - out) / bound_out).max() > 1e-3


def test_error_bound_covers_inputs_turned_by_one_rounding():
    """Inputs rounded anew, the cheapest adversary: the bound must cover what it does to every output."""
    q, k, v = heads(seed=2, shape=(60, 8), dtype=np.float32)
    q *= 20  # logits near 100
    out, lse = Reference().exact_attention(q, k, v, scale=1.0, is_causal=False)
    bound_out, bound_lse = error_bounds(head_terms(q, k, 1.0), v, out, lse, np.float32, np.float32)
    turned = np.nextafter(q, np.inf * np.sign(q), dtype=np.float32)
    out_2, lse_2 = Reference().exact_attention(turned, k, v, scale=1.0, is_causal=False)
    assert np.all(np.abs(out_2 - out) <= bound_out)
    assert np.all(np.abs(lse_2 - lse) <= bound_lse)
    assert (np.abs(lse_2 - lse) / bound_lse).max() > 0.05


@given(attention_inputs(planned=True))
def test_floor_of_a_random_walk_is_below_the_bound(example):
    expected = example.call(Reference())
    full, floor = (example.bounds(expected, {"out": np.float32}, random_walk=one) for one in (False, True))
    for name in expected:
        assert np.all(floor[name] >= 0)
        assert np.all(floor[name] <= full[name])


# --- the blocked backend --------------------------------------------------------------------------


def count_logits(monkeypatch):
    """Record the shape of every tile of logits that the NumPy backend evaluates."""
    tiles = []
    fold = blocked_numpy.RunningSoftmax.fold

    def counting(self, rows, logits, v):
        tiles.append(logits.shape)
        fold(self, rows, logits, v)

    monkeypatch.setattr(blocked_numpy.RunningSoftmax, "fold", counting)
    return tiles


@settings(max_examples=30)
@given(plan=plans(shape=(), is_causal=False), data=st.data())
def test_numpy_evaluates_the_logits_of_the_plan_and_no_other(plan, data):
    q, k = np.ones((plan.n_q, 2)), np.ones((plan.n_k, 2))
    with pytest.MonkeyPatch.context() as patch:
        tiles = count_logits(patch)
        BlockedNumpy().planned_attention(q, k, k, plan, scale=1.0)
    (rectangle,) = plan.heads[0].rectangles
    assert sum(rows * keys for rows, keys in tiles) == rectangle.n_logits


@pytest.mark.parametrize("is_causal", [False, True])
def test_numpy_tiles_stay_small_whatever_the_length(monkeypatch, is_causal):
    q = np.ones((3000, 2), np.float32)
    tiles = count_logits(monkeypatch)
    BlockedNumpy().exact_attention(q, q, q, scale=1.0, is_causal=is_causal)
    assert max(rows * keys for rows, keys in tiles) <= blocked_numpy.TILE_QUERIES * blocked_numpy.TILE_KEYS
    evaluated = sum(rows * keys for rows, keys in tiles)
    if is_causal:
        assert evaluated <= 3000 * (3000 + blocked_numpy.TILE_QUERIES) / 2
    else:
        assert evaluated == 3000**2


def test_heads_are_taken_in_row_major_order():
    q, k, v = heads(shape=(2, 3, 7, 4))
    plan = hr.make_plan(q, k, block_size=2, sample_size=2, rng=0)
    indices = [(index, head) for index, head, *_ in backends.each_head(plan, q, k, v)]
    assert [index for index, _ in indices] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [head for _, head in indices] == list(plan.heads)
