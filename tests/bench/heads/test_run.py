"""Heads are measured once each, what is wrong is not timed, and FlexAttention is exact on the lists of a plan."""

from dataclasses import replace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.bench.heads import methods
from hyperattention_ref.bench.heads import run as runner
from hyperattention_ref.bench.heads.flex import flex_attention
from tests.bench.planted import Biased, OneKeyShort, plant

from .conftest import SMALL, write_maps


def compare(maps, out, settings=SMALL):
    return runner.compare(maps, out, settings, "hyperattention bench-heads", lambda *step: None)


def test_errors_are_those_of_the_library_and_times_those_of_the_clock(tmp_path):
    maps = write_maps(tmp_path / "maps.npz")
    report = compare(maps, tmp_path / "out", replace(SMALL, layers=(3,)))
    assert report.is_right
    assert [head.name for head in report.heads] == ["L3H0", "L3H1"]
    with hr.MapFile(maps) as file:
        head = file.head(3, 1)
    options = {"scale": head.scale, "is_causal": True, "backend": "numpy"}
    arrays = (head.query, head.key, head.value)
    exact = hr.exact_attention(*arrays, **options)
    for x in report.heads[1].points:
        out = exact
        if x.budget:
            recipe = hr.preset(x.method, x.budget)
            out = hr.hyper_attention(*arrays, recipe=recipe, min_seq_len=16, rng=0, **options)
            assert x.logits_per_query == recipe.logits_per_query(96, 96, is_causal=True, min_seq_len=16)
        assert x.error == pytest.approx(np.linalg.norm(out - exact) / np.linalg.norm(exact), rel=1e-6)
        assert x.seconds == (0.5,) * 3  # the clock of the tests ticks twice a call
    assert [(x.method, x.budget) for x in report.heads[0].points] == [
        ("exact", None), ("paper", 8), ("paper", 32), ("pages", 8), ("pages", 32),
    ]  # fmt: skip


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    maps, measured, whole = write_maps(tmp_path / "maps.npz"), [], runner.measure

    def noting(head, settings):
        measured.append(head.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return whole(head, settings)

    monkeypatch.setattr(runner, "measure", noting)
    settings = replace(SMALL, recipes=("pages",), budgets=(8,))
    with pytest.raises(KeyboardInterrupt):
        compare(maps, tmp_path / "out", settings)
    report = compare(maps, tmp_path / "out", settings)
    assert measured == ["L0H0", "L0H1", "L0H1", "L3H0", "L3H1"]
    assert compare(maps, tmp_path / "out", settings) == report
    write_maps(maps, n=97)
    with pytest.raises(ValueError, match=r"other settings or of another machine: environment\.maps is"):
        compare(maps, tmp_path / "out", settings)


@pytest.mark.parametrize(("planted", "wrong"), [(OneKeyShort, {"exact"}), (Biased, {"paper", "pages"})])
def test_a_wrong_answer_is_named_and_never_timed(tmp_path, monkeypatch, planted, wrong):
    plant(monkeypatch, planted)
    settings = replace(SMALL, backend="planted", heads=(0,), layers=(0,), recipes=("paper", "pages", "landmarks"))
    maps = write_maps(tmp_path / "maps.npz", is_causal=False)
    report = compare(maps, tmp_path / "out", settings)
    for x in report.heads[0].points:
        assert x.check.is_right is (x.method not in wrong)
        assert (x.median is None) is (x.method in wrong)
    assert len(report.wrong) == (1 if "exact" in wrong else 4)


def test_a_rival_that_cannot_run_is_left_out_with_the_reason_and_tried_once(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")
    calls = []

    def broken(*arguments):
        calls.append(arguments)
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(methods, "flex_attention", broken)
    settings = replace(SMALL, against=("sdpa", "flex"), layers=(0,), heads=(1,))
    report = compare(write_maps(tmp_path / "maps.npz"), tmp_path / "out", settings)
    assert report.is_right
    assert report.left_out == ["FlexAttention, lists of pages: RuntimeError: no C++ compiler"]
    assert len(calls) == 1
    assert report.exact["sdpa"].errors[2] < 1e-5


def test_flex_attention_refuses_what_its_kernel_gets_wrong():
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")
    lists = hr.BlockLists.from_mask(np.ones((2, 2), dtype=bool), 16, 16, block_size=8, page_size=8)
    with pytest.raises(ValueError, match="d is 16 and d_v 32; torch's kernel is right for multiples of 32"):
        flex_attention(*(np.zeros((1, 16, d), np.float32) for d in (16, 16, 32)), lists, 1.0)
    lists = hr.BlockLists.from_mask(np.ones((2, 2), dtype=bool), 15, 15, block_size=8, page_size=8)
    with pytest.raises(ValueError, match="n is 15; torch's kernel is safe for multiples of 8"):
        flex_attention(*np.zeros((3, 1, 15, 32), np.float32), lists, 1.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler calls what torch has deprecated
@pytest.mark.parametrize("is_causal", [False, True])
def test_flex_attention_is_exact_on_the_lists_of_a_plan(is_causal):
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 128, 64)).astype(np.float32)
    plan = hr.make_plan(q, k, recipe=hr.preset("pages", 24), is_causal=is_causal, min_seq_len=8, scale=0.3, rng=0)
    found = flex_attention(q, k, v, plan.heads[0].lists, 0.3)
    expected = hr.hyper_attention(q, k, v, plan=plan, is_causal=is_causal, scale=0.3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
