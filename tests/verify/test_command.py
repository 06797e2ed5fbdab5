"""`hyperattention verify`: exit codes, one clear error for bad arguments, and files only where asked."""

import errno
import json
import sys
from types import ModuleType

import numpy as np
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
    """The jobs that would have been run; nothing is."""
    runs = []
    monkeypatch.setattr(console, "run", lambda job, out, console: runs.append(job) or True)
    return runs


def test_verify_shows_tables_and_writes_the_report(few_checks, tmp_path):
    out = tmp_path / "new" / "folder"
    result = invoke("verify", "--n", 64, "--trials", 2, "--out", out)
    assert result.exit_code == 0, result.output
    for words in ("size of the mask", "merge: union", "Six real heads", "All 7 outcomes are as expected", "0/2"):
        assert words in result.output
    assert str(out / "report.html") in result.output
    assert {path.name for path in out.iterdir()} == {
        *("report.html", "report.json", "report.csv", "ratios.png", "sample_heads.png")
    }


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
    assert "m used, left, right, detects: in the report" in narrow.output
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
    unexpected = "1 of 8 outcomes are not as expected"
    assert (unexpected in result.output) == (exit_code == 1)


def test_quick_sets_n_and_trials_where_they_are_not_given(no_work, tmp_path):
    invoke("verify", "--out", tmp_path)
    invoke("verify", "--quick", "--out", tmp_path)
    invoke("verify", "--quick", "--n", 100, "--out", tmp_path)
    invoke("verify", "--quick", "--trials", 7, "--out", tmp_path)
    assert [(job.settings.n, job.settings.trials) for job in no_work] == [(1024, 20), (256, 5), (100, 5), (256, 7)]


def test_settings_are_what_was_asked_for(no_work, tmp_path):
    result = invoke(
        "verify", "--family=sink", "--family=flat", "--epsilon=1", "--seed=9", "--power=.2", "--out", tmp_path
    )
    assert result.exit_code == 0
    (job,) = no_work
    settings = job.settings
    assert (settings.families, settings.epsilon, settings.seed) == (("sink", "flat"), 1.0, 9)
    assert (settings.power, job.only, job.matrix) == (0.2, proofs_checks.STATEMENTS, None)


def test_only_takes_statements_in_the_order_of_the_paper(no_work, tmp_path):
    result = invoke("verify", "--only", "theorem_1", "--only", "lemma_1", "--out", tmp_path)
    assert result.exit_code == 0
    assert no_work[0].only == ("lemma_1", "theorem_1")
    assert no_work[0].command == f"hyperattention verify --only theorem_1 --only lemma_1 --out {tmp_path.name}"


def test_a_part_measures_no_heads_and_writes_csv(few_checks, tmp_path):
    result = invoke("verify", "--only", "algorithm_1", "--n", 64, "--trials", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "real heads" not in result.output
    assert "All 3 outcomes are as expected" in result.output
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json", "report.csv", "ratios.png"}


def test_the_summary_names_the_offenders(few_checks, tmp_path):
    few_checks(2.0, "holds", "an inequality")
    result = invoke("verify", "--n", 64, "--trials", 1, "--out", tmp_path, COLUMNS="300")
    assert "1 of 8 outcomes are not as expected (an inequality (an inequality) fails): 7 hold" in result.output


def save_matrix(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((12, 4)) for name in ("query", "key", "value")}
    np.savez(path, **{name: x for name, x in {**arrays, **changes}.items() if x is not None})
    return path


def test_a_matrix_of_your_own_is_checked(tmp_path):
    path = save_matrix(tmp_path / "mine.npz", mask=np.eye(12, dtype=bool), scale=0.5)
    out = tmp_path / "out"
    only = [x for name in ("range_facts", "lemma_1", "invariance") for x in ("--only", name)]
    result = invoke("verify", "--matrix", path, *only, "--trials", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert "mine.npz: square, 12 queries and 12 keys, d = 4, d_v = 4, 12 entries in the mask" in result.output
    data = json.loads((out / "report.json").read_text())
    assert {v["family"] for v in data["verdicts"]} == {"mine.npz"}
    assert data["heads"] == []
    assert (data["matrix"]["marked"], data["settings"]["n"]) == (12, 12)
    page = (out / "report.html").read_text()
    assert "hyperattention verify --trials 1 --only range_facts" in page
    assert str(tmp_path) not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"value": None}, "(it lacks value); save query"),
        ({"masks": np.eye(12)}, "(it holds masks, too); save"),
        ({"mask": np.ones((12, 11), bool)}, "mask has shape (12, 11); it must be (n_q, n_k) = (12, 12)"),
        ({"query": np.full((12, 4), np.inf)}, "query has non-finite entries"),
        ({"query": np.zeros((5000, 4))}, "the matrix has 5000 queries and 12 keys; the checks form n x n arrays"),
        ({"query": np.zeros((2, 12, 4))}, "query has shape (2, 12, 4); it must be of one head"),
        ({"scale": np.ones(2)}, "scale has shape (2,); it must be single"),
        ({"scale": np.array("x")}, "scale is 'x'; it must be a real number"),
        ({"key": np.array([[None] * 4] * 12)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_bad_matrix_is_one_line(no_work, tmp_path, changes, words):
    path = save_matrix(tmp_path / "mine.npz", **changes)
    refused(invoke("verify", "--matrix", path, "--out", tmp_path / "out"), "mine.npz holds no matrix", words)
    assert no_work == []


def refused(result, *words):
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    for word in ("hyperattention: ", *words):
        assert word in result.output


def test_what_is_no_matrix_or_not_about_one_is_one_line(no_work, tmp_path):
    path, text = save_matrix(tmp_path / "mine.npz"), tmp_path / "text.npz"
    text.write_text("no archive")
    out = ("--out", tmp_path / "out")
    refused(invoke("verify", "--matrix", text, *out), "text.npz", "not a zip file")
    refused(invoke("verify", "--matrix", tmp_path / "none.npz", *out), "none.npz: No such file")
    refused(invoke("verify", "--matrix", path, "--n", 64, *out), "--matrix brings its own n")
    refused(invoke("verify", "--matrix", path, "--family", "flat", *out), "leave out --n and --family")
    refused(invoke("verify", "--matrix", path, "--only", "corollary_1", *out), "corollary_1 cannot be checked on a")
    refused(invoke("verify", "--only", "lemma_9", *out), "unknown statements: lemma_9; known: definition_1, alg")
    refused(invoke("verify", "--power", 1, *out), "power is 1.0; it must be a probability from 0.0001 and below 1")
    assert no_work == []


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
    assert len(list(tmp_path.iterdir())) == 7
