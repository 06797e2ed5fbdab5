"""Read `.npz` files that others may have written or damaged: no claim is believed that the file's size contradicts."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy

HEADER = 2**14
"""Bytes of a member in which its header must end; NumPy itself takes no longer ones."""


class Member(NamedTuple):
    """One array, and where in the file its entries start."""

    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int


class NpzFile(AbstractContextManager):
    """The arrays of a `.npz` file that is not compressed, read one by one, or an entry of the first axis alone.

    Opening reads the table of contents. It is checked against the file: members lie in it one after another, and each
    has exactly the bytes that its header claims.

    Parameters
    ----------
    path : the file.

    Attributes
    ----------
    members : the Member of each name.

    Raises
    ------
    ValueError, zipfile.BadZipFile : another kind of file, compressed, damaged, or contradicting itself.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            self._file = stack.enter_context(open(path, "rb"))
            self._zip = stack.enter_context(zipfile.ZipFile(self._file))
            self.members = self._contents()
            self._stack = stack.pop_all()

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays already read remain valid."""
        self._stack.close()

    def read(self, name: str) -> np.ndarray:
        """A whole array, after a check of its CRC."""
        with self._zip.open(f"{name}.npy") as member:
            return npy.read_array(member, allow_pickle=False)

    def read_part(self, name: str, part) -> np.ndarray:
        """A copy of a part of an array, in the usual order of bytes and entries, without reading the rest."""
        dtype, shape, order, offset = self.members[name]
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not read")
        part = np.memmap(self._file, dtype, "r", offset, shape, order)[part]
        return np.array(part, dtype.newbyteorder("="), order="C")

    def _contents(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        end = 0
        for info in sorted(self._zip.infolist(), key=lambda info: info.header_offset):
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise ValueError(
                    f"{name} is compressed or encrypted, and cannot be read in part: save it with np.savez"
                )
            if not info.filename.endswith(".npy"):
                raise ValueError(f"{name} is no array: save it with np.savez")
            if name in members:
                raise ValueError(f"{name} is there twice")
            start = self._start(info)
            if info.header_offset < end or start + info.file_size > self._zip.start_dir:
                raise ValueError(f"{name} overlaps another array, or would reach beyond the end of the file")
            end = start + info.file_size
            members[name] = self._member(name, start, info.file_size)
        return members

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where a member starts: behind its local header, 30 bytes, a name and an extra field of stated lengths."""
        if info.header_offset < 0:
            raise ValueError(f"{info.filename} would start before the file")
        self._file.seek(info.header_offset + 26)
        return info.header_offset + 30 + sum(struct.unpack("<HH", self._file.read(4)))

    def _member(self, name: str, start: int, size: int) -> Member:
        self._file.seek(start)
        head = io.BytesIO(self._file.read(min(size, HEADER)))
        version = npy.read_magic(head)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"{name} has the version {version} of the format; known are 1.0, 2.0 and 3.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            shape, fortran, dtype = read(head)
        except Exception as error:  # Python parses the header, which may also go too deep or take too much memory
            raise ValueError(f"{name} has no valid header ({error})") from error
        needed, given = math.prod(shape) * dtype.itemsize, size - head.tell()
        if not dtype.hasobject and (min(shape, default=0) < 0 or needed != given):
            raise ValueError(f"{name} claims the shape {shape} of {dtype}, {needed} bytes, and has {given} bytes")
        return Member(dtype, shape, "F" if fortran else "C", start + head.tell())
