"""Files of maps that are damaged or were made to mislead: how to make each, and what the error says of it."""

import json
import struct
import zipfile

import numpy as np

from ..foundation.raw_files import npy, npz, safetensors
from .map_examples import GOOD, layer_maps, write

PARTS = ("query", "key", "value")
HUGE = 2**31
NESTED = 100_000
LINK, CELL, CLIMB = "[link=https://example.org]L0[/link]", '=HYPERLINK("https://example.org")', "../../x"


def plain(**changes):
    """Plain arrays in `.npz`; None leaves one out."""
    return lambda path: npz(path, {name: x for name, x in {**GOOD, **changes}.items() if x is not None})


def captured(text, **arrays):
    """A captured layer 0 of two heads in `.npz`, with a text in JSON or raw."""
    text = text if isinstance(text, str | bytes) else json.dumps(text)
    layers = {f"layer.0.{part}": GOOD[part] for part in PARTS} | arrays
    return lambda path: npz(
        path, {**layers, "hyperattention_maps": text if isinstance(text, bytes) else np.array(text)}
    )


def facts(**changes):
    """The text about that layer, with changed entries of the layer."""
    layer = {"layer": 0, "heads": [0, 1], "key_rows": [0, 1], "scale": 1.0, "is_causal": False} | changes
    layer = {name: x for name, x in layer.items() if x is not ...}
    return {"format": 1, "model": "", "source": "", "layers": [layer]}


def tensors(data=48, *, metadata=None, raw=None, length=None, **changes):
    """A `.safetensors` file of query, key and value (1, 2, 2) in float32, 16 bytes each, with changed entries."""
    header = {} if metadata is None else {"__metadata__": metadata}
    for i, part in enumerate(PARTS):
        header[part] = {"dtype": "F32", "shape": [1, 2, 2], "data_offsets": [16 * i, 16 * i + 16]} | changes.get(
            part, {}
        )
    return lambda path: safetensors(path, header if raw is None else raw, bytes(data), length=length)


def text_tensors(text):
    return tensors(metadata={"hyperattention_maps": text if isinstance(text, str) else json.dumps(text)})


def cut(path):
    write(path, layer_maps())
    path.write_bytes(path.read_bytes()[:-40])


def central(value, field=42, format="<I"):
    """The table of contents of a zip file says something else of its second member; by default where it starts."""

    def make(path):
        plain()(path)
        content = bytearray(path.read_bytes())
        start = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
        struct.pack_into(format, content, start + field, value)
        path.write_bytes(bytes(content))

    return make


