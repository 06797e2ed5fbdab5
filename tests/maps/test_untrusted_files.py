"""Files of maps from elsewhere: whatever is wrong with them is one line that names them, and takes no memory."""

import os
import random
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from hyperattention_ref.maps.attention_map import AttentionMap, LayerMaps
from hyperattention_ref.maps.map_file import MapFile, MapWriter

from .bad_files import CELL, LINK, ROWS, facts
from .map_examples import ending, layer_maps, replace, save, write


@pytest.mark.parametrize("what", ROWS)
def test_one_line_names_the_file_and_no_memory_is_taken(tmp_path, what):
    name, make, words = ROWS[what]
    path = tmp_path / name
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError, OSError)) as caught:
            MapFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.type in (ValueError, TypeError, FileNotFoundError, IsADirectoryError)
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert "\n" not in message
    assert len(message) < 1000
    assert peak < 4 * 2**20


def test_the_table_is_as_long_as_it_must_be():
    assert len(ROWS) >= 120


@pytest.mark.parametrize("count", [700, pytest.param(10000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["captured", "plain"])
@ending
def test_a_corrupted_file_gives_right_shaped_finite_arrays_or_is_refused(tmp_path, ending, kind, count):
    """A few bytes turned, cut out or put in at random, half of them where the headers are."""
    path = tmp_path / f"maps{ending}"
    if kind == "captured":
        write(path, layer_maps(n=3, heads=2, key_heads=1), model="m")
    else:
        save(path, **{part: np.ones((2, 3, 2), np.float32) for part in ("query", "key", "value")})
    good, rng, messages, read = path.read_bytes(), random.Random(7), [], 0
    # The header of a captured .safetensors file is mostly padding.
    headers = [i for i, byte in enumerate(good) if byte not in b" \0"] or [0]
    for _ in range(count):
        damaged = bytearray(good)
        for _ in range(rng.choice((1, 1, 3, 20))):
            place = min(rng.choice((rng.randrange(len(good)), rng.choice(headers))), len(damaged) - 1)
            damaged[place : place + rng.choice((1, 1, 1, 0, 2))] = rng.randbytes(rng.choice((1, 1, 1, 0, 2)))
        path.write_bytes(damaged[: rng.choice((None, None, None, rng.randrange(len(damaged))))])
        try:
            with MapFile(path) as maps:
                for x in maps:
                    assert x.query.shape[0] >= 1
                    assert x.key.shape[0] == x.value.shape[0]
                    assert x.query.shape[1] == x.key.shape[1]
                    assert all(np.isfinite(y).all() for y in (x.query, x.key, x.value, x.scale))
                read += 1
        except (ValueError, TypeError, OSError) as error:
            messages.append(str(error))
    assert all(str(path) in message and "\n" not in message for message in messages)
    assert min(len(messages), read) > count / 100


# What is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_causal": "False"}, "is_causal is 'False'; it must be True or False"),
        ({"is_causal": 0}, "is_causal is 0; it must be True or False"),
        ({"is_causal": np.nan}, "is_causal is nan; it must be True or False"),
        ({"is_causal": [False]}, r"is_causal is \[False\]; it must be True or False"),
        ({"layer": 2.5}, "layer is 2.5; it must be an integer"),
        ({"layer": "3"}, "layer is '3'; it must be an integer"),
        ({"layer": True}, "layer is True; it must be an integer"),
        ({"layer": -1}, "layer is -1; it must be between 0 and"),
        ({"layer": CELL}, "it must be an integer"),
        ({"layer": LINK}, "it must be an integer"),
        ({"scale": 10**400}, "scale is beyond the range of float64"),
        ({"scale": "1"}, "scale is '1'; it must be a real number"),
        ({"key_rows": (0.0, 0.0, 1.0, 1.0)}, "key_rows is 0.0; it must be an integer"),
        ({"heads": "0123"}, "heads is '0123'; it must be a list of integers"),
    ],
)
def test_a_layer_has_the_facts_that_files_may_have(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        replace(layer_maps(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": CELL}, "it must be an integer"),
        ({"head": "../x"}, "head is '../x'; it must be an integer"),
        ({"is_causal": "no"}, "is_causal is 'no'; it must be True or False"),
        ({"model": 3}, "model is 3; it must be a string"),
        ({"source": "\ud800"}, "replace the surrogates"),
    ],
)
def test_a_head_has_them_too(changes, message):
    x = np.ones((2, 2))
    good = {"query": x, "key": x, "value": x, "scale": 1.0, "is_causal": False, "layer": 0, "head": 0}
    with pytest.raises((TypeError, ValueError), match=message):
        AttentionMap(**{**good, "model": "", "source": "", **changes})


def test_facts_become_built_in_types():
    maps = replace(layer_maps(), layer=np.int16(2), heads=np.arange(4), scale=np.float32(0.5), is_causal=np.False_)
    assert (type(maps.layer), type(maps.scale), type(maps.is_causal)) == (int, float, bool)
    assert [type(head) for head in maps.heads] == [int] * 4


@ending
def test_an_error_while_writing_names_the_file(tmp_path, ending):
    path = tmp_path / f"maps{ending}"
    for error, names in ((TypeError, {"model": 3}), (ValueError, {"source": "\udcff"})):
        with pytest.raises(error, match="is not written") as caught:
            MapWriter(path, **names)
        assert str(path) in str(caught.value)
    for changes in ({"query": np.full((4, 5, 3), np.nan)}, {"heads": (0, 1, 2, 2)}, {"key_rows": (0, 0, 1, 2)}):
        with pytest.raises(ValueError, match="layer 0") as caught:
            write(path, replace(layer_maps(), **changes))
        assert str(path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@ending
def test_any_text_of_a_model_and_source_is_kept_as_it_is(tmp_path, ending):
    for text in (CELL, LINK, "\x1b[31mred", "two\nlines", "ñ 漢字 🎉", ""):
        with MapFile(write(tmp_path / f"maps{ending}", layer_maps(), model=text, source=text)) as maps:
            assert (maps.model, maps.source) == (text, text)
            assert "\x1b" not in repr(maps.head(0, 0))


def test_numbers_of_heads_may_be_large_but_not_absurd(tmp_path):
    assert facts(heads=[0, 2**31 - 1])
    expected = replace(layer_maps(), heads=(0, 1, 2, 2**31 - 1))
    with MapFile(write(tmp_path / "maps.npz", expected)) as maps:
        assert maps.heads(0)[-1] == 2**31 - 1
    with pytest.raises(ValueError, match="heads is 2147483648"):
        replace(layer_maps(), heads=(0, 1, 2, 2**31))


# Reading


@ending
def test_a_prefix_is_read_without_the_rest(tmp_path, ending):
    expected = layer_maps(n=100_000, d=16, d_v=8, heads=2, key_heads=1)
    path = write(tmp_path / f"maps{ending}", expected)
    tracemalloc.start()
    try:
        with MapFile(path) as maps:
            x = maps.head(0, 1, n=20)
            assert maps.nbytes(0, 1, n=20) == x.query.nbytes + x.key.nbytes + x.value.nbytes == 20 * (16 + 16 + 8) * 4
            assert maps.nbytes(0, 1) == 100_000 * (16 + 16 + 8) * 4
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert np.array_equal(x.query, expected.query[1, :20])
    assert np.array_equal(x.value, expected.value[0, :20])


def test_a_prefix_that_there_is_not_is_refused(tmp_path):
    path = save(tmp_path / "own.npz", query=np.ones((5, 3)), key=np.ones((7, 3)), value=np.ones((7, 3)))
    with MapFile(path) as maps:
        for n, error, message in (
            (6, ValueError, "n is 6 and L0H0 has 5 tokens"),
            (3, ValueError, "5 queries and 7 keys"),
            (0, ValueError, "n is 0"),
            (2.5, TypeError, "n is 2.5"),
        ):
            with pytest.raises(error, match=message) as caught:
                maps.head(0, 0, n=n)
            assert str(path) in str(caught.value)


def test_foreign_byte_orders_are_read_as_what_they_mean(tmp_path):
    arrays = {part: np.arange(6.0).reshape(2, 3).astype(">f4") for part in ("query", "key", "value")}
    with MapFile(save(tmp_path / "own.npz", **arrays)) as maps:
        query = maps.head(0, 0).query
    assert query.dtype == np.dtype("=f4")
    assert query.dtype.isnative
    assert np.array_equal(query, np.arange(6.0).reshape(2, 3))


def test_a_file_that_shrinks_while_it_is_open_is_an_error_that_names_it(tmp_path):
    path = save(tmp_path / "own.npz", **{part: np.ones((2, 4000, 3)) for part in ("query", "key", "value")})
    with MapFile(path) as maps:
        with open(path, "r+b") as file:
            file.truncate(100)
        with pytest.raises(ValueError, match="mmap length is greater than file size") as caught:
            maps.head(0, 1)
    assert str(path) in str(caught.value)


def test_safetensors_files_need_their_package_and_say_so(tmp_path, monkeypatch):
    path = write(tmp_path / "maps.safetensors", layer_maps())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"package safetensors.*pip install safetensors"):
        MapFile(path)


def test_every_npz_that_numpy_writes_is_read(tmp_path):
    """Other versions of the header, a prefix of other bytes, and zip files in the 64-bit form."""
    x = np.ones((2, 4, 3), np.float32)
    path = tmp_path / "own.npz"
    for version in ((1, 0), (2, 0), (3, 0)):
        with zipfile.ZipFile(path, "w") as archive:
            for part in ("query", "key", "value"):
                with archive.open(f"{part}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, x, version=version)
        for prefix in (b"", b"#!/bin/sh\n"):
            path.write_bytes(prefix + path.read_bytes())
            with MapFile(path) as maps:
                assert np.array_equal(maps.head(0, 1).query, x[1])


def test_a_layer_maps_object_cannot_be_made_with_text(tmp_path):
    x = np.ones((1, 2, 2))
    with pytest.raises(TypeError, match="is_causal is 'False'"):
        LayerMaps(0, (0,), x, x, x, (0,), 1.0, "False")


@ending
def test_a_layer_of_one_head_without_a_head_axis_is_written_and_read(tmp_path, ending):
    x = np.arange(6.0).reshape(2, 3)
    with MapFile(write(tmp_path / f"maps{ending}", LayerMaps(3, (5,), x, x, x, (0,), 1.0, True))) as maps:
        assert np.array_equal(maps.head(3, 5).query, x)
        assert np.array_equal(maps.head(3, 5, n=1).query, x[:1])


@ending
def test_a_file_name_that_is_no_utf8_can_be_written_and_read(tmp_path, ending):
    path = write(tmp_path / os.fsdecode(b"\xff" + ending.encode()), layer_maps())
    with MapFile(path) as maps:
        assert len(maps) == 4
