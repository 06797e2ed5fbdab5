"""The paper map has no hole: every row leads somewhere, and everything public is in it."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import hyperattention_ref as hr
from hyperattention_ref.proofs_checks import STATEMENTS

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/paper_map.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| Paper |")
]
FUNCTIONS = {name for row in ROWS for name in re.findall(r"`([\w.]+)`", row[1])}
CHECKS = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[2])}
# What the functions return and how backends are found: documented in the API pages, no items of the paper.
RESULTS = {"ApproxDResult", "RowNormSample", "Hardness", "SpectralError"}
BACKENDS = {"available_backends", "backend_status"}
# The tables of the map are about the paper; measuring real maps goes beyond it.
RECIPES = {"Recipe", "RECIPES", "preset", "captured_mass"}
BASELINES = {"nystrom_attention", "oracle_attention", "oracle_mask"}
ESTIMATES = {"certify", "projected_error", "estimate_hardness", "best_key_shift"}
MAPS = {"AttentionMap", "MapFile", "MapWriter", "LayerMaps", "capture", "capturing", "capture_text"}
GRADIENTS = {"attention_gradient"}
MODELS = {"replacing", "register_attention", "ReplacementReport", "scaled_dot_hyper_attention"}
SURVEYS = {"advise", "survey", "measure_head", "SurveySettings"}
NOT_IN_THE_PAPER = RESULTS | BACKENDS | RECIPES | BASELINES | ESTIMATES | MAPS | GRADIENTS | MODELS | SURVEYS


@pytest.mark.parametrize("dotted", sorted(FUNCTIONS))
def test_every_function_of_the_map_exists(dotted):
    module, name = dotted.rsplit(".", 1)
    assert hasattr(import_module(f"hyperattention_ref.{module}"), name)


def test_the_map_names_every_check_and_no_other():
    assert set(STATEMENTS) == CHECKS


def test_every_check_file_is_a_statement():
    framework = {"__init__", "settings", "verdict", "dense"}
    assert {path.stem for path in (ROOT / "proofs_checks").glob("*.py")} - framework == set(STATEMENTS)


def test_the_map_names_every_public_function():
    mapped = {dotted.split(".")[-1] for dotted in FUNCTIONS}
    modules = {"backends", "proofs_checks", "synthetic", "__version__"}
    assert set(hr.__all__) - modules - NOT_IN_THE_PAPER <= mapped


@pytest.mark.parametrize("name", sorted(set(hr.__all__) - {"NEUTRAL", "RECIPES", "__version__"}))
def test_public_names_are_found_and_documented(name):
    assert getattr(hr, name).__doc__
    assert name in dir(hr)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'attention_is_all'"):
        hr.attention_is_all  # noqa: B018
