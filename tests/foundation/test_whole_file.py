"""A file is written whole or not at all, under its name, whatever else is in the folder and whoever else writes."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hyperattention_ref import Plan
from hyperattention_ref.foundation.whole_file import whole_file, write_whole

from .write_files import KINDS, write_maps


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_complete_before_it_has_its_name(tmp_path, monkeypatch):
    sizes, replace = [], os.replace

    def watched(source, target):
        sizes.append((os.path.getsize(source), os.path.exists(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_whole(tmp_path / "file", b"content")
    assert sizes == [(7, False)]
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError("odd")])
def test_an_error_in_the_block_leaves_the_old_file_and_no_other(tmp_path, error):
    def fail():
        with whole_file(tmp_path / "file") as file:
            file.write(b"new")
            raise error

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_files_that_look_like_ours_are_left_alone(tmp_path):
    for name in ("x.npz.partial", ".x.npz.partial", f".x.npz.{os.getpid()}.partial"):
        (tmp_path / name).write_text("mine")
    Plan.from_views([], shape=(2, 2), exact_keys=[0]).save(tmp_path / "x.npz")
    write_maps(tmp_path / "x.npz")
    assert len(names(tmp_path)) == 4
    assert all(path.read_text() == "mine" for path in tmp_path.glob("*.partial"))


def test_a_new_file_has_the_permissions_of_any_new_file_and_a_replaced_one_keeps_its_own(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    (tmp_path / "file").chmod(0o604)
    write_whole(tmp_path / "file", b"2")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o604


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link_to_the_file_that_is_replaced(tmp_path, exists):
    (tmp_path / "there").mkdir()
    if exists:
        (tmp_path / "there" / "file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    assert names(tmp_path / "there") == ["file"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere/x.npz", "No such file or directory"),
        ("folder", "is a folder"),
        ("loop", "symbolic links"),
        ("pipe", "no regular file"),
        ("file/x.npz", "Not a directory"),
        ("x" * 300, "name too long"),
    ],
)
def test_an_error_names_the_target_as_it_was_written(tmp_path, monkeypatch, target, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    with pytest.raises(OSError, match=reason) as caught:
        write_whole(target, b"x")
    assert caught.value.filename == target
    assert names(tmp_path) == before


def test_a_place_where_nothing_can_be_written_is_named_by_the_target():
    with pytest.raises(OSError, match=r"x\.npz") as caught:
        write_whole("/proc/x.npz", b"x")
    assert caught.value.filename == "/proc/x.npz"


def run(name, path, *, times=1, largest=-1):
    program = Path(__file__).with_name("write_files.py")
    arguments = [sys.executable, str(program), name, str(path), str(times), str(largest)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_is_an_error_that_names_the_target_and_leaves_nothing(tmp_path, name):
    """A limit on the size of files stands for the disk: a write fails with an error that names no file."""
    output, _ = run(name, tmp_path / name, largest=20000).communicate(timeout=60)
    assert output == f"{errno.EFBIG}\n{tmp_path / name / 'record.json' if name == 'results' else tmp_path / name}\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_processes_that_write_one_file_at_once_all_succeed_and_leave_one_whole_file(tmp_path):
    for name, (_, read) in KINDS.items():
        processes = [run(name, tmp_path / name, times=20) for _ in range(2)]
        assert [process.communicate(timeout=60)[0] for process in processes] == ["", ""]
        read(tmp_path / name)
    assert names(tmp_path) == sorted(KINDS)
