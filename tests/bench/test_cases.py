"""Settings, inputs and contestants of the benchmark."""

from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.bench import run as runner
from hyperattention_ref.bench.cases import EXACT, RIVAL, WHOLE, Contestant, logits, make_heads, planned
from tests.bench.planted import SMALL


def test_the_real_heads_are_those_that_ship():
    heads = make_heads(SMALL, "sample_heads", 64)
    assert heads.query.shape == (6, 512, 32)
    for h, head in enumerate(hr.load_sample_heads()):
        assert head.scale == heads.scale
        for x, y in zip(heads.arrays, (head.query, head.key, head.value), strict=True):
            np.testing.assert_array_equal(x[h], y)
    points = runner.measure_family(SMALL, "sample_heads").points
    assert [x.budget for x in points] == [64, 128, 256, None]
    assert points[-1].relative_error < 1e-5


def test_logits_are_counted_from_the_plan_and_from_the_lengths():
    heads = make_heads(replace(SMALL, heads=2), "gaussian", 100)
    whole, exact = Contestant("numpy", WHOLE), Contestant("numpy", EXACT)
    plan = planned(SMALL, heads, "numpy")
    assert logits(whole, plan, heads) == 2 * (6 * 16**2 + 4**2 + 100 * 16)
    assert logits(exact, None, heads) == 2 * 100**2
    assert logits(exact, None, heads._replace(is_causal=True)) == 100 * 101
    assert logits(Contestant("performer", RIVAL), None, heads) is None
    causal = planned(SMALL, heads._replace(is_causal=True), "numpy")
    counted = sum(np.count_nonzero(head.rows(range(100))) for head in causal.heads)
    counted += sum(r.n_q * r.sampled_keys.size for head in causal.heads for r in head.rectangles)
    assert logits(whole, causal, heads) == counted  # one view for each rectangle: no pair is counted twice


@pytest.mark.parametrize("name", ["n", "backends", "families"])
def test_nothing_to_time_is_refused(name):
    with pytest.raises(ValueError, match="nothing to time"):
        replace(SMALL, **{name: ()})


@pytest.mark.parametrize("wrong", [0, "no", None])
@pytest.mark.parametrize("name", ["is_causal", "measure"])
def test_what_is_neither_true_nor_false_is_refused(name, wrong):
    with pytest.raises(TypeError, match=f"{name} is {wrong!r}; it must be True or False"):
        replace(SMALL, **{name: wrong})
