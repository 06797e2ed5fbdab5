"""Noise depends on shapes and a seed only, and its uniforms become keys that exist."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.plan.noise import Draw


def problem(n_q, n_k, d=4, seed=0, lead=()):
    g = np.random.default_rng(seed)
    return g.standard_normal((*lead, n_q, d)), g.standard_normal((*lead, n_k, d))


@given(u=st.floats(0, 1, exclude_max=True), n_k=st.integers(1, 10**6))
def test_uniforms_become_keys_that_exist(u, n_k):
    (key,) = Draw(np.ones((1, 1)), np.array([u])).keys(n_k)
    assert 0 <= key < n_k
    assert key == min(math.floor(u * n_k), n_k - 1)


def test_draws_depend_on_shapes_and_seed_only():
    q, k = problem(30, 30)
    other = problem(30, 30, seed=1)
    first, second = (hr.make_plan(*x, block_size=4, sample_size=9, rng=3) for x in ((q, k), other))
    same = [plan.heads[0].rectangles[0].sampled_keys.tolist() for plan in (first, second)]
    assert same[0] == same[1]


def test_sampled_keys_are_uniform():
    q, k = problem(1, 10)
    plan = hr.make_plan(q, k, sample_size=20000, rng=0)
    counts = np.bincount(plan.heads[0].rectangles[0].sampled_keys, minlength=10)
    assert np.all(np.abs(counts - 2000) < 6 * math.sqrt(20000 * 0.1 * 0.9))
