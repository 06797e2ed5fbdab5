"""The benchmark: right answers are timed and wrong ones refused, results resume, and the arithmetic of the report."""

import json
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.bench import peak_memory as memory
from hyperattention_ref.bench import rivals, stages, timing
from hyperattention_ref.bench import run as runner
from hyperattention_ref.bench.cases import (
    EXACT,
    PLANNED,
    RIVAL,
    WHOLE,
    BenchSettings,
    Contestant,
    contestants,
    logits,
    make_heads,
    planned,
    prepare,
    sweep,
)
from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.bench.check import check, exact_rows, mean_of_values, planned_rows, relative_error
from hyperattention_ref.bench.console import make_report
from hyperattention_ref.bench.report import BenchReport, find
from hyperattention_ref.bench.rivals import RIVALS
from hyperattention_ref.foundation import registry

SMALL = BenchSettings(
    n=(64, 128),
    dim=8,
    backends=("numpy",),
    against=(),
    block_size=16,
    sample_size=16,
    min_seq_len=32,
    repeats=3,
    threads=1,
    families=("gaussian", "planted_clusters"),
)
TICK = 0.5  # seconds that every timed call takes on the clock of the tests
CEILINGS = Ceilings(1e9, 1e9, 1e9)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """A clock that ticks when it is read, memory that is not measured, and ceilings that are known."""
    ticks = iter(range(10**9))
    clock = SimpleNamespace(perf_counter=lambda: TICK * next(ticks), sleep=lambda seconds: None)
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(runner, "peak_memory", lambda settings, n, contestant: 12345)
    monkeypatch.setattr(runner, "measure_ceilings", lambda settings: CEILINGS)


def plant(monkeypatch, planted):
    """Make an instance of this class the backend named "planted"."""
    module = ModuleType("planted_backend")
    module.Planted = type("Planted", (planted,), {"name": "planted"})
    monkeypatch.setitem(sys.modules, "planted_backend", module)
    monkeypatch.setitem(registry._BUILT_IN, "planted", "planted_backend:Planted")


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
    everyday = {"scale": heads.scale, "is_causal": settings.is_causal, "backend": "reference"}
    whole = {
        "exact": hr.exact_attention(*heads.arrays, **everyday),
        "planned": hr.hyper_attention(*heads.arrays, plan=plan, **everyday),
    }
    rows = {
        "exact": exact_rows(heads, is_causal=settings.is_causal, seed=1),
        "planned": planned_rows(heads, plan, seed=1),
    }
    for name, truth in rows.items():
        assert np.abs(truth.of(whole[name]) - truth.out).max() <= 1e-12 * np.abs(heads.value).max()
        assert check(whole[name], truth).is_right
        assert relative_error(whole[name], truth) <= 1e-12
        assert [len(set(x)) for x in truth.rows] == [min(64, heads.n)] * settings.heads
    for contestant in contestants(settings):
        truth = rows["planned" if contestant.is_planned else "exact"]
        assert check(prepare(contestant, settings, heads)(), truth).is_right


@pytest.mark.parametrize("is_causal", [False, True])
def test_small_mistakes_are_seen(is_causal):
    settings = replace(SMALL, is_causal=is_causal)
    heads = make_heads(settings, "gaussian", 128)
    plan = planned(settings, heads, "numpy")
    truth = planned_rows(heads, plan, seed=1)
    right = hr.hyper_attention(*heads.arrays, plan=plan, scale=heads.scale, is_causal=is_causal, backend="numpy")
    assert check(right, truth).is_right
    assert not check(right * np.float32(1 + 2e-4), truth).is_right
    assert not check(np.where(np.arange(128)[:, None] == truth.rows[0][-1], np.nan, right), truth).is_right
    rectangle = plan.heads[0].rectangles[0]
    lacking = replace(rectangle, sampled_keys=rectangle.sampled_keys[1:], log_weights=rectangle.log_weights[1:])
    other = replace(plan, heads=(replace(plan.heads[0], rectangles=(lacking, *plan.heads[0].rectangles[1:])),))
    wrong = hr.hyper_attention(*heads.arrays, plan=other, scale=heads.scale, is_causal=is_causal, backend="reference")
    assert not check(wrong, truth).is_right


