"""Advice: the cheapest recipe within a tolerance."""

import json

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.surveys.advice import advise


def heads(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((3, *shape)).astype(np.float32)


def test_the_cheapest_recipe_within_the_tolerance_is_found_and_nothing_dearer_is_tried():
    head = hr.load_sample_heads()[0]
    q, k, v = head.query, head.key, head.value
    advice = advise(q, k, v, tolerance=0.3, scale=head.scale, rng=0, rows=512)
    costs = [trial.logits_per_query for trial in advice.tried]
    assert costs == sorted(costs)
    assert advice.trial == advice.tried[-1]
    assert all(trial.estimate > 0.3 for trial in advice.tried[:-1])
    out = hr.hyper_attention(q, k, v, recipe=advice.recipe, scale=head.scale, rng=0)
    exact = hr.exact_attention(q, k, v, scale=head.scale)
    true = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert true == pytest.approx(advice.trial.estimate, rel=1e-3)  # all rows were taken
    assert true <= 0.3
    assert json.loads(json.dumps(advice.to_dict()))["trial"]["name"] == advice.trial.name


def test_where_nothing_is_within_the_tolerance_exact_attention_is_advised():
    q, k, v = heads(64, 8)
    advice = advise(q, k, v, tolerance=1e-9, recipes=("paper", "pages"), budgets=(8, 16), rng=0)
    assert advice.trial is None
    assert advice.recipe is None
    assert len(advice.tried) == 4
    assert advice.exact_logits_per_query == 64


def test_of_several_causal_heads_the_worst_decides():
    q, k, v = heads(3, 200, 8)
    options = {"is_causal": True, "min_seq_len": 16, "rng": 0, "recipes": ("window_sinks",), "budgets": (32,)}
    together = advise(q, k, v, tolerance=1e-6, rows=200, **options).tried[0]
    alone = [advise(*one, tolerance=1e-6, rows=200, **options).tried[0] for one in zip(q, k, v, strict=True)]
    assert together.estimate == pytest.approx(max(trial.estimate for trial in alone), rel=1e-6)
    assert together.bound >= together.estimate


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tolerance": 0}, "tolerance is 0.0; it must be positive"),
        ({"recipes": ()}, "recipes or budgets is empty"),
        ({"recipes": ("best",)}, "recipe 'best' is unknown"),
        ({"budgets": (0,)}, "budget is 0"),
        ({"rows": 0}, "rows is 0"),
    ],
)
def test_bad_arguments_are_one_clear_error(change, words):
    with pytest.raises(ValueError, match=words):
        advise(*heads(20, 4), **change)
