from . import backends, proofs_checks, synthetic
from .attention import exact_attention, hyper_attention
from .attention_gradient import attention_gradient
from .foundation.registry import available_backends, backend_status
from .maps.attention_map import AttentionMap, LayerMaps
from .maps.map_file import MapFile, MapWriter
from .maps.model_capture import capture, capture_text, capturing
from .maps.sample_heads import load_sample_heads
from .measures.attention_matrix import attention_probabilities
from .measures.certificate import certify
from .measures.hardness_parameters import Hardness, causal_hardness, hardness
from .measures.key_shift import best_key_shift
from .measures.mask_mass import captured_mass
from .measures.norms import frobenius_norm, operator_norm, stable_rank
from .measures.nystrom import nystrom_attention
from .measures.oracle import oracle_attention, oracle_mask
from .measures.projected_error import projected_error
from .measures.row_estimates import estimate_hardness
from .measures.spectral_guarantee import SpectralError, spectral_error
from .models.replacement import ReplacementReport, register_attention, replacing
from .models.scaled_dot_product import scaled_dot_hyper_attention
from .paper.algorithm_1_sort_lsh import sort_lsh
from .paper.algorithm_2_approx_d import ApproxDResult, approx_d
from .paper.algorithm_3_hyper_attention import literal_hyper_attention
from .paper.algorithm_4_causal_approx_d import causal_approx_d, causal_literal_hyper_attention
from .paper.definition_1_sorted_lsh import hamming_sorted_lsh
from .paper.lemma_2_sampled_product import RowNormSample, row_norm_sample, sampled_product
from .plan.block_lists import BlockLists
from .plan.block_mask import BlockMask
from .plan.head_plan import HeadPlan, Rectangle
from .plan.landmarks import Landmarks
from .plan.merge import NEUTRAL, merge_attention
from .plan.plan import Plan
from .plan.planner import make_plan
from .plan.recipe import RECIPES, Recipe, preset
from .plan.tiling import causal_tiling
from .surveys.advice import advise
from .surveys.head import measure_head
from .surveys.settings import SurveySettings
from .surveys.survey import survey

__version__: str
__all__ = [
    "NEUTRAL",
    "RECIPES",
    "ApproxDResult",
    "AttentionMap",
    "BlockLists",
    "BlockMask",
    "Hardness",
    "HeadPlan",
    "Landmarks",
    "LayerMaps",
    "MapFile",
    "MapWriter",
    "Plan",
    "Recipe",
    "Rectangle",
    "ReplacementReport",
    "RowNormSample",
    "SpectralError",
    "SurveySettings",
    "__version__",
    "advise",
    "approx_d",
    "attention_gradient",
    "attention_probabilities",
    "available_backends",
    "backend_status",
    "backends",
    "best_key_shift",
    "capture",
    "capture_text",
    "captured_mass",
    "capturing",
    "causal_approx_d",
    "causal_hardness",
    "causal_literal_hyper_attention",
    "causal_tiling",
    "certify",
    "estimate_hardness",
    "exact_attention",
    "frobenius_norm",
    "hamming_sorted_lsh",
    "hardness",
    "hyper_attention",
    "literal_hyper_attention",
    "load_sample_heads",
    "make_plan",
    "measure_head",
    "merge_attention",
    "nystrom_attention",
    "operator_norm",
    "oracle_attention",
    "oracle_mask",
    "preset",
    "projected_error",
    "proofs_checks",
    "register_attention",
    "replacing",
    "row_norm_sample",
    "sampled_product",
    "scaled_dot_hyper_attention",
    "sort_lsh",
    "spectral_error",
    "stable_rank",
    "survey",
    "synthetic",
]
