"""Attention maps in files: query, key and value of many heads, written completely or not at all, read head by head.

Two file formats, told apart by their suffix, hold the same arrays: `.npz`, NumPy's own, and `.safetensors`. Both store
the arrays uncompressed one after another, so one head is a slice of the file and can be read without the rest.

A captured file has, for layer i, `layer.{i}.query` (heads, n, d), `layer.{i}.key` (key heads, n, d), `layer.{i}.value`
(key heads, n, d_v), and a text `hyperattention_maps` in JSON: `format`, `model`, `source`, and for every layer its
number, the model's numbers of the stored heads, the row of `key` and `value` that each of them uses, `scale` and
`is_causal`.
Other files have `query`, `key` and `value` of shape (heads, n, d) or (n, d) and, optionally, `layer`, `head`, `scale`
and `is_causal`, one for each head or one for all.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import HOST
from hyperattention_ref.foundation.whole_file import whole_file
from hyperattention_ref.maps.array_files import layout
from hyperattention_ref.maps.attention_map import AttentionMap, LayerMaps

FORMAT = 1
PARTS = ("query", "key", "value")
REQUIREMENT = "it must hold `query`, `key` and `value` of shape (heads, n, d) or (n, d), or be written by `capture`"
PARSE_ERRORS = (KeyError, AttributeError, zipfile.BadZipFile, struct.error, UnicodeDecodeError, json.JSONDecodeError)
"""What parsing raises for a damaged file or a file of another kind."""


class MapWriter:
    """Write captured layers to a file, one at a time, within a `with` block.

    Derived: the format is defined here. The file appears, or replaces an older one, when the block ends without an
    error, and not otherwise. Memory: only the metadata is kept.

    Parameters
    ----------
    path : ends in `.npz` or `.safetensors`.
    model : the model's name.
    source : the text's origin.

    Raises
    ------
    ValueError
        for another suffix, a layer added twice, a shape or number that does not fit, or no layer at all.
    """

    def __init__(self, path, *, model: str = "", source: str = "") -> None:
        self._path = Path(path)
        self._new_archive, _ = layout(self._path)
        self._metadata: dict[str, Any] = {"format": FORMAT, "model": str(model), "source": str(source), "layers": []}

    def __enter__(self) -> MapWriter:
        with ExitStack() as stack:
            self._archive = self._new_archive(stack.enter_context(whole_file(self._path)))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def add(self, maps: LayerMaps) -> None:
        """Append one layer."""
        label = f"layer {maps.layer}"
        if any(layer["layer"] == maps.layer for layer in self._metadata["layers"]):
            raise ValueError(f"{label} is in {self._path} already; every layer is written once")
        arrays = {part: np.asarray(getattr(maps, part)) for part in PARTS}
        _check_parts(label, {part: (x.dtype, x.shape) for part, x in arrays.items()}, maps.is_causal)
        record = {
            "layer": int(maps.layer),
            "heads": [int(head) for head in maps.heads],
            "key_rows": [int(row) for row in maps.key_rows],
            "scale": inputs.finite("scale", maps.scale),
            "is_causal": bool(maps.is_causal),
        }
        _check_heads(label, record, arrays["query"].shape[0], arrays["key"].shape[0])
        for part, x in arrays.items():
            little_endian = np.ascontiguousarray(inputs.floating(part, x), dtype=x.dtype.newbyteorder("<"))
            self._archive.put(f"layer.{maps.layer}.{part}", little_endian)
        self._metadata["layers"].append(record)

    def __exit__(self, kind, error, trace) -> None:
        self._stack.__exit__(kind, error, trace)

    def _finish(self, kind, error, trace) -> None:
        """Close the archive; after an error, which removes the file, nothing that this finds is news."""
        with suppress(Exception) if error else nullcontext():
            self._archive.finish(json.dumps(self._metadata))
        if not (error or self._metadata["layers"]):
            raise ValueError(f"no layer was written to {self._path}; add at least one")


class MapFile(AbstractContextManager):
    """The heads in a file, read one at a time; a context manager that holds the file open.

    Derived: the format is defined here. Opening reads the table of contents; `head` reads one head through a memory map
    and returns copies. Iterating yields every AttentionMap, by layer and head.

    Parameters
    ----------
    path : a `.npz` file, not compressed, or a `.safetensors` file, that MapWriter or `capture` wrote or that holds
        plain arrays `query`, `key` and `value`.

    Attributes
    ----------
    path, model, source : origin of the maps.
    layers : numbers of the layers, ascending.

    Raises
    ------
    ValueError
        for another kind of file, missing arrays, shapes that do not fit, and non-finite entries of the requested head.
    """

    def __init__(self, path) -> None:
        self.path = Path(path)
        _, contents = layout(self.path)
        with ExitStack() as stack:
            self._file = stack.enter_context(open(self.path, "rb"))
            try:
                self._entries, text = contents(self._file, self.path)
                metadata = {} if text is None else json.loads(text)
                self.model, self.source = metadata.get("model", ""), metadata.get("source", "")
                self._locations = self._captured(metadata) if metadata else self._plain()
            except PARSE_ERRORS as error:
                raise ValueError(f"{self.path} holds no attention maps ({error!r}); {REQUIREMENT}") from None
            self._stack = stack.pop_all()

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; heads already read remain valid."""
        self._stack.close()

    def __repr__(self) -> str:
        return f"MapFile({str(self.path)!r}, layers={len(self.layers)}, maps={len(self)})"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({layer for layer, _ in self._locations}))

    def heads(self, layer: int) -> tuple[int, ...]:
        """Numbers of the layer's heads in the file, ascending."""
        if layer not in self.layers:
            raise ValueError(f"layer {layer!r} is not in {self.path}; it holds the layers {list(self.layers)}")
        return tuple(sorted(head for number, head in self._locations if number == layer))

    def tokens(self, layer: int) -> int:
        """Number of the layer's queries n, known without reading the arrays."""
        location = self._locations[layer, self.heads(layer)[0]]
        return self._entries[location.names[0]].shape[-2]

    def head(self, layer: int, head: int) -> AttentionMap:
        """Read one head. Cost: n (2 d + d_v) numbers."""
        if head not in self.heads(layer):
            available = list(self.heads(layer))
            raise ValueError(f"head {head!r} of layer {layer} is not in {self.path}; it holds the heads {available}")
        location = self._locations[layer, head]
        query, key, value = (
            inputs.floating(f"{name} of L{layer}H{head} in {self.path.name}", self._read(name, row))
            for name, row in zip(location.names, (location.row, location.key_row, location.key_row), strict=True)
        )
        return AttentionMap(query, key, value, location.scale, location.is_causal, layer, head, self.model, self.source)

    def __iter__(self) -> Iterator[AttentionMap]:
        return (self.head(*key) for key in sorted(self._locations))

    def __len__(self) -> int:
        return len(self._locations)

    def _captured(self, metadata: dict) -> dict[tuple[int, int], _Location]:
        """The table of contents of a captured file."""
        if metadata["format"] != FORMAT:
            raise ValueError(f"{self.path} has format {metadata['format']}; this version reads format {FORMAT}")
        locations = {}
        for record in metadata["layers"]:
            label = f"layer {record['layer']} in {self.path}"
            names = tuple(f"layer.{record['layer']}.{part}" for part in PARTS)
            n_heads, n_keys = self._head_counts(label, names, record["is_causal"])
            _check_heads(label, record, n_heads, n_keys)
            for row, (head, key_row) in enumerate(zip(record["heads"], record["key_rows"], strict=True)):
                scale, is_causal = inputs.finite("scale", record["scale"]), record["is_causal"]
                locations[record["layer"], head] = _Location(names, row, key_row, scale, is_causal)
        return locations

    def _plain(self) -> dict[tuple[int, int], _Location]:
        """The table of contents of a file of plain arrays."""
        any_causal = "is_causal" in self._entries and np.any(self._read("is_causal"))
        n_heads, n_keys = self._head_counts(str(self.path), PARTS, any_causal)
        d = self._entries["query"].shape[-1]
        layer = self._per_head("layer", n_heads, 0)
        head = self._per_head("head", n_heads, np.arange(n_heads))
        scale = self._per_head("scale", n_heads, inputs.resolve_scale(None, d))
        is_causal = self._per_head("is_causal", n_heads, False)
        locations = {}
        for row in range(n_heads):
            key = int(layer[row]), int(head[row])
            if key in locations:
                raise ValueError(f"{self.path} holds L{key[0]}H{key[1]} twice; `layer` and `head` must name each once")
            key_row = row // (n_heads // n_keys)
            locations[key] = _Location(PARTS, row, key_row, inputs.finite("scale", scale[row]), bool(is_causal[row]))
        return locations

    def _per_head(self, name: str, n_heads: int, default) -> np.ndarray:
        """An optional array, one entry for each head."""
        x = self._read(name) if name in self._entries else np.asarray(default)
        if x.shape not in ((), (n_heads,)):
            raise ValueError(
                f"{name} in {self.path} has shape {x.shape}; it must be () or one for each of {n_heads} heads"
            )
        return np.broadcast_to(x, (n_heads,))

    def _head_counts(self, label: str, names: Sequence[str], is_causal) -> tuple[int, int]:
        """Numbers of query and key heads, after checking that the arrays exist and fit together."""
        missing = [name for name in names if name not in self._entries]
        if missing:
            raise ValueError(f"{label} lacks {', '.join(missing)}; {REQUIREMENT}")
        entries = [self._entries[name] for name in names]
        return _check_parts(label, {p: (e.dtype, e.shape) for p, e in zip(PARTS, entries, strict=True)}, is_causal)

    def _read(self, name: str, row: int | None = None) -> np.ndarray:
        """An array, or one head of it, copied from the memory map."""
        entry = self._entries[name]
        if isinstance(entry.dtype, str):
            raise ValueError(f"{name} in {self.path} has dtype {entry.dtype}, which cannot be read; convert it")
        if not entry.shape:
            self._file.seek(entry.offset)
            return np.frombuffer(self._file.read(entry.dtype.itemsize), entry.dtype)[0]
        mapped = np.memmap(self._file, entry.dtype, "r", entry.offset, entry.shape, entry.order)
        return np.array(mapped if row is None or mapped.ndim == 2 else mapped[row], order="C")


