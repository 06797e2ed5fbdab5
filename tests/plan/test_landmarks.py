"""Landmarks: what makes a valid set, the formulas of their docstring, and the choice among keys."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import Landmarks, Plan, Recipe, Rectangle
from hyperattention_ref.backends.conformance import plans
from hyperattention_ref.foundation.backend import LANDMARKS
from hyperattention_ref.plan.landmark_choice import choose_landmarks
from hyperattention_ref.plan.landmarks import RIDGE

rng = np.random.default_rng
REFERENCE = hr.backends.select("reference", None)


def heads(seed, n_q=40, n_k=50, d=5, size=1.0):
    g = rng(seed)
    return size * g.standard_normal((n_q, d)), size * g.standard_normal((n_k, d)), g.standard_normal((n_k, 3))


def chosen(q, k, count=6, seed=0, scale=0.5):
    return choose_landmarks(q, k, np.arange(len(k)), count, scale, rng(seed), REFERENCE)


GOOD = {"keys": [3, 1], "mean": np.zeros(4), "factor": np.ones((4, 2))}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keys": []}, ValueError, "at least one, each once"),
        ({"keys": [1, 1]}, ValueError, "each once"),
        ({"keys": [0.5]}, TypeError, "integer"),
        ({"mean": np.zeros(3)}, ValueError, r"\(d,\) and \(d, m\)"),
        ({"mean": np.zeros((4, 1))}, ValueError, r"\(d,\) and \(d, m\)"),
        ({"factor": np.zeros((4, 0))}, ValueError, "m >= 1"),
        ({"mean": np.full(4, np.nan)}, ValueError, "mean .*non-finite"),
        ({"factor": np.full((4, 2), np.inf)}, ValueError, "factor .*non-finite"),
    ],
)
def test_bad_landmarks_are_refused(change, error, message):
    Landmarks(**GOOD)
    with pytest.raises(error, match=message):
        Landmarks(**(GOOD | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"landmarks": [1, 3]}, TypeError, "must be Landmarks or None"),
        ({"exact_keys": [1]}, ValueError, "no exact_keys; add them there"),
        ({"exact_keys": [1, 2, 3], "sampled_keys": [0], "log_weights": [0.0]}, ValueError, "pass only one"),
    ],
)
def test_a_rectangle_refuses_landmarks_that_do_not_fit_it(change, error, message):
    good = {"exact_keys": [1, 2, 3], "landmarks": Landmarks(**GOOD)}
    Rectangle(5, 6, **good)
    with pytest.raises(error, match=message):
        Rectangle(5, 6, **(good | change))


def test_a_call_refuses_landmarks_of_another_d_and_pilots_that_overflow():
    q, k, v = heads(0, d=4)
    rectangle = Rectangle(40, 50, exact_keys=[1, 3], landmarks=Landmarks(**GOOD))
    plan = Plan((), (hr.HeadPlan(40, 50, (rectangle,)),))
    hr.hyper_attention(q, k, v, plan=plan)
    with pytest.raises(ValueError, match="d = 4 but the call has d = 3"):
        hr.hyper_attention(q[:, :3], k[:, :3], v, plan=plan)
    with pytest.raises(ValueError, match=r"landmarks may reach .*overflow float32"):
        hr.hyper_attention(*(x.astype(np.float32) for x in (1e-10 * q, 1e25 * k, v)), plan=plan)


def test_a_backend_without_landmarks_is_named():
    class Bare(type(REFERENCE)):
        name = "bare"
        lacks = frozenset({LANDMARKS})

    q, k, v = heads(0)
    with pytest.raises(ValueError, match="landmarks, which the backend 'bare' does not compute"):
        hr.hyper_attention(q, k, v, recipe=Recipe(views=(), sample_size=0, landmarks=3), backend=Bare())


@given(plans(n_q=9, n_k=9, landmarks_d=3))
def test_plans_with_landmarks_keep_every_bit_in_their_file(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("plan") / "plan.npz"
    plan.save(path)
    before, after = plan.to_arrays(), Plan.load(path).to_arrays()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_copies_are_immutable_and_a_file_without_a_part_is_refused():
    plan = hr.make_plan(*heads(0)[:2], recipe=Recipe(views=(), sample_size=0, landmarks=3), rng=0)
    (one,) = plan.landmarks
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert np.array_equal(other.factor, one.factor)
        with pytest.raises(ValueError, match="read-only"):
            other.mean[0] = 1
    arrays = plan.to_arrays()
    for part in ("mean", "keys"):
        with pytest.raises(ValueError, match="landmarks"):
            Plan.from_arrays({name: x for name, x in arrays.items() if name != f"0/0/landmarks/{part}"})


@given(seed=st.integers(0, 99), scale=st.sampled_from((0.5, -0.3, 1.0)), shift=st.sampled_from((0.0, 3.0)))
def test_interpolation_is_exact_at_the_pilots_up_to_the_ridge(seed, scale, shift):
    q, k, _ = heads(seed)
    k = k + shift
    landmarks = chosen(q, k, seed=seed, scale=scale)
    g = landmarks.geometry(k, scale)
    k_c = k[landmarks.keys]
    log_k = scale * g.pilots @ k_c.T - scale * np.sum(g.pilots * k_c, axis=1)[:, None]
    np.testing.assert_allclose(np.log(g.correlations), log_k + g.weights[:, None] - g.weights, atol=1e-9)
    lse = np.log(np.exp(scale * g.pilots @ k.T).sum(axis=1))
    log_weights, mix = g.fit(lse)
    at_pilots = np.exp(scale * g.pilots @ k_c.T + log_weights) @ mix  # e^{s x·k} = this times the softmax of the pilots
    ridged = g.correlations + RIDGE * np.eye(len(mix))
    shares_kept = g.correlations @ np.linalg.inv(ridged)  # the identity up to the ridge
    scales = np.exp(g.offsets)
    expected = shares_kept * np.exp(lse) * scales / scales[:, None]
    np.testing.assert_allclose(at_pilots, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    without = np.linalg.solve(g.correlations + 1e-12 * np.eye(len(mix)), g.correlations)
    np.testing.assert_allclose(without, np.eye(len(mix)), atol=1e-6)


@given(
    n_q=st.integers(1, 40),
    n_k=st.integers(2, 40),
    count=st.integers(1, 50),
    kind=st.sampled_from(("gaussian", "equal keys", "equal queries", "zero keys", "zero queries", "logits near 500")),
    seed=st.integers(0, 99),
)
def test_the_choice_is_distinct_keys_of_those_offered_and_finite(n_q, n_k, count, kind, seed):
    q, k, _ = heads(seed, n_q, n_k, size=15.0 if kind == "logits near 500" else 1.0)
    q = {"equal queries": q[:1].repeat(n_q, axis=0), "zero queries": 0 * q}.get(kind, q)
    k = {"equal keys": k[:1].repeat(n_k, axis=0), "zero keys": 0 * k}.get(kind, k)
    offered = np.flatnonzero(rng(seed).random(n_k) < 0.7)
    offered = offered if offered.size else np.array([0])
    one = choose_landmarks(q, k, offered, count, 0.5, rng(seed), REFERENCE)
    assert np.isin(one.keys, offered).all()
    assert 1 <= one.keys.size <= min(count, offered.size)
    if kind == "gaussian" and n_q > 10:
        assert one.keys.size == min(count, offered.size)
    if kind in ("equal keys", "zero keys", "equal queries", "zero queries"):  # their functions are all multiples of one
        assert one.keys.size == 1


def test_pivots_are_drawn_by_what_the_former_ones_miss():
    """Four clusters of keys: of 100 seeds at most one gives four landmarks that do not take one of each."""
    centres = np.array([[4.0, 0], [-4, 0], [0, 4], [0, -4]])
    k = np.repeat(centres, 20, axis=0) + 0.01 * rng(0).standard_normal((80, 2))
    q = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    found = [np.unique(chosen(q, k, 4, seed, 1.0).keys // 20).size for seed in range(100)]
    assert sum(count == 4 for count in found) >= 99


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_recipe_makes_landmarks_exact_keys_and_replaces_them_where_no_key_is_far(is_causal):
    q, k, _ = heads(0, 64, 64)
    plan = hr.make_plan(
        q, k, recipe=Recipe(views=("local",), block_size=2, sample_size=0, landmarks=8), is_causal=is_causal,
        min_seq_len=4, rng=0,
    )  # fmt: skip
    for r in plan.heads[0].rectangles:
        if r.n_k <= 8 + 2 * is_causal:
            assert r.landmarks is None
            assert r.exact_keys.size == r.n_k
        else:
            assert r.landmarks.keys.size == 8
            assert r.exact_keys.size == 8 + 2 * is_causal
            pilots = 8 * (r.n_k - r.exact_keys.size)
            assert r.n_logits == sum(view.nnz for view in r.views) + r.n_q * r.exact_keys.size + pilots


def test_landmarks_and_samples_exclude_each_other():
    with pytest.raises(ValueError, match=r"landmarks is 4 and sample_size 256.*make one of them 0"):
        Recipe(landmarks=4)
    with pytest.raises(ValueError, match="landmarks is -1"):
        Recipe(landmarks=-1, sample_size=0)
    assert Recipe(views=(), sample_size=0, landmarks=4).keys_per_query == 4