def twice(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, x in [*GOOD.items(), ("query", GOOD["query"])]:
            archive.NameToInfo.clear()
            archive.writestr(f"{name}.npy", npy(x))


def dtype_of(x):
    return np.broadcast_to(np.asarray(x), (2,)).copy()


ONE_TENSOR = '{"dtype":"F32","shape":[1,2,2],"data_offsets":[%d,%d]}'
DUPLICATE = '{"query":%s,"query":%s,"key":%s,"value":%s}' % (  # noqa: UP031
    ONE_TENSOR % (0, 16), ONE_TENSOR % (0, 16), ONE_TENSOR % (16, 32), ONE_TENSOR % (32, 48),
)  # fmt: skip

NPZ = {
    # shapes against sizes
    "two million heads": (plain(query=npy(shape=(2_000_000, 1, 1))), "claims the shape (2000000, 1, 1)"),
    "16 GiB": (plain(query=npy(shape=(HUGE, HUGE, 4))), f"claims the shape ({HUGE}, {HUGE}, 4)"),
    "more than an int64 counts": (plain(query=npy(shape=(2**62, 2**62))), "claims the shape"),
    "negative shape": (plain(query=npy(shape=(-1, 5, 3))), "claims the shape (-1, 5, 3)"),
    "two negative lengths": (plain(query=npy(np.ones((1, 1, 1)), shape=(-1, -1, 1))), "claims the shape (-1, -1, 1)"),
    "a shape of less": (plain(query=npy(np.ones((2, 5, 3)), shape=(1, 5, 3))), "claims the shape (1, 5, 3)"),
    "a wider type": (plain(query=npy(np.ones((2, 5, 3), np.float32), descr="<f8")), "(2, 5, 3) of float64, 240 bytes"),
    "a shape of floats": (plain(query=npy(shape=(2.0, 5, 3))), "maps.npz"),
    "no shape": (plain(query=npy(header="{'descr': '<f4', 'fortran_order': False}")), "maps.npz"),
    "a type that calls": (plain(query=npy(header="{'descr': open('x'), 'shape': ()}")), "maps.npz"),
    "a nested header": (plain(query=npy(header="(" * 5000)), "maps.npz"),
    "a header of many signs": (plain(query=npy(header="-" * 9000 + "1")), "query has no valid header"),
    "a header of 60 kB": (plain(query=npy(header=" " * 60000)), "maps.npz"),
    "no magic string": (plain(query=b"hello, world"), "magic string"),
    "an empty member": (plain(query=b""), "maps.npz"),
    "version 7": (plain(query=b"\x93NUMPY\x07\x00" + bytes(60)), "version (7, 0)"),
    "a huge scale": (plain(scale=npy(shape=(2**40,))), "claims the shape"),
    # the zip file
    "overlapping members": (central(0), "key overlaps another array"),
    "a member beyond the end": (central(2**30), "maps.npz"),
    "a size beyond the end": (central(2**30, 24, "<I"), "maps.npz"),
    "encrypted": (central(1, 8, "<H"), "key is compressed or encrypted"),
    "compressed": (lambda path: np.savez_compressed(path, **GOOD), "is compressed"),
    "a zip bomb": (lambda path: npz(path, {"query": bytes(10**7)}, zipfile.ZIP_DEFLATED), "query is compressed"),
    "a name twice": (twice, "query is there twice"),
    "a text file inside": (plain(**{"readme.txt": b"hello"}), "readme.txt is no array"),
    "empty": (lambda path: path.write_bytes(b""), "not a zip file"),
    "no members": (lambda path: npz(path, {}), "lacks query, key, value"),
    "cut short": (cut, "not a zip file"),
    "another kind of file": (lambda path: path.write_bytes(b"\x89PNG" + bytes(100)), "not a zip file"),
    "latin-1 text": (lambda path: path.write_bytes("Köln, Übersicht".encode("latin1")), "not a zip file"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "absent": (lambda path: None, "No such file"),
    # plain arrays
    "is_causal 'False'": (plain(is_causal=np.array("False")), "is_causal has"),
    "is_causal 'no' for each": (plain(is_causal=dtype_of("no")), "has dtype <U2; it must have bool"),
    "is_causal b'0'": (plain(is_causal=np.array(b"0")), "has dtype |S1; it must have bool"),
    "is_causal NaN": (plain(is_causal=np.nan), "has dtype float64; it must have bool"),
    "is_causal 0.5": (plain(is_causal=0.5), "has dtype float64; it must have bool"),
    "is_causal 1": (plain(is_causal=1), "has dtype int64; it must have bool"),
    "is_causal 0 for each": (plain(is_causal=dtype_of(0)), "has dtype int64; it must have bool"),
    "is_causal [False]": (plain(is_causal=np.array([False])), "is_causal has"),
    "is_causal object": (plain(is_causal=npy(np.array(None))), "has dtype object; it must have bool"),
    "is_causal byte 2": (plain(is_causal=npy(np.array(2, np.uint8), descr="|b1")), "neither 0 nor 1"),
    "layer 2.5": (plain(layer=2.5), "layer has"),
    "layer '3'": (plain(layer=np.array("3")), "has dtype <U1; it must have an integer type"),
    "layer True": (plain(layer=True), "has dtype bool; it must have an integer type"),
    "layer -1": (plain(layer=-1), "layer is -1; it must be between 0"),
    "layer beyond int64": (plain(layer=np.array(2**64 - 1, np.uint64)), "layer is 18446744073709551615"),
    "layer a live cell": (plain(layer=np.array(CELL)), "it must have an integer type"),
    "head 1.0": (plain(head=np.array([0.0, 1.0])), "head has"),
    "head -1": (plain(head=np.array([0, -1])), "heads is -1"),
    "heads twice": (plain(head=np.array([1, 1])), "holds L0H1 twice"),
    "scale text": (plain(scale=np.array("1")), "scale has"),
    "scale bool": (plain(scale=True), "has dtype bool; it must have a real type"),
    "scale complex": (plain(scale=1j), "has dtype complex128; it must have a real type"),
    "scale infinite": (plain(scale=np.inf), "scale is inf"),
    "scale NaN": (plain(scale=dtype_of(np.nan)), "scale is nan"),
    "three scales": (plain(scale=np.ones(3)), "one for each of 2 heads"),
    "integer query": (plain(query=np.ones((2, 5, 3), int)), "has dtype int64"),
    "record query": (plain(query=np.zeros((2, 5), "f4,f4,f4")), "has dtype [("),
    "no key": (plain(key=None), "lacks key"),
    "70000 heads": (plain(**dict.fromkeys(PARTS, np.ones((70_000, 1, 1), np.float16))), "query has 70000 heads; at"),
    "five axes": (plain(query=np.ones((1, 1, 2, 5, 3))), "has shape (1, 1, 2, 5, 3)"),
    "an empty query": (plain(query=np.ones((2, 0, 3))), "not empty"),
    # the text of captured files
    "text of no JSON": (captured("not JSON"), "no valid JSON"),
    "an unterminated string": (captured('{"format": "'), "no valid JSON (Unterminated string"),
    "a nested text": (captured("[" * NESTED), "nested too deeply"),
    "a text that is a list": (captured([]), "[]; it must have exactly"),
    "a text that is null": (captured("null"), "None; it must have exactly"),
    "a text of {}": (captured({}), "format is None"),
    "two formats": (captured('{"format": 1, "format": 1}'), "the key 'format' twice"),
    "format 2": (captured(facts() | {"format": 2}), "has format 2; this version reads format 1"),
    "format true": (captured(facts() | {"format": True}), "format is True"),
    "NaN in the text": (captured('{"format": NaN}'), "NaN, which is no JSON"),
    "an unknown entry": (captured(facts(colour="red")), "'colour'; it must have exactly"),
    "a missing entry": (captured(facts(scale=...)), "layers[0] has the entries"),
    "no layers": (captured(facts() | {"layers": []}), "layers is []; it must name at least one"),
    "layers of numbers": (captured(facts() | {"layers": [1]}), "layers[0] has 1"),
    "a layer twice": (captured(facts() | {"layers": facts()["layers"] * 2}), "each layer must be there once"),
    "a layer without arrays": (captured(facts(layer=7)), "lacks layer.7.query"),
    "text is_causal 'False'": (captured(facts(is_causal="False")), "is_causal is 'False'; it must be True or False"),
    "text is_causal 0": (captured(facts(is_causal=0)), "is_causal is 0; it must be True or False"),
    "text is_causal null": (captured(facts(is_causal=None)), "is_causal is None; it must be True or False"),
    "text is_causal [False]": (captured(facts(is_causal=[False])), "is_causal is [False]; it must be True or False"),
    "text layer 2.5": (captured(facts(layer=2.5)), "layer is 2.5; it must be an integer"),
    "text layer '3'": (captured(facts(layer="3")), "layer is '3'; it must be an integer"),
    "text layer true": (captured(facts(layer=True)), "layer is True; it must be an integer"),
    "text layer a live cell": (captured(facts(layer=CELL)), "it must be an integer"),
    "text layer a path": (captured(facts(layer=CLIMB)), "layer is '../../x'; it must be an integer"),
    "text layer a link": (captured(facts(layer=LINK)), "it must be an integer"),
    "text layer 10**400": (captured(facts(layer=10**400)), "it must be between 0"),
    "scale 10**400": (captured(facts(scale=10**400)), "scale is beyond the range of float64"),
    "scale 1e999": (captured(json.dumps(facts()).replace("1.0", "1e999")), "scale is inf"),
    "scale of 5000 digits": (captured(json.dumps(facts()).replace("1.0", "9" * 5000)), "maps.npz"),
    "scale true": (captured(facts(scale=True)), "scale is True; it must be a real number"),
    "scale '1'": (captured(facts(scale="1")), "scale is '1'; it must be a real number"),
    "text heads twice": (captured(facts(heads=[0, 0])), "must be 2 different numbers"),
    "heads of floats": (captured(facts(heads=[0.0, 1.0])), "heads is 0.0; it must be an integer"),
    "heads a string": (captured(facts(heads="01")), "heads is '01'; it must be a list of integers"),
    "heads null": (captured(facts(heads=None)), "heads is None; it must be a list of integers"),
    "key rows of floats": (captured(facts(key_rows=[0.0, 1.0])), "key_rows is 0.0; it must be an integer"),
    "key rows out of range": (captured(facts(key_rows=[0, 2])), "must be 2 numbers from 0 to 1"),
    "key rows of -1": (captured(facts(key_rows=[0, -1])), "key_rows is -1"),
    "model a number": (captured(facts() | {"model": 3}), "model is 3; it must be a string"),
    "source a list": (captured(facts() | {"source": []}), "source is []; it must be a string"),
    "source of half a character": (captured(facts() | {"source": "\ud800"}), "surrogates"),
    "a text of bytes": (captured(npy(np.array(b"{}"))), "it must be one text of moderate length"),
    "two texts": (captured(npy(np.array(["{}", "{}"]))), "it must be one text of moderate length"),
    "an endless text": (captured(npy(np.array("{}"), descr="<U100000000")), "claims the shape ()"),
    "a text of no characters": (captured(npy(np.array(0xFFFFFFFF, np.uint32), descr="<U1")), "maps.npz"),
}  # fmt: skip

SAFETENSORS = {
    "too short": (tensors(40), "not fully covered"),
    "too long": (tensors(60), "not fully covered"),
    "reversed": (tensors(query={"data_offsets": [16, 0]}), "invalid offset"),
    "overlapping": (tensors(key={"data_offsets": [8, 24]}), "invalid offset"),
    "the same bytes": (tensors(key={"data_offsets": [0, 16]}), "maps.safetensors"),
    "a hole": (tensors(64, value={"data_offsets": [48, 64]}), "invalid offset"),
    "negative": (tensors(query={"data_offsets": [-16, 0]}), "invalid value: integer `-16`"),
    "infinite": (tensors(raw=b'{"query":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'), "maps.safetensors"),
    "beyond the end": (tensors(value={"data_offsets": [32, 2**62]}), "maps.safetensors"),
    "a shape of more": (tensors(query={"shape": [1, 2, 3]}), "maps.safetensors"),
    "two million tensors' heads": (tensors(query={"shape": [2_000_000, 1, 1]}), "maps.safetensors"),
    "16 GiB": (tensors(query={"shape": [HUGE, HUGE, 4]}), "maps.safetensors"),
    "a negative shape": (tensors(query={"shape": [-1, -2, 2]}), "maps.safetensors"),
    "a shape of floats": (tensors(query={"shape": [1.0, 2, 2]}), "maps.safetensors"),
    "a name twice": (tensors(raw=DUPLICATE.encode()), "the key 'query' twice"),
    "an unknown type": (tensors(query={"dtype": "F31"}), "unknown variant `F31`"),
    "bfloat16": (tensors(query={"dtype": "BF16", "shape": [1, 2, 4]}), "has dtype BF16; it must be float16, float32"),
    "float8": (tensors(query={"dtype": "F8_E4M3", "shape": [1, 4, 4]}), "has dtype F8_E4M3; it must be float16, float"),
    "integers": (tensors(query={"dtype": "I32"}), "has dtype int32"),
    "a nested header": (tensors(raw=b"[" * NESTED), "nested too deeply"),
    "a header that is a list": (tensors(raw=b"[1, 2]"), "no table of arrays"),
    "a header of no JSON": (tensors(raw=b"hello"), "no valid JSON"),
    "an unterminated header": (tensors(raw=b'{"query'), "Unterminated string"),
    "a latin-1 header": (tensors(raw=b'{"\xfc": 1}'), "not in UTF-8"),
    "an empty header": (tensors(raw=b"{}", data=0), "lacks query, key, value"),
    "no header": (tensors(raw=b"", data=0), "no valid JSON"),
    "a header of 2**63 bytes": (tensors(length=2**63), "would reach beyond its end"),
    "a header of 20 MB": (tensors(raw=b" " * 20_000_000), "at most 16777216 are read"),
    "seven bytes": (lambda path: path.write_bytes(b"1234567"), "would reach beyond its end"),
    "empty": (lambda path: path.write_bytes(b""), "would reach beyond its end"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "absent": (lambda path: None, "No such file"),
    "cut short": (cut, "not fully covered"),
    "metadata of numbers": (tensors(metadata={"hyperattention_maps": 1}), "expected a string"),
    "a nested text": (text_tensors("[" * NESTED), "nested too deeply"),
    "a text of no JSON": (text_tensors("hello"), "no valid JSON"),
    "text layer a live cell": (text_tensors(facts(layer=CELL)), "it must be an integer"),
    "text is_causal 'no'": (text_tensors(facts(is_causal="no")), "is_causal is 'no'; it must be True or False"),
    "text without arrays": (text_tensors(facts()), "lacks layer.0.query"),
}  # fmt: skip

ROWS = {f"{what}, npz": ("maps.npz", *row) for what, row in NPZ.items()}
ROWS |= {f"{what}, safetensors": ("maps.safetensors", *row) for what, row in SAFETENSORS.items()}
ROWS |= {
    "another suffix": ("maps.pt", plain(), "ends in '.pt'; the name must end in .npz or .safetensors"),
    "no suffix": ("maps", plain(), "ends in ''"),
    "the other format, npz": ("maps.npz", tensors(), "not a zip file"),
    "the other format, safetensors": ("maps.safetensors", plain(), "would reach beyond its end"),
}
"""By description: the file's name, a function that makes it, and words of the error."""
