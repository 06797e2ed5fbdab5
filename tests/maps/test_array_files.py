"""The layouts .npz and .safetensors: NumPy and safetensors read them; other and damaged files are refused."""

import json

import numpy as np
import pytest

from hyperattention_ref.maps import array_files
from hyperattention_ref.maps.map_file import MapFile, MapWriter

from .map_examples import ENDINGS, GOOD, ending, layer_maps, replace, write


def test_numpy_reads_what_is_written(tmp_path):
    expected = layer_maps(3)
    with np.load(write(tmp_path / "maps.npz", expected, model="m"), allow_pickle=False) as archive:
        assert np.array_equal(archive["layer.3.key"], expected.key)
        assert json.loads(str(archive["hyperattention_maps"]))["model"] == "m"


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed, so nothing to agree with")
    expected = layer_maps(3)
    with safetensors.safe_open(write(tmp_path / "maps.safetensors", expected, model="m"), "numpy") as file:
        assert np.array_equal(file.get_tensor("layer.3.key"), expected.key)
        assert json.loads(file.metadata()["hyperattention_maps"])["model"] == "m"


def test_a_safetensors_header_has_room_for_700_layers(tmp_path):
    small = layer_maps(n=1, d=1, d_v=1, heads=1, key_heads=1)
    path = write(tmp_path / "maps.safetensors", *(replace(small, layer=layer) for layer in range(700)))
    with MapFile(path) as maps:
        assert len(maps) == 700
    with pytest.raises(ValueError, match=r"too many layers .* write \.npz"):
        write(tmp_path / "more.safetensors", *(replace(small, layer=layer) for layer in range(1000)))
    assert list(tmp_path.iterdir()) == [path]


def test_bfloat16_is_refused_by_name(tmp_path):
    header = json.dumps({"query": {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]}, **{
        part: {"dtype": "F32", "shape": [1, 1], "data_offsets": [start, start + 4]}
        for part, start in (("key", 2), ("value", 6))
    }}).encode()  # fmt: skip
    (tmp_path / "own.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(10))
    with pytest.raises(TypeError, match=r"query of .* has dtype BF16"):
        MapFile(tmp_path / "own.safetensors")


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


def test_every_layout_is_tested():
    assert list(array_files.LAYOUTS) == ENDINGS
