"""Recipes and presets: what they say, what they cost, what they find."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import Plan
from hyperattention_ref.backends.conformance.examples import AttentionInputs
from hyperattention_ref.measures.mask_mass import captured_mass
from hyperattention_ref.measures.oracle import oracle_attention, oracle_mask
from hyperattention_ref.plan.planner import make_plan
from hyperattention_ref.plan.recipe import RECIPES, Recipe, preset

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


def problem(n_q, n_k=None, d=4, seed=0, lead=(), dtype=np.float64, size=1.0):
    g = np.random.default_rng(seed)
    n_k = n_q if n_k is None else n_k
    return tuple(
        (size * g.standard_normal((*lead, n, width))).astype(dtype) for n, width in ((n_q, d), (n_k, d), (n_k, 3))
    )


def only_rectangle(q, k, recipe, **options):
    (rectangle,) = make_plan(q, k, recipe=recipe, **options).heads[0].rectangles
    return rectangle


def arrays_equal(first, second):
    a, b = first.to_arrays(), second.to_arrays()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_paper_is_the_default_by_every_way_of_saying_it():
    q, k, v = problem(600)
    assert preset("paper") == Recipe()
    first = make_plan(q, k, rng=3)
    assert all(arrays_equal(first, make_plan(q, k, rng=3, recipe=x)) for x in ("paper", Recipe(), preset("paper")))
    out = hr.hyper_attention(q, k, v, rng=3)
    assert np.array_equal(out, hr.hyper_attention(q, k, v, rng=3, recipe="paper"))
    small = {"block_size": 16, "sample_size": 20, "lsh_bits": 5}
    assert arrays_equal(make_plan(q, k, rng=3, **small), make_plan(q, k, rng=3, recipe=Recipe(**small)))


@given(name=st.sampled_from(list(RECIPES)), budget=st.integers(1, 600))
def test_a_preset_spends_its_budget_exactly(name, budget):
    recipe = preset(name, budget)
    page = recipe.page_size if recipe.has_lists and not recipe.landmarks else 1
    assert recipe.keys_per_query == budget // page * page > 0


@given(name=st.sampled_from(list(RECIPES)), budget=st.integers(1, 80), n_q=st.integers(1, 60), n_k=st.integers(1, 60))
def test_no_query_meets_more_keys_than_the_budget(name, budget, n_q, n_k):
    q, k, _ = problem(n_q, n_k)
    (head,) = make_plan(q, k, recipe=preset(name, budget), rng=0).heads
    n_sampled = sum(r.sampled_keys.size for r in head.rectangles)
    assert head.rows(range(n_q)).sum(axis=1).max() + n_sampled <= budget


def test_presets_at_64_keys_split_as_named():
    split = {
        name: (
            *(r.views, r.block_size if r.views else 0, r.first_keys, r.heavy_columns, r.sample_size, r.sampling),
            *([r.landmarks] if r.landmarks else []),
        )
        for name, r in ((name, preset(name, 64)) for name in RECIPES if not preset(name, 64).has_lists)
    }
    assert split == {
        "paper": (("sort_lsh",), 32, 0, 0, 32, "uniform"),
        "uniform": ((), 0, 0, 0, 64, "uniform"),
        "centred": (("centred_sort_lsh",), 32, 0, 0, 32, "uniform"),
        "random": (("random",), 32, 0, 0, 32, "uniform"),
        "local": (("local",), 32, 0, 0, 32, "uniform"),
        "heavy": ((), 0, 0, 32, 32, "uniform"),
        "window_sinks": (("local",), 60, 4, 0, 0, "uniform"),
        "local_heavy": (("local",), 32, 0, 32, 0, "uniform"),
        "local_heavy_importance": (("local",), 16, 0, 16, 32, "importance"),
        "landmarks": (("local",), 16, 0, 0, 0, "uniform", 48),
    }


def test_presets_of_pages_split_as_named():
    r = preset("pages", 100)
    assert (r.page_size, r.first_keys, r.window, r.pages, r.sample_size, r.views) == (8, 8, 8, 10, 0, ())
    assert (preset("pages", 5).page_size, preset("pages", 5).window) == (5, 5)
    r = preset("far_field", 100)
    assert (r.page_size, r.first_keys, r.window, r.pages, r.landmarks) == (8, 0, 32, 4, 36)
    assert (preset("far_field", 8).landmarks, preset("far_field", 8).has_lists) == (8, False)


SHAPES = [  # n_q, n_k, leading shapes of query and of key, causal
    (1, 1, (), (), False),
    (7, 7, (2,), (2,), False),
    (5, 23, (), (), False),
    (23, 5, (), (), False),
    (40, 40, (1, 4), (1, 2), False),
    (1, 1, (), (), True),
    (39, 39, (4,), (2,), True),
]


@pytest.mark.parametrize("recipe", [*(preset(name, 8) for name in RECIPES), preset("heavy", 500), EVERY_PART])
@pytest.mark.parametrize(("n_q", "n_k", "lead_q", "lead_k", "is_causal"), SHAPES)
@pytest.mark.parametrize(("dtype", "logits"), [(np.float64, 1), (np.float64, 500), (np.float32, 500), (np.float16, 80)])
def test_every_recipe_runs_on_every_shape_and_backends_agree(
    recipe, n_q, n_k, lead_q, lead_k, is_causal, dtype, logits
):
    q, _, _ = problem(n_q, n_k, lead=lead_q, dtype=dtype)
    _, k, v = problem(n_q, n_k, lead=lead_k, dtype=dtype)
    gqa, options = lead_q != lead_k, {"is_causal": is_causal}
    scale = float(logits / np.abs(q.reshape(-1, 4).astype(float) @ k.reshape(-1, 4).T).max())
    plan = make_plan(q, k, recipe=recipe, min_seq_len=6, scale=scale, rng=0, enable_gqa=gqa, **options)
    run = {"plan": plan, "scale": scale, "return_lse": True, "enable_gqa": gqa, **options}
    out, lse = hr.hyper_attention(q, k, v, backend="numpy", **run)
    true_out, true_lse = hr.hyper_attention(q, k, v, backend="reference", **run)
    assert out.dtype == dtype
    for h, index in enumerate(np.ndindex(lead_q)):
        shared = (*index[:-1], index[-1] // 2) if gqa else index
        one = AttentionInputs(q[index], k[shared], v[shared], scale, is_causal, Plan((), (plan.heads[h],)))
        bounds = one.bounds({"out": true_out[index], "lse": true_lse[index]}, {"out": dtype})
        met = np.isfinite(true_lse[index])
        assert np.all(np.abs(out[index] - true_out[index]) <= bounds["out"])
        assert np.array_equal(met, np.isfinite(lse[index]))
        assert np.all(np.abs(lse[index] - true_lse[index])[met] <= bounds["lse"][met])


@pytest.mark.parametrize("name", ["heavy", "local_heavy", "local_heavy_importance"])
def test_when_all_keys_are_exact_so_is_the_result(name):
    q, k, v = problem(9, 6)
    out = hr.hyper_attention(q, k, v, recipe=preset(name, 64), rng=0, scale=0.7)
    np.testing.assert_allclose(out, hr.exact_attention(q, k, v, scale=0.7), rtol=1e-13, atol=1e-14)
    assert only_rectangle(q, k, preset(name, 64), rng=0).sampled_keys.size == 0


def test_ways_of_finding_large_entries_rank_on_real_heads_as_published():
    """Medians over the six heads: the order of the docs' table, at gaps far above the spread over seeds."""
    heads = hr.load_sample_heads()
    median_error, median_mass = {}, {}
    for name in RECIPES:
        errors, masses = [], []
        for head in heads:
            exact = hr.exact_attention(head.query, head.key, head.value, scale=head.scale)
            for seed in range(10):
                plan = make_plan(head.query, head.key, recipe=preset(name, 64), scale=head.scale, rng=seed)
                out = hr.hyper_attention(head.query, head.key, head.value, scale=head.scale, plan=plan)
                errors.append(np.linalg.norm(out - exact) / np.linalg.norm(exact))
            masses.append(captured_mass(head.query, head.key, plan, scale=head.scale))
        median_error[name], median_mass[name] = np.median(errors), np.median(masses)
    assert median_error["paper"] > 0.9
    assert median_error["local"] < 0.75
    assert median_error["heavy"] < 0.75
    assert median_error["local_heavy"] < 0.55
    assert median_error["local_heavy_importance"] < 0.55
    assert median_mass["random"] < median_mass["paper"] < median_mass["centred"] < median_mass["local"]
    assert median_mass["local"] < median_mass["heavy"] < median_mass["local_heavy"]


