"""A stand-in for a GPU, and the report of a whole run on it."""

import pytest

from tests.bench.gpu.stand_in import run, set_up


@pytest.fixture
def stand_in(monkeypatch):
    return set_up(monkeypatch)


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The report of a whole run."""
    with pytest.MonkeyPatch.context() as patch:
        return run(set_up(patch), tmp_path_factory.mktemp("gpu") / "out")
