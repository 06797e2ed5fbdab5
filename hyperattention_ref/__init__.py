"""The numerical reference for HyperAttention (arXiv 2310.05869).

Importing this package imports NumPy only; everything below is loaded at first use. No module bears the name of a
public function, so that `hyperattention_ref.approx_d` is the function whatever has been imported before.
"""

from __future__ import annotations

from importlib import import_module

_HOME = {
    "hamming_sorted_lsh": "definition_1",
    "sort_lsh": "algorithm_1",
    "BlockMask": "block_mask",
    "approx_d": "algorithm_2",
    "ApproxDResult": "algorithm_2",
    "row_norm_sample": "lemma_2",
    "RowNormSample": "lemma_2",
    "sampled_product": "lemma_2",
    "literal_hyper_attention": "algorithm_3",
    "causal_approx_d": "algorithm_4",
    "causal_literal_hyper_attention": "algorithm_4",
    "exact_attention": "attention",
    "hyper_attention": "attention",
    "make_plan": "recipe",
    "Recipe": "recipe",
    "RECIPES": "recipe",
    "preset": "recipe",
    "captured_mass": "mask_mass",
    "oracle_attention": "oracle",
    "oracle_mask": "oracle",
    "Plan": "plan",
    "HeadPlan": "plan",
    "Rectangle": "plan",
    "causal_tiling": "plan",
    "merge_attention": "merge",
    "NEUTRAL": "merge",
    "hardness": "hardness_parameters",
    "Hardness": "hardness_parameters",
    "causal_hardness": "hardness_parameters",
    "best_key_shift": "key_shift",
    "attention_probabilities": "hardness_parameters",
    "estimate_hardness": "row_estimates",
    "certify": "certificate",
    "spectral_error": "spectral_guarantee",
    "SpectralError": "spectral_guarantee",
    "operator_norm": "norms",
    "frobenius_norm": "norms",
    "stable_rank": "norms",
    "load_sample_heads": "sample_data",
    "AttentionMap": "maps",
    "MapFile": "maps",
    "MapWriter": "maps",
    "LayerMaps": "maps",
    "capture": "model_capture",
    "capturing": "model_capture",
    "capture_text": "model_capture",
    "survey": "survey_heads",
    "measure_head": "head_measures",
    "SurveySettings": "head_measures",
    "available_backends": "backends",
    "backend_status": "backends",
}
_MODULES = ("backends", "proofs_checks", "synthetic")
__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        return version("hyperattention-ref")
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
