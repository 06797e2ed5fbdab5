"""The command `bench-heads`: exit codes, its files, and one clear error for bad arguments."""

import json

import pytest
from typer.testing import CliRunner

from hyperattention_ref import cli
from hyperattention_ref.bench import rivals
from tests.bench.planted import Biased, plant

from .conftest import write_maps

FEW = ("--recipes", "paper,pages", "--budgets", "8,32", "--against", "none", "--min-seq-len", 16, "--backend", "numpy")


def invoke(*arguments):
    return CliRunner().invoke(cli.app(), ["bench-heads", *map(str, arguments)], env={"COLUMNS": None})


def test_the_command_shows_tables_and_writes_the_report(tmp_path):
    maps = write_maps(tmp_path / "maps.npz")
    result = invoke(maps, *FEW, "--n", 64, "--heads", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for words in ("to 0.05", "2 heads, n = 64", "exact attention", "2 heads of maps.npz"):
        assert words in result.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    names = {"report.html", "bench_heads.json", "bench_heads.csv", "time_against_error.png", "settings.json", "cases"}
    assert written == names
    data = json.loads((tmp_path / "out" / "bench_heads.json").read_text(encoding="utf-8"))
    assert data["command"].startswith("hyperattention bench-heads maps.npz --n 64 --heads 1")
    assert [head["name"] for head in data["heads"]] == ["L0H1", "L3H1"]


def test_the_demo_takes_the_heads_that_ship(tmp_path):
    result = invoke("--demo", *FEW, "--n", 64, "--layers", "3", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 heads of the sample heads" in result.output


def test_the_command_ends_with_code_1_after_a_wrong_answer(tmp_path, monkeypatch):
    plant(monkeypatch, Biased)
    options = ("--backend", "planted", "--layers", 0, "--heads", 0)
    result = invoke(write_maps(tmp_path / "maps.npz"), *FEW[:-2], *options, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "WRONG, and not timed: paper, 8 on L0H0" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either a file of maps or --demo"),
        (("{maps}", "--demo"), "give either a file of maps or --demo"),
        (("nowhere.npz",), "nowhere.npz: No such file"),
        (("{maps}", "--recipes", "papper"), "recipe 'papper' is unknown"),
        (("{maps}", "--budgets", "0"), "budgets is 0"),
        (("{maps}", "--budgets", "a"), "--budgets is 'a'"),
        (("{maps}", "--against", "flash"), "against: unknown flash; known: sdpa, flex"),
        (("{maps}", "--backend", "no"), "backend 'no' is unknown"),
        (("{maps}", "--backend", "cupy"), "takes device arrays"),
        (("{maps}", "--n", 1000), "n is 1000 and L0H0 has 96 tokens"),
        (("{maps}", "--n", 16), "heads have n = 16, where nothing is approximated"),
        (("{maps}", "--layers", 7), "no head has one of these numbers"),
        (("{maps}", "--threads", 10**6), "threads is 1000000"),
        (("{mixed}",), "heads have (queries, keys, causal) of"),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, arguments, words):
    files = {"maps": write_maps(tmp_path / "maps.npz")}
    files["mixed"] = write_maps(tmp_path / "mixed.npz", is_causal=[True, True, False, True])
    given = [str(x).format(**files) for x in arguments]
    pairs = zip(FEW[::2], FEW[1::2], strict=True)
    others = [x for name, value in pairs if name not in given for x in (name, value)]
    result = invoke(*given, *others, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_rival_that_is_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    result = invoke("--demo", "--backend", "numpy", "--out", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert "sdpa: needs torch, not installed here" in line