def test_the_real_heads_are_those_that_ship():
    heads = make_heads(SMALL, "sample_heads", 64)
    assert heads.query.shape == (6, 512, 32)
    for h, head in enumerate(hr.load_sample_heads()):
        assert head.scale == heads.scale
        for x, y in zip(heads.arrays, (head.query, head.key, head.value), strict=True):
            np.testing.assert_array_equal(x[h], y)
    points = runner.measure_family(SMALL, "sample_heads")["points"]
    assert [x["budget"] for x in points] == [64, 128, 256, None]
    assert points[-1]["relative_error"] < 1e-5


def test_the_mean_of_values_is_flat_attention():
    heads = make_heads(replace(SMALL, heads=2), "flat", 40)
    for is_causal in (False, True):
        exact = hr.exact_attention(*heads.arrays, is_causal=is_causal, backend="reference")
        assert mean_of_values(heads, is_causal) == pytest.approx(exact, abs=1e-12)


def test_logits_are_counted_from_the_plan_and_from_the_lengths():
    heads = make_heads(replace(SMALL, heads=2), "gaussian", 100)
    whole, exact = Contestant("numpy", WHOLE), Contestant("numpy", EXACT)
    plan = planned(SMALL, heads, "numpy")
    assert logits(whole, plan, heads, False) == 2 * (6 * 16**2 + 4**2 + 100 * 16)
    assert logits(exact, None, heads, False) == 2 * 100**2
    assert logits(exact, None, heads, True) == 100 * 101
    assert logits(Contestant("performer", RIVAL), None, heads, False) is None
    causal = planned(replace(SMALL, is_causal=True), heads, "numpy")
    counted = sum(np.count_nonzero(head.rows(range(100))) for head in causal.heads)
    counted += sum(r.n_q * r.sampled_keys.size for head in causal.heads for r in head.rectangles)
    assert logits(whole, causal, heads, True) == counted  # one view for each rectangle: no pair is counted twice


@pytest.fixture
def report(tmp_path):
    return make_report(SMALL, runner.benchmark(SMALL, tmp_path / "out"))


def test_a_report_is_the_arithmetic_of_its_times(report):
    assert [case["n"] for case in report.lengths] == [64, 128]
    assert report.wrong == []
    for case in report.lengths:
        assert [x["kind"] for x in case["contestants"]] == [WHOLE, PLANNED, EXACT]
        assert case["input_bytes"] == 3 * case["output_bytes"] == 3 * case["n"] * 8 * 4
        for x in case["contestants"]:
            assert (x["seconds"], x["median"], x["quartiles"]) == ([TICK] * 3, TICK, [TICK, TICK])
            assert (x["first_seconds"], x["peak_bytes"]) == (TICK, 12345)
            assert report.times_hyper(case, x) == 1
            assert report.flops(x) == 32 * x["logits"]
            assert report.share_of_ceilings(x) == pytest.approx(33 * x["logits"] / 1e9 / TICK)
            assert (x["relative_error"] < 1e-5) == (x["kind"] == EXACT)
        assert sum(case["stages"]["numpy"].values()) == pytest.approx(TICK)
        assert set(case["stages"]["numpy"]) == set(stages.STAGES)
    for case in report.families:
        assert (case["n"], case["baselines"]["zero"]) == (128, 1.0)
        assert {x["budget"] for x in case["points"]} == {64, None}
    assert len(report.findings) == 5