class _Location(NamedTuple):
    """Where one head is stored: the names of its three arrays and its rows in them."""

    names: tuple[str, ...]
    row: int
    key_row: int
    scale: float
    is_causal: bool


def _check_parts(label: str, parts: dict, is_causal) -> tuple[int, int]:
    """Numbers of query and key heads; refuse query, key and value whose types or shapes do not fit together."""
    for name, (dtype, shape) in parts.items():
        if getattr(dtype, "name", None) not in HOST.dtypes:
            raise TypeError(f"{name} of {label} has dtype {dtype}; it must be float16, float32 or float64: convert it")
        if len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(f"{name} of {label} has shape {shape}; it must be (heads, n, d) or (n, d), not empty")
    query, key, value = ((1, *shape)[-3:] for _, shape in parts.values())
    if not (key[:2] == value[:2] and query[2] == key[2] and query[0] % key[0] == 0):
        raise ValueError(
            f"{label} has query {query}, key {key} and value {value}; query and key need one d, key and value the same "
            "number of heads and of rows, and the query heads must be a multiple of the key heads"
        )
    if is_causal:
        inputs.causal_lengths(query[1], key[1])
    return query[0], key[0]


def _check_heads(label: str, record: dict, n_heads: int, n_keys: int) -> None:
    """Refuse numbers of heads that do not fit the arrays."""
    heads, rows = record["heads"], record["key_rows"]
    if len(set(heads)) != n_heads or len(heads) != n_heads or min(heads) < 0:
        raise ValueError(f"{label} has heads = {heads}; they must be {n_heads} different numbers, one for each query")
    if len(rows) != n_heads or not all(0 <= row < n_keys for row in rows):
        raise ValueError(f"{label} has key_rows = {rows}; they must be {n_heads} numbers from 0 to {n_keys - 1}")
