"""The far part of landmarks, on every backend of the host: what it equals, where it is exact, where it is dropped."""

from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref import BlockMask, HeadPlan, Landmarks, Plan, Recipe, Rectangle
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import check_backend
from hyperattention_ref.backends.far_part import FarPart
from hyperattention_ref.backends.reference import weighted_mean

BACKENDS = ("reference", "numpy", "numba")
rng = np.random.default_rng


def heads(seed=0, n=120, d=8, size=1.0):
    g = rng(seed)
    return *(size * g.standard_normal((n, d)) for _ in range(2)), g.standard_normal((n, 3))


def relative_error(q, k, v, plan, backend):
    exact = hr.exact_attention(q, k, v)
    return np.linalg.norm(hr.hyper_attention(q, k, v, plan=plan, backend=backend) - exact) / np.linalg.norm(exact)


def of(rectangle):
    return Plan((), (HeadPlan(rectangle.n_q, rectangle.n_k, (rectangle,)),))


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_of_the_law_are_fitted_far_better_than_by_window_alone(backend):
    q, k, v = heads()
    recipe = Recipe(views=("local",), block_size=6, sample_size=0, landmarks=60)
    plan = hr.make_plan(q, k, recipe=recipe, rng=0)
    (rectangle,) = plan.heads[0].rectangles
    without = of(replace(rectangle, landmarks=None))
    assert relative_error(q, k, v, plan, backend) < relative_error(q, k, v, without, backend) / 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["one query", "equal queries", "equal keys", "zero keys"])
def test_degenerate_heads_are_right(backend, kind):
    """Where one function spans all of them the far part is exact up to the ridge, 1e-3 of it."""
    q, k, v = heads(n=40)
    q = {"one query": q[:1], "equal queries": q[:1].repeat(40, axis=0)}.get(kind, q)
    k = {"equal keys": k[:1].repeat(40, axis=0), "zero keys": 0 * k}.get(kind, k)
    plan = hr.make_plan(q, k, recipe=Recipe(views=(), sample_size=0, landmarks=4), rng=0)
    assert relative_error(q, k, v, plan, backend) < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_far_part_of_no_keys_is_nothing(backend):
    q, k, v = heads(n=20)
    landmarks = Landmarks(np.arange(5), np.zeros(8), np.eye(8))
    plan = of(Rectangle(20, 20, exact_keys=np.arange(20), landmarks=landmarks))
    assert relative_error(q, k, v, plan, backend) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_pairs_exact_beside_landmarks_leave_no_far_weight(backend):
    """One block of all pairs: what the landmarks estimate of them leaves again, pair by pair."""
    q, k, v = heads(n=70)
    order = np.arange(70)
    view = BlockMask.from_orders(order, order, 70)
    landmarks = Landmarks(order[::10], q.mean(axis=0), np.linalg.cholesky(np.cov(q.T) / 2))
    plan = of(Rectangle(70, 70, (view, view), exact_keys=landmarks.keys, landmarks=landmarks))
    assert relative_error(q, k, v, plan, backend) < 1e-9


@pytest.mark.parametrize("is_causal", [False, True])
def test_far_means_stay_in_the_ball_of_the_values_whatever_the_law(is_causal):
    q, k, v = heads(n=90, size=6.0)
    recipe = Recipe(views=(), sample_size=0, landmarks=4)
    plan = hr.make_plan(q, k, recipe=recipe, rng=0, is_causal=is_causal, min_seq_len=8)
    radius = 2 * np.linalg.norm(v - v.mean(axis=0), axis=1).max()
    for backend in BACKENDS:
        out, lse = hr.hyper_attention(q, k, v, plan=plan, is_causal=is_causal, backend=backend, return_lse=True)
        assert np.isfinite(lse).all()
        assert np.linalg.norm(out - v.mean(axis=0), axis=1).max() <= radius


def test_a_far_part_at_its_floor_is_dropped_and_its_mean_kept_in_the_ball():
    zeros = np.zeros((1, 1))
    far = FarPart(zeros, zeros[0], zeros, zeros, zeros, zeros[0], centre=np.array([10.0]), radius=2.0)
    sums = np.array([[1.0, -1, 0.1], [1, 0.1, 0.1], [1, 0.2, 0.1], [1, 1, 0.1]])  # numerator, denominator, floor
    out, lse = far.finish(sums.copy(), np.full(4, 3.0))
    assert out.tolist() == [[0], [0], [12], [11]]
    np.testing.assert_allclose(lse, [-np.inf, -np.inf, 3 + np.log(0.2), 3])
    want = weighted_mean(np.array([[2.0, -2], [1, -0.9], [1, -0.8], [0.5, 0.5]]), np.array([[9.0], [11]]), 3, 0.1)
    np.testing.assert_allclose(want[0], [[0], [0], [9], [10]])
    np.testing.assert_allclose(want[1], [-np.inf, -np.inf, 3 + np.log(0.2), 3])


class NoPairLeaves(BlockedNumpy):
    """The estimates of exact pairs stay in the far part."""

    name = "planted bug"

    def planned_attention(self, q, k, v, plan, *, scale):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FarPart, "shares", lambda self, k: np.zeros((len(k), len(self.pilot_lse)), k.dtype))
            return super().planned_attention(q, k, v, plan, scale=scale)


class NegativeWeightsCount(BlockedNumpy):
    """A far weight below zero counts by its absolute value."""

    name = "planted bug"

    def planned_attention(self, q, k, v, plan, *, scale):
        finish = FarPart.finish

        def absolute(self, sums, shift):
            sums[:, -2] = np.abs(sums[:, -2])
            return finish(self, sums, shift)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FarPart, "finish", absolute)
            return super().planned_attention(q, k, v, plan, scale=scale)


class NoBall(BlockedNumpy):
    """Far means are not moved into the ball."""

    name = "planted bug"

    def planned_attention(self, q, k, v, plan, *, scale):
        fit = FarPart.fit.__func__
        wide = classmethod(lambda cls, *args: (far := fit(cls, *args)) and replace(far, radius=np.inf))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FarPart, "fit", wide)
            return super().planned_attention(q, k, v, plan, scale=scale)


class NoFarPart(BlockedNumpy):
    """Landmarks are exact keys and nothing more."""

    name = "planted bug"

    def planned_attention(self, q, k, v, plan, *, scale):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FarPart, "fit", lambda *args: None)
            return super().planned_attention(q, k, v, plan, scale=scale)


class SinglePrecisionSolve(BlockedNumpy):
    """The r x r solve in float32, whatever the inputs are."""

    name = "planted bug"

    def planned_attention(self, q, k, v, plan, *, scale):
        solve = np.linalg.solve
        with pytest.MonkeyPatch.context() as patch:
            single = lambda a, b: solve(a.astype(np.float32), b.astype(np.float32)).astype(np.float64)  # noqa: E731
            patch.setattr(np.linalg, "solve", single)
            return super().planned_attention(q, k, v, plan, scale=scale)


@pytest.mark.parametrize("bug", [NoPairLeaves, NegativeWeightsCount, NoBall, NoFarPart, SinglePrecisionSolve])
def test_the_conformance_suite_catches(bug):
    with pytest.raises(AssertionError, match="planted bug"):
        check_backend(bug(), max_examples=300, operations=["planned_attention"])
