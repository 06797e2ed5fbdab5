"""The progress bar shows every step, and is gone afterwards; without a terminal there are lines."""

import io

import pytest
from rich.console import Console

from hyperattention_ref.pages import progress
from hyperattention_ref.pages.progress import progress_bar


@pytest.fixture
def shown(monkeypatch):
    """The states of the bar after each update."""
    states = []

    class Watched(progress.Progress):
        def update(self, task, **changes):
            super().update(task, **changes)
            (state,) = self.tasks
            states.append((state.description, state.completed, state.total))

    monkeypatch.setattr(progress, "Progress", Watched)
    return states


def test_every_step_moves_the_bar(shown):
    with progress_bar(Console(file=io.StringIO(), force_terminal=True)) as step:
        step("first", 0, 2)
        step("second", 1, 2)
    assert shown == [("first", 0, 2), ("second", 1, 2)]


def test_a_bar_shows_names_as_they_are():
    terminal = io.StringIO()
    with progress_bar(Console(file=terminal, force_terminal=True, width=80)) as step:
        step("[red]a[/] [link=x]b", 0, 2)
    assert "[red]a[/] [link=x]b" in terminal.getvalue()


def test_a_pipe_gets_a_line_for_each_part_and_now_and_then_one_that_goes_on(monkeypatch):
    pipe = io.StringIO()
    with progress_bar(Console(file=pipe)) as step:
        for i in range(3):
            step("[red]first", i, 4)
        step("second", 3, 4)
        monkeypatch.setattr(progress, "PAUSE", 0)
        step("second", 4, 4)
    assert pipe.getvalue() == "0/4  [red]first\n3/4  second\n4/4  second\n"


def test_progress_is_on_standard_error(capsys):
    with progress_bar() as step:
        step("first", 0, 1)
    assert capsys.readouterr() == ("", "0/1  first\n")


def test_an_error_inside_ends_the_bar_and_is_passed_on():
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="inside"), progress_bar(console):
        raise ValueError("inside")
    with progress_bar(console):  # rich refuses a second live display
        pass
