"""Files of arrays byte by byte, with claims that no library would write."""

import io
import json
import struct
import zipfile

import numpy as np


def npy(x=None, *, shape=None, descr=None, header=None, data=None):
    """A member of a `.npz` file: an array, whose header may claim another shape or type, or have another text."""
    x = np.zeros(1, np.float32) if x is None else np.asarray(x)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, x, allow_pickle=True)
    if header is None and shape is None and descr is None:
        return buffer.getvalue()
    if header is None:
        fields = {"descr": descr or x.dtype.str, "fortran_order": False, "shape": x.shape if shape is None else shape}
        header = repr(fields)
    text = header.encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + (x.tobytes() if data is None else data)


def npz(path, members, compression=zipfile.ZIP_STORED):
    """A `.npz` file of raw members or arrays."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, member in members.items() if isinstance(members, dict) else members:
            content = member if isinstance(member, bytes) else npy(member)
            archive.writestr(name if name.endswith(".txt") else f"{name}.npy", content)
    return path


def safetensors(path, header, data=b"", *, length=None):
    """A `.safetensors` file with any header, in JSON or raw, that may claim another length."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path
