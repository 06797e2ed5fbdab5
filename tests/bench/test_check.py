"""Drawn rows are those of the reference, small mistakes are seen, and the rule for bfloat16."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance.examples import AttentionInputs
from hyperattention_ref.bench.cases import Heads, contestants, make_heads, planned, prepare
from hyperattention_ref.bench.check import bfloat, mean_of_values, true_rows
from hyperattention_ref.bench.device import Device
from tests.backends.cuda_cpp.emulation.battery import from_bfloat, on_storage, to_bfloat
from tests.backends.cuda_cpp.emulation.device import EmulatedBackend, missing_compiler
from tests.bench.gpu.stand_in import OnCpu
from tests.bench.planted import SMALL, check


def some_settings(draw):
    dim, value_dim = draw(st.integers(1, 9)), draw(st.none() | st.integers(1, 9))
    sizes = {name: draw(st.integers(1, 40)) for name in ("block_size", "sample_size", "min_seq_len")}
    return replace(
        SMALL,
        n=(draw(st.integers(2, 70)),),
        heads=draw(st.integers(1, 3)),
        dim=dim,
        value_dim=value_dim,
        is_causal=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        seed=draw(st.integers(0, 99)),
        **sizes,
    )


@settings_of_hypothesis(max_examples=25)
@given(st.data())
def test_drawn_rows_are_the_rows_of_the_reference(data):
    settings = some_settings(data.draw)
    heads = make_heads(settings, "gaussian", *settings.n)
    plan = planned(settings, heads, "numpy")
    options = {"scale": heads.scale, "is_causal": settings.is_causal, "backend": "reference"}
    whole = {
        "exact": hr.exact_attention(*heads.arrays, **options),
        "planned": hr.hyper_attention(*heads.arrays, plan=plan, **options),
    }
    rows = {
        "exact": true_rows(heads, seed=1),
        "planned": true_rows(heads, plan, seed=1),
    }
    for name, truth in rows.items():
        assert (
            np.abs(Device(SMALL).rows(whole[name], truth.rows) - truth.out).max() <= 1e-12 * np.abs(heads.value).max()
        )
        assert check(whole[name], truth).is_right
        assert truth.relative_error(Device(SMALL).rows(whole[name], truth.rows)) <= 1e-12
        assert [len(set(x)) for x in truth.rows] == [min(64, heads.n)] * settings.heads
    for contestant in contestants(settings):
        truth = rows["planned" if contestant.is_planned else "exact"]
        assert check(prepare(contestant, settings, heads)(), truth).is_right


@pytest.mark.parametrize("is_causal", [False, True])
def test_small_mistakes_are_seen(is_causal):
    settings = replace(SMALL, is_causal=is_causal)
    heads = make_heads(settings, "gaussian", 128)
    plan = planned(settings, heads, "numpy")
    truth = true_rows(heads, plan, seed=1)
    right = hr.hyper_attention(*heads.arrays, plan=plan, scale=heads.scale, is_causal=is_causal, backend="numpy")
    assert check(right, truth).is_right
    assert not check(right * np.float32(1 + 2e-4), truth).is_right
    assert not check(np.where(np.arange(128)[:, None] == truth.rows[0][-1], np.nan, right), truth).is_right
    rectangle = plan.heads[0].rectangles[0]
    lacking = replace(rectangle, sampled_keys=rectangle.sampled_keys[1:], log_weights=rectangle.log_weights[1:])
    other = replace(plan, heads=(replace(plan.heads[0], rectangles=(lacking, *plan.heads[0].rectangles[1:])),))
    wrong = hr.hyper_attention(*heads.arrays, plan=other, scale=heads.scale, is_causal=is_causal, backend="reference")
    assert not check(wrong, truth).is_right


def test_the_mean_of_values_is_flat_attention():
    heads = make_heads(replace(SMALL, heads=2), "flat", 40)
    for is_causal in (False, True):
        exact = hr.exact_attention(*heads.arrays, is_causal=is_causal, backend="reference")
        assert mean_of_values(heads._replace(is_causal=is_causal)) == pytest.approx(exact, abs=1e-12)


def bfloat_heads(n, d=16, n_heads=2, *, is_causal):
    arrays = np.random.default_rng(n).standard_normal((3, n_heads, n, d))
    return Heads(*(bfloat(x) for x in arrays), d**-0.5, is_causal)


def test_bfloat_rounds_to_the_nearest_number_ties_to_even():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(bfloat(x), from_bfloat(to_bfloat(x)))
    assert bfloat(np.array([1 + 2**-8, 1 + 3 * 2**-8])).tolist() == [1, 1 + 2**-6]


@pytest.mark.parametrize("is_causal", [False, True])
def test_float32_passes_and_a_forgotten_tile_does_not(is_causal):
    heads = bfloat_heads(500, is_causal=is_causal)
    options = {"seed": 1, "is_bfloat": True}
    truth = true_rows(heads, **options)
    np.testing.assert_array_equal(truth.allowed, true_rows(heads, workers=3, **options).allowed)
    right = hr.exact_attention(*heads.arrays, is_causal=is_causal, backend="numpy")
    assert check(right, truth).worst < 0.01
    assert check(bfloat(right), truth).is_right
    assert not check(right * np.float32(1.06), truth).is_right
    assert not check(np.full_like(right, np.nan), truth).is_right
    sizes = {"block_size": 64, "sample_size": 64, "min_seq_len": 64}
    plan = hr.make_plan(heads.query, heads.key, is_causal=is_causal, rng=0, **sizes)
    few = true_rows(heads, plan, **options)
    assert check(hr.hyper_attention(*heads.arrays, is_causal=is_causal, plan=plan, backend="numpy"), few).worst < 0.01
    assert not check(right, few).is_right
    kept = np.r_[:200, 264:500]
    if not is_causal:
        forgotten = hr.exact_attention(heads.query, heads.key[:, kept], heads.value[:, kept], backend="numpy")
        assert not check(forgotten, truth).is_right


@pytest.mark.parametrize("is_causal", [False, True])
def test_pytorch_in_bfloat16_passes(is_causal):
    torch = pytest.importorskip("torch")
    heads = bfloat_heads(700, d=32, is_causal=is_causal)
    truth = true_rows(heads, seed=1, is_bfloat=True)
    q, k, v = (torch.from_numpy(x).bfloat16() for x in heads.arrays)
    out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=is_causal)[0]
    assert truth.check(OnCpu().rows(out, truth.rows)).is_right


@pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))
@pytest.mark.parametrize("is_causal", [False, True])
def test_kernels_for_tensor_cores_pass(is_causal):
    heads = bfloat_heads(130, is_causal=is_causal)
    sizes = {"block_size": 32, "sample_size": 32, "min_seq_len": 40}
    plan = hr.make_plan(heads.query, heads.key, is_causal=is_causal, rng=0, **sizes)
    options = {"seed": 1, "is_bfloat": True}
    truths = {None: true_rows(heads, **options), plan: true_rows(heads, plan, **options)}
    for given_plan, truth in truths.items():
        example = AttentionInputs(*heads.arrays, heads.scale, is_causal, given_plan)
        out = on_storage(example, EmulatedBackend(path="tensor"), "bfloat16")["out"]
        assert check(out, truth).is_right
        assert check(out, truth).worst > 0.01  # it did round
