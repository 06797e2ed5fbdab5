"""The conformance suite passes honest backends and catches planted bugs."""

import dataclasses
import json
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref import backends
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.conformance import check_backend, suite
from hyperattention_ref.backends.reference import Reference
from hyperattention_ref.foundation import registry
from hyperattention_ref.foundation.backend import LANDMARKS
from hyperattention_ref.plan.merge import merge_attention

OPERATIONS = {
    "hash_codes",
    "exact_attention",
    "planned_attention",
    "attention_gradient",
    "attention_sums",
    "transposed_attention",
    "capped_sums",
}


class Naive(Reference):
    """A third-party backend: dense, in the working type, with base-2 exponentials. Each step is a method to break."""

    name = "naive"
    lacks = frozenset({LANDMARKS})

    def hash_codes(self, x, planes):
        return self.rank(x.astype(np.float64) @ planes.T > 0)

    def exact_attention(self, q, k, v, *, scale, is_causal):
        def one_head(q, k, v):
            exists = self.causal(len(q)) if is_causal else True
            return self.softmax(np.where(exists, self.logits(q, k, scale), -np.inf), v)

        return self.over_heads(one_head, q, k, v)

    def planned_attention(self, q, k, v, plan, *, scale):
        heads = iter(self.heads(plan))
        return self.over_heads(lambda q, k, v: self.planned_head(q, k, v, next(heads), scale), q, k, v)

    def planned_head(self, q, k, v, head, scale):
        out, lse = np.zeros((len(q), v.shape[1]), q.dtype), np.full(len(q), -np.inf, q.dtype)
        if head.lists is not None:
            out, lse = self.softmax(np.where(self.listed(head.lists), self.logits(q, k, scale), -np.inf), v)
        for a, c in head.leaves:
            logits = np.where(self.causal(c - a), self.logits(q[a:c], k[a:c], scale), -np.inf)
            out[a:c], lse[a:c] = self.softmax(logits, v[a:c])
        for r in head.rectangles:
            rows = slice(r.query_start, r.query_start + r.n_q)
            keys = slice(r.key_start, r.key_start + r.n_k)
            logits = self.logits(q[rows], k[keys], scale)
            columns = np.hstack([self.exact(r, logits), self.sampled(r, logits)])
            columns[self.of_other_parts(r, head.lists)] = -np.inf
            part = self.softmax(columns, np.vstack([v[keys], v[keys][r.sampled_keys]]))
            out[rows], lse[rows] = self.merge((out[rows], lse[rows]), part)
        return out, lse

    def rank(self, bits):
        pattern = bits @ (1 << np.arange(bits.shape[-1])[::-1])
        rank = pattern.copy()
        while pattern.any():
            pattern = pattern >> 1
            rank ^= pattern
        return rank

    def heads(self, plan):
        return plan.heads

    def logits(self, q, k, scale):
        return q.dtype.type(scale) * (q @ k.T)

    def causal(self, n):
        return np.tri(n, dtype=bool)

    def listed(self, lists):
        return lists.toarray()

    def of_other_parts(self, r, lists):
        keys = np.concatenate([np.arange(r.n_k), r.sampled_keys]) + r.key_start
        if lists is None:
            return np.zeros((r.n_q, keys.size), dtype=bool)
        return lists.pairs(np.arange(r.n_q) + r.query_start, keys)

    def exact(self, r, logits):
        return np.where(r.toarray(), logits, -np.inf)

    def sampled(self, r, logits):
        drawn = logits[:, r.sampled_keys] + r.log_weights.astype(logits.dtype)
        return np.where(r.toarray()[:, r.sampled_keys], -np.inf, drawn)

    def softmax(self, logits, v):
        top = np.max(logits, axis=1, keepdims=True)
        base = np.where(np.isneginf(top), 0, top).astype(v.dtype)
        weights = np.exp2((logits - base) * v.dtype.type(np.log2(np.e)))
        total = weights.sum(axis=1, keepdims=True)
        met = total > 0
        lse = np.where(met, base + np.log(np.where(met, total, 1)), -np.inf)
        return weights @ v / np.where(met, total, 1).astype(v.dtype), lse[:, 0]

    def merge(self, first, second):
        return merge_attention(first, second)

    def over_heads(self, one_head, q, k, v):
        work = np.promote_types(q.dtype, np.float32)
        out, lse = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype), np.empty(q.shape[:-1], work)
        for index in np.ndindex(q.shape[:-2]):
            out[index], lse[index] = one_head(*(x[index].astype(work) for x in (q, k, v)))
        return out, lse


