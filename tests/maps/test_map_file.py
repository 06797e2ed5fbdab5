"""What was written is read back, head by head; a file that is wrong is refused with one clear error."""

import tracemalloc
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.maps.attention_map import LayerMaps
from hyperattention_ref.maps.map_file import MapFile, MapWriter
from hyperattention_ref.maps.sample_heads import load_sample_heads

from .map_examples import ENDINGS, GOOD, ending, layer_maps, replace, same, save, write


@given(
    ending=st.sampled_from(ENDINGS),
    n=st.integers(1, 9),
    d=st.integers(1, 5),
    d_v=st.integers(1, 5),
    group=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    layers=st.sets(st.integers(0, 40), min_size=1, max_size=3),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    is_causal=st.booleans(),
)
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path_factory, ending, n, d, d_v, group, key_heads, layers, dtype, is_causal
):
    expected = {
        layer: layer_maps(layer, n, d, d_v, group * key_heads, key_heads, dtype, is_causal) for layer in sorted(layers)
    }
    path = tmp_path_factory.mktemp("maps") / f"maps{ending}"
    write(path, *reversed(expected.values()), model="a model", source="ein Text, ñ")
    with MapFile(path) as maps:
        assert (maps.model, maps.source) == ("a model", "ein Text, ñ")
        assert maps.layers == tuple(expected)
        assert len(maps) == len(expected) * group * key_heads
        read = list(maps)
        assert [(x.layer, x.head) for x in read] == [(i, h) for i in expected for h in range(group * key_heads)]
        for x in read:
            assert same(x, expected[x.layer])
            assert (x.scale, x.is_causal, x.model, x.source) == (0.25, is_causal, maps.model, maps.source)
            assert maps.tokens(x.layer) == n


@ending
def test_chosen_heads_keep_their_numbers_and_their_key_heads(tmp_path, ending):
    full = layer_maps(heads=4, key_heads=2)
    part = LayerMaps(7, (9, 3), full.query[:2], full.key, full.value, (1, 0), 0.5, True)
    with MapFile(write(tmp_path / f"maps{ending}", part)) as maps:
        assert maps.heads(7) == (3, 9)
        assert maps.head(7, 3).name == "L7H3"
        assert same(maps.head(7, 9), part)
        assert same(maps.head(7, 3), part)


@ending
def test_views_and_foreign_byte_orders_are_written_as_what_they_mean(tmp_path, ending):
    expected = layer_maps(heads=2, key_heads=2)
    odd = LayerMaps(0, (0, 1), expected.query[:, ::-1], expected.key.astype(">f4"), expected.value, (0, 1), 1.0, False)
    with MapFile(write(tmp_path / f"maps{ending}", odd)) as maps:
        assert np.array_equal(maps.head(0, 1).query, expected.query[1, ::-1])
        assert np.array_equal(maps.head(0, 1).key, expected.key[1])


@ending
def test_a_mask_is_not_lost_on_the_way_to_a_file(tmp_path, ending):
    x = layer_maps(heads=2, key_heads=2)
    masked = LayerMaps(0, (0, 1), x.query, np.ma.array(x.key, mask=True), x.value, (0, 1), 1.0, False)
    with pytest.raises(TypeError, match="key of layer 0 is a masked array, whose mask would be lost"):
        write(tmp_path / f"maps{ending}", masked)
    assert list(tmp_path.iterdir()) == []