def test_json_has_everything_and_nothing_that_json_lacks(report):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["settings"]["n"] == [64, 128]
    assert data["ceilings"] == {"flops": 1e9, "exponentials": 1e9, "bytes": 1e9}
    entry = data["lengths"][0]["contestants"][0]
    assert entry["check"]["is_right"] is True
    assert entry["times_hyper_attention"] == 1
    assert entry["flops"] == 32 * entry["logits"]
    assert data["environment"]["numpy"] == np.__version__
    assert data["wrong"] == data["left_out"] == []


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    out, whole, measured = tmp_path / "out", runner.measure_length, []

    def noting(settings, n):
        measured.append(n)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return whole(settings, n)

    monkeypatch.setattr(runner, "measure_length", noting)
    with pytest.raises(KeyboardInterrupt):
        runner.benchmark(SMALL, out)
    before = files(out)
    assert set(before) == {"settings.json", "cases/ceilings.json", "cases/n=64.json"}
    steps = []
    results = runner.benchmark(SMALL, out, progress=lambda *step: steps.append(step))
    assert measured == [64, 128, 128]
    assert before.items() <= files(out).items()
    assert steps == [(name, i, 5) for i, name in enumerate(["ceilings", "n=64", "n=128", *SMALL.families])]
    assert runner.benchmark(SMALL, out) == results
    assert measured == [64, 128, 128]


def test_a_folder_of_something_else_is_refused(tmp_path):
    runner.benchmark(replace(SMALL, families=("flat",)), tmp_path / "out")
    with pytest.raises(ValueError, match="other settings or of another machine"):
        runner.benchmark(SMALL, tmp_path / "out")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="no folder"):
        runner.benchmark(SMALL, tmp_path / "file")
    with pytest.raises(ValueError, match="something else"):
        runner.benchmark(SMALL, tmp_path)
    assert (tmp_path / "file").read_text() == "precious"


class OneKeyShort(BlockedNumpy):
    """Forgets the last key."""

    def exact_attention(self, q, k, v, **options):
        return super().exact_attention(q, k[..., :-1, :], v[..., :-1, :], **options)


class Biased(BlockedNumpy):
    def planned_attention(self, q, k, v, plan, *, scale):
        out, lse = super().planned_attention(q, k, v, plan, scale=scale)
        return out + np.float32(1e-3), lse


@pytest.mark.parametrize(("planted", "kinds"), [(OneKeyShort, {EXACT}), (Biased, {WHOLE, PLANNED})])
def test_a_wrong_answer_is_reported_and_never_timed(tmp_path, monkeypatch, planted, kinds):
    plant(monkeypatch, planted)
    settings = replace(SMALL, n=(128,), backends=("planted", "numpy"), measure=True)
    report = make_report(settings, runner.benchmark(settings, tmp_path / "out"))
    (case,) = report.lengths
    for x in case["contestants"]:
        is_wrong = x["engine"] == "planted" and x["kind"] in kinds
        assert x["check"]["is_right"] is not is_wrong
        for name in ("seconds", "median", "peak_bytes"):
            assert (name in x) is not is_wrong
    assert set(case["stages"]) == set(case["sums"]) == {"numpy"}
    at_n = {f"planted: {kind} at n = 128" for kind in kinds}
    assert at_n <= set(report.wrong)
    assert report.summary.startswith("WRONG, and not timed: planted")
    timed = {x["name"] for family in report.families for x in family["points"] if "median" in x}
    assert not any(name.startswith(f"planted: {kind}") for kind in kinds for name in timed)


def invoke(*arguments):
    command = CliRunner()
    return command.invoke(cli.app(), ["bench", *map(str, arguments)], env={"COLUMNS": None})


