"""Stages of a call are differences of calls on parts of its plan."""

from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.bench import stages
from hyperattention_ref.bench.cases import make_heads, planned
from hyperattention_ref.bench.timing import Times
from tests.bench.planted import SMALL


@pytest.mark.parametrize("is_causal", [False, True])
def test_stages_are_differences_of_calls_on_parts_of_the_plan(monkeypatch, is_causal):
    settings = replace(SMALL, is_causal=is_causal, heads=2)
    heads = make_heads(settings, "gaussian", 100)
    calls = stages._calls(settings, heads, "numpy")
    options = {"scale": heads.scale, "is_causal": is_causal, "backend": "numpy"}
    plan = planned(settings, heads, "numpy")
    whole = hr.hyper_attention(*heads.arrays, plan=plan, **options)
    assert calls["whole"]().tobytes() == whole.tobytes()
    parts = [calls[name]() for name in ("blocks", "samples")]
    if not is_causal:  # blocks and samples merge into the whole, up to the pairs that both hold
        blocks = [head.rectangles[0].rows(range(100))[:, head.rectangles[0].sampled_keys] for head in plan.heads]
        apart = ~np.array(blocks).any(axis=2)
        merged, _ = hr.merge_attention(*parts)
        assert apart.any()
        assert merged[apart] == pytest.approx(whole[apart], abs=1e-5)
        assert not calls["empty"]()[0].any()
    in_order, _ = calls["blocks in order"]()
    first = hr.exact_attention(*(x[:, :16] for x in heads.arrays), scale=heads.scale, backend="numpy")
    if not is_causal:
        assert in_order[:, :16] == pytest.approx(first, abs=1e-5)
    seconds = {"checks": 1, "hash": 2, "make_plan": 7, "empty": 3, "blocks": 20, "blocks in order": 14, "samples": 9,
               "whole": 40}  # fmt: skip
    monkeypatch.setattr(stages, "take_turns", lambda calls, *_: {name: Times.of([seconds[name]] * 2) for name in calls})
    assert list(stages.measure_stages(settings, heads, "numpy").values()) == [1, 2, 5, 3, 11, 6, 6, 6]
