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
    "captured_mass": "measures.mask_mass",
    "oracle_attention": "measures.oracle",
    "oracle_mask": "measures.oracle",
    "Plan": "plan",
    "HeadPlan": "plan",
    "Rectangle": "plan",
    "causal_tiling": "plan",
    "merge_attention": "merge",
    "NEUTRAL": "merge",
    "hardness": "measures.hardness_parameters",
    "Hardness": "measures.hardness_parameters",
    "causal_hardness": "measures.hardness_parameters",
    "best_key_shift": "measures.key_shift",
    "attention_probabilities": "measures.hardness_parameters",
    "estimate_hardness": "measures.row_estimates",
    "certify": "measures.certificate",
    "spectral_error": "measures.spectral_guarantee",
    "SpectralError": "measures.spectral_guarantee",
    "operator_norm": "measures.norms",
    "frobenius_norm": "measures.norms",
    "stable_rank": "measures.norms",
    "load_sample_heads": "sample_data",
    "AttentionMap": "maps.map_file",
    "MapFile": "maps.map_file",
    "MapWriter": "maps.map_file",
    "LayerMaps": "maps.map_file",
    "capture": "maps.model_capture",
    "capturing": "maps.model_capture",
    "capture_text": "maps.model_capture",
    "survey": "reports.survey_heads",
    "measure_head": "reports.head_measures",
    "SurveySettings": "reports.head_measures",
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
