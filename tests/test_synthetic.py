"""Every generator's guarantee, computed densely and in the log domain from the definitions of alpha and kappa."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.special import logsumexp

from hyperattention_ref import synthetic
from hyperattention_ref.plan.block_mask import BlockMask, dense_mask
from hyperattention_ref.synthetic import FAMILIES, scale_rows

FAMILIES_FROM_TWO = {"sink", "row_scales", "needle"}

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)
sizes_from_two = st.integers(2, 40)
dims = st.integers(1, 9)
dims_from_two = st.integers(2, 9)
many = settings(deadline=None, max_examples=60)


def logits_of(problem):
    return problem.scale * (problem.query @ problem.key.T)


def softmax_of(problem):
    logits = logits_of(problem)
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


def alpha_of(problem):
    """n times the largest squared column norm of P."""
    p = softmax_of(problem)
    return len(p) * np.square(p).sum(axis=0).max()


def log_kappa_of(problem):
    """log max R_i - log min R_i over the rows that the mask does not cover."""
    mask = dense_mask(problem.mask, len(problem.query), len(problem.key))
    rows = ~mask.all(axis=1)
    if not rows.any():
        return 0.0
    return np.ptp(logsumexp(np.where(mask, -np.inf, logits_of(problem))[rows], axis=1))


def cosines_of(problem):
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (problem.query, problem.key))
    return q @ k.T


def check_exact(problem):
    """Compare everything in `exact` that the definitions of the theory page give a meaning."""
    exact = problem.exact
    if "alpha" in exact:
        assert alpha_of(problem) == pytest.approx(exact["alpha"], rel=1e-9)
    if "alpha_max" in exact:
        assert alpha_of(problem) <= exact["alpha_max"] * (1 + 1e-9)
    if "log_kappa" in exact:
        assert log_kappa_of(problem) == pytest.approx(exact["log_kappa"], abs=1e-10)
    if "log_kappa_max" in exact:
        assert log_kappa_of(problem) <= exact["log_kappa_max"] + 1e-10
    singular = np.linalg.svd(softmax_of(problem), compute_uv=False)
    if "op_norm" in exact:
        assert singular[0] == pytest.approx(exact["op_norm"], rel=1e-9)
    if "stable_rank" in exact:
        assert np.sum(singular**2) / singular[0] ** 2 == pytest.approx(exact["stable_rank"], rel=1e-9)


# What all families share


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3, 17, 64])
def test_every_family_gives_one_square_float64_head_that_keeps_its_promise(name, n):
    if n == 1 and name in FAMILIES_FROM_TWO:
        with pytest.raises(ValueError, match=r"log_kappa is|n is 1"):
            FAMILIES[name](n, 0)
        return
    problem = FAMILIES[name](n, 0)
    assert problem.name == name
    assert len(problem.query) == len(problem.key) == len(problem.value) == n
    assert problem.query.shape == problem.key.shape
    assert all(x.dtype == np.float64 for x in (problem.query, problem.key, problem.value))
    assert all(np.isfinite(x).all() for x in (problem.query, problem.key, problem.value))
    assert type(problem.scale) is float
    assert problem.scale > 0
    assert problem.guarantee.endswith(".")
    check_exact(problem)


@pytest.mark.parametrize("name", FAMILIES)
def test_same_seed_same_arrays_and_other_seed_other_arrays(name):
    first, again, other = (FAMILIES[name](24, seed) for seed in (7, 7, 8))
    for field in ("query", "key", "value"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    assert np.array_equal(dense_mask(first.mask, 24, 24), dense_mask(again.mask, 24, 24))
    assert not np.array_equal(first.value, other.value)
    assert not (np.array_equal(first.query, other.query) and np.array_equal(first.key, other.key))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_generator_is_used_and_advanced(name):
    rng = np.random.default_rng(3)
    first, second = FAMILIES[name](12, rng), FAMILIES[name](12, rng)
    assert np.array_equal(first.value, FAMILIES[name](12, 3).value)
    assert not np.array_equal(first.value, second.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_problem_is_json_able_and_its_repr_is_short(name):
    problem = FAMILIES[name](8, 0)
    assert json.loads(json.dumps(problem.to_dict()))["exact"] == problem.exact
    assert "array(8, " in repr(problem)
    assert len(repr(problem)) < 700
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.scale = 2.0


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_standard_normal(name):
    values = FAMILIES[name](64, 0).value.ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-6


WITH_D = {
    "gaussian": lambda n, **kw: synthetic.gaussian(n, **kw),
    "sphere": lambda n, **kw: synthetic.sphere(n, **kw),
    "planted_clusters": lambda n, **kw: synthetic.planted_clusters(n, **kw),
    "cones": lambda n, **kw: synthetic.cones(n, **kw),
    "sink": lambda n, **kw: synthetic.sink(n, **kw),
    "flat": lambda n, **kw: synthetic.flat(n, **kw),
    "row_scales": lambda n, **kw: synthetic.row_scales(n, log_kappa=3.0, **kw),
    "prescribed_alpha": lambda n, **kw: synthetic.prescribed_alpha(n, alpha=2.0, **kw),
    "low_rank": lambda n, **kw: synthetic.low_rank(n, rank=1, **kw),
}


@pytest.mark.parametrize("name", WITH_D)
def test_d_is_the_width_of_query_and_key_and_d_v_that_of_value(name):
    problem = WITH_D[name](5, d=3)
    assert (problem.query.shape, problem.key.shape, problem.value.shape) == ((5, 3), (5, 3), (5, 3))
    assert WITH_D[name](5, d=3, d_v=2).value.shape == (5, 2)
    a, b = (WITH_D[name](5, d=3, d_v=d_v, rng=0) for d_v in (2, None))
    assert np.array_equal(a.query, b.query)
    assert np.array_equal(a.key, b.key)


@pytest.mark.parametrize("generator", [synthetic.permutation, synthetic.needle])
def test_families_that_fix_d_take_d_v(generator):
    assert generator(6).value.shape == (6, 64)
    assert generator(6, d_v=3).value.shape == (6, 3)


# Family by family


def test_gaussian_entries_are_standard_normal_and_the_scale_is_one_over_sqrt_d():
    problem = synthetic.gaussian(200, 32, rng=0)
    for x in (problem.query, problem.key):
        assert stats.kstest(x.ravel(), "norm").pvalue > 1e-6
    assert abs(np.corrcoef(problem.query.ravel(), problem.key.ravel())[0, 1]) < 5 / math.sqrt(6400)
    assert problem.scale == 1 / math.sqrt(32)


@many
@given(sizes, dims, st.floats(0.01, 300), seeds)
def test_on_the_sphere_kappa_is_at_most_e_to_the_2s_and_alpha_at_most_e_to_the_4s(n, d, scale, seed):
    problem = synthetic.sphere(n, d, scale, rng=seed)
    for x in (problem.query, problem.key):
        assert np.allclose(np.linalg.norm(x, axis=1), 1, rtol=0, atol=1e-14)
    assert problem.scale == scale
    assert log_kappa_of(problem) <= 2 * scale + 1e-10
    assert math.log(alpha_of(problem)) <= 4 * scale + 1e-10
    check_exact(problem)


def test_the_bound_on_kappa_of_the_sphere_is_attained_in_one_dimension():
    """Rows are +-1 there: when all keys agree and two queries do not, log kappa is 2 scale."""
    log_kappas = [log_kappa_of(synthetic.sphere(3, 1, 1.0, rng=seed)) for seed in range(40)]
    assert max(log_kappas) == pytest.approx(2.0)


@many
@given(sizes, dims_from_two, st.data(), st.floats(0, 0.78), st.floats(0.01, 0.999), seeds)
def test_planted_pairs_are_near_others_far_and_the_mask_holds_the_mass(n, d, data, angle, mass, seed):
    clusters = data.draw(st.integers(1, min(n, d)))
    problem = synthetic.planted_clusters(n, d, clusters, angle, mass, rng=seed)
    cosines = cosines_of(problem)
    assert cosines[problem.mask].min() >= math.cos(angle) - 1e-10
    assert np.abs(cosines[~problem.mask]).max(initial=0) <= math.sin(angle) + 1e-10
    assert np.sum(softmax_of(problem) * problem.mask, axis=1).min() >= mass - 1e-10
    assert problem.exact["mask_mass_min"] == mass
    check_exact(problem)


@many
@given(sizes, dims_from_two, st.data(), seeds)
def test_clusters_are_as_many_as_asked_and_their_sizes_differ_by_at_most_one(n, d, data, seed):
    clusters = data.draw(st.integers(1, min(n, d)))
    mask = synthetic.planted_clusters(n, d, clusters, rng=seed).mask
    assert mask.dtype == bool
    distinct = np.unique(mask, axis=0)
    assert len(distinct) == clusters
    assert np.all(distinct.sum(axis=0) == 1)  # every key is in one cluster
    assert np.ptp(distinct.sum(axis=1)) <= 1
    assert np.ptp(mask.sum(axis=0)) <= 1


def test_the_largest_planted_angle_is_attained_up_to_a_tenth():
    problem = synthetic.planted_clusters(400, 4, 4, angle=0.5, rng=0)
    assert math.acos(cosines_of(problem)[problem.mask].min()) > 0.45


@many
@given(sizes, dims_from_two, st.data(), st.floats(0, 0.78), st.floats(0.01, 0.999))
def test_the_mask_would_hold_the_mass_at_the_worst_angles_too(n, d, data, angle, mass):
    clusters = data.draw(st.integers(1, min(n, d)))
    problem = synthetic.planted_clusters(n, d, clusters, angle, mass, rng=0)
    near = problem.mask.sum(axis=1).min()
    odds = near / max(n - near, 1) * math.exp(problem.scale * (math.cos(angle) - math.sin(angle)))
    assert odds >= mass / (1 - mass) * (1 - 1e-12)


def test_clusters_are_not_in_order_on_either_side():
    mask = synthetic.planted_clusters(64, 8, rng=0).mask
    in_order = np.arange(64) % 8
    assert not np.array_equal(mask, in_order[:, None] == in_order)
    assert not np.array_equal(mask, mask.T)


angles = st.floats(0, math.pi)


@many
@given(sizes, dims_from_two, angles, angles, angles, st.floats(0.1, 100), seeds)
def test_angles_between_cones_stay_in_the_stated_interval(n, d, query_angle, key_angle, axis_angle, scale, seed):
    problem = synthetic.cones(n, d, query_angle, key_angle, axis_angle, scale, rng=seed)
    cosines = cosines_of(problem)
    exact = problem.exact
    assert exact["angle_min"] == max(0, axis_angle - query_angle - key_angle)
    assert exact["angle_max"] == min(math.pi, axis_angle + query_angle + key_angle)
    assert cosines.max() <= math.cos(exact["angle_min"]) + 1e-9
    assert cosines.min() >= math.cos(exact["angle_max"]) - 1e-9
    check_exact(problem)


@many
@given(sizes, dims_from_two, st.floats(0, 1.5), st.floats(0, 1.5), seeds)
def test_each_cone_has_the_stated_opening(n, d, query_angle, key_angle, seed):
    """With the other cone closed (one vector, the axis) and equal axes, angles are angles to the axis."""
    queries = synthetic.cones(n, d, query_angle, 0, 0, rng=seed)
    keys = synthetic.cones(n, d, 0, key_angle, 0, rng=seed)
    assert cosines_of(queries).min() >= math.cos(query_angle) - 1e-9
    assert cosines_of(keys).min() >= math.cos(key_angle) - 1e-9
    assert np.allclose(queries.key, queries.key[0], atol=1e-9)
    assert np.allclose(keys.query, keys.query[0], atol=1e-9)


def test_closed_cones_stand_at_the_axis_angle_and_open_ones_fill_their_opening():
    assert np.allclose(np.arccos(cosines_of(synthetic.cones(3, 5, 0, 0, 2.0, rng=0))), 2.0)
    assert np.arccos(cosines_of(synthetic.cones(200, 5, 0.6, 0, 0, rng=0))).max() > 0.55
    assert np.arccos(cosines_of(synthetic.cones(200, 5, 0, 0.6, 0, rng=0))).max() > 0.55


def test_cones_have_unit_rows_and_scale_sqrt_d_by_default():
    problem = synthetic.cones(20, 16, rng=0)
    assert problem.scale == 4.0
    for x in (problem.query, problem.key):
        assert np.allclose(np.linalg.norm(x, axis=1), 1, rtol=0, atol=1e-14)


@many
@given(sizes_from_two, dims_from_two, st.floats(0.5, 0.999999), seeds)
def test_the_sink_takes_exactly_its_mass_of_every_row_and_is_the_heaviest_column(n, d, mass, seed):
    problem = synthetic.sink(n, d, mass, rng=seed)
    p = softmax_of(problem)
    assert np.allclose(p[:, 0], mass, rtol=1e-12, atol=0)
    columns = np.square(p).sum(axis=0)
    assert columns.max() <= columns[0] * (1 + 1e-12)
    assert problem.exact["alpha"] == pytest.approx((n * mass) ** 2)
    check_exact(problem)


def test_beside_the_sink_attention_is_that_of_the_gaussian_coordinates():
    problem = synthetic.sink(30, 8, rng=0)
    base = dataclasses.replace(problem, query=problem.query[:, :-1], key=problem.key[:, :-1])
    p, q = softmax_of(problem)[:, 1:], softmax_of(base)[:, 1:]
    assert np.allclose(p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True), rtol=1e-12)


@many
@given(sizes, st.floats(0, 500), seeds)
def test_permutation_logits_are_a_permutation_matrix_times_the_strength(n, strength, seed):
    problem = synthetic.permutation(n, strength, rng=seed)
    logits = logits_of(problem)
    assert np.all((logits == strength) | (logits == 0))
    if strength > 0:
        hits = logits == strength
        assert np.all(hits.sum(axis=0) == 1)
        assert np.all(hits.sum(axis=1) == 1)
    check_exact(problem)


def test_alpha_of_the_permutation_family_tends_to_n():
    alphas = [synthetic.permutation(50, strength).exact["alpha"] for strength in (0, 5, 10, 20, 500)]
    assert alphas == sorted(alphas)
    assert alphas[0] == pytest.approx(1)
    assert alphas[-1] == pytest.approx(50, rel=1e-15)


@many
@given(sizes, dims, seeds)
def test_flat_attention_is_exactly_uniform(n, d, seed):
    problem = synthetic.flat(n, d, rng=seed)
    assert np.all(logits_of(problem) == 0)
    check_exact(problem)
    assert problem.exact["alpha"] == 1


def test_flat_queries_and_keys_are_not_constant():
    problem = synthetic.flat(10, 4, rng=0)
    assert len(np.unique(problem.query, axis=0)) == len(np.unique(problem.key, axis=0)) == 10


@many
@given(sizes, dims, st.data(), seeds)
def test_scaling_rows_multiplies_the_rows_of_a_and_keeps_p(n, d, data, seed):
    base = synthetic.sphere(n, d, rng=seed)
    factors = np.array(data.draw(st.lists(st.floats(-500, 500), min_size=n, max_size=n)))
    scaled = scale_rows(base, factors)
    assert scaled.query.shape == scaled.key.shape == (n, d + 1)
    assert np.allclose(logits_of(scaled), logits_of(base) + factors[:, None], rtol=0, atol=1e-12)
    assert np.allclose(softmax_of(scaled), softmax_of(base), rtol=1e-11, atol=0)
    assert np.array_equal(scaled.value, base.value)
    assert scaled.exact["alpha_max"] == base.exact["alpha_max"]
    assert scaled.exact["log_kappa_max"] == pytest.approx(2 + np.ptp(factors))
    check_exact(scaled)


@pytest.mark.parametrize("name", FAMILIES)
def test_scaling_rows_of_any_family_keeps_what_is_known_of_p_and_nothing_untrue(name):
    scaled = scale_rows(FAMILIES[name](20, 0), np.linspace(-3, 2, 20))
    check_exact(scaled)
    assert "log_kappa" not in scaled.exact
    assert not {"rank", "singular_value", "angle_min", "angle_max", "far_angle_min"} & set(scaled.exact)


def test_scaling_rows_keeps_the_mask():
    base = synthetic.planted_clusters(12, 4, rng=0)
    assert scale_rows(base, np.ones(12)).mask is base.mask


def masks_of(n):
    """Masks of every accepted kind, some covering whole rows."""
    rows = st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    dense = rows.map(lambda x: np.array(x, dtype=bool))
    block = st.tuples(st.permutations(range(n)), st.permutations(range(n)), st.integers(1, n)).map(
        lambda x: BlockMask.from_orders(list(x[0]), list(x[1]), x[2])
    )
    return st.none() | dense | block | dense.map(sparse.csr_array)


@many
@given(st.integers(2, 12), dims_from_two, st.floats(0, 700), st.data(), seeds)
def test_log_kappa_is_exactly_as_given_and_p_is_that_of_the_gaussian_coordinates(n, d, log_kappa, data, seed):
    mask = data.draw(masks_of(n))
    dense = dense_mask(mask, n, n)
    open_rows = ~dense.all(axis=1)
    if open_rows.sum() < 2 and log_kappa > 0:
        with pytest.raises(ValueError, match=r"log_kappa is .* pass log_kappa=0"):
            synthetic.row_scales(n, d, log_kappa, mask=mask, rng=seed)
        return
    problem = synthetic.row_scales(n, d, log_kappa, mask=mask, rng=seed)
    assert np.array_equal(dense_mask(problem.mask, n, n), dense)
    assert problem.mask is None or isinstance(problem.mask, np.ndarray | BlockMask)
    check_exact(problem)
    assert problem.exact == {"log_kappa": log_kappa}
    base = dataclasses.replace(problem, query=problem.query[:, :-1], key=problem.key[:, :-1])
    assert np.allclose(softmax_of(problem), softmax_of(base), rtol=1e-11, atol=0)
    assert problem.scale == 1 / math.sqrt(d - 1)
    if open_rows.any():
        log_r = logsumexp(np.where(dense, -np.inf, logits_of(problem))[open_rows], axis=1)
        assert np.allclose(np.sort(log_r), np.linspace(0, log_kappa, open_rows.sum()), rtol=0, atol=1e-10)


def test_without_their_last_coordinate_sink_and_row_scales_are_gaussian():
    for problem in (synthetic.sink(100, 32, rng=0), synthetic.row_scales(100, 32, 5.0, rng=0)):
        assert stats.kstest(problem.query[:, :-1].ravel(), "norm").pvalue > 1e-6
        assert stats.kstest(problem.key[1:, :-1].ravel(), "norm").pvalue > 1e-6


def test_row_scales_are_not_in_the_order_of_the_rows():
    log_r = logsumexp(logits_of(synthetic.row_scales(40, 4, 5.0, rng=0)), axis=1)
    assert abs(stats.spearmanr(log_r, np.arange(40)).statistic) < 0.9


@many
@given(sizes, dims, st.floats(0, 1), seeds)
def test_alpha_is_exactly_as_prescribed_with_equal_rows_and_logits_of_rank_one(n, d, t, seed):
    alpha = 1.0 if n == 1 else 1 + t * (n**2 - 1.001)
    problem = synthetic.prescribed_alpha(n, d, alpha, rng=seed)
    assert problem.exact["alpha"] == alpha
    check_exact(problem)
    assert np.all(logits_of(problem) == logits_of(problem)[0])
    assert np.linalg.matrix_rank(logits_of(problem)) <= 1
    assert np.argmax(np.square(softmax_of(problem)).sum(axis=0)) == 0 or t < 1e-9


@pytest.mark.parametrize("alpha", [0.999, 0, -3, 25, 26, np.inf, np.nan])
def test_alpha_out_of_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha is"):
        synthetic.prescribed_alpha(5, 3, alpha)


def test_alpha_nearest_to_n_squared_is_met_or_refused_but_never_wrong():
    for alpha in (25 - 1e-9, 25 - 1e-12):
        assert alpha_of(synthetic.prescribed_alpha(5, 3, alpha)) == pytest.approx(alpha, rel=1e-12)
    with pytest.raises(ValueError, match="alpha is"):
        synthetic.prescribed_alpha(5, 3, math.nextafter(25, 0))
    with pytest.raises(ValueError, match="1 for n = 1"):
        synthetic.prescribed_alpha(1, 3, 1.5)


@many
@given(sizes_from_two, st.data(), st.floats(0, 1), seeds)
def test_needles_hold_their_mass_in_rows_whose_sums_all_equal_n(n, data, t, seed):
    needles = data.draw(st.integers(1, n))
    mass = min(0.9999, 1 / n + t * (1 - 1 / n))
    problem = synthetic.needle(n, needles, mass, rng=seed)
    assert problem.query.shape == (n, needles + 1)
    assert np.allclose(logsumexp(logits_of(problem), axis=1), math.log(n), rtol=0, atol=1e-12)
    check_exact(problem)
    p = softmax_of(problem)
    if mass > 2 / n:
        found = p > 1.5 / n
        assert found.sum() == needles
        assert found.sum(axis=0).max() == found.sum(axis=1).max() == 1  # a row and a key of its own
        assert np.allclose(p[found], mass, rtol=1e-12)
    flat_rows = np.all(logits_of(problem) == 0, axis=1)
    assert flat_rows.sum() >= n - needles


@many
@given(sizes, dims, st.data(), seeds)
def test_the_rank_is_exactly_as_given_with_equal_singular_values(n, d, data, seed):
    rank = data.draw(st.integers(1, min(n, d)))
    problem = synthetic.low_rank(n, d, rank, rng=seed)
    singular = np.linalg.svd(problem.query @ problem.key.T, compute_uv=False)
    assert np.allclose(singular[:rank], n, rtol=1e-12)
    assert np.all(singular[rank:] <= 1e-12 * n)
    assert problem.exact == {"rank": rank, "singular_value": n}
    assert problem.scale == 1 / math.sqrt(rank)


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: synthetic.gaussian(0), ValueError, "n is 0; it must be at least 1"),
        (lambda: synthetic.gaussian(4.0), TypeError, "n is 4.0; it must be an integer"),
        (lambda: synthetic.gaussian(4, 0), ValueError, "d is 0"),
        (lambda: synthetic.gaussian(4, d_v=0), ValueError, "d_v is 0"),
        (lambda: synthetic.gaussian(4, rng="x"), TypeError, "rng is 'x'"),
        (lambda: synthetic.sphere(4, scale=0), ValueError, "scale is 0.0; it must be positive"),
        (lambda: synthetic.planted_clusters(4, 1), ValueError, "d is 1; it must be at least 2"),
        (lambda: synthetic.planted_clusters(9, 4, 5), ValueError, "clusters is 5; it must be between 1 and 4"),
        (lambda: synthetic.planted_clusters(3, 4, 4), ValueError, "clusters is 4; it must be between 1 and 3"),
        (lambda: synthetic.planted_clusters(4, angle=math.pi / 4), ValueError, r"angle is .* in \[0, 0.785398\)"),
        (lambda: synthetic.planted_clusters(4, mass=1), ValueError, r"mass is 1; it must lie in \(0, 1\)"),
        (lambda: synthetic.planted_clusters(4, mass=0), ValueError, "mass is 0"),
        (lambda: synthetic.cones(4, 1), ValueError, "d is 1"),
        (lambda: synthetic.cones(4, query_angle=4), ValueError, r"query_angle is 4; it must lie in \[0, 3.14159\]"),
        (lambda: synthetic.cones(4, key_angle=-1), ValueError, "key_angle is -1"),
        (lambda: synthetic.cones(4, axis_angle=np.nan), ValueError, "axis_angle is nan"),
        (lambda: synthetic.cones(4, scale=-1), ValueError, "scale is -1.0"),
        (lambda: synthetic.sink(1), ValueError, "n is 1; it must be at least 2"),
        (lambda: synthetic.sink(4, 1), ValueError, "d is 1"),
        (lambda: synthetic.sink(4, mass=0.4), ValueError, r"mass is 0.4; it must lie in \[0.5, 1\)"),
        (lambda: synthetic.sink(4, mass=1), ValueError, "mass is 1"),
        (lambda: synthetic.permutation(4, -1), ValueError, "strength is -1.0"),
        (lambda: synthetic.permutation(4, np.inf), ValueError, "strength is inf"),
        (lambda: synthetic.row_scales(4, 3, -1), ValueError, "log_kappa is -1.0"),
        (lambda: synthetic.row_scales(4, 1, 1), ValueError, "d is 1"),
        (lambda: synthetic.row_scales(1, 2, 1), ValueError, "log_kappa is 1 and the mask leaves 1 of 1"),
        (lambda: synthetic.row_scales(4, 2, 1, mask=np.eye(3) > 0), ValueError, "mask has shape"),
        (lambda: synthetic.row_scales(4, 2, 1, mask=np.eye(4)), TypeError, "mask has dtype float64"),
        (lambda: synthetic.prescribed_alpha(4, 2, "much"), TypeError, "alpha is 'much'"),
        (lambda: synthetic.needle(1), ValueError, "n is 1"),
        (lambda: synthetic.needle(4, 5), ValueError, "needles is 5; it must be between 1 and 4"),
        (lambda: synthetic.needle(4, 1, 0.2), ValueError, r"mass is 0.2; it must lie in \[0.25, 1\)"),
        (lambda: synthetic.low_rank(4, 3, 4), ValueError, "rank is 4; it must be between 1 and 3"),
        (lambda: scale_rows(synthetic.gaussian(4), np.zeros(3)), ValueError, r"log_factors has shape \(3,\)"),
        (lambda: scale_rows(synthetic.gaussian(4), np.zeros(4, int)), TypeError, "log_factors has dtype int64"),
        (lambda: scale_rows(synthetic.gaussian(4), np.full(4, np.nan)), ValueError, "log_factors has non-finite"),
    ],
)
def test_bad_input_is_one_clear_error(make, error, message):
    with pytest.raises(error, match=message):
        make()
