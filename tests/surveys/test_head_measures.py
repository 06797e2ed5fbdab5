"""What is known of a head: derived numbers, and its JSON, which keeps its keys."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.pages.results_folder import ResultsFolder
from hyperattention_ref.surveys.head_measures import GrowthPoint, HeadMeasures

from .small_maps import write_maps

ERRORS = {
    *("frobenius", "op_norm", "ratio", "relative_frobenius"),
    *("frobenius_estimate", "op_norm_estimate", "ratio_estimate", "relative_frobenius_estimate"),
    *("limit", "relative_limit", "relative_frobenius_low", "relative_frobenius_standard_error"),
}
KEYS = {
    "": {
        *("name", "layer", "head", "model", "source", "scale", "is_causal", "n", "d", "rows", "mass_rows"),
        *("hardness", "growth", "recipes", "baselines", "picture", "verdict", "rule", "rows_to_decide"),
    },
    "hardness": {
        *("alpha", "log_kappa", "log_kappa_rescaled", "log_kappa_shifted", "frobenius_norm"),
        *("op_norm", "op_norm_high", "stable_rank", "logit_min", "logit_max", "overflows"),
        *("heavy_columns", "alpha_left_out", "perplexity"),
    },
    "hardness.overflows": {"float16", "bfloat16", "float32"},
    "hardness.alpha_left_out": {"0", "1", "4", "10", "32"},
    "hardness.perplexity": {"10 %", "50 %", "90 %"},
    "growth.0": {"n", "alpha", "alpha_sixteenth", "log_kappa"},
    "recipes": {"paper", "heavy", "window_sinks"},
    "recipes.heavy": {"mass", "keys_per_query", "logits_per_query", *ERRORS},
    "recipes.heavy.mass": {"estimate", "low", "high"},
    "baselines": {"zero", "mean"},
    "baselines.mean": ERRORS,
}


def at(data, place):
    for key in filter(None, place.split(".")):
        data = data[int(key) if isinstance(data, list) else key]
    return data


@pytest.mark.parametrize("place", KEYS)
def test_the_json_of_a_head_keeps_its_keys(surveyed, place):
    data = json.loads((surveyed[1] / "heads" / "L0H0.json").read_text(encoding="utf-8"))["result"]
    assert set(at(data, place)) == KEYS[place]


def test_only_a_causal_head_has_rectangles_in_its_json(tmp_path):
    settings = hr.SurveySettings(recipes=("paper",), budget=16, min_seq_len=32)
    with hr.MapFile(write_maps(tmp_path / "maps.npz", is_causal=True)) as file:
        hardness = hr.measure_head(next(iter(file)), settings).to_dict()["hardness"]
    assert set(hardness) == KEYS["hardness"] | {"rectangles"}
    assert [set(part) for part in hardness["rectangles"]] == [{"range", "alpha", "log_kappa"}] * 3


def test_a_head_is_read_as_it_was_written_with_infinite_bounds_as_numbers(heads, tmp_path):
    folder = ResultsFolder(tmp_path, "record.json", "heads")
    folder.claim({}, "something else")
    recipe = replace(heads[0].recipes["paper"], ratio=math.inf)
    hardness = replace(heads[0].hardness, op_norm=None, rectangles=())
    head = replace(heads[0], hardness=hardness, recipes={"paper": recipe})
    folder.once("L0H0", lambda: head, HeadMeasures)
    assert json.loads(folder.file("L0H0").read_text())["result"]["recipes"]["paper"]["ratio"] == "inf"
    assert folder.read("L0H0", HeadMeasures) == head


def test_a_fitted_exponent_is_the_slope_of_a_power(heads):
    def point(n):
        return GrowthPoint(n, alpha=3.0 * n**1.5, alpha_sixteenth=float(n), log_kappa=2 * math.log(n))

    whole = point(256)
    hardness = replace(heads[0].hardness, alpha=whole.alpha, alpha_left_out={16: 256.0}, log_kappa=whole.log_kappa)
    head = replace(heads[0], n=256, growth=(point(64), point(128)), hardness=hardness)
    slopes = [head.exponent(name) for name in ("alpha", "alpha_sixteenth", "log_kappa")]
    assert slopes == pytest.approx([1.5, 1.0, 2.0])
    assert list(head.curve("alpha")[0]) == [64, 128, 256]
    assert math.isnan(replace(head, growth=()).exponent("alpha"))


def test_errors_are_found_by_the_name_of_a_recipe_or_baseline(heads):
    for head in heads:
        assert head.errors("heavy") is head.recipes["heavy"]
        assert head.errors("zero") is head.baselines["zero"]
        least = np.argmin([recipe.relative_frobenius for recipe in head.recipes.values()])
        assert head.best_recipe == list(head.recipes)[least]
