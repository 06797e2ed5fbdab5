"""The command `bench`: exit codes, one clear error for bad arguments, and its files."""

import json

import pytest
from typer.testing import CliRunner

from hyperattention_ref import cli
from hyperattention_ref.bench import rivals
from hyperattention_ref.bench.rivals import RIVALS
from tests.bench.planted import Biased, plant


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
    for words in (
        "n = 96",
        "numpy: HyperAttention",
        "Stages of the whole call",
        "product with PᵀP",
        "agreed with float64",
    ):
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
        (["--gpu"], ["hyperattention bench-gpu"]),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, arguments, words):
    others = {"--backend": ["--backend", "numpy"], "--against": ["--against", "none"]}
    defaults = [x for name, pair in others.items() if name not in arguments for x in pair]
    result = invoke(*arguments, *defaults, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert len(result.output.splitlines()) == 1
    for word in words:
        assert word in result.output
    assert not (tmp_path / "out").exists()


def test_a_rival_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    result = invoke("--backend", "numpy", "--against", "sdpa,performer", "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert "sdpa, performer: needs torch, performer-pytorch, not installed here" in line
    assert 'pip install ".[bench]"' in line


@pytest.mark.parametrize("name", ["cupy", "numba-cuda"])
def test_the_benchmark_on_the_host_refuses_gpu_backends_and_names_the_command(tmp_path, name):
    result = invoke("--backend", name, "--against", "none", "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert f"backend '{name}' takes device arrays; time it with: hyperattention bench-gpu" in line
    assert not (tmp_path / "out").exists()


def test_minutes_belong_to_the_benchmark_on_a_gpu(tmp_path):
    result = invoke("--minutes", 3, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "No such option: --minutes" in result.output
    assert not (tmp_path / "out").exists()
