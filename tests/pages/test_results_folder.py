"""A results folder keeps the finished parts of one run, and of no other."""

import json
import math
import os
import pickle
import re
import shutil
from dataclasses import dataclass

import pytest

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.results_folder import ResultsFolder, _digest

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


def test_a_new_folder_holds_its_record(folder):
    assert files(folder.path) == {"run.json": json.dumps(RUN).encode()}


def test_a_part_is_run_once_and_read_as_it_was(folder):
    assert folder.once("a", lambda: PART, Part) is PART
    assert folder.once("a", never, Part) == PART == folder.read("a", Part)
    content = json.loads(folder.file("a").read_text())
    assert content.keys() == {"name", "record", "result", "sha256"}
    assert content["name"] == "a"
    assert content["result"] == PART.to_dict()


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
    with pytest.raises(ValueError, match=r"out holds a run with other settings: settings\.n is 64 there and 65"):
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
    ("content", "difference"),
    [
        ({"settings": {"n": 64, "seed": 0}}, "settings.seed is absent there and 0 here"),
        ({"settings": {}}, "settings.n is 64 there and absent here"),
        ({"settings": {"n": 64.0}}, "settings.n is 64 there and 64.0 here"),
        ({"settings": {"n": "x" * 500}}, f'settings.n is 64 there and "{"x" * 79} here'),
        ({"settings": 64, "file": "a"}, "settings is absent there and 64 here; file is absent there"),
    ],
)
def test_what_differs_is_named_with_both_values(folder, content, difference):
    with pytest.raises(ValueError, match=re.escape(difference)):
        folder.claim(content, OTHER)


def edited(change):
    """A file whose content is changed, under the old checksum."""

    def make(folder):
        content = json.loads(folder.file("a").read_text())
        change(content)
        folder.file("a").write_text(json.dumps(content))

    return make


def signed(change):
    """As `edited`, under a new checksum."""

    def make(folder):
        content = json.loads(folder.file("a").read_text())
        del content["sha256"]
        change(content)
        folder.file("a").write_text(json.dumps({**content, "sha256": _digest(content)}))

    return make


def raw(content):
    return lambda folder: folder.file("a").write_bytes(content)


def of_another_run(folder):
    """The finished part of a run with other settings."""
    other = ResultsFolder(folder.path.parent / "other", "run.json", "parts")
    other.claim({"settings": {"n": 65}}, OTHER)
    other.once("a", lambda: PART, Part)
    shutil.copy(other.file("a"), folder.file("a"))


def of_another_part(folder):
    folder.once("b", lambda: PART, Part)
    shutil.copy(folder.file("b"), folder.file("a"))


UNREADABLE = {
    "empty": (raw(b""), "no valid JSON"),
    "cut": (lambda folder: raw(folder.file("a").read_bytes()[:-20])(folder), "no valid JSON"),
    "an unterminated string": (raw(b'{"name": "x'), "no valid JSON (Unterminated string"),
    "binary": (raw(b"\xff"), "not in UTF-8"),
    "nested": (raw(b"[" * 100_000), "nested too deeply"),
    "nested objects": (raw(b'{"a":' * 100_000), "nested too deeply"),
    "long": (raw(b" " * 2**25), "has more than 16777216 bytes"),
    "{}": (raw(b"{}"), "has the entries (none); it must have exactly name, record, result, sha256"),
    "a list": (raw(b"[]"), "has []; it must have exactly"),
    "null": (raw(b"null"), "has None; it must have exactly"),
    "without an envelope": (raw(json.dumps(PART.to_dict()).encode()), "it must have exactly name, record"),
    "NaN": (raw(b'{"name": NaN}'), "NaN, which is no JSON"),
    "a key twice": (raw(b'{"name": "a", "name": "a"}'), "the key 'name' twice"),
    "an edited number": (edited(lambda x: x["result"]["by_count"].update({"0": 3.0})), "its checksum differs"),
    "1 for 1.0": (edited(lambda x: x["result"]["by_count"].update({"0": 2})), "its checksum differs"),
    "a missing number": (edited(lambda x: x["result"]["by_count"].pop("0")), "its checksum differs"),
    "an edited name": (edited(lambda x: x.update(name="b")), "its checksum differs"),
    "another checksum": (edited(lambda x: x.update(sha256="0" * 64)), "its checksum differs"),
    "a checksum of null": (edited(lambda x: x.update(sha256=None)), "its checksum differs"),
    "another part": (of_another_part, "it was written as 'b'"),
    "another run": (of_another_run, "another run than the one in run.json"),
    "a wrong type": (signed(lambda x: x["result"].update(details=[{"bound": "wide"}])), "details.0.bound: "),
    "a lacking field": (signed(lambda x: x["result"].pop("by_count")), "by_count: Field required"),
    "a folder": (lambda folder: folder.file("a").unlink() or folder.file("a").mkdir(), "Is a directory"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_part_is_named_with_the_remedy(folder, what):
    make, reason = UNREADABLE[what]
    folder.once("a", lambda: PART, Part)
    make(folder)
    with pytest.raises((ValueError, IsADirectoryError)) as caught:
        folder.once("a", never, Part)
    message = str(caught.value)
    assert str(folder.file("a")) in message
    assert reason in message
    assert "\n" not in message
    if what != "a folder":
        assert message.endswith("; remove it and run again")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"settings":' * 900 + b"1" + b"}" * 900, ""),
        (b"\xff", "not in UTF-8"),
        (b'{"settings": NaN}', "NaN, which is no JSON"),
        (b"[]", "settings.n is absent there and 64 here; all of it is [] there and absent here"),
        (b"{}", "settings.n is absent there and 64 here"),
        (b"null", "all of it is null there"),
    ],
    ids=range(9),
)
def test_a_damaged_record_is_refused_and_named(folder, content, reason):
    record = folder.path / "run.json"
    record.write_bytes(content)
    with pytest.raises(ValueError, match="name another folder, or remove it") as caught:
        folder.claim(RUN, OTHER)
    assert str(folder.path) in str(caught.value)
    assert reason in str(caught.value)
    assert record.read_bytes() == content


def test_what_a_killed_process_leaves_behind_is_no_obstacle(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.0123456789abcdef.partial").write_text("{")
    folder = ResultsFolder(tmp_path / "out", "run.json", "parts")
    folder.claim(RUN, OTHER)
    assert folder.once("a", lambda: PART, Part) is PART


def test_workers_can_have_it(folder):
    assert pickle.loads(pickle.dumps(folder)) == folder
