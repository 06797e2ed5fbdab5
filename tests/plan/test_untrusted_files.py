"""Plan files that are damaged or were made to mislead: one line that names the file, and no memory is taken."""

import copy
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref import Plan

from ..foundation.raw_files import npy, npz

HUGE = 2**40


@pytest.fixture
def saved(tmp_path):
    q, k = np.random.default_rng(0).standard_normal((2, 12, 4))
    path = tmp_path / "plan.npz"
    hr.make_plan(q, k, is_causal=True, block_size=2, sample_size=3, min_seq_len=4, rng=0).save(path)
    return path


def named(changes):
    """Replace arrays by others, add them, or remove them."""

    def make(path):
        content = Plan.load(path).to_arrays() | changes
        npz(path, {name: x for name, x in content.items() if x is not None})

    return make


def compressed(path):
    np.savez_compressed(path, **Plan.load(path).to_arrays())


def twice(path):
    members = [*Plan.load(path).to_arrays().items()]
    with pytest.warns(UserWarning, match="Duplicate name"):
        npz(path, [*members, members[0]])


def with_text(path):
    npz(path, Plan.load(path).to_arrays() | {"readme.txt": b"hello"})


def folder(path):
    path.unlink()
    path.mkdir()


def central_offset(value):
    """The table of contents puts the second member elsewhere."""

    def make(path):
        content = bytearray(path.read_bytes())
        start = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
        struct.pack_into("<I", content, start + 42, value)
        path.write_bytes(bytes(content))

    return make


INTS = np.array([0], np.int64)
ROWS = {
    "format 1": (named({"format": np.array(1)}), "format 1; this version reads format 2"),
    "format that is no integer": (named({"format": np.array(1.0)}), "format has dtype float64"),
    "format true": (named({"format": np.array(True)}), "format has dtype bool"),
    "no format": (named({"format": None}), "lacks format"),
    "views of -1": (named({"0/views": np.array([-1, 1, 1])}), "0/views goes down to -1"),
    "shape (-1, -1)": (named({"shape": np.array([-1, -1])}), "shape goes down to -1"),
    "shape (0,)": (named({"shape": np.array([0])}), "no part of it"),
    "shape of a million heads": (named({"shape": np.array([10**6])}), "lacks 1/places"),
    "shape beyond int64": (named({"shape": np.array([2**62, 2**62])}), "lacks 1/places"),
    "shape with two axes": (named({"shape": np.array([[1]])}), "shape has shape (1, 1)"),
    "shape that is text": (named({"shape": np.array(["1"])}), "shape has dtype <U1"),
    "lengths of -12": (named({"lengths": np.array([-12, -12])}), "lengths goes down to -12"),
    "lengths of 0": (named({"lengths": np.array([0, 0])}), "plan.npz"),
    "lengths of 12.5": (named({"lengths": np.array([12.5, 12])}), "lengths has dtype float64"),
    "one length": (named({"lengths": np.array([12])}), "lengths has shape (1,)"),
    "negative places": (named({"0/places": np.full((3, 4), -1)}), "0/places goes down to -1"),
    "places that end before they start": (named({"0/places": np.array([[9, 6, 0, 6]] * 3)}), "n_q is -3"),
    "too few places": (named({"0/places": np.array([[6, 12, 0, 6]])}), "0/views has 3 counts for 1 rectangles"),
    "leaves that are floats": (named({"0/leaves": np.array([[0.0, 12.0]])}), "0/leaves has dtype float64"),
    "leaves of three": (named({"0/leaves": np.array([[0, 6, 12]])}), "0/leaves has shape (1, 3)"),
    "a leaf twice": (named({"0/leaves": np.array([[0, 3]] * 2 + [[3, 6], [6, 9], [9, 12]])}), "twice"),
    "a missing array": (named({"0/0/0/key_order": None}), "lacks 0/0/0/key_order"),
    "an array too many": (named({"extra": INTS}), "'extra', which belongs to no part"),
    "a view too many": (named({"0/0/1/key_order": INTS}), "'0/0/1/key_order', which belongs to no part"),
    "orders that are floats": (named({"0/0/0/key_order": np.arange(6.0)}), "key_order has dtype float64"),
    "orders beyond int64": (
        named({"0/0/0/key_order": np.full(6, 2**64 - 1, np.uint64)}),
        "key_order is no permutation",
    ),
    "exact keys twice": (named({"0/0/exact_keys": np.array([0, 0])}), "exact_keys has repeated entries"),
    "weights that are text": (named({"0/0/log_weights": np.array(["0"] * 3)}), "log_weights has dtype <U1"),
    "weights that are complex": (named({"0/0/log_weights": np.zeros(3, complex)}), "log_weights has dtype complex128"),
    "weights that are NaN": (named({"0/0/log_weights": np.full(3, np.nan)}), "one finite number for each"),
    "pickled keys": (named({"0/0/exact_keys": npy(np.array([None]))}), "allow_pickle=False"),
    "a huge claim": (named({"0/0/exact_keys": npy(INTS, shape=(HUGE,))}), "claims the shape (1099511627776,)"),
    "a huge product": (named({"0/views": npy(INTS, shape=(2**31, 2**31, 4))}), "claims the shape"),
    "a negative claim": (named({"0/views": npy(INTS, shape=(-1, -1))}), "claims the shape (-1, -1)"),
    "a claim of less": (named({"0/views": npy(INTS, shape=(0,))}), "claims the shape (0,)"),
    "no header": (named({"0/views": b"hello"}), "plan.npz"),
    "a header of version 9": (named({"0/views": b"\x93NUMPY\x09\x00" + bytes(60)}), "version (9, 0)"),
    "a header that calls": (named({"0/views": npy(INTS, header="{'descr': open('x')}")}), "plan.npz"),
    "a nested header": (named({"0/views": npy(INTS, header="(" * 4000)}), "plan.npz"),
    "compressed": (compressed, "is compressed"),
    "a zip bomb": (lambda path: npz(path, {"format": b"\0" * 10**7}, zipfile.ZIP_DEFLATED), "format is compressed"),
    "an array twice": (twice, "format is there twice"),
    "a text file inside": (with_text, "readme.txt is no array"),
    "overlapping members": (central_offset(0), "overlaps another array"),
    "a member outside the file": (central_offset(2**31), "plan.npz"),
    "empty": (lambda path: path.write_bytes(b""), "not a zip file"),
    "only the end of a zip": (lambda path: npz(path, {}), "lacks format"),
    "a folder": (folder, "Is a directory"),
    "latin-1 text": (lambda path: path.write_bytes("Übersicht".encode("latin1")), "not a zip file"),
}


