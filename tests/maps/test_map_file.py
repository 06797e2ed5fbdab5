"""What was written is read back, head by head; a file that is wrong is refused with one clear error."""

import json
import tracemalloc
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattention_ref.maps import array_files
from hyperattention_ref.maps.map_file import LayerMaps, MapFile, MapWriter
from hyperattention_ref.maps.sample_heads import load_sample_heads

ENDINGS = [".npz", ".safetensors"]
ending = pytest.mark.parametrize("ending", ENDINGS)


def layer_maps(layer=0, n=5, d=3, d_v=3, heads=4, key_heads=2, dtype=np.float32, is_causal=False, seed=0):
    rng = np.random.default_rng([seed, layer])
    query, key, value = (
        rng.standard_normal(shape).astype(dtype) for shape in ((heads, n, d), (key_heads, n, d), (key_heads, n, d_v))
    )
    rows = tuple(head // (heads // key_heads) for head in range(heads))
    return LayerMaps(layer, tuple(range(heads)), query, key, value, rows, 0.25, is_causal)


def write(path, *layers, **names):
    with MapWriter(path, **names) as writer:
        for layer in layers:
            writer.add(layer)
    return path


def save(path, **arrays):
    """Arrays of somebody's own, by somebody else's program."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("safetensors", reason="safetensors is not installed, so no file of its making can be read")
        from safetensors.numpy import save_file

        save_file({name: np.atleast_1d(x) if name == "scale" else np.asarray(x) for name, x in arrays.items()}, path)
    return path


def same(attention, maps):
    """Whether an AttentionMap is that head of a LayerMaps, bit for bit."""
    i = maps.heads.index(attention.head)
    expected = maps.query[i], maps.key[maps.key_rows[i]], maps.value[maps.key_rows[i]]
    return all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip((attention.query, attention.key, attention.value), expected, strict=True)
    )


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
    made = {
        layer: layer_maps(layer, n, d, d_v, group * key_heads, key_heads, dtype, is_causal) for layer in sorted(layers)
    }
    path = tmp_path_factory.mktemp("maps") / f"maps{ending}"
    write(path, *reversed(made.values()), model="a model", source="ein Text, ñ")
    with MapFile(path) as maps:
        assert (maps.model, maps.source) == ("a model", "ein Text, ñ")
        assert maps.layers == tuple(made)
        assert len(maps) == len(made) * group * key_heads
        read = list(maps)
        assert [(x.layer, x.head) for x in read] == [(i, h) for i in made for h in range(group * key_heads)]
        for x in read:
            assert same(x, made[x.layer])
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
    made = layer_maps(heads=2, key_heads=2)
    odd = LayerMaps(0, (0, 1), made.query[:, ::-1], made.key.astype(">f4"), made.value, (0, 1), 1.0, False)
    with MapFile(write(tmp_path / f"maps{ending}", odd)) as maps:
        assert np.array_equal(maps.head(0, 1).query, made.query[1, ::-1])
        assert np.array_equal(maps.head(0, 1).key, made.key[1])


@ending
def test_one_head_is_read_without_the_rest(tmp_path, ending):
    made = layer_maps(n=4096, d=64, d_v=64, heads=8, key_heads=8)
    path = write(tmp_path / f"maps{ending}", made)
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


def test_numpy_reads_what_is_written(tmp_path):
    made = layer_maps(3)
    with np.load(write(tmp_path / "maps.npz", made, model="m"), allow_pickle=False) as archive:
        assert np.array_equal(archive["layer.3.key"], made.key)
        assert json.loads(str(archive["hyperattention_maps"]))["model"] == "m"


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed, so nothing to agree with")
    made = layer_maps(3)
    with safetensors.safe_open(write(tmp_path / "maps.safetensors", made, model="m"), "numpy") as file:
        assert np.array_equal(file.get_tensor("layer.3.key"), made.key)
        assert json.loads(file.metadata()["hyperattention_maps"])["model"] == "m"


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
    made = layer_maps(d=4, heads=6, key_heads=2, d_v=2)
    with MapFile(save(tmp_path / f"own{ending}", query=made.query, key=made.key, value=made.value)) as maps:
        assert (maps.layers, maps.heads(0), maps.model, maps.source) == ((0,), tuple(range(6)), "", "")
        for x in maps:
            assert same(x, made)
            assert (x.scale, x.is_causal) == (0.5, False)


@ending
def test_a_single_head_needs_no_head_axis(tmp_path, ending):
    made = layer_maps(heads=1, key_heads=1)
    path = save(tmp_path / f"own{ending}", query=made.query[0], key=made.key[0], value=made.value[0], scale=2.0)
    with MapFile(path) as maps:
        assert same(maps.head(0, 0), made)
        assert maps.head(0, 0).scale == 2.0
        assert maps.tokens(0) == 5


def test_plain_arrays_may_name_place_scale_and_causality_of_each_head(tmp_path):
    made = layer_maps(heads=3, key_heads=3)
    path = save(
        tmp_path / "own.npz",
        query=made.query, key=made.key, value=made.value,
        layer=[4, 2, 4], head=[1, 1, 0], scale=[1.0, 2.0, 3.0], is_causal=[True, False, False],
    )  # fmt: skip
    with MapFile(path) as maps:
        assert (maps.layers, maps.heads(4), maps.heads(2)) == ((2, 4), (0, 1), (1,))
        assert [(x.name, x.scale, x.is_causal) for x in maps] == [
            ("L2H1", 2.0, False), ("L4H0", 3.0, False), ("L4H1", 1.0, True),
        ]  # fmt: skip
        assert np.array_equal(maps.head(4, 0).query, made.query[2])


def test_column_major_arrays_are_read_as_what_they_mean(tmp_path):
    made = layer_maps(n=4, heads=2, key_heads=2)
    path = save(tmp_path / "own.npz", query=np.asfortranarray(made.query), key=made.key, value=made.value)
    with MapFile(path) as maps:
        assert all(same(x, made) for x in maps)


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


def replace(maps, **changes):
    return LayerMaps(**{**{name: getattr(maps, name) for name in LayerMaps.__dataclass_fields__}, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": np.ones((4, 5, 3), int)}, "query of layer 0 has dtype int64"),
        ({"query": np.full((4, 5, 3), np.nan)}, "query has non-finite entries"),
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


def test_a_safetensors_header_has_room_for_700_layers(tmp_path):
    small = layer_maps(n=1, d=1, d_v=1, heads=1, key_heads=1)
    path = write(tmp_path / "maps.safetensors", *(replace(small, layer=layer) for layer in range(700)))
    with MapFile(path) as maps:
        assert len(maps) == 700
    with pytest.raises(ValueError, match=r"too many layers .* write \.npz"):
        write(tmp_path / "more.safetensors", *(replace(small, layer=layer) for layer in range(1000)))
    assert list(tmp_path.iterdir()) == [path]


GOOD = {"query": np.ones((2, 5, 3)), "key": np.ones((2, 5, 3)), "value": np.ones((2, 5, 3))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": None}, "lacks key; it must hold"),
        ({"query": np.ones((2, 2, 5, 3))}, r"has shape \(2, 2, 5, 3\)"),
        ({"query": np.ones((2, 0, 3))}, "not empty"),
        ({"query": np.ones((2, 5, 3), complex)}, "dtype complex128"),
        ({"key": np.ones((2, 5, 4))}, "query and key need one d"),
        ({"layer": [0, 0], "head": [1, 1]}, "holds L0H1 twice"),
        ({"scale": [1.0, 2.0, 3.0]}, r"scale in .* has shape \(3,\)"),
        ({"scale": np.nan}, "scale is nan"),
        ({"query": np.ones((2, 6, 3)), "is_causal": True}, "is_causal with 6 queries and 5 keys"),
        ({"layer": np.array([0, None])}, "layer in .* has dtype object"),
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
        with pytest.raises(ValueError, match=r"query of L0H1 in own\.npz has non-finite entries"):
            maps.head(0, 1)


def test_bfloat16_is_refused_by_name(tmp_path):
    header = json.dumps({"query": {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]}, **{
        part: {"dtype": "F32", "shape": [1, 1], "data_offsets": [2, 6]} for part in ("key", "value")
    }}).encode()  # fmt: skip
    (tmp_path / "own.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
    with pytest.raises(TypeError, match=r"query of .* has dtype BF16"):
        MapFile(tmp_path / "own.safetensors")


def test_a_layer_or_head_out_of_range_is_refused(tmp_path):
    with MapFile(write(tmp_path / "maps.npz", layer_maps(1), layer_maps(3))) as maps:
        with pytest.raises(ValueError, match=r"layer 2 is not in .* it holds the layers \[1, 3\]"):
            maps.head(2, 0)
        with pytest.raises(ValueError, match=r"head 4 of layer 3 is not in .* \[0, 1, 2, 3\]"):
            maps.head(3, 4)


def test_unknown_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        MapFile(tmp_path / "nowhere.npz")
    for opener in (MapFile, MapWriter):
        with pytest.raises(ValueError, match=r"ends in '\.pt'; the name must end in \.npz or \.safetensors"):
            opener(tmp_path / "maps.pt")
    np.savez_compressed(tmp_path / "small.npz", **GOOD)
    with pytest.raises(ValueError, match=r"is compressed.*np\.savez"):
        MapFile(tmp_path / "small.npz")


@ending
def test_a_file_that_is_something_else_or_cut_short_is_refused(tmp_path, ending):
    path = tmp_path / f"maps{ending}"
    for content in (b"", b"something else altogether", (5).to_bytes(8, "little") + b"[1,2]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"holds no attention maps|is no safetensors file"):
            MapFile(path)
    whole = write(path, layer_maps()).read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"holds no attention maps|is cut short"):
        MapFile(path)


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperattention_ref.maps.map_file.FORMAT", 2)
    path = write(tmp_path / "maps.npz", layer_maps())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 2; this version reads format 1"):
        MapFile(path)


def test_every_layout_is_tested():
    assert list(array_files.LAYOUTS) == ENDINGS
