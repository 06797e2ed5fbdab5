"""make_plan with the paper's recipe."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.plan.noise import Draw


def problem(n_q, n_k, d=4, seed=0, lead=()):
    g = np.random.default_rng(seed)
    return g.standard_normal((*lead, n_q, d)), g.standard_normal((*lead, n_k, d))


def arrays_equal(first, second):
    a, b = first.to_arrays(), second.to_arrays()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@given(
    n_q=st.integers(1, 40),
    n_k=st.integers(1, 40),
    b=st.integers(1, 50),
    m=st.integers(1, 50),
    r=st.integers(1, 62),
    seed=st.integers(0, 99),
)
def test_recipe_is_one_sort_lsh_view_and_m_uniform_keys(n_q, n_k, b, m, r, seed):
    q, k = problem(n_q, n_k, seed=seed)
    plan = hr.make_plan(q, k, block_size=b, sample_size=m, lsh_bits=r, rng=seed, backend="reference")
    (rectangle,) = plan.heads[0].rectangles
    (stream,) = streams(seed, 1)
    (draw,) = Draw.sample(stream, 1, d=4, lsh_bits=r, sample_size=m)
    (view,) = rectangle.views
    np.testing.assert_array_equal(view.toarray(), hr.sort_lsh(q, k, b, planes=draw.planes).toarray())
    assert rectangle.sampled_keys.tolist() == [int(u * n_k) for u in draw.uniforms]
    assert rectangle.exact_keys.size == 0
    np.testing.assert_allclose(rectangle.log_weights, math.log(n_k) - math.log(m), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_seeds_reproduce_and_differ(is_causal):
    q, k = problem(40, 40, lead=(2,))
    options = {"is_causal": is_causal, "block_size": 4, "sample_size": 5, "min_seq_len": 10}
    first, again, other = (hr.make_plan(q, k, rng=seed, **options) for seed in (1, 1, 2))
    assert arrays_equal(first, again)
    assert not arrays_equal(first, other)


def test_a_generator_is_used_and_advanced():
    q, k = problem(30, 30)
    g = np.random.default_rng(1)
    first, second = (hr.make_plan(q, k, block_size=4, sample_size=5, rng=g) for _ in range(2))
    assert not arrays_equal(first, second)
    assert arrays_equal(first, hr.make_plan(q, k, block_size=4, sample_size=5, rng=np.random.default_rng(1)))
    assert arrays_equal(first, hr.make_plan(q, k, block_size=4, sample_size=5, rng=1))


def test_without_a_seed_every_plan_is_another():
    q, k = problem(30, 30)
    assert not arrays_equal(*(hr.make_plan(q, k, block_size=4, sample_size=5) for _ in range(2)))


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_seed_gives_the_same_plan_in_another_process(run_python, tmp_path, is_causal):
    path = tmp_path / "plan.npz"
    code = (
        "import numpy as np, hyperattention_ref as hr;"
        "q, k = np.random.default_rng(0).standard_normal((2, 2, 50, 4));"
        f"plan = hr.make_plan(q, k, is_causal={is_causal}, block_size=7, sample_size=9, min_seq_len=12, rng=11);"
        f"plan.save({str(path)!r})"
    )
    run_python(code, cwd=tmp_path)
    q, k = np.random.default_rng(0).standard_normal((2, 2, 50, 4))
    plan = hr.make_plan(q, k, is_causal=is_causal, block_size=7, sample_size=9, min_seq_len=12, rng=11)
    assert arrays_equal(plan, hr.Plan.load(path))


def test_the_plan_does_not_depend_on_the_memory_layout():
    q, k = problem(30, 25)
    plan = hr.make_plan(q, k, block_size=4, sample_size=5, rng=0)
    turned = hr.make_plan(np.asfortranarray(q), np.repeat(k, 2, axis=0)[::2], block_size=4, sample_size=5, rng=0)
    assert arrays_equal(plan, turned)


@pytest.mark.parametrize("n", [1, 2, 3, 17])
def test_causal_plan_is_one_leaf_up_to_min_seq_len(n):
    q, k = problem(n, n)
    plan = hr.make_plan(q, k, is_causal=True, min_seq_len=n, rng=0)
    assert plan.heads[0].leaves == ((0, n),)
    assert plan.heads[0].rectangles == ()
    assert plan.is_causal


def test_min_seq_len_concerns_the_causal_recursion_only():
    q, k = problem(10, 10)
    plan = hr.make_plan(q, k, block_size=2, sample_size=2, min_seq_len=4096, rng=0)
    assert not plan.is_causal
    assert len(plan.heads[0].rectangles) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_hash_codes_of_the_plan_come_from_the_backend_asked_for(dtype):
    q, k = (x.astype(dtype) for x in problem(20, 20))
    seen = []

    class Spy(type(hr.backends.get_backend("numpy"))):
        def hash_codes(self, x, planes):
            seen.append((x.dtype, planes.shape, planes.dtype))
            return np.arange(x.shape[-2])[::-1]

    plan = hr.make_plan(q, k, block_size=4, lsh_bits=5, rng=0, backend=Spy())
    assert seen == [(np.dtype(dtype), (5, 4), np.dtype(np.float64))] * 2
    assert plan.heads[0].rectangles[0].views[0].query_order.tolist() == list(range(19, -1, -1))