@pytest.mark.parametrize("what", ROWS)
def test_one_line_names_the_file(saved, what):
    make, words = ROWS[what]
    make(saved)
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        Plan.load(saved)
    message = str(caught.value)
    assert str(saved) in message
    assert words in message
    assert "\n" not in message
    assert caught.type in (ValueError, TypeError, IsADirectoryError)


@pytest.mark.parametrize("what", ["a huge claim", "a huge product", "a zip bomb", "shape of a million heads"])
def test_claims_take_no_memory(saved, what):
    ROWS[what][0](saved)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="plan"):
            Plan.load(saved)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [600, pytest.param(10000, marks=pytest.mark.slow)])
def test_a_corrupted_file_is_a_plan_or_refused(saved, count):
    """A few bytes turned, cut out or put in at random, mostly in headers."""
    good, rng = saved.read_bytes(), random.Random(0)
    messages = []
    for _ in range(count):
        damaged = bytearray(good)
        for _ in range(rng.choice((1, 1, 3, 20))):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.choice((1, 1, 1, 0, 2))] = rng.randbytes(rng.choice((1, 1, 1, 0, 2)))
        saved.write_bytes(damaged[: rng.choice((None, None, None, rng.randrange(len(damaged))))])
        try:
            plan = Plan.load(saved)
        except (ValueError, TypeError) as error:
            messages.append(str(error))
        else:
            assert (plan.n_q, plan.n_k) == (12, 12)
    assert len(messages) > count / 2
    assert all(str(saved) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize(
    "copied", [lambda plan: pickle.loads(pickle.dumps(plan)), copy.deepcopy], ids=["pickle", "deep"]
)
def test_a_copied_plan_is_as_immutable_as_the_one_it_came_from(saved, copied):
    plan = Plan.load(saved)
    plan.heads[0].rectangles[0].views[0].query_blocks()  # is kept in the view, and must not be a way in
    again = copied(plan)
    for name, x in again.to_arrays().items():
        if name.count("/") >= 2:
            assert not x.flags.writeable, name
    assert not again.heads[0].rectangles[0].views[0].query_blocks().flags.writeable
    assert all(np.array_equal(x, again.to_arrays()[name]) for name, x in plan.to_arrays().items())
    assert copy.copy(plan).heads is plan.heads
