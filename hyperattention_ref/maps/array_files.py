"""Uncompressed arrays in one file, written one after another and read by their offset without the rest of the file.

There are two layouts: `.npz`, a zip file of NumPy arrays, and `.safetensors`. Both also store one text. The safetensors
layout is implemented here because its library cannot write a file that is larger than memory.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

TEXT = "hyperattention_maps"
"""Name of the text in the archive."""
HEADER = 2**18
"""Bytes reserved for a safetensors header, which comes first but is written last: enough for 700 layers."""
SAFETENSORS_TYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "U8": "u1",
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip


class Entry(NamedTuple):
    """Where one array is stored. `dtype` is a string if NumPy lacks the type."""

    dtype: np.dtype | str
    shape: tuple[int, ...]
    offset: int
    order: str


def layout(path: Path):
    """The class that writes files with this suffix and the function that reads their contents."""
    if path.suffix not in LAYOUTS:
        raise ValueError(f"{path} ends in {path.suffix!r}; the name must end in {' or '.join(LAYOUTS)}")
    return LAYOUTS[path.suffix]


class NpzArchive:
    """Arrays as members of a zip file that NumPy reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def put(self, name: str, x: np.ndarray) -> None:
        with self._zip.open(name + ".npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, x, allow_pickle=False)

    def finish(self, text: str) -> None:
        with self._zip:
            self.put(TEXT, np.array(text))


def npz_contents(file: IO[bytes], path: Path) -> tuple[dict[str, Entry], str | None]:
    """Table of contents and text of an `.npz` file."""
    entries = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"{path} is compressed, so that no single head can be read; save it with np.savez, "
                    "not np.savez_compressed"
                )
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(member)
                header = member.tell()
            # The member follows its local header: 30 bytes, then a name and an extra field of stated lengths.
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            name, order = info.filename.removesuffix(".npy"), "F" if fortran else "C"
            entries[name] = Entry("object" if dtype.hasobject else dtype, shape, start + header, order)
        if TEXT not in entries:
            return entries, None
        with archive.open(TEXT + ".npy") as member:
            return entries, str(np.lib.format.read_array(member, allow_pickle=False))


class SafetensorsArchive:
    """Arrays in the safetensors layout: the header's length, the header in JSON, then the bytes of all arrays."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._end = file, 0
        self._header: dict[str, dict] = {}
        file.seek(HEADER)

    def put(self, name: str, x: np.ndarray) -> None:
        kind = next(kind for kind, dtype in SAFETENSORS_TYPES.items() if np.dtype(dtype) == x.dtype)
        start, self._end = self._end, self._end + x.nbytes
        self._header[name] = {"dtype": kind, "shape": x.shape, "data_offsets": (start, self._end)}
        self._file.write(x.data)

    def finish(self, text: str) -> None:
        header = json.dumps({"__metadata__": {TEXT: text}, **self._header}).encode()
        if len(header) > HEADER - 8:
            raise ValueError(f"too many layers for the header of a .safetensors file ({len(header)} bytes): write .npz")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", HEADER - 8) + header.ljust(HEADER - 8))


def safetensors_contents(file: IO[bytes], path: Path) -> tuple[dict[str, Entry], str | None]:
    """Table of contents and text of a `.safetensors` file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if 8 + length > size:
        raise ValueError(f"{path} is no safetensors file, or is cut short: its header would reach beyond its end")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is no table of arrays")
    text = header.pop("__metadata__", {}).get(TEXT)
    entries = {}
    for name, tensor in header.items():
        kind, (start, end) = tensor["dtype"], tensor["data_offsets"]
        if 8 + length + end > size:
            raise ValueError(f"{path} is cut short: {name} would reach beyond its end")
        dtype = np.dtype(SAFETENSORS_TYPES[kind]) if kind in SAFETENSORS_TYPES else kind
        entries[name] = Entry(dtype, tuple(tensor["shape"]), 8 + length + start, "C")
    return entries, text


LAYOUTS = {".npz": (NpzArchive, npz_contents), ".safetensors": (SafetensorsArchive, safetensors_contents)}
