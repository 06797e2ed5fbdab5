"""The checks have teeth: a bug planted in each algorithm makes at least one verdict differ from what is expected."""

import inspect
import sys
from functools import cache
from textwrap import dedent

import numpy as np
import pytest

from hyperattention_ref.backends import blocked_gradient, blocked_numpy, reference, tiles
from hyperattention_ref.backends.conformance import check_backend
from hyperattention_ref.backends.far_part import FarPart
from hyperattention_ref.paper import (
    algorithm_1_sort_lsh,
    algorithm_2_approx_d,
    algorithm_4_causal_approx_d,
    definition_1_sorted_lsh,
    lemma_2_sampled_product,
    row_sums,
)
from hyperattention_ref.plan import landmark_choice, merge, pages
from hyperattention_ref.plan.block_lists import BlockLists
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.landmarks import Landmarks
from hyperattention_ref.proofs_checks import Settings, counterexamples, run_checks, theorem_1
from hyperattention_ref.proofs_checks import definition_1 as definition_1_check
from hyperattention_ref.proofs_checks import landmarks as landmarks_check
from hyperattention_ref.proofs_checks import pages as pages_check
from hyperattention_ref.proofs_checks.verdict import HOLDS

PLACE = "the planted bug must be revised: its place in the source has changed"
SMALL = Settings(n=128, trials=5)
MASKED = Settings(n=128, trials=5, families=("planted_clusters",))
GAUSSIAN = Settings(n=128, trials=5, families=("gaussian",))
MORE = Settings(trials=20)


def plant(monkeypatch, owner, name, old, new):
    """Replace `old` by `new` in the source of `owner.name`, wherever the package holds that function."""
    original = getattr(owner, name)
    source = dedent(inspect.getsource(original))
    assert source.count(old) == 1, PLACE
    namespace = dict(vars(sys.modules[original.__module__]))
    exec(compile(source.replace(old, new), inspect.getsourcefile(original), "exec"), namespace)
    if inspect.isclass(owner):
        monkeypatch.setattr(owner, name, namespace[name])
        return
    for module in [m for key, m in sys.modules.items() if key.startswith("hyperattention_ref") and m is not None]:
        for attribute in [key for key, x in vars(module).items() if x is original]:
            monkeypatch.setattr(module, attribute, namespace[name])


def verdicts(check, settings):
    """The verdicts of a statement, by its name, or of a function that yields some."""
    return run_checks(settings, only=(check,)) if isinstance(check, str) else check(settings)


@cache
def unexpected_without_bug(check, settings):
    """Names of unexpected verdicts of the sound package."""
    return tuple(v.name for v in verdicts(check, settings) if not v.as_expected)


def three_bits(settings):
    """Definition 1 at r = 3 only."""
    return definition_1_check.check(settings, cases=[(3, np.pi / 8)])


def inequality_1(settings):
    """Theorem 1 on Gaussian inputs with 2048 samples."""
    (dense,) = settings.heads(("gaussian",))
    yield theorem_1.inequality(settings, dense, 2048, HOLDS)