@ending
def test_one_head_is_read_without_the_rest(tmp_path, ending):
    expected = layer_maps(n=4096, d=64, d_v=64, heads=8, key_heads=8)
    path = write(tmp_path / f"maps{ending}", expected)
    one_head = 3 * 4096 * 64 * 4
    tracemalloc.start()
    try:
        with MapFile(path) as maps:
            maps.head(0, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * one_head


@ending
def test_a_head_outlives_its_file(tmp_path, ending):
    path = write(tmp_path / f"maps{ending}", layer_maps())
    with MapFile(path) as maps:
        head = maps.head(0, 0)
    path.unlink()
    assert same(head, layer_maps())
    assert head.query.flags.owndata
    assert head.query.flags.aligned


# Plain arrays


def test_the_shipped_heads_are_read_from_their_file():
    with MapFile(resources.files("hyperattention_ref") / "data" / "minilm_heads.npz") as maps:
        read = list(maps)
    shipped = load_sample_heads()
    assert [x.name for x in read] == [x.name for x in shipped]
    for x, y in zip(read, shipped, strict=True):
        assert (x.scale, x.is_causal) == (y.scale, y.is_causal)
        assert all(np.array_equal(getattr(x, part), getattr(y, part)) for part in ("query", "key", "value"))


@ending
def test_plain_arrays_get_everyday_defaults_and_shared_key_heads(tmp_path, ending):
    expected = layer_maps(d=4, heads=6, key_heads=2, d_v=2)
    with MapFile(save(tmp_path / f"own{ending}", query=expected.query, key=expected.key, value=expected.value)) as maps:
        assert (maps.layers, maps.heads(0), maps.model, maps.source) == ((0,), tuple(range(6)), "", "")
        for x in maps:
            assert same(x, expected)
            assert (x.scale, x.is_causal) == (0.5, False)


@ending
def test_a_single_head_needs_no_head_axis(tmp_path, ending):
    expected = layer_maps(heads=1, key_heads=1)
    arrays = {part: getattr(expected, part)[0] for part in ("query", "key", "value")}
    path = save(tmp_path / f"own{ending}", **arrays, scale=2.0)
    with MapFile(path) as maps:
        assert same(maps.head(0, 0), expected)
        assert maps.head(0, 0).scale == 2.0
        assert maps.tokens(0) == 5


def test_plain_arrays_may_name_place_scale_and_causality_of_each_head(tmp_path):
    expected = layer_maps(heads=3, key_heads=3)
    path = save(
        tmp_path / "own.npz",
        query=expected.query, key=expected.key, value=expected.value,
        layer=[4, 2, 4], head=[1, 1, 0], scale=[1.0, 2.0, 3.0], is_causal=[True, False, False],
    )  # fmt: skip
    with MapFile(path) as maps:
        assert (maps.layers, maps.heads(4), maps.heads(2)) == ((2, 4), (0, 1), (1,))
        assert [(x.name, x.scale, x.is_causal) for x in maps] == [
            ("L2H1", 2.0, False), ("L4H0", 3.0, False), ("L4H1", 1.0, True),
        ]  # fmt: skip
        assert np.array_equal(maps.head(4, 0).query, expected.query[2])


def test_column_major_arrays_are_read_as_what_they_mean(tmp_path):
    expected = layer_maps(n=4, heads=2, key_heads=2)
    path = save(tmp_path / "own.npz", query=np.asfortranarray(expected.query), key=expected.key, value=expected.value)
    with MapFile(path) as maps:
        assert all(same(x, expected) for x in maps)


# What is refused


@ending
def test_a_writer_that_fails_leaves_no_file_and_spares_the_old_one(tmp_path, ending):
    path = write(tmp_path / f"maps{ending}", layer_maps(1))
    before = path.read_bytes()
    with pytest.raises(TypeError, match="query of layer 3"):
        write(path, layer_maps(2), layer_maps(3, dtype=int))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="no layer was written"), MapWriter(tmp_path / f"empty{ending}"):
        pass
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": np.ones((4, 5, 3), int)}, "query of layer 0 has dtype int64"),
        ({"query": np.full((4, 5, 3), np.nan)}, "query of layer 0 has non-finite entries"),
        ({"query": np.ones((4, 5, 2))}, "query and key need one d"),
        ({"value": np.ones((2, 4, 3))}, "number of heads and of rows"),
        ({"query": np.ones((3, 5, 3)), "heads": (0, 1, 2)}, "a multiple of the key heads"),
        ({"query": np.ones((4, 6, 3)), "is_causal": True}, "is_causal with 6 queries and 5 keys"),
        ({"heads": (0, 1, 2)}, "must be 4 different numbers"),
        ({"heads": (0, 1, 2, 2)}, "must be 4 different numbers"),
        ({"key_rows": (0, 0, 1, 2)}, "must be 4 numbers from 0 to 1"),
        ({"scale": np.inf}, "scale is inf"),
    ],
)
def test_layers_that_do_not_fit_are_not_written(tmp_path, changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        write(tmp_path / "maps.npz", replace(layer_maps(), **changes))
    assert not list(tmp_path.iterdir())


def test_a_layer_is_written_once(tmp_path):
    with pytest.raises(ValueError, match=r"layer 2 is in .* already"):
        write(tmp_path / "maps.npz", layer_maps(2), layer_maps(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": None}, "lacks key; it must hold"),
        ({"query": np.ones((2, 2, 5, 3))}, r"has shape \(2, 2, 5, 3\)"),
        ({"query": np.ones((2, 0, 3))}, "not empty"),
        ({"query": np.ones((2, 5, 3), complex)}, "dtype complex128"),
        ({"key": np.ones((2, 5, 4))}, "query and key need one d"),
        ({"layer": [0, 0], "head": [1, 1]}, "holds L0H1 twice"),
        ({"scale": [1.0, 2.0, 3.0]}, r"scale has shape \(3,\)"),
        ({"scale": np.nan}, "scale is nan"),
        ({"query": np.ones((2, 6, 3)), "is_causal": True}, "is_causal with 6 queries and 5 keys"),
        ({"layer": np.array([0, None])}, "layer has dtype object"),
    ],
)
def test_plain_arrays_that_do_not_fit_are_refused(tmp_path, changes, message):
    arrays = {name: x for name, x in {**GOOD, **changes}.items() if x is not None}
    with pytest.raises((TypeError, ValueError), match=message):
        MapFile(save(tmp_path / "own.npz", **arrays))


def test_non_finite_entries_are_refused_when_their_head_is_read(tmp_path):
    query = np.ones((2, 5, 3))
    query[1, 2, 0] = np.nan
    with MapFile(save(tmp_path / "own.npz", **{**GOOD, "query": query})) as maps:
        maps.head(0, 0)
        with pytest.raises(ValueError, match=r"own\.npz cannot be read \(query of L0H1 has non-finite entries"):
            maps.head(0, 1)


def test_a_layer_or_head_out_of_range_is_refused(tmp_path):
    with MapFile(write(tmp_path / "maps.npz", layer_maps(1), layer_maps(3))) as maps:
        with pytest.raises(ValueError, match=r"layer 2 is not in .* it holds the layers \[1, 3\]"):
            maps.head(2, 0)
        with pytest.raises(ValueError, match=r"head 4 of layer 3 is not in .* \[0, 1, 2, 3\]"):
            maps.head(3, 4)


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperattention_ref.maps.metadata.FORMAT", 2)
    path = write(tmp_path / "maps.npz", layer_maps())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2; this version reads format 1"):
        MapFile(path)
