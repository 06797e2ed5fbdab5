"""Layers and plain arrays for tests of map files, and how to write and compare them."""

import numpy as np
import pytest

from hyperattention_ref.maps.attention_map import LayerMaps
from hyperattention_ref.maps.map_file import MapWriter

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
    """Plain arrays, written by another library."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("safetensors", reason="safetensors is not installed, so no file can be written with it")
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


def replace(maps, **changes):
    return LayerMaps(**{**{name: getattr(maps, name) for name in LayerMaps.__dataclass_fields__}, **changes})


GOOD = {"query": np.ones((2, 5, 3)), "key": np.ones((2, 5, 3)), "value": np.ones((2, 5, 3))}
