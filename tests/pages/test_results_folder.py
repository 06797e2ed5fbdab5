"""A results folder keeps the finished parts of one run, and of no other."""

import json
import math
import os
import pickle
from dataclasses import dataclass

import pytest

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.results_folder import ResultsFolder

RUN = {"settings": {"n": 64}}
OTHER = "a run with other settings"


@dataclass(frozen=True, repr=False)
class Detail(Result):
    bound: float


@dataclass(frozen=True, repr=False)
class Part(Result):
    name: str
    details: tuple[Detail, ...]
    by_count: dict[int, float | None]


PART = Part("x", (Detail(1.5), Detail(math.inf)), {0: 2.0, 4: None})


def never():
    raise AssertionError("a finished part ran again")


@pytest.fixture
def folder(tmp_path):
    folder = ResultsFolder(tmp_path / "new" / "out", "run.json", "parts")
    folder.claim(RUN, OTHER)
    return folder


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_order_of_keys_in_a_record_means_nothing(tmp_path):
    folder = ResultsFolder(tmp_path / "out", "run.json", "parts")
    folder.claim({"n": 64, "seed": 0}, OTHER)
    folder.claim({"seed": 0, "n": 64}, OTHER)
    with pytest.raises(ValueError, match=OTHER):
        folder.claim({"seed": 1, "n": 64}, OTHER)
    (folder.path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=OTHER):
        folder.claim({"seed": 0, "n": 64}, OTHER)


def test_a_new_folder_holds_its_record(folder):
    assert files(folder.path) == {"run.json": json.dumps(RUN).encode()}


def test_a_part_is_run_once_and_read_as_it_was(folder):
    assert folder.once("a", lambda: PART, Part) is PART
    assert folder.once("a", never, Part) == PART == folder.read("a", Part)
    assert json.loads(folder.file("a").read_text()) == PART.to_dict()


def test_a_part_that_is_not_kept_runs_again(folder):
    runs = []

    def run():
        runs.append(PART)
        return PART

    for _ in range(2):
        assert folder.once("a", run, Part, lambda part: part.name == "y") is PART
    assert len(runs) == 2
    assert folder.once("a", run, Part, lambda part: part.name == "x") is PART
    folder.once("a", never, Part)


def test_the_same_run_resumes(folder):
    folder.once("a", lambda: PART, Part)
    before = files(folder.path)
    folder.claim(RUN, OTHER)
    assert files(folder.path) == before


def test_another_run_is_refused_and_the_folder_left_alone(folder):
    folder.once("a", lambda: PART, Part)
    before = files(folder.path)
    with pytest.raises(ValueError, match=r"out holds a run with other settings; name another folder, or remove it"):
        folder.claim({"settings": {"n": 65}}, OTHER)
    assert files(folder.path) == before


@pytest.mark.parametrize("name", ["parts/a.json", "precious.txt"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ValueError, match="holds files of something else; name another folder"):
        ResultsFolder(tmp_path / "out", "run.json", "parts").claim(RUN, OTHER)
    assert files(tmp_path) == {f"out/{name}": b"mine"}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is no folder"):
        ResultsFolder(tmp_path / "out", "run.json", "parts").claim(RUN, OTHER)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    ResultsFolder(tmp_path, "run.json", "parts").claim(RUN, OTHER)
    assert list(files(tmp_path)) == ["run.json"]


def test_what_cannot_be_written_is_not_there_afterwards_and_the_run_can_start_again(tmp_path, monkeypatch):
    folder = ResultsFolder(tmp_path / "out", "run.json", "parts")

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            folder.claim(RUN, OTHER)
    assert files(tmp_path) == {}
    folder.claim(RUN, OTHER)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        folder.once("a", lambda: PART, Part)
    assert list(files(folder.path)) == ["run.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON"),
        (b'{"name": "x", "deta', "Invalid JSON"),
        (b'{"name": "x", "details": [{"bound": "wide"}], "by_count": {}}', "details.0.bound: .*number"),
        (b'{"name": "x", "details": []}', "by_count: "),
        (b"\xff", "Invalid JSON"),
    ],
    ids=["empty", "cut", "wrong", "lacking", "binary"],
)
def test_an_unreadable_part_is_named_with_the_remedy(folder, content, reason):
    folder.file("a").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json holds no finished result \({reason}.*\); remove it and run again"):
        folder.once("a", never, Part)
    assert folder.file("a").read_bytes() == content


def test_workers_can_have_it(folder):
    assert pickle.loads(pickle.dumps(folder)) == folder
