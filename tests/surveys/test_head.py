"""One head: what is measured is what direct calls give, and the first rule that applies decides."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import binom

import hyperattention_ref as hr
from hyperattention_ref.measures.error_bounds import ErrorBounds
from hyperattention_ref.surveys import head as head_module
from hyperattention_ref.surveys.head import PICTURE, judge, measure_head, noise_of
from hyperattention_ref.surveys.head_measures import Mass

from .small_maps import write_maps

FEW = hr.SurveySettings(recipes=("paper", "heavy", "window_sinks"), budget=16, seed=3)


def first_head(path, **facts):
    with hr.MapFile(write_maps(path / "maps.npz", **facts)) as file:
        return next(iter(file))


def test_a_head_is_measured_as_by_direct_calls(tmp_path):
    with hr.MapFile(write_maps(tmp_path / "maps.npz")) as file:
        for head in file:
            result = measure_head(head, FEW)
            assert result.name == f"L{result.layer}H{result.head}" == head.name
            q, k, v, scale = head.query, head.key, head.value, head.scale
            exact = hr.hardness(q, k, scale=scale, rng=noise_of(head, FEW))
            for name in ("alpha", "log_kappa", "log_kappa_rescaled", "stable_rank", "logit_max"):
                assert getattr(result.hardness, name) == getattr(exact, name)
            assert result.hardness.alpha_left_out == {i: exact.alpha_curve[i] for i in (0, 1, 4, 8, 32)}
            assert result.hardness.perplexity["50 %"] == np.median(exact.perplexity)
            assert result.growth[0].alpha == hr.hardness(q[:64], k[:64], scale=scale).alpha
            p = hr.attention_probabilities(q, k, scale=scale)
            for name, recipe in result.recipes.items():
                plan = hr.make_plan(q, k, recipe=hr.preset(name, 16), scale=scale, rng=noise_of(head, FEW))
                output = hr.hyper_attention(q, k, v, plan=plan, scale=scale)
                bounds = hr.certify(q, k, v, output, scale=scale, rng=noise_of(head, FEW))
                for field, x in vars(bounds.output).items():
                    assert getattr(recipe, field) == pytest.approx(x, rel=1e-6)
                true = hr.spectral_error(q, k, v, output, scale=scale).relative_frobenius
                assert recipe.relative_frobenius == pytest.approx(true, rel=1e-4)
                assert recipe.mass.estimate == pytest.approx(hr.captured_mass(q, k, plan, scale=scale), rel=1e-5)
            assert list(result.baselines["mean"].to_dict().values()) == pytest.approx(list(vars(bounds.mean).values()))
            in_band = np.arange(PICTURE)[:, None] == np.arange(128) * PICTURE // 128
            bands = in_band @ p @ in_band.T / in_band.sum(axis=1, keepdims=True)
            assert np.array(result.picture) == pytest.approx(bands, rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 33, 64, 65])
def test_short_and_ragged_maps_are_measured(tmp_path, n):
    head = first_head(tmp_path, n=n)
    result = measure_head(head, hr.SurveySettings())
    picture = np.array(result.picture)
    assert picture.shape == (min(n, PICTURE),) * 2
    assert picture.sum(axis=1) == pytest.approx(np.ones(len(picture)), rel=1e-5)
    if n <= PICTURE:
        assert picture == pytest.approx(hr.attention_probabilities(head.query, head.key), rel=1e-4)


def errors(low, high) -> ErrorBounds:
    fields = {field.name: 0.0 for field in dataclasses.fields(ErrorBounds)}
    return ErrorBounds(**fields | {"relative_frobenius": high, "relative_frobenius_low": low})


def verdict(**intervals):
    return judge({name: errors(*x) for name, x in intervals.items()}, 0.1, 777)


def test_the_first_rule_that_applies_decides():
    within, beyond, unknown = (0.0, 0.1), (0.11, 0.2), (0.05, 0.2)
    assert verdict(window_sinks=within, paper=(0, 0.01))[0] == "window + sinks suffice"
    assert verdict(window_sinks=beyond, paper=within, local=(0, 0.01))[0] == "replace"
    assert verdict(window_sinks=unknown, paper=within)[0] == "replace"
    name, rule = verdict(window_sinks=beyond, paper=unknown, local=(0, 0.05), heavy=(0, 0.04))
    assert name == "replace, with heavy"
    assert "0.1" in rule
    name, rule = verdict(window_sinks=beyond, paper=unknown, local=unknown)
    assert name == "undecided"
    assert "paper, local" in rule
    assert "777 rows" in rule
    assert verdict(window_sinks=beyond, paper=(0.11, math.inf))[0] == "keep exact"
    assert verdict(window_sinks=(math.nan, math.nan))[0] == "undecided"
    assert verdict()[0] == "keep exact"


def test_rows_decide_as_in_certify_and_a_short_causal_map_is_exact_whatever_they_are(tmp_path):
    head = first_head(tmp_path, n=1000)
    few = measure_head(head, dataclasses.replace(FEW, rows=10, tolerance=0.9))
    assert (few.rows, few.mass_rows, few.verdict) == (10, 10, "undecided")
    assert few.rows_to_decide > 10
    assert str(few.rows_to_decide) in few.rule
    for rows in ("all", None, "auto"):
        sure = measure_head(head, dataclasses.replace(FEW, rows=rows))
        assert (sure.rows, sure.mass_rows, sure.rows_to_decide) == (1000, 1000, None)
    causal = measure_head(first_head(tmp_path, is_causal=True), dataclasses.replace(FEW, rows=10))
    assert (causal.rows, causal.mass_rows, causal.verdict) == (128, 10, "not approximated")
    for recipe in causal.recipes.values():
        assert recipe.relative_frobenius < 1e-5
        assert recipe.mass == Mass(1.0, 1.0, 1.0)


def test_causal_maps_have_rectangles_and_short_ones_are_not_judged(tmp_path):
    first = first_head(tmp_path, is_causal=True)
    short = measure_head(first, FEW)
    assert short.verdict == "not approximated"
    assert short.hardness.rectangles == ()
    assert short.recipes["paper"].logits_per_query == 129 / 2
    settings = hr.SurveySettings(recipes=("paper",), budget=16, min_seq_len=32)
    head = measure_head(first, settings)
    parts = hr.causal_hardness(first.query, first.key, min_seq_len=32, scale=first.scale, op_norm=False)
    rectangles = {part.range: (part.alpha, part.log_kappa) for part in head.hardness.rectangles}
    assert rectangles == {place: (part.alpha, part.log_kappa) for place, part in parts.items()}
    assert len(rectangles) == 3
    assert head.hardness.alpha >= 128
    assert head.recipes["paper"].relative_frobenius > 0
    assert head.verdict != "not approximated"
    assert np.triu(head.picture, 1).max() == 0


@pytest.mark.parametrize(("key", "end"), [(0, "low"), (-1, "high")])
def test_each_end_of_a_mass_gets_half_of_delta(tmp_path, key, end):
    """All attention goes to one key: the first, which the recipe has, or the last, which the drawn rows' windows lack.

    The end is then the mean at which 16 draws of ones, or of zeros, have exactly the probability delta / 2.
    """
    q, k = np.ones((2, 4, 1024, 1), np.float32)
    k[:, key] = 500
    head = first_head(tmp_path, n=1024, d=1, query=q, key=k, value=k)
    settings = hr.SurveySettings(recipes=("window_sinks",), budget=16, rows=16, confidence=0.9, seed=3)
    mass = measure_head(head, settings).recipes["window_sinks"].mass
    assert mass.estimate == (1 if end == "low" else 0)
    bound = mass.low if end == "low" else mass.high
    tail = binom.sf(15, 16, bound) if end == "low" else binom.cdf(0, 16, bound)
    assert tail == pytest.approx(0.1 / 2, rel=1e-9)


def test_zero_values_make_every_output_exact(tmp_path):
    head = measure_head(first_head(tmp_path, value=np.zeros((4, 128, 8), np.float32)), hr.SurveySettings(rows=16))
    assert {recipe.relative_frobenius for recipe in head.recipes.values()} == {0.0}
    json.dumps(head.to_dict(), allow_nan=False)


def test_a_head_that_needs_more_memory_than_there_is_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(head_module, "physical_memory", lambda: 5e8)
    with pytest.raises(ValueError, match=r"L0H1 with n = 128 needs about 0.5 GB of memory.*0.5 GB; measure a shorter"):
        hr.survey(write_maps(tmp_path / "maps.npz"), tmp_path / "out", FEW)
    assert not (tmp_path / "out").exists()
