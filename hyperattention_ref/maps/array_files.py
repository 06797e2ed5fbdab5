"""Uncompressed arrays in one file, written one after another and read in part.

There are two layouts: `.npz`, a zip file of NumPy arrays, and `.safetensors`. Both also store one text. Files of
safetensors are read with its package and written here, because the package cannot write a file larger than memory.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from hyperattention_ref.foundation import strict_json
from hyperattention_ref.foundation.npz_file import NpzFile

TEXT = "hyperattention_maps"
"""Name of the text in the archive."""
HEADER = 2**18
"""Bytes reserved for a safetensors header, which comes first but is written last: enough for 700 layers."""
SAFETENSORS_TYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?", "U8": "u1",
    "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip


def layout(path: Path):
    """The classes that write and read files with this suffix."""
    if path.suffix not in LAYOUTS:
        raise ValueError(f"{path} ends in {path.suffix!r}; the name must end in {' or '.join(LAYOUTS)}")
    return LAYOUTS[path.suffix]


class NpzWriter:
    """Arrays as members of a zip file that NumPy reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def put(self, name: str, x: np.ndarray) -> None:
        with self._zip.open(name + ".npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, x, allow_pickle=False)

    def finish(self, text: str) -> None:
        with self._zip:
            self.put(TEXT, np.array(text))


class NpzReader(NpzFile):
    """The arrays of a `.npz` file, and its text."""

    def read_text(self) -> str | None:
        """The text, if there is one."""
        if TEXT not in self.members:
            return None
        dtype, shape = self.members[TEXT][:2]
        if dtype.kind != "U" or shape != () or dtype.itemsize > 4 * strict_json.LARGEST:
            raise ValueError(f"{TEXT} has dtype {dtype} and shape {shape}; it must be one text of moderate length")
        return str(self.read(TEXT))


class SafetensorsWriter:
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


class Tensor(NamedTuple):
    """The type and shape of an array; the type is a string if NumPy lacks it."""

    dtype: np.dtype | str
    shape: tuple[int, ...]


class SafetensorsReader(AbstractContextManager):
    """The arrays of a `.safetensors` file, and its text, as NpzReader.

    The package checks that the arrays lie in the file one after another, without a gap, and are as long as their shapes
    say. It does not refuse a name that occurs twice, and takes headers of 100 MB.
    """

    def __init__(self, path: Path) -> None:
        _check_header(path)
        self._file = _safe_open()(path, framework="numpy").__enter__()
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  # it is no dict
        self.members = {name: Tensor(_dtype(x.get_dtype()), tuple(x.get_shape())) for name, x in slices.items()}

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays already read remain valid."""
        self._file.__exit__(None, None, None)

    def read_text(self) -> str | None:
        """The text, if there is one."""
        return (self._file.metadata() or {}).get(TEXT)

    def read_part(self, name: str, part) -> np.ndarray:
        """A copy of a part of an array, without reading the rest."""
        return np.array(self._file.get_slice(name)[part] if self.members[name].shape else self._file.get_tensor(name))


def _dtype(kind: str) -> np.dtype | str:
    return np.dtype(SAFETENSORS_TYPES[kind]) if kind in SAFETENSORS_TYPES else kind


def _check_header(path: Path) -> None:
    with open(path, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            raise ValueError("it is no safetensors file, or is cut short: its header would reach beyond its end")
        if length > strict_json.LARGEST:
            raise ValueError(f"its header has {length} bytes; at most {strict_json.LARGEST} are read")
        header = strict_json.parse(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("it is no safetensors file: its header is no table of arrays")


def _safe_open():
    try:
        from safetensors import safe_open
    except ImportError:
        raise ImportError(
            "a .safetensors file is read with the package safetensors, which is not installed; install it with "
            "pip install safetensors, or save the arrays as .npz"
        ) from None
    return safe_open


LAYOUTS = {".npz": (NpzWriter, NpzReader), ".safetensors": (SafetensorsWriter, SafetensorsReader)}
