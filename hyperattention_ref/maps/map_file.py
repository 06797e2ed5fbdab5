"""Attention maps in files: query, key and value of many heads, written completely or not at all, read head by head.

Two file formats, told apart by their suffix, hold the same arrays: `.npz`, NumPy's own, and `.safetensors`. Both store
the arrays uncompressed one after another, so one head is a slice of the file and can be read without the rest.

A captured file has, for layer i, `layer.{i}.query` (heads, n, d), `layer.{i}.key` (key heads, n, d), `layer.{i}.value`
(key heads, n, d_v), and a text `hyperattention_maps` in JSON: `format`, `model`, `source`, and for every layer its
number, the model's numbers of the stored heads, the row of `key` and `value` that each of them uses, `scale` and
`is_causal`.
Other files have `query`, `key` and `value` of shape (heads, n, d) or (n, d) and, optionally, `layer`, `head`, `scale`
and `is_causal`, one for each head or one for all. Whoever wrote a file, all of it is checked: see `metadata`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.host_arrays import host_array
from hyperattention_ref.foundation.memory import HOST
from hyperattention_ref.foundation.named_file import named_file
from hyperattention_ref.foundation.whole_file import whole_file
from hyperattention_ref.maps.array_files import layout
from hyperattention_ref.maps.attention_map import AttentionMap, LayerMaps
from hyperattention_ref.maps.metadata import FileFacts, LayerFacts

PARTS = ("query", "key", "value")
REQUIREMENT = "it must hold `query`, `key` and `value` of shape (heads, n, d) or (n, d), or be written by `capture`"
NO_MAPS, NOT_WRITTEN = "holds no attention maps", "is not written"
MOST_HEADS = 2**16
"""In a file of plain arrays; more are a mistake in its axes, and would take long to list."""
KINDS = {
    "is_causal": ("b", "bool"),
    "layer": ("iu", "an integer type"),
    "head": ("iu", "an integer type"),
    "scale": ("iuf", "a real type"),
}
"""Of the optional plain arrays: the kinds of their dtypes, and what these are called."""


class MapWriter:
    """Write captured layers to a file, one at a time, within a `with` block.

    Derived: the format is defined here. The file appears when the block ends without an error, and not otherwise. It
    replaces an older file of that name. Memory: only the metadata is kept.

    Parameters
    ----------
    path : ends in `.npz` or `.safetensors`.
    model : the model's name.
    source : the text's origin.

    Raises
    ------
    TypeError, ValueError
        for another suffix, a layer added twice, a shape or number that does not fit, or no layer at all.
    """

    def __init__(self, path, *, model: str = "", source: str = "") -> None:
        self._path = Path(path)
        self._new_archive, _ = layout(self._path)
        with named_file(self._path, NOT_WRITTEN):
            self._facts = FileFacts(model, source)

    def __enter__(self) -> MapWriter:
        with ExitStack() as stack:
            self._archive = self._new_archive(stack.enter_context(whole_file(self._path)))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def add(self, maps: LayerMaps) -> None:
        """Append one layer."""
        if any(layer.layer == maps.layer for layer in self._facts.layers):
            raise ValueError(f"layer {maps.layer} is in {self._path} already; every layer is written once")
        with named_file(self._path, NOT_WRITTEN):
            facts = LayerFacts(maps.layer, maps.heads, maps.key_rows, maps.scale, maps.is_causal)
            for part, x in checked_parts(maps).items():
                self._archive.put(f"layer.{facts.layer}.{part}", x)
        self._facts = replace(self._facts, layers=(*self._facts.layers, facts))

    def __exit__(self, kind, error, trace) -> None:
        self._stack.__exit__(kind, error, trace)

    def _finish(self, kind, error, trace) -> None:
        """Close the archive; after an error, which removes the file, nothing that this finds is news."""
        with suppress(Exception) if error else named_file(self._path, NOT_WRITTEN):
            self._archive.finish(self._facts.to_text())
        if not (error or self._facts.layers):
            raise ValueError(f"no layer was written to {self._path}; add at least one")


class MapFile(AbstractContextManager):
    """The heads in a file, read one at a time; a context manager that holds the file open.

    Derived: the format is defined here. Opening reads the table of contents and checks it against the size of the file;
    `head` reads one head and returns copies. Iterating yields every AttentionMap, by layer and head.

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
    TypeError, ValueError
        for another kind of file, one that is damaged or contradicts itself, missing arrays, shapes or types that do not
        fit, and non-finite entries of the requested head. The message names the file.
    ImportError
        for a `.safetensors` file without the package safetensors.
    """

    def __init__(self, path) -> None:
        self.path = Path(path)
        _, open_archive = layout(self.path)
        with ExitStack() as stack:
            with named_file(self.path, NO_MAPS, REQUIREMENT):
                self._archive = stack.enter_context(open_archive(self.path))
                text = self._archive.read_text()
            with named_file(self.path, NO_MAPS):
                facts = FileFacts("", "") if text is None else FileFacts.from_text(text)
                self.model, self.source = facts.model, facts.source
                self._locations = self._plain() if text is None else self._captured(facts)
            self._stack = stack.pop_all()
        self._heads: dict[int, list[int]] = {}
        for layer, head in sorted(self._locations):
            self._heads.setdefault(layer, []).append(head)

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; heads already read remain valid."""
        self._stack.close()

    def __repr__(self) -> str:
        return f"MapFile({str(self.path)!r}, layers={len(self.layers)}, maps={len(self)})"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self._heads)

    def heads(self, layer: int) -> tuple[int, ...]:
        """Numbers of the layer's heads in the file, ascending."""
        if layer not in self._heads:
            raise ValueError(f"layer {layer!r} is not in {self.path}; it holds the layers {list(self.layers)!s:.300}")
        return tuple(self._heads[layer])

    def tokens(self, layer: int) -> int:
        """Number of the layer's queries n, known without reading the arrays."""
        location = self._locations[layer, self.heads(layer)[0]]
        return self._archive.members[location.names[0]].shape[-2]

    def nbytes(self, layer: int, head: int, n: int | None = None) -> int:
        """Bytes of the arrays that `head` returns, known without reading them."""
        members = [self._archive.members[name] for name in self._location(layer, head, n).names]
        return sum(x.dtype.itemsize * (n or x.shape[-2]) * x.shape[-1] for x in members)

    def head(self, layer: int, head: int, n: int | None = None) -> AttentionMap:
        """One head, or the first `n` tokens of it, read without the rest of the file."""
        x = self._location(layer, head, n)
        with named_file(self.path, "cannot be read"):
            query, key, value = (
                inputs.floating(f"{name} of L{layer}H{head}", self._read(name, row, n))
                for name, row in zip(x.names, (x.row, x.key_row, x.key_row), strict=True)
            )
            return AttentionMap(query, key, value, x.scale, x.is_causal, layer, head, self.model, self.source)

    def __iter__(self) -> Iterator[AttentionMap]:
        return (self.head(*key) for key in sorted(self._locations))

    def __len__(self) -> int:
        return len(self._locations)

    def _location(self, layer: int, head: int, n: int | None) -> _Location:
        """Where a head is, after a check that it is there and has n tokens."""
        if (layer, head) not in self._locations:
            available = f"{list(self.heads(layer))!s:.300}"
            raise ValueError(f"head {head!r} of layer {layer} is not in {self.path}; it holds the heads {available}")
        location = self._locations[layer, head]
        if n is not None:
            with named_file(self.path, "cannot be read"):
                self._check_prefix(f"L{layer}H{head}", location, n)
        return location

    def _check_prefix(self, name: str, location: _Location, n: int) -> None:
        n_q, n_k = (self._archive.members[part].shape[-2] for part in location.names[:2])
        if inputs.count("n", n) > n_q:
            raise ValueError(f"n is {n} and {name} has {n_q} tokens; pass at most that many")
        if n_q != n_k:
            raise ValueError(f"n is {n} and {name} has {n_q} queries and {n_k} keys, so that n tokens are no prefix")

    def _captured(self, facts: FileFacts) -> dict[tuple[int, int], _Location]:
        """The table of contents of a captured file."""
        locations = {}
        for x in facts.layers:
            label = f"layer {x.layer}"
            names = tuple(f"layer.{x.layer}.{part}" for part in PARTS)
            _check_heads(label, x, *self._head_counts(label, names, x.is_causal))
            for row, (head, key_row) in enumerate(zip(x.heads, x.key_rows, strict=True)):
                locations[x.layer, head] = _Location(names, row, key_row, x.scale, x.is_causal)
        return locations

    def _plain(self) -> dict[tuple[int, int], _Location]:
        """The table of contents of a file of plain arrays."""
        n_heads, n_keys = self._head_counts("it", PARTS, is_causal=False)
        if n_heads > MOST_HEADS:
            raise ValueError(f"query has {n_heads} heads; at most {MOST_HEADS} are read from a file: split it")
        d = self._archive.members["query"].shape[-1]
        facts = {
            "layer": self._per_head("layer", n_heads, 0),
            "heads": self._per_head("head", n_heads, np.arange(n_heads)),
            "scale": self._per_head("scale", n_heads, inputs.resolve_scale(None, d)),
            "is_causal": self._per_head("is_causal", n_heads, False),
        }
        self._head_counts("it", PARTS, is_causal=bool(np.any(facts["is_causal"])))
        locations = {}
        for row, (layer, head, scale, is_causal) in enumerate(zip(*facts.values(), strict=True)):
            key_row = row // (n_heads // n_keys)
            x = LayerFacts(layer, (head,), (key_row,), scale, is_causal)
            if (x.layer, *x.heads) in locations:
                raise ValueError(f"it holds L{layer}H{head} twice; `layer` and `head` must name each once")
            locations[x.layer, x.heads[0]] = _Location(PARTS, row, key_row, x.scale, x.is_causal)
        return locations

    def _per_head(self, name: str, n_heads: int, default) -> np.ndarray:
        """An optional array, one entry for each head."""
        if name not in self._archive.members:
            return np.broadcast_to(default, (n_heads,))
        dtype, shape = self._archive.members[name][:2]
        kinds, kind = KINDS[name]
        if getattr(dtype, "kind", None) not in tuple(kinds):
            raise TypeError(f"{name} has dtype {dtype}; it must have {kind}: save it with that dtype")
        if shape not in ((), (n_heads,)):
            raise ValueError(f"{name} has shape {shape}; it must be () or one for each of {n_heads} heads")
        x = self._archive.read_part(name, ...)
        if kinds == "b" and x.view(np.uint8).max() > 1:
            raise ValueError(f"{name} has bytes that are neither 0 nor 1; it must be {kind}")
        return np.broadcast_to(x, (n_heads,))

    def _head_counts(self, label: str, names: Sequence[str], is_causal) -> tuple[int, int]:
        """Numbers of query and key heads, after checking that the arrays exist and fit together."""
        missing = [name for name in names if name not in self._archive.members]
        if missing:
            raise ValueError(f"{label} lacks {', '.join(missing)}; {REQUIREMENT}")
        members = [self._archive.members[name] for name in names]
        return _check_parts(label, {part: x[:2] for part, x in zip(PARTS, members, strict=True)}, is_causal)

    def _read(self, name: str, row: int, n: int | None) -> np.ndarray:
        """One head of an array, or its first n rows."""
        has_heads = len(self._archive.members[name].shape) == 3
        return self._archive.read_part(name, (row, slice(n)) if has_heads else slice(n))