@pytest.mark.parametrize(
    ("field", "wrong", "error"),
    [
        ("views", "local", TypeError),
        ("views", 3, TypeError),
        ("views", ("nearest",), ValueError),
        ("views", ("local", "local"), ValueError),
        ("views", (["local"],), ValueError),
        ("sampling", "best", ValueError),
        ("block_size", 0, ValueError),
        ("block_size", 2.5, TypeError),
        ("lsh_bits", 63, ValueError),
        ("pilot_rows", 0, ValueError),
        ("first_keys", -1, ValueError),
        ("heavy_columns", 1.0, TypeError),
        ("heavy_columns", True, TypeError),
        ("sample_size", -5, ValueError),
    ],
)
def test_a_wrong_field_is_refused_by_name(field, wrong, error):
    with pytest.raises(error, match=f"^{field} is "):
        Recipe(**{field: wrong})


def test_a_recipe_that_finds_nothing_is_refused():
    with pytest.raises(ValueError, match="finds no key"):
        Recipe(views=(), sample_size=0)


@pytest.mark.parametrize("call", [preset, lambda name: make_plan(*problem(4)[:2], recipe=name)])
def test_an_unknown_name_is_refused_with_the_known_ones(call):
    with pytest.raises(ValueError, match=r"'lokal' is unknown; known: paper, .*local_heavy"):
        call("lokal")