PLANTED = {
    # bug: (owner, function, sound source, planted source, check, settings)
    "hash buckets in plain binary order": (
        definition_1_sorted_lsh,
        "gray_rank",
        "np.bitwise_xor.accumulate(bits.astype(np.int64), axis=-1)",
        "bits.astype(np.int64)",
        "definition_1",
        SMALL,
    ),
    "hash buckets by the inverse Gray table": (
        definition_1_sorted_lsh,
        "gray_rank",
        "return rank_bits @ powers",
        "return (p := bits.astype(np.int64) @ powers) ^ (p >> 1)",
        three_bits,
        MORE,
    ),
    "key blocks offset by one": (
        BlockMask,
        "from_orders",
        "np.minimum(np.arange(blocks + 1) * b, n_k)",
        "np.minimum(np.arange(blocks + 1) * b + (np.arange(blocks + 1) > 0), n_k)",
        "algorithm_1",
        SMALL,
    ),
    "blocks by input position instead of sorted position": (
        algorithm_1_sort_lsh,
        "sort_lsh_core",
        "BlockMask.from_orders(query_order, key_order, block_size)",
        "BlockMask.from_orders(np.argsort(query_order), np.argsort(key_order), block_size)",
        "algorithm_1",
        SMALL,
    ),
    "queries and keys hashed differently": (
        algorithm_1_sort_lsh,
        "sort_lsh_core",
        "backend.hash_codes(x, planes)) for x in (q, k)",
        "backend.hash_codes(x, p)) for x, p in ((q, planes), (k, planes[::-1]))",
        "algorithm_1",
        SMALL,
    ),
    "floor dropped": (
        algorithm_2_approx_d,
        "approx_d_core",
        "np.maximum(log_estimate, log_floor)",
        "log_estimate",
        counterexamples.cap_and_floor,
        SMALL,
    ),
    "cap dropped": (
        reference.Reference,
        "capped_sums",
        "np.minimum(drawn, log_caps[:, None])",
        "drawn",
        counterexamples.cap_and_floor,
        SMALL,
    ),
    "masked part H_i dropped": (
        algorithm_2_approx_d,
        "approx_d_core",
        "log_d = logaddexp(log_h, np.where",
        "log_d = logaddexp(-inf, np.where",
        "lemma_1_usable",
        MASKED,
    ),
    "weight n/m missing": (
        algorithm_2_approx_d,
        "approx_d_core",
        "math.log(n_k) - math.log(p.m) + log_capped",
        "log_capped",
        "lemma_1_usable",
        GAUSSIAN,
    ),
    "masked samples counted": (
        reference.Reference,
        "capped_sums",
        "~dense_mask(mask, len(q), len(k))[:, samples]",
        "np.ones((len(q), len(samples)), dtype=bool)",
        "lemma_1_usable",
        MASKED,
    ),
    "tau the smallest row sum": (
        algorithm_2_approx_d,
        "approx_d_core",
        ".max(initial=-inf)",
        ".min(initial=inf)",
        "lemma_1_tau",
        GAUSSIAN,
    ),
    "floor without kappa": (
        algorithm_2_approx_d,
        "approx_d_core",
        "log_floor = log_tau - math.log(p.kappa)",
        "log_floor = log_tau",
        "lemma_1_tau",
        GAUSSIAN,
    ),
    "row rescaling not undone": (
        algorithm_2_approx_d,
        "approx_d_core",
        "log_d=log_d + sums.log_pilot",
        "log_d=log_d",
        "row_rescaling",
        SMALL,
    ),
    "rows of A capped instead of rows of E A": (
        row_sums.RowSums,
        "capped",
        "log_caps + self.log_pilot",
        "log_caps",
        "row_rescaling",
        SMALL,
    ),
    "V-norm weights missing": (
        lemma_2_sampled_product,
        "row_norm_sample_core",
        "total / (np.sqrt(m) * norms[indices])",
        "np.full(m, 1 / np.sqrt(m))",
        "lemma_2_expectation",
        GAUSSIAN,
    ),
    "rows drawn by norm, not squared norm": (
        lemma_2_sampled_product,
        "row_norm_sample_core",
        "p = (norms / total) ** 2",
        "p = norms / norms.sum()",
        "lemma_2_expectation",
        GAUSSIAN,
    ),
    "one of the two weights of S^T S missing": (
        lemma_2_sampled_product,
        "sampled_product",
        "x[:, sample.indices] * sample.weights",
        "x[:, sample.indices]",
        "lemma_2_expectation",
        GAUSSIAN,
    ),
    "Algorithm 3 without D": (
        lemma_2_sampled_product,
        "sampled_attention",
        "log_sums = lse - log_d",
        "log_sums = lse",
        inequality_1,
        SMALL,
    ),
    "causal diagonal excluded": (
        reference.Reference,
        "exact_attention",
        "np.tri(len(q1), len(k1), dtype=bool)",
        "np.tri(len(q1), len(k1), k=-1, dtype=bool)",
        "algorithm_4",
        GAUSSIAN,
    ),
    "causal diagonal shifted into the future": (
        reference.Reference,
        "exact_attention",
        "np.tri(len(q1), len(k1), dtype=bool)",
        "np.tri(len(q1), len(k1), k=1, dtype=bool)",
        "algorithm_4",
        GAUSSIAN,
    ),
    "a zero-padded key counted in every causal row": (
        algorithm_4_causal_approx_d,
        "causal_approx_d_core",
        "for a, split, c in rectangles:",
        "log_d = np.logaddexp(log_d, 0.0)\n    for a, split, c in rectangles:",
        "algorithm_4",
        GAUSSIAN,
    ),
    "leaf lost where a rectangle is added": (
        algorithm_4_causal_approx_d,
        "causal_approx_d_core",
        "np.logaddexp(log_d[split:c], part.log_d)",
        "part.log_d",
        "algorithm_4",
        GAUSSIAN,
    ),
    "causal product sees the future": (
        row_sums,
        "draws_met",
        'np.searchsorted(drawn[order], starts, side="right")',
        "np.full(starts.size, drawn.size)",
        "algorithm_4",
        GAUSSIAN,
    ),
    "merge not normalised": (
        merge,
        "merge_attention",
        "weight_2[..., None] * out_2) / total[..., None]",
        "weight_2[..., None] * out_2)",
        "merge_monoid",
        SMALL,
    ),
    "merge that forgets the smaller log-sum-exp": (
        merge,
        "merge_attention",
        "lse = top + np.log(total)",
        "lse = top + 0 * total",
        "merge_monoid",
        SMALL,
    ),
    "merge without the maximum": (
        merge,
        "merge_attention",
        "np.where(np.isneginf(top), 0, top)",
        "np.zeros_like(top)",
        "merge_monoid",
        SMALL,
    ),
    "correlations of landmarks squared": (
        Landmarks,
        "geometry",
        "np.exp(-squares / 2)",
        "np.exp(-squares)",
        landmarks_check.check,
        GAUSSIAN,
    ),
    "weights of landmarks without the half": (
        Landmarks,
        "geometry",
        "np.sum(y**2, axis=1) / 2",
        "np.sum(y**2, axis=1)",
        landmarks_check.check,
        GAUSSIAN,
    ),
    "pilots not moved by their key": (
        Landmarks,
        "geometry",
        "self.mean + y @ self.factor.T",
        "self.mean + 0 * y @ self.factor.T",
        landmarks_check.check,
        GAUSSIAN,
    ),
    "landmarks chosen by keys that are not centred": (
        landmark_choice,
        "choose_landmarks",
        "y = scale * (k - k.mean(axis=0)) @ factor",
        "y = scale * k @ factor",
        landmarks_check.check,
        GAUSSIAN,
    ),
    "far sums of landmarks without their mix": (
        FarPart,
        "combination",
        "weights @ self.mix",
        "weights",
        landmarks_check.check,
        GAUSSIAN,
    ),
    "the least wanted pages picked": (
        pages,
        "pick_level",
        "np.argsort(-score",
        "np.argsort(score",
        pages_check.check,
        GAUSSIAN,
    ),
    "scores of pages not counted": (
        pages.Paging,
        "n_logits",
        " + self.n_scores(top)",
        "",
        pages_check.check,
        GAUSSIAN,
    ),
    "views of lists with the first page only": (
        BlockLists,
        "views",
        "[lengths > t] + t",
        "[lengths > t]",
        pages_check.check,
        GAUSSIAN,
    ),
}

