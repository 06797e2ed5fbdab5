"""The baselines are what their names say, and have as many keys as they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.perplexity import methods
from hyperattention_ref.perplexity.methods import EXACT, LARGER, LEAVES, SINKS, WINDOW
from hyperattention_ref.perplexity.settings import PerplexitySettings


def seen_by_the_window(n, width):
    i, j = np.arange(n)[:, None], np.arange(n)
    return (j <= i) & ((j > i - width) | (j < SINKS))


def attended(q, k, v, mask):
    """Softmax over the pairs of a mask, of grouped-query heads."""
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    logits = np.where(mask, 0.3 * q @ k.swapaxes(1, 2), -np.inf)
    a = np.exp(logits - logits.max(-1, keepdims=True))
    return (a / a.sum(-1, keepdims=True)) @ v


def heads(n):
    rng = np.random.default_rng(n)
    return [rng.standard_normal((count, n, d)) for count, d in ((4, 6), (2, 6), (2, 5))]


@given(st.integers(1, 300), st.data())
def test_the_keys_of_the_window_are_counted(n, data):
    width = data.draw(st.integers(1, n))
    assert methods.window_keys(n, width) == pytest.approx(seen_by_the_window(n, width).sum() / n)
    keys = data.draw(st.floats(1, (n + 1) / 2))
    least = methods.window_width(n, keys)
    assert methods.window_keys(n, least) >= keys - 1e-9
    assert least == 1 or methods.window_keys(n, least - 1) < keys


@pytest.mark.parametrize("width", [1, 37, 256, 700])
def test_the_window_attends_to_its_keys_and_no_others(width):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")
    arrays = heads(600)
    tensors = [torch.from_numpy(x) for x in arrays]
    found = methods.sliding_window(*tensors, is_causal=True, scale=0.3, layer=0, width=width)
    np.testing.assert_allclose(found, attended(*arrays, seen_by_the_window(600, width)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "min_seq_len"), [(100, 100), (100, 30), (129, 16)])
def test_leaves_only_is_attention_within_leaves(n, min_seq_len):
    leaves, _ = hr.causal_tiling(n, min_seq_len)
    mask = np.zeros((n, n), dtype=bool)
    for a, c in leaves:
        mask[a:c, a:c] = np.tri(c - a, dtype=bool)
    arrays = heads(n)
    found = methods.leaves_only(*arrays, is_causal=True, scale=0.3, layer=0, min_seq_len=min_seq_len)
    np.testing.assert_allclose(found, attended(*arrays, mask), rtol=0, atol=1e-12)
    assert methods.leaves_plan(n, min_seq_len, 1).heads[0].n_logits == mask.sum()


@given(st.lists(st.floats(1, 1000), min_size=1))
def test_every_cost_has_a_window_beside_it_and_no_window_is_idle(costs):
    sizes = methods.window_sizes(costs)
    beside = [min(size for size in sizes if size >= cost) for cost in costs]
    assert all(size <= LARGER * cost for size, cost in zip(beside, costs, strict=True))
    assert set(beside) == set(sizes) <= set(costs)


@pytest.mark.parametrize("recipes", [("paper",), tuple(hr.RECIPES)])
def test_windows_have_as_many_keys_as_recipes(recipes):
    found = methods.methods(PerplexitySettings(n=512, min_seq_len=64, budget=16, recipes=recipes))
    assert EXACT not in found
    windows = [name for name in found if name.startswith(WINDOW)]
    assert list(found) == [LEAVES, *windows, *recipes]
    for name in windows:
        assert abs(found[name].logits_per_query - float(name.rpartition(",")[2])) < 2
    costliest = max(found[name].logits_per_query for name in recipes)
    assert costliest <= found[windows[0]].logits_per_query < costliest + 1
    assert found[LEAVES].logits_per_query == 65 / 2


def test_a_recipe_attends_as_in_the_library():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")
    tensors = [torch.from_numpy(x) for x in heads(128)]
    everything = PerplexitySettings(n=128, min_seq_len=16, budget=127, recipes=("window_sinks",))
    attention = methods.methods(everything)["window_sinks"].attention
    found = attention(*tensors, is_causal=True, scale=0.3, layer=0)
    exact = hr.exact_attention(*tensors, is_causal=True, scale=0.3, enable_gqa=True)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12)
