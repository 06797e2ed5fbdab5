"""The command `bench-gpu`: exit codes, one clear error for bad arguments, and its files."""

import json

import pytest
from typer.testing import CliRunner

from hyperattention_ref import cli
from hyperattention_ref.bench.gpu import device as gpu_device
from hyperattention_ref.bench.gpu.device import Gpu
from tests.bench.gpu.stand_in import Absent, Biased, Planted
from tests.bench.planted import plant


def invoke(*arguments):
    return CliRunner().invoke(cli.app(), ["bench-gpu", *map(str, arguments)], env={"COLUMNS": None})


FEW = ("--n", 64, "--dim", 8, "--heads", 2, "--block-size", 16, "--sample-size", 16, "--min-seq-len", 32,
       "--repeats", 2)  # fmt: skip


@pytest.mark.parametrize(("planted", "code"), [(Planted, 0), (Biased, 1)])
def test_the_command_shows_tables_and_writes_files(stand_in, tmp_path, monkeypatch, planted, code):
    plant(monkeypatch, planted, "cupy")
    result = invoke(*FEW, "--causal", "--minutes", 1e6, "--out", tmp_path / "out")
    assert result.exit_code == code, result.output
    for words in ("2 heads, d = 8, bfloat16, causal, b = 16, m = 16, leaves of 32", "cupy conforms: 6 examples"):
        assert words in result.output
    assert "not causal" not in result.output
    assert ("WRONG, and not timed: cupy: HyperAttention in" in result.output) == (code == 1)
    assert ("Every output agreed with float64 rows" in result.output) == (code == 0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json", "cases", "gpu.json", "results.md"}
    settings = json.loads((tmp_path / "out" / "gpu.json").read_text())["settings"]
    assert (settings["n"], settings["dims"], settings["causal"]) == ([64], [8], [True])
    assert settings["repeats"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "numba"], ["'numba' does not run on a GPU", "cupy, numba-cuda"]),
        (["--n", 1], ["n is 1"]),
        (["--dim", 0], ["dim is 0"]),
        (["--minutes", 0], ["minutes is 0.0"]),
        (["--minutes", "nan"], ["minutes is nan"]),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, arguments, words):
    refused(invoke(*arguments, "--out", tmp_path / "out"), tmp_path, words)


def refused(result, folder, words):
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    for word in words:
        assert word in result.output
    assert not (folder / "out").exists()


def test_a_machine_without_a_gpu_is_refused_at_the_door(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_device, "find_spec", lambda name: None)
    words = ["bench-gpu cannot run here: PyTorch is not installed", 'pip install ".[bench]"']
    refused(invoke("--out", tmp_path / "out"), tmp_path, words)


def test_without_any_backend_the_reasons_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(Gpu, "obstacle", staticmethod(lambda: None))
    for name in ("cupy", "numba-cuda"):
        plant(monkeypatch, Absent, name)
    words = ["bench-gpu cannot run here: cupy: there is no GPU; numba-cuda: there is no GPU"]
    refused(invoke("--out", tmp_path / "out"), tmp_path, words)


@pytest.mark.parametrize(
    "name", ["--value-dim", "--against", "--family", "--dtype", "--seconds", "--measure", "--threads", "--gpu"]
)
def test_options_of_the_benchmark_on_the_host_are_unknown(tmp_path, name):
    result = invoke(name, 1, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"No such option: {name}" in result.output
    assert not (tmp_path / "out").exists()