FEW = ("--n", 64, "--n", 96, "--dim", 8, "--against", "none", "--block-size", 16, "--sample-size", 16, "--repeats", 2,
       "--family", "sphere", "--threads", 1)  # fmt: skip


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_command_shows_tables_and_writes_the_report(tmp_path, is_causal):
    options = ["--causal", "--min-seq-len", 24] if is_causal else ["--value-dim", 3, "--heads", 2]
    result = invoke(*FEW, *options, "--backend", "numpy", "--measure", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for words in ("n = 96", "numpy: HyperAttention", "Stages of the whole call", "Lanczos step", "agreed with float64"):
        assert words in result.output
    names = {"time", "ratio", "error_against_time", "memory", "stages"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.png" for name in names} | {"report.html", "bench.json", "settings.json", "cases"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") == 5
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert data["settings"]["is_causal"] is is_causal
    assert ("sums with the plan" in data["lengths"][0]["sums"]["numpy"]) is not is_causal


def test_the_command_ends_with_code_1_after_a_wrong_answer(tmp_path, monkeypatch):
    plant(monkeypatch, Biased)
    result = invoke(*FEW, "--backend", "planted", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "planted: HyperAttention  WRONG, not timed" in result.output
    assert "wrong, not timed" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n", 1], ["n is 1", "at least 2"]),
        (["--dim", 0], ["dim is 0"]),
        (["--value-dim", 0], ["value_dim is 0"]),
        (["--heads", -1], ["heads is -1"]),
        (["--threads", 10**6], ["threads is 1000000", "between 1 and"]),
        (["--threads", 0], ["threads is 0"]),
        (["--repeats", 0], ["repeats is 0"]),
        (["--seconds", "nan"], ["seconds is nan"]),
        (["--dtype", "float16"], ["'float16'", "float32, float64"]),
        (["--against", "flash"], ["against: unknown flash", *RIVALS]),
        (["--family", "needle"], ["families: unknown needle", "planted_clusters"]),
        (["--backend", "no"], ["backend 'no' is unknown"]),
        (["--seed", -1], ["seed is -1"]),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, arguments, words):
    given = {"--backend": ["--backend", "numpy"], "--against": ["--against", "none"]}
    others = [x for name, pair in given.items() if name not in arguments for x in pair]
    result = invoke(*arguments, *others, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) == 1
    for word in words:
        assert word in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n", "backends", "families"])
def test_nothing_to_time_is_refused(name):
    with pytest.raises(ValueError, match="nothing to time"):
        replace(SMALL, **{name: ()})


def test_a_rival_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    result = invoke("--backend", "numpy", "--against", "sdpa,performer", "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert "sdpa, performer: needs torch, performer-pytorch, not installed here" in line
    assert 'pip install "hyperattention-ref[bench]"' in line


def test_rivals_that_cannot_do_it_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: True)
    causal = replace(SMALL, against=tuple(RIVALS), is_causal=True)
    assert [x.engine for x in contestants(causal) if x.kind == RIVAL] == ["sdpa", "performer", "local"]
    narrow = replace(SMALL, against=tuple(RIVALS), value_dim=3)
    assert [x.engine for x in contestants(narrow) if x.kind == RIVAL] == ["performer", "local"]
    budgets = {(x.engine, x.budget) for x in sweep(causal, 512) if x.kind == RIVAL}
    assert {x for name, x in budgets if name == "performer"} == {32, 64, 128, 256}
    assert {x for name, x in budgets if name == "local"} == {32, 64}  # 128 would be 384 of 512 keys
    assert {x for name, x in budgets if name == "sdpa"} == {None}
    reasons = BenchReport(narrow, {}, CEILINGS, (), ()).left_out
    assert len(reasons) == 2
    assert all("needs values of the queries' dimension" in reason for reason in reasons)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_attention_on_the_given_arrays(name, is_causal):
    """With a budget that covers everything every rival comes near exact attention, at another scale as well."""
    pytest.importorskip(RIVALS[name].module, reason='rivals belong to the extra "bench"')
    settings = replace(SMALL, heads=2, against=(name,), is_causal=is_causal)
    if rivals.unsuited(name, settings):
        return
    heads = make_heads(settings, "sphere", 64)._replace(scale=1.0)
    truth = exact_rows(heads, is_causal=is_causal, seed=1)
    before = [x.tobytes() for x in heads.arrays]
    run = prepare(Contestant(name, RIVAL, 2048 if name == "performer" else 64), settings, heads)
    output = run()
    assert output.shape == heads.value.shape
    assert [x.tobytes() for x in heads.arrays] == before
    assert run().tobytes() == output.tobytes()
    if Contestant(name, RIVAL).is_exact:
        assert check(output, truth).is_right
    # Performer's features are random, Nyström's pseudo-inverse is iterative; at the usual scale both would be 0.2 off
    assert relative_error(output, truth) < {"performer": 0.1, "nystrom": 0.1}.get(name, 1e-5)


def test_turns_are_taken_and_slow_calls_stop_at_three(monkeypatch):
    now, order = [0.0], []
    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: order.append("rest"))
    monkeypatch.setattr(timing, "time", clock)

    def lasting(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    calls = {"slow": lasting("slow", 9.0), "middling": lasting("middling", 4.0), "quick": lasting("quick", 1.0)}
    times = timing.take_turns(calls, 7, 18.0)
    assert {name: len(runs) for name, runs in times.items()} == {"slow": 3, "middling": 5, "quick": 7}
    assert [name for name in order if name != "rest"][:6] == ["slow", "middling", "quick"] * 2
    assert order[::2] == ["rest"] * 15
    assert times["slow"] == [9.0] * 3


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_medians_and_quartiles_are_those_of_numpy(times):
    low, high = timing.quartiles(times)
    assert timing.median(times) == pytest.approx(np.median(times))
    ends = (0, 1) if len(times) < 4 else (0.25, 0.75)
    assert (low, high) == pytest.approx(np.quantile(times, ends))


def test_threads_are_limited_and_given_back():
    import numba
    from threadpoolctl import threadpool_info

    def threads():
        return numba.get_num_threads(), [library["num_threads"] for library in threadpool_info()]

    before = threads()
    with timing.limited_threads(1):
        assert threads() == (1, [1] * len(before[1]))
    assert threads() == before


@pytest.mark.parametrize("is_causal", [False, True])
def test_stages_are_differences_of_calls_on_parts_of_the_plan(monkeypatch, is_causal):
    settings = replace(SMALL, is_causal=is_causal, heads=2)
    heads = make_heads(settings, "gaussian", 100)
    calls = stages._calls(settings, heads, "numpy")
    everyday = {"scale": heads.scale, "is_causal": is_causal, "backend": "numpy"}
    plan = planned(settings, heads, "numpy")
    whole = hr.hyper_attention(*heads.arrays, plan=plan, **everyday)
    assert calls["whole"]().tobytes() == whole.tobytes()
    parts = [calls[name]() for name in ("blocks", "samples")]
    if not is_causal:  # blocks and samples merge into the whole, up to the pairs that both hold
        blocks = [head.rectangles[0].rows(range(100))[:, head.rectangles[0].sampled_keys] for head in plan.heads]
        apart = ~np.array(blocks).any(axis=2)
        merged, _ = hr.merge_attention(*parts)
        assert apart.any()
        assert merged[apart] == pytest.approx(whole[apart], abs=1e-5)
        assert not calls["empty"]()[0].any()
    in_order, _ = calls["blocks in order"]()
    first = hr.exact_attention(*(x[:, :16] for x in heads.arrays), scale=heads.scale, backend="numpy")
    if not is_causal:
        assert in_order[:, :16] == pytest.approx(first, abs=1e-5)
    seconds = {"checks": 1, "hash": 2, "make_plan": 7, "empty": 3, "blocks": 20, "blocks in order": 14, "samples": 9,
               "whole": 40}  # fmt: skip
    monkeypatch.setattr(stages, "take_turns", lambda calls, *_: {name: [seconds[name]] * 2 for name in calls})
    assert list(stages.measure_stages(settings, heads, "numpy").values()) == [1, 2, 5, 3, 11, 6, 6, 6]


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call_in_a_process_of_its_own():
    settings = replace(SMALL, dim=64, min_seq_len=512)
    output = 4096 * 64 * 4
    for kind in (EXACT, WHOLE):
        peak = memory.peak_memory(settings, 4096, Contestant("numpy", kind))
        assert output <= peak < 4096**2 * 4


def test_a_process_that_dies_is_an_error_that_says_how(monkeypatch):
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9, stderr=""))
    with pytest.raises(ChildProcessError, match="numpy: exact ended with code -9: no message"):
        memory.peak_memory(SMALL, 64, Contestant("numpy", EXACT))


def test_ceilings_are_rates_and_shares_their_sum():
    from hyperattention_ref.bench.ceilings import _tasks

    for calls, amount in _tasks(np.dtype(np.float64), 0):
        assert amount > 0
        assert len(calls) in (1, 2)
    assert Ceilings(2.0, 4.0, 1.0).share(10.0, flops=6.0, exponentials=8.0) == pytest.approx(0.5)


def test_find_is_none_where_there_is_nothing():
    assert find({"contestants": []}, WHOLE, "numpy") is None
