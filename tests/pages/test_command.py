"""What the commands share: one line for a refusal, lists of numbers, and the width of the console."""

import errno
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hyperattention_ref.pages.command import command_line, console, numbers, refuse


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("give one of both", "give one of both"),
        (ValueError("n is 0"), "n is 0"),
        (OSError(errno.ENOENT, "No such file or directory", "maps.npz"), "maps.npz: No such file or directory"),
        (OSError("no archive"), "no archive"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ValueError("two\nlines of \x1b[31mred\u202e, ñ 漢"), "two lines of \\x1b[31mred\\u202e, ñ 漢"),
        (ValueError("one\ntwo"), "one two"),
        (MemoryError("for 3 GiB"), "not enough memory for 3 GiB; take fewer tokens or heads, or fewer --jobs"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(capsys, reason, line):
    with pytest.raises(SystemExit) as stopped:
        refuse(reason)
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", f"hyperattention: {line}\n")


def test_numbers_are_separated_by_commas():
    assert numbers("--heads", None) is None
    assert numbers("--heads", "0, 3,11") == [0, 3, 11]


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "1 2"])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(ValueError, match=r"--heads is '.*'; it must be numbers from zero .* such as 0,1,5"):
        numbers("--heads", text)


def test_a_pipe_has_the_width_that_the_tables_need_and_columns_overrides_it(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console(190).width == 190
    monkeypatch.setenv("COLUMNS", "77")
    assert console(190).width == 77


def test_a_command_is_repeated_without_folders_and_defaults():
    app, said = typer.Typer(add_completion=False), []

    @app.command()
    def measure(
        context: typer.Context,
        path: Path,
        seed: int = 0,
        family: list[str] | None = None,
        quick: bool = False,
        n: int = 3,
    ):
        said.append(command_line(context))

    arguments = ["/home/me/my maps.npz", "--n", "3", "--family", "a", "--family", "b c", "--quick"]
    assert CliRunner().invoke(app, arguments, prog_name="hyperattention measure").exit_code == 0
    assert said == ["hyperattention measure 'my maps.npz' --family a --family 'b c' --quick --n 3"]
