"""`hyperattention verify`: exit codes, one clear error for bad arguments, and files only where asked."""

import errno
import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli, proofs_checks
from hyperattention_ref.proofs_checks import Verdict
from hyperattention_ref.verify import console


def invoke(*arguments, **environment):
    return CliRunner().invoke(cli.app(), list(map(str, arguments)), env={"COLUMNS": None} | environment)


@pytest.fixture
def few_checks(monkeypatch, heads):
    """Two quick statements and whatever verdict the test plants as a third."""
    planted = ModuleType("planted")
    planted.check = lambda settings: iter(())
    monkeypatch.setitem(sys.modules, "hyperattention_ref.proofs_checks.planted", planted)
    monkeypatch.setattr(proofs_checks, "STATEMENTS", ("algorithm_1", "planted", "merge_monoid"))
    monkeypatch.setattr(console, "measure_sample_heads", lambda *, epsilon, seed: heads)

    def plant(left, expected, name="planted"):
        words = dict.fromkeys(("name", "paper", "statement", "hypothesis", "family"), name)
        planted.check = lambda settings: iter([Verdict(**words, left=left, right=1.0, expected=expected)])

    return plant


@pytest.fixture
def no_work(monkeypatch):
    """The settings that would have been run; nothing is."""
    runs = []
    monkeypatch.setattr(console, "run", lambda settings, out, console: runs.append(settings) or True)
    return runs


def test_verify_shows_tables_and_writes_the_report(few_checks, tmp_path):
    out = tmp_path / "new" / "folder"
    result = invoke("verify", "--n", 64, "--trials", 2, "--out", out)
    assert result.exit_code == 0, result.output
    for words in ("size of the mask", "merge: union", "Six real heads", "All 6 outcomes are as expected", "0/2"):
        assert words in result.output
    assert str(out / "report.html") in result.output
    assert {path.name for path in out.iterdir()} == {"report.html", "report.json", "ratios.png", "sample_heads.png"}


def test_names_are_printed_as_they_are(few_checks, tmp_path):
    name = "[red]a[/] :eye:"
    few_checks(0.5, "holds", name)
    result = invoke("verify", "--n", 64, "--trials", 1, "--out", tmp_path / "[link=x]")
    assert result.exit_code == 0, result.output
    assert result.output.count(name) >= 3  # title, statement, inputs
    assert str(tmp_path / "[link=x]" / "report.html") in result.output


def test_a_narrow_terminal_is_told_which_columns_are_missing(few_checks, tmp_path):
    wide = invoke("verify", "--n", 64, "--trials", 1, "--out", tmp_path)
    narrow = invoke("verify", "--n", 64, "--trials", 1, "--out", tmp_path, COLUMNS="80")
    assert "m used, left, right: in the report" in narrow.output
    assert "in the report" not in wide.output
    assert max(map(len, narrow.output.splitlines())) <= max(80, len(str(tmp_path)) + 50)


def test_a_full_disk_is_one_line_after_the_results(few_checks, tmp_path, monkeypatch):
    def full(report, out):
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "report.json"))

    monkeypatch.setattr(console, "write_report", full)
    result = invoke("verify", "--n", 64, "--trials", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert "outcomes are as expected" in result.output
    assert result.output.endswith("report.json: No space left on device\n")


@pytest.mark.parametrize(
    ("left", "expected", "exit_code", "words"),
    [
        (2.0, "holds", 1, "fails: unexpected"),
        (0.5, "fails", 1, "holds: unexpected"),
        (float("nan"), "holds", 1, "fails: unexpected"),
        (2.0, "fails", 0, "fails, as it must"),
        (2.0, None, 0, "For information"),
    ],
)
def test_exit_code_is_1_after_the_report_when_an_outcome_is_unexpected(
    few_checks, tmp_path, left, expected, exit_code, words
):
    few_checks(left, expected)
    result = invoke("verify", "--n", 64, "--trials", 2, "--out", tmp_path, COLUMNS="200")
    assert result.exit_code == exit_code, result.output
    assert words in result.output
    assert (tmp_path / "report.html").exists()
    unexpected = "1 of 7 outcomes are not as expected"
    assert (unexpected in result.output) == (exit_code == 1)


def test_quick_sets_n_and_trials_where_they_are_not_given(no_work, tmp_path):
    invoke("verify", "--out", tmp_path)
    invoke("verify", "--quick", "--out", tmp_path)
    invoke("verify", "--quick", "--n", 100, "--out", tmp_path)
    invoke("verify", "--quick", "--trials", 7, "--out", tmp_path)
    assert [(s.n, s.trials) for s in no_work] == [(1024, 20), (256, 5), (100, 5), (256, 7)]


def test_settings_are_what_was_asked_for(no_work, tmp_path):
    result = invoke("verify", "--family=sink", "--family=flat", "--epsilon=1", "--seed=9", "--out", tmp_path)
    assert result.exit_code == 0
    (settings,) = no_work
    assert (settings.families, settings.epsilon, settings.seed) == (("sink", "flat"), 1.0, 9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--family", "gauss"], ["gauss", *hr.synthetic.FAMILIES]),
        (["--family", "sink", "--family", "no"], ["unknown: no"]),
        (["--family", "[red]a[/]"], ["unknown: [red]a[/]"]),
        (["--n", "63"], ["--n", "63", "64"]),
        (["--n", "many"], ["--n", "integer"]),
        (["--epsilon", "0"], ["--epsilon", "0 < epsilon <= 1"]),
        (["--epsilon", "1.01"], ["--epsilon", "1.01"]),
        (["--epsilon", "nan"], ["--epsilon", "nan"]),
        (["--trials", "0"], ["--trials", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--colour"], ["--colour"]),
    ],
)
def test_bad_arguments_are_one_clear_error(no_work, tmp_path, arguments, words):
    result = invoke("verify", *arguments, "--out", tmp_path / "out", COLUMNS="200")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output
    assert no_work == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_out_that_cannot_be_a_folder_is_refused_before_the_work(no_work, tmp_path, place):
    (tmp_path / "file").write_text("precious")
    result = invoke("verify", "--out", tmp_path / place, COLUMNS="300")
    assert result.exit_code == 2
    assert "cannot hold the report" in result.output
    assert "Traceback" not in result.output
    assert (tmp_path / "file").read_text() == "precious"
    assert no_work == []


@pytest.mark.slow
def test_quick_verify_ends_well_from_the_shell(run_process, tmp_path):
    command = [sys.executable, "-W", "error", "-c", "from hyperattention_ref.cli import main; main()"]
    result = run_process([*command, "verify", "--quick", "--out", tmp_path], timeout=1800)
    shown = [line.split("  ")[1].partition(",")[0] for line in result.stderr.splitlines()]
    assert shown == [*proofs_checks.STATEMENTS, "real heads"]
    assert "outcomes are as expected" in result.stdout
    assert len(list(tmp_path.iterdir())) == 6