class _Location(NamedTuple):
    """Where one head is stored: the names of its three arrays and its rows in them."""

    names: tuple[str, ...]
    row: int
    key_row: int
    scale: float
    is_causal: bool


def checked_parts(maps: LayerMaps) -> dict[str, np.ndarray]:
    """Query, key and value of a layer as they are stored, by name, after a check that they and its facts fit."""
    label = f"layer {maps.layer}"
    arrays = {part: host_array(f"{part} of {label}", getattr(maps, part)) for part in PARTS}
    counts = _check_parts(label, {part: (x.dtype, x.shape) for part, x in arrays.items()}, maps.is_causal)
    _check_heads(label, maps, *counts)
    return {
        part: np.ascontiguousarray(inputs.floating(f"{part} of {label}", x), dtype=x.dtype.newbyteorder("<"))
        for part, x in arrays.items()
    }


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


def _check_heads(label: str, facts: LayerFacts | LayerMaps, n_heads: int, n_keys: int) -> None:
    """Refuse numbers of heads that do not fit the arrays."""
    heads, rows = facts.heads, facts.key_rows
    if len(set(heads)) != n_heads or len(heads) != n_heads:
        raise ValueError(f"{label} has heads = {heads}; they must be {n_heads} different numbers, one for each query")
    if len(rows) != n_heads or not all(row < n_keys for row in rows):
        raise ValueError(f"{label} has key_rows = {rows}; they must be {n_heads} numbers from 0 to {n_keys - 1}")