SOFTMAX, BLOCKED = blocked_numpy.RunningSoftmax, blocked_numpy.BlockedNumpy
ARITHMETIC = {
    # bug: (owner, function, sound source, planted source, operation)
    "running sums not rescaled": (SOFTMAX, "fold", "* decay[:, None]", "", "planned_attention"),
    "running total not rescaled": (
        SOFTMAX,
        "fold",
        "self.total[rows] * decay",
        "self.total[rows]",
        "planned_attention",
    ),
    "log-weights dropped": (tiles.Tiles, "of", "if log_weights is not None", "if False", "planned_attention"),
    "excluded pairs kept": (tiles.Tiles, "of", "if excluded is not None", "if False", "planned_attention"),
    "causal diagonal excluded": (
        tiles,
        "after",
        "keys > rows[:, None]",
        "keys >= rows[:, None]",
        "exact_attention",
    ),
    "causal tile cut one key early": (
        tiles,
        "exact_pieces",
        "keys[: rows[-1] + 1]",
        "keys[: rows[-1]]",
        "exact_attention",
    ),
    "exact keys forgotten": (
        tiles,
        "rectangle_pieces",
        "yield all_queries, rectangle.exact_keys, None, listed",
        "",
        "planned_attention",
    ),
    "earlier views not excluded": (
        tiles,
        "blocks_of_views",
        "query_blocks[:u], key_blocks[:u]",
        "query_blocks[: -len(rectangle.views)], key_blocks[: -len(rectangle.views)]",
        "planned_attention",
    ),
    "own block counted again": (
        tiles,
        "rectangle_pieces",
        "in_one_block(*rectangle.block_numbers(exact_keys=True))",
        "None",
        "planned_attention",
    ),
    "capped draws counted per tile only": (
        BLOCKED,
        "capped_sums",
        "n_capped[rows] +=",
        "n_capped[rows] =",
        "capped_sums",
    ),
    "a draw at its cap counted as capped": (BLOCKED, "capped_sums", "logits > caps", "logits >= caps", "capped_sums"),
    "caps not applied": (BLOCKED, "capped_sums", "np.minimum(logits, caps, out=logits)", "logits", "capped_sums"),
    "what is left of the mask not summed again": (
        blocked_numpy,
        "_log_sums",
        "np.flatnonzero(total < ",
        "np.flatnonzero(0 * total < -",
        "attention_sums",
    ),
    "gradient without delta": (blocked_gradient, "_add_part", "ds -= delta[rows, None]", "pass", "attention_gradient"),
    "gradient without the scale": (
        blocked_gradient,
        "head_gradient",
        "dk *= dk.dtype.type(scale)",
        "pass",
        "attention_gradient",
    ),
    "gradients of repeated draws overwritten": (
        blocked_gradient,
        "_add_part",
        "np.add.at(dk, keys, ds.T @ tiles.q[rows])",
        "dk[keys] += ds.T @ tiles.q[rows]",
        "attention_gradient",
    ),
    "gradient by the log-sum-exp of a part": (
        blocked_gradient,
        "_add_part",
        "lse[rows, None]",
        "np.where(np.isinf(logits).all(axis=1), 0, np.logaddexp.reduce(logits, axis=1))[:, None].astype(v.dtype)",
        "attention_gradient",
    ),
    "gradient of excluded pairs": (
        tiles.Tiles,
        "of",
        "if excluded is not None",
        "if False",
        "attention_gradient",
    ),
    "gradient without the last block": (
        tiles,
        "blocks_of_views",
        "range(view.n_blocks)",
        "range(max(1, view.n_blocks - 1))",
        "attention_gradient",
    ),
    "gradient of causal leaves at the corner": (
        blocked_gradient,
        "head_gradient",
        "add(slice(a, c), slice(a, c)",
        "add(slice(a, c), slice(0, c - a)",
        "attention_gradient",
    ),
    "merge without the maximum": (
        merge,
        "merge_attention",
        "np.where(np.isneginf(top), 0, top)",
        "np.zeros_like(top)",
        "planned_attention",
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught_by_a_check(bug, monkeypatch):
    owner, name, old, new, check, settings = PLANTED[bug]
    assert unexpected_without_bug(check, settings) == ()
    plant(monkeypatch, owner, name, old, new)
    with np.errstate(all="ignore"):
        assert any(not verdict.as_expected for verdict in verdicts(check, settings))


@pytest.mark.parametrize("bug", ARITHMETIC)
def test_planted_bug_in_the_arithmetic_is_caught_by_the_conformance_suite(bug, monkeypatch):
    *change, operation = ARITHMETIC[bug]
    plant(monkeypatch, *change)
    with pytest.raises((AssertionError, RuntimeWarning)):  # a bug in merge_attention makes the reference warn, too
        check_backend("numpy", max_examples=150, operations=[operation])