@pytest.mark.parametrize(("name", "examples"), [("reference", 20), ("numpy", 100), ("numba", 100)])
def test_built_in_backends_conform(name, examples):
    result = check_backend(name, max_examples=examples)
    assert result.backend == name
    assert set(result.operations) == OPERATIONS
    assert result.examples >= 7 * examples
    assert 0 <= result.worst_ratio <= 1
    assert result.worst_ratio > 0 or name == "reference"  # only the reference is exact against itself
    assert json.loads(json.dumps(result.to_dict()))["backend"] == name


def test_third_party_backend_conforms_by_its_entry_point(monkeypatch):
    assert sys.modules[__name__].Naive is Naive
    point = EntryPoint("naive", f"{__name__}:Naive", backends.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point] if group == point.group else [])
    assert hr.available_backends()[-1] == "naive"
    assert check_backend("naive", max_examples=40).backend == "naive"
    q, k, v = np.random.default_rng(0).standard_normal((3, 20, 4))
    named = hr.hyper_attention(q, k, v, block_size=4, sample_size=4, rng=0, backend="naive")
    np.testing.assert_array_equal(
        named, hr.hyper_attention(q, k, v, block_size=4, sample_size=4, rng=0, backend=Naive())
    )


def test_examples_are_the_same_for_the_same_seed():
    first, again, other = (check_backend(Naive(), max_examples=15, seed=seed) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert first.worst_ratio != other.worst_ratio


class NoMaximumSubtracted(Naive):
    def softmax(self, logits, v):
        weights = np.exp(logits)
        total = weights.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            return weights @ v / np.where(total > 0, total, 1), np.log(total)[:, 0]


class SampledNotExcluded(Naive):
    def sampled(self, r, logits):
        return logits[:, r.sampled_keys] + r.log_weights.astype(logits.dtype)


class RepeatedDrawsCountedOnce(Naive):
    def sampled(self, r, logits):
        columns = super().sampled(r, logits)
        first = np.unique(r.sampled_keys, return_index=True)[1]
        return np.where(np.isin(np.arange(r.sampled_keys.size), first), columns, -np.inf)


class PairsOfTwoViewsCountedTwice(Naive):
    def exact(self, r, logits):
        count = sum((view.toarray().astype(logits.dtype) for view in r.views), np.zeros_like(logits))
        count[:, r.exact_keys] = 1
        with np.errstate(divide="ignore"):
            return logits + np.log(count)


class ExactKeysForgotten(Naive):
    def exact(self, r, logits):
        return super().exact(dataclasses.replace(r, exact_keys=()), logits)


class OnlyTheLastKeysOfALargeBlock(Naive):
    """The keys of one block are gathered in portions, and only the last portion is kept."""

    def exact(self, r, logits):
        columns = super().exact(r, logits)
        if len(r.views) == 1:
            columns[:, : max(0, r.n_k - 512)] = -np.inf
        return columns


class ListedKeysOfTheFuture(Naive):
    def listed(self, lists):
        return super().listed(dataclasses.replace(lists, is_causal=False))


class FirstPageOfEachListOnly(Naive):
    def listed(self, lists):
        first = np.zeros((lists.n_blocks, lists.n_pages), dtype=bool)
        for u in range(lists.n_blocks):
            first[u, lists.pages_of(u)[:1]] = True
        sizes = {"block_size": lists.block_size, "page_size": lists.page_size}
        return super().listed(hr.BlockLists.from_mask(first, *lists.shape, **sizes, is_causal=lists.is_causal))


class ListedPairsSampledToo(Naive):
    def of_other_parts(self, r, lists):
        marked = super().of_other_parts(r, lists)
        marked[:, r.n_k :] = False
        return marked


class ListedPairsOfBlocksTwice(Naive):
    def of_other_parts(self, r, lists):
        marked = super().of_other_parts(r, lists)
        marked[:, : r.n_k] = False
        return marked


class MergeWithEqualWeights(Naive):
    def merge(self, first, second):
        met_1, met_2 = (np.isfinite(part[1]) for part in (first, second))
        weight = np.where(met_1 & met_2, 0.5, np.where(met_1, 1, 0))[:, None].astype(first[0].dtype)
        return weight * first[0] + (1 - weight) * second[0], np.logaddexp(first[1], second[1])


class MergeThatForgetsTheLse(Naive):
    def merge(self, first, second):
        return merge_attention(first, second)[0], np.maximum(first[1], second[1])


class LseInBaseTwo(Naive):
    def softmax(self, logits, v):
        out, lse = super().softmax(logits, v)
        return out, lse / lse.dtype.type(np.log(2))


class LogWeightSubtracted(Naive):
    def sampled(self, r, logits):
        return super().sampled(dataclasses.replace(r, log_weights=-r.log_weights), logits)


class LogWeightIgnored(Naive):
    def sampled(self, r, logits):
        return super().sampled(dataclasses.replace(r, log_weights=0 * r.log_weights), logits)


class DiagonalExcluded(Naive):
    def causal(self, n):
        return np.tri(n, k=-1, dtype=bool)


class OneKeyOfTheFuture(Naive):
    def causal(self, n):
        return np.tri(n, k=1, dtype=bool)


class PlainBinaryOrder(Naive):
    def rank(self, bits):
        return bits @ (1 << np.arange(bits.shape[-1])[::-1])


class InverseGrayTable(Naive):
    def rank(self, bits):
        pattern = super().rank(bits) * 0 + bits @ (1 << np.arange(bits.shape[-1])[::-1])
        return pattern ^ (pattern >> 1)


class ZeroVectorInTheTopBucket(Naive):
    def hash_codes(self, x, planes):
        return self.rank(x.astype(np.float64) @ planes.T >= 0)


class HeadsInColumnMajorOrder(Naive):
    def heads(self, plan):
        order = np.arange(len(plan.heads)).reshape(plan.shape).ravel(order="F")
        return [plan.heads[h] for h in order]


class PaddingKeyCounted(Naive):
    def softmax(self, logits, v):
        return super().softmax(np.pad(logits, ((0, 0), (0, 1))), np.pad(v, ((0, 1), (0, 0))))


class EmptyQueriesAreNaN(Naive):
    def softmax(self, logits, v):
        out, lse = super().softmax(logits, v)
        return np.where(np.isneginf(lse)[:, None], np.nan, out), lse


class EmptyQueriesHaveFiniteLse(Naive):
    def softmax(self, logits, v):
        out, lse = super().softmax(logits, v)
        return out, np.maximum(lse, lse.dtype.type(-1e30))


class HalfPrecisionLogits(Naive):
    def logits(self, q, k, scale):
        return super().logits(q, k, scale).astype(np.float16).astype(q.dtype)


class SinglePrecisionThroughout(Naive):
    def over_heads(self, one_head, q, k, v):
        out, lse = super().over_heads(one_head, *(x.astype(np.float32) for x in (q, k, v)))
        return out.astype(q.dtype), lse.astype(np.promote_types(q.dtype, np.float32))


class WritesIntoItsInput(Naive):
    def exact_attention(self, q, k, v, *, scale, is_causal):
        if q.flags.writeable:
            q *= 1 + 2 * np.finfo(q.dtype).eps
        return super().exact_attention(q, k, v, scale=scale, is_causal=is_causal)


class DifferentOnEveryCall(Naive):
    calls = 0

    def over_heads(self, one_head, q, k, v):
        self.calls += 1
        out, lse = super().over_heads(one_head, q, k, v)
        return (out if self.calls % 2 else np.nextafter(out, out.dtype.type(9))), lse


class NoisyWithinTheDerivedBound(Naive):
    """An error of 1024 units where at least 100 keys are met: the rounding analysis grants 1600, gate B does not."""

    def softmax(self, logits, v):
        out, lse = super().softmax(logits, v)
        many = np.isfinite(logits).sum(axis=1, keepdims=True) >= 100
        return out * (1 + 512 * np.finfo(v.dtype).eps * many).astype(v.dtype), lse


class OutputInDoublePrecisionOnly(Naive):
    def exact_attention(self, q, k, v, *, scale, is_causal):
        out, lse = super().exact_attention(q, k, v, scale=scale, is_causal=is_causal)
        return out.astype(np.float64), lse


class LseOfTheWrongShape(Naive):
    def exact_attention(self, q, k, v, *, scale, is_causal):
        out, lse = super().exact_attention(q, k, v, scale=scale, is_causal=is_causal)
        return out, lse[..., None]


class SumsOfAllKeys(Naive):
    def attention_sums(self, q, k, mask, *, scale, is_causal):
        return super().attention_sums(q, k, mask, scale=scale, is_causal=False)


class MaskTurnedRound(Naive):
    def attention_sums(self, q, k, mask, *, scale, is_causal):
        mask = ~np.asarray(mask) if isinstance(mask, np.ndarray) else mask
        return super().attention_sums(q, k, mask, scale=scale, is_causal=is_causal)


class UnmaskedSumsFarBelowTheMaskLost(Naive):
    """What is left of the mask is summed relative to the largest logit of the row, where it underflows."""

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        sums = super().attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
        smallest = np.log(np.finfo(np.promote_types(q.dtype, np.float32)).tiny)
        lost = sums.log_unmasked - sums.log_total < smallest
        return dataclasses.replace(sums, log_unmasked=np.where(lost, -np.inf, sums.log_unmasked))


class UnmaskedSumsByDifference(Naive):
    """The total less the masked part, in float64."""

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        sums = super().attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
        masked = 1 - np.exp(sums.log_unmasked - sums.log_total)
        with np.errstate(divide="ignore"):
            return dataclasses.replace(sums, log_unmasked=sums.log_total + np.log(1 - masked))


class EntropyInBits(Naive):
    def attention_sums(self, q, k, mask, *, scale, is_causal):
        sums = super().attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
        return dataclasses.replace(sums, entropy=sums.entropy / np.log(2))


class ColumnSumsInHalfPrecision(Naive):
    def attention_sums(self, q, k, mask, *, scale, is_causal):
        sums = super().attention_sums(q, k, mask, scale=scale, is_causal=is_causal)
        return dataclasses.replace(sums, column_squares=sums.column_squares.astype(np.float16))


class TransposedWithoutTheLse(Naive):
    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        return super().transposed_attention(q, k, y, 0 * lse, scale=scale / 100, is_causal=is_causal)


class TransposedAddsInHalfPrecision(Naive):
    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        product = super().transposed_attention(q, k, y, lse, scale=scale, is_causal=is_causal)
        return product.astype(np.float16).astype(np.float64)


class CapIgnored(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, _ = super().capped_sums(q, k, mask, samples, np.inf * np.ones_like(log_caps), scale=scale)
        return log_sums, super().capped_sums(q, k, mask, samples, log_caps, scale=scale)[1]


class CapAppliedAfterTheSum(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, _ = super().capped_sums(q, k, mask, samples, np.inf * np.ones_like(log_caps), scale=scale)
        _, n_capped = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        return np.minimum(log_sums, log_caps), n_capped


class CapOfTheFirstQuery(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        return super().capped_sums(q, k, mask, samples, np.full_like(log_caps, log_caps[0]), scale=scale)


class MaskOfTheDrawsIgnored(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        return super().capped_sums(q, k, None, samples, log_caps, scale=scale)


class DrawsOfTheRectangleExcluded(Naive):
    """The sampled keys of the Rectangle, which have no part in this operation, are taken for marked ones."""

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        if isinstance(mask, hr.Rectangle):
            mask = mask.toarray() | np.isin(np.arange(mask.n_k), mask.sampled_keys)
        return super().capped_sums(q, k, mask, samples, log_caps, scale=scale)


class EveryDrawSummedOnce(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        return super().capped_sums(q, k, mask, np.unique(samples), log_caps, scale=scale)


class MaskedDrawsCountedAsCapped(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, _ = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        return log_sums, super().capped_sums(q, k, None, samples, log_caps, scale=scale)[1]


class DrawsBelowTheirCapCounted(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, n_capped = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        _, n_unmasked = super().capped_sums(q, k, mask, samples, np.full_like(log_caps, -1e9), scale=scale)
        return log_sums, n_unmasked - n_capped


class TiesCountedAsCapped(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, _ = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        just_below = np.nextafter(log_caps, -np.inf)
        return log_sums, super().capped_sums(q, k, mask, samples, just_below, scale=scale)[1]


class CountsInFloatingPoint(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, n_capped = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        return log_sums, n_capped.astype(np.float64)


class CappedSumsInHalfPrecision(Naive):
    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, n_capped = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        return log_sums.astype(np.float16).astype(np.float64), n_capped


class CappedSumsNoisyWithinTheDerivedBound(Naive):
    """An error of 1024 units where there are 1025 draws: the rounding analysis grants 8000, gate B does not."""

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        log_sums, n_capped = super().capped_sums(q, k, mask, samples, log_caps, scale=scale)
        work = np.promote_types(q.dtype, np.float32)
        return log_sums + 512 * np.finfo(work).eps * (samples.size == 1025), n_capped


class Raises(Naive):
    def planned_attention(self, q, k, v, plan, *, scale):
        raise ZeroDivisionError("planted")


PLANTED = {
    NoMaximumSubtracted: "exact_attention",
    SampledNotExcluded: "planned_attention",
    RepeatedDrawsCountedOnce: "planned_attention",
    PairsOfTwoViewsCountedTwice: "planned_attention",
    ExactKeysForgotten: "planned_attention",
    OnlyTheLastKeysOfALargeBlock: "planned_attention",
    ListedKeysOfTheFuture: "planned_attention",
    FirstPageOfEachListOnly: "planned_attention",
    ListedPairsSampledToo: "planned_attention",
    ListedPairsOfBlocksTwice: "planned_attention",
    MergeWithEqualWeights: "planned_attention",
    MergeThatForgetsTheLse: "planned_attention",
    LseInBaseTwo: "exact_attention: lse",
    LogWeightSubtracted: "planned_attention",
    LogWeightIgnored: "planned_attention",
    DiagonalExcluded: "exact_attention",
    OneKeyOfTheFuture: "exact_attention",
    PlainBinaryOrder: "hash_codes",
    InverseGrayTable: "hash_codes",
    ZeroVectorInTheTopBucket: "hash_codes",
    HeadsInColumnMajorOrder: "planned_attention",
    PaddingKeyCounted: "exact_attention",
    EmptyQueriesAreNaN: r"planned_attention: out\[.*\] is nan, the reference has 0",
    EmptyQueriesHaveFiniteLse: r"planned_attention: lse\[.*\] is -1.*, the reference has -inf",
    HalfPrecisionLogits: "exact_attention",
    SinglePrecisionThroughout: "exact_attention",
    WritesIntoItsInput: "exact_attention: query was modified",
    DifferentOnEveryCall: "exact_attention: a second call gave other bits",
    NoisyWithinTheDerivedBound: "exact_attention.*gate B",
    OutputInDoublePrecisionOnly: "exact_attention: dtypes are",
    LseOfTheWrongShape: "exact_attention: lse has shape",
    SumsOfAllKeys: "attention_sums: log_total",
    MaskTurnedRound: "attention_sums: log_unmasked",
    UnmaskedSumsFarBelowTheMaskLost: r"attention_sums: log_unmasked\[.*\] is -inf",
    UnmaskedSumsByDifference: "attention_sums: log_unmasked",
    EntropyInBits: "attention_sums: entropy",
    ColumnSumsInHalfPrecision: "attention_sums: column_squares",
    TransposedWithoutTheLse: "transposed_attention: product",
    TransposedAddsInHalfPrecision: "transposed_attention: product",
    CapIgnored: "capped_sums: log_sums",
    CapAppliedAfterTheSum: "capped_sums: log_sums",
    CapOfTheFirstQuery: "capped_sums: ",
    MaskOfTheDrawsIgnored: "capped_sums: log_sums",
    DrawsOfTheRectangleExcluded: "capped_sums: log_sums",
    EveryDrawSummedOnce: "capped_sums: log_sums",
    MaskedDrawsCountedAsCapped: "capped_sums: n_capped",
    DrawsBelowTheirCapCounted: "capped_sums: n_capped",
    TiesCountedAsCapped: "capped_sums: n_capped",
    CountsInFloatingPoint: "capped_sums: dtypes are",
    CappedSumsInHalfPrecision: "capped_sums: log_sums",
    CappedSumsNoisyWithinTheDerivedBound: r"capped_sums: log_sums.*gate B",
    Raises: r"raised ZeroDivisionError\('planted'\) in planned_attention",
}


NEED_MORE_EXAMPLES = {
    RepeatedDrawsCountedOnce,
    OnlyTheLastKeysOfALargeBlock,
    ListedPairsSampledToo,
    UnmaskedSumsFarBelowTheMaskLost,
    TiesCountedAsCapped,
    PairsOfTwoViewsCountedTwice,
    HeadsInColumnMajorOrder,
    NoisyWithinTheDerivedBound,
    DrawsOfTheRectangleExcluded,
    MaskedDrawsCountedAsCapped,
    CappedSumsNoisyWithinTheDerivedBound,
}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__)
def test_planted_bug_is_caught(planted, monkeypatch):
    monkeypatch.setattr(suite, "PHASES", ("generate",))  # the first example that fails is enough
    operations = [name for name in OPERATIONS if name in PLANTED[planted]]
    with pytest.raises(AssertionError, match=PLANTED[planted]):
        check_backend(planted(), max_examples=400 if planted in NEED_MORE_EXAMPLES else 30, operations=operations)


def test_violation_names_backend_arrays_plan_place_and_error():
    with pytest.raises(AssertionError) as caught:
        check_backend(LogWeightIgnored(), max_examples=30)
    message = str(caught.value)
    for part in ("'naive'", "query=float", "strides", "scale=", "plan=Plan(", " sampled_keys", "exceeds", "gate A"):
        assert part in message


def test_backend_that_cannot_run_is_refused():
    class Absent(Naive):
        def unavailable(self):
            return "no such device"

    with pytest.raises(ValueError, match="no such device"):
        check_backend(Absent())
    with pytest.raises(ValueError, match="unknown"):
        check_backend("nobody")


def test_one_operation_can_be_checked_alone():
    assert check_backend("numpy", max_examples=5, operations=["hash_codes"]).operations == ("hash_codes",)
    with pytest.raises(ValueError, match=r"operations has \['sorting'\]; known: hash_codes, capped_sums"):
        check_backend("numpy", operations=["sorting"])


def test_missing_hypothesis_is_one_clear_error(run_python):
    code = "import sys; sys.modules['hypothesis'] = None; from hyperattention_ref.backends import conformance as c; "
    code += "c.check_backend"
    done = run_python(code, check=False)
    message = "the conformance suite needs Hypothesis; install it with: pip install hypothesis"
    assert done.stderr.splitlines()[-1] == f"ImportError: {message}"


def test_blocked_numpy_under_another_name_passes_gate_b():
    other = type("Other", (BlockedNumpy,), {"name": "other"})()
    assert check_backend(other, max_examples=40).worst_ratio <= 1
