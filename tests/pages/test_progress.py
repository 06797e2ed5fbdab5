"""The progress bar: it shows every step, and is gone afterwards."""

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


def test_nothing_is_left_in_a_pipe():
    pipe = io.StringIO()
    with progress_bar(Console(file=pipe)) as step:
        step("first", 0, 1)
    assert pipe.getvalue().strip() == ""


def test_an_error_inside_ends_the_bar_and_is_passed_on():
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="inside"), progress_bar(console):
        raise ValueError("inside")
    with progress_bar(console):  # rich refuses a second live display
        pass