def test_other_bad_input_is_refused():
    q, k, v = problem(4)
    with pytest.raises(ValueError, match="budget is 0"):
        preset("paper", 0)
    with pytest.raises(TypeError, match="recipe is 64"):
        make_plan(q, k, recipe=64)
    with pytest.raises(ValueError, match="recipe and block_size, lsh_bits are both given"):
        make_plan(q, k, recipe="local", block_size=8, lsh_bits=3)
    with pytest.raises(ValueError, match="recipe and sample_size are both given"):
        hr.hyper_attention(q, k, v, recipe=Recipe(), sample_size=3)
    plan = make_plan(q, k)
    with pytest.raises(ValueError, match="plan and recipe are both given"):
        hr.hyper_attention(q, k, v, plan=plan, recipe="paper")
    with pytest.raises(ValueError, match="plan and rng, min_seq_len are both given"):
        hr.hyper_attention(q, k, v, plan=plan, rng=0, min_seq_len=1)
    with pytest.raises(ValueError, match="sample_size is 0"):
        make_plan(q, k, sample_size=0)
    with pytest.raises(ValueError, match="logits may overflow"):
        make_plan(1e200 * q, 1e200 * k, recipe="heavy")
    with pytest.raises(TypeError, match="scale is 'x'"):
        make_plan(q, k, scale="x")
    with pytest.raises(ValueError, match="mask has shape"):
        captured_mass(q, k, hr.BlockMask.from_orders([0], [0], 1))
    with pytest.raises(ValueError, match="mask has shape"):
        captured_mass(q[None], k[None], np.ones((2, 4, 4), dtype=bool))
    with pytest.raises(TypeError, match="mask has dtype float64"):
        captured_mass(q, k, np.ones((4, 4)))
    with pytest.raises(ValueError, match="is_causal = False but the call has True"):
        captured_mass(q, k, plan, is_causal=True)
    with pytest.raises(ValueError, match="keys_per_query is 0"):
        oracle_mask(q, k, 0)
    with pytest.raises(ValueError, match="budget is 1; it must be at least 2"):
        oracle_attention(q, k, v, 1)


def test_a_recipe_says_what_it_is():
    assert json.loads(json.dumps(preset("local", 8).to_dict()))["views"] == ["local"]
    assert "views=('local',), block_size=4" in repr(preset("local", 8))
    assert {preset(name): name for name in RECIPES}[preset("heavy")] == "heavy"
