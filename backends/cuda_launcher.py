"""The operations of a backend as launches of the CUDA kernels in `cuda/`.

Everything here is written against `Device`, so that the same launches run on a GPU through CuPy (`cupy_backend`) and,
in the tests, on the CPU. This file decides which kernel runs, in which variant, on which grid; the kernels say in their
headers what they compute.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from hyperattention_ref.backends.cuda_plan import Tables, block_numbers, exact_tables, plan_tables
from hyperattention_ref.definition_1 import scaled_rows
from hyperattention_ref.measures.attention_sums import AttentionSums
from hyperattention_ref.plan import Rectangle

STORAGE = {"float16": "Half", "bfloat16": "Bfloat", "float32": "float", "float64": "double"}
PATHS = ("auto", "portable", "tensor")
TILE, THREADS, TENSOR_THREADS = 64, 256, 128
MAX_WIDTH = 256
MAX_TILES = 65535  # blocks along the second dimension of a grid


@dataclass(frozen=True, eq=False)
class Array:
    """An array in the memory of a device: where it starts, and its strides in elements. `owner` keeps it alive."""

    owner: Any
    pointer: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One variant of a kernel: a function in a file of `cuda/`, compiled with these macros."""

    file: str
    name: str
    defines: tuple[str, ...]


class Device(Protocol):
    """What a machine must offer to run the kernels."""

    def scope(self, x) -> AbstractContextManager:
        """Within it, work goes to the device and the stream of the caller's array x."""

    def key(self) -> int:
        """A number for the device in use; tables are uploaded once for each."""

    def capability(self) -> int:
        """Compute capability, 90 for 9.0."""

    def shared_limit(self) -> int:
        """Bytes of shared memory that a block may have."""

    def describe(self, name: str, x) -> Array:
        """The caller's array; a TypeError for one that is not on the device."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array."""

    def upload(self, x: np.ndarray) -> Array:
        """A copy of a host array, structured or not."""

    def download(self, x: Array) -> np.ndarray:
        """A copy on the host."""

    def synchronize(self) -> None:
        """Wait until everything begun in this scope is done."""

    def cast(self, x: Array, dtype: str) -> Array:
        """The same numbers, contiguous and in another dtype."""

    def give(self, x: Array, like) -> Any:
        """x as an array of the kind of the caller's array `like`."""

    def launch(self, kernel: Kernel, grid: tuple[int, int], threads: int, shared_bytes: int, args: list) -> None:
        """Run a kernel; args are NumPy scalars."""


class CudaBackend:
    """The operations of a backend over a `Device`.

    Parameters
    ----------
    device : where the kernels run.
    path : "portable" (ordinary multiply-adds), "tensor" (tensor cores: float16 or bfloat16, compute capability 8.0,
        and what `tensor_obstacle` names; refused where impossible), or "auto": tensor cores for bfloat16 where they
        are possible, else portable.
    """

    def __init__(self, device: Device, path: str = "auto"):
        if path not in PATHS:
            raise ValueError(f"path is {path!r}; it must be one of {', '.join(PATHS)}")
        self.device, self.path = device, path
        self._tables: WeakKeyDictionary = WeakKeyDictionary()

    def hash_codes(self, x, planes):
        with self.device.scope(x):
            rows = self._describe(x=x)[0]
            *lead, n, d = rows.shape
            codes = self.device.empty((*lead, n), "int64")
            scaled = np.ascontiguousarray(scaled_rows(np.asarray(planes)), _real(rows))
            args = [*self._matrix(rows), self.device.upload(scaled), *_integers(n, d, len(scaled)), codes]
            tile_bytes = _operand_bytes(rows) + 4 * TILE + TILE * TILE
            self._launch(Kernel("hash.cu", "hash_codes", (_storage(rows),)), (math.prod(lead), n), tile_bytes, args)
            return self.device.give(codes, x)

    def exact_attention(self, q, k, v, *, scale, is_causal):
        with self.device.scope(q):
            arrays = self._describe(query=q, key=k, value=v)
            *lead, n_q, _ = arrays[0].shape
            n_k = arrays[1].shape[-2]
            if is_causal and n_q != n_k:
                raise ValueError(f"is_causal with {n_q} queries and {n_k} keys; causal attention needs equal lengths")
            tables = self._upload(exact_tables(math.prod(lead), n_q, n_k, is_causal))
            return self._attend(arrays, tables, scale, q)

    def planned_attention(self, q, k, v, plan, *, scale):
        with self.device.scope(q):
            arrays = self._describe(query=q, key=k, value=v)
            on_devices = self._tables.setdefault(plan, {})
            if self.device.key() not in on_devices:
                on_devices[self.device.key()] = self._upload(plan_tables(plan))
                self.device.synchronize()  # a later call may use the tables from another stream
            return self._attend(arrays, on_devices[self.device.key()], scale, q)

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        with self.device.scope(q):
            query, key = self._describe(query=q, key=k)
            n_q, n_k, d, real = query.shape[0], key.shape[0], query.shape[1], _real(query)
            rows = [self.device.empty((n_q,), real) for _ in range(5)]
            columns = [self.device.empty((n_k,), real) for _ in range(2)]
            head = [*self._matrix(query), *self._matrix(key), *_integers(n_q, n_k, d), np.float64(scale)]
            head.append(np.int32(is_causal))
            kernel = Kernel("row_sums.cu", "row_sums", (_storage(query),))
            self._launch(kernel, (1, n_q), _row_bytes(query), [*head, *self._mask(mask, n_q, n_k), *rows])
            kernel = Kernel("columns.cu", "column_sums", (_storage(query), f"WIDTH={_width(1)}"))
            self._launch(kernel, (1, n_k), _weighted_bytes(query, _width(1)), [*head, rows[0], *columns])
            total, unmasked, entropy, sums, squares = (self.device.give(x, q) for x in (*rows[:3], *columns))
            return AttentionSums(
                log_total=total,
                log_unmasked=unmasked,
                column_sums=sums,
                column_squares=squares,
                entropy=entropy,
                logit_min=float(self.device.download(rows[3]).min()),
                logit_max=float(self.device.download(rows[4]).max()),
            )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        with self.device.scope(q):
            query, key, values = self._describe(query=q, key=k, y=y)
            n_q, n_k, d, width = query.shape[0], key.shape[0], query.shape[1], values.shape[1]
            product = self.device.empty((n_k, width), _real(query))
            lse = self._auxiliary("lse", lse, _real(query))
            args = [*self._matrix(query), *self._matrix(key), *self._matrix(values), *_integers(n_q, n_k, d, width)]
            args += [np.float64(scale), np.int32(is_causal), lse, product]
            kernel = Kernel("columns.cu", "transposed", (_storage(query), f"WIDTH={_width(width)}"))
            self._launch(kernel, (1, n_k), _weighted_bytes(query, _width(width)), args)
            return self.device.give(product, q)

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        with self.device.scope(q):
            query, key = self._describe(query=q, key=k)
            n_q, n_k, d, real = query.shape[0], key.shape[0], query.shape[1], _real(query)
            log_sums, n_capped = self.device.empty((n_q,), real), self.device.empty((n_q,), "int64")
            samples = self._auxiliary("samples", samples, "int32")
            args = [*self._matrix(query), *self._matrix(key), *_integers(n_q, n_k, d), np.float64(scale)]
            args += [samples, np.int32(samples.shape[0]), *self._mask(mask, n_q, n_k)]
            args += [self._auxiliary("log_caps", log_caps, real), log_sums, n_capped]
            kernel = Kernel("capped_sums.cu", "capped_sums", (_storage(query),))
            self._launch(kernel, (1, n_q), _row_bytes(query), args)
            return self.device.give(log_sums, q), self.device.give(n_capped, q)

    def tensor_obstacle(self, q: Array, k: Array, v: Array) -> str | None:
        """Why tensor cores cannot take these arrays, or None if they can."""
        if self.device.capability() < 80:
            return f"the device has compute capability {self.device.capability() / 10}; 8.0 is needed"
        for name, x in (("query", q), ("key", k), ("value", v)):
            if x.dtype not in ("float16", "bfloat16"):
                return f"{name} has dtype {x.dtype}; float16 or bfloat16 is needed"
            if x.shape[-1] % 8 or not 16 <= x.shape[-1] <= MAX_WIDTH:
                return f"{name} has d = {x.shape[-1]}; a multiple of 8 from 16 to {MAX_WIDTH} is needed"
            if x.strides[-1] != 1 or any(s % 8 for s in x.strides[:-1]) or x.pointer % 16:
                return f"{name} has strides {x.strides}; contiguous rows at multiples of 16 bytes are needed"
        return None

    def _attend(self, arrays: list[Array], tables: dict, scale: float, like):
        """Run the waves of sweeps; every query ends with its output and log-sum-exp."""
        q, k, v = arrays
        d, d_v = q.shape[-1], v.shape[-1]
        n_rows = math.prod(q.shape[:-1])
        out = self.device.empty((*q.shape[:-1], d_v), q.dtype)
        lse = self.device.empty(q.shape[:-1], _real(q))
        carried = self.device.empty((n_rows if tables["carries"] else 0, d_v + 2), _real(q))
        kernel, threads, tile_bytes = self._attention_kernel(q, k, v)
        matrices = [x for array in arrays for x in self._matrix(array)]
        rest = [tables[name] for name in ("segments", "indices", "weights")]
        rest += [np.int64(q.shape[-2]), *_integers(d, d_v), np.float64(scale), out, lse, carried]
        for sweeps, n_sweeps, longest in tables["waves"]:
            self._launch(kernel, (n_sweeps, longest), tile_bytes, [*matrices, sweeps, *rest], threads)
        return self.device.give(out, like), self.device.give(lse, like)

    def _attention_kernel(self, q: Array, k: Array, v: Array) -> tuple[Kernel, int, int]:
        """The kernel, its threads and its shared memory."""
        obstacle = self.tensor_obstacle(q, k, v)
        if self.path == "tensor" and obstacle:
            raise ValueError(f"path='tensor' is impossible: {obstacle}; use path='auto' or 'portable'")
        if self.path == "tensor" or (self.path == "auto" and q.dtype == "bfloat16" and not obstacle):
            kernel, tile_bytes = tensor_kernel(q.dtype, q.shape[-1], v.shape[-1])
            return kernel, TENSOR_THREADS, tile_bytes
        width = _width(v.shape[-1])
        tile_bytes = _weighted_bytes(q, width) + 2 * 4 * TILE + _size(q) * TILE
        return Kernel("attend.cu", "attend", (_storage(q), f"WIDTH={width}")), THREADS, tile_bytes

    def _launch(self, kernel: Kernel, grid: tuple[int, int], tile_bytes: int, args: list, threads=THREADS) -> None:
        """`grid` is (blocks, rows); the rows go to blocks in tiles of 64."""
        n_tiles = -(-grid[1] // TILE)
        if n_tiles > MAX_TILES:
            raise ValueError(f"{grid[1]} rows; the CUDA kernels take at most {MAX_TILES * TILE}")
        if tile_bytes > self.device.shared_limit():
            raise ValueError(
                f"{kernel.name} needs {tile_bytes} bytes of shared memory, this device has {self.device.shared_limit()}"
                " for a block: use smaller heads or path='portable'"
            )
        scalars = [np.uint64(x.pointer) if isinstance(x, Array) else x for x in args]
        self.device.launch(kernel, (grid[0], n_tiles), threads, tile_bytes, scalars)

    def _describe(self, **arrays) -> list[Array]:
        """The caller's arrays, checked: on the device, of one known dtype, of shapes that fit."""
        described = [self.device.describe(name, x) for name, x in arrays.items()]
        for name, x in zip(arrays, described, strict=True):
            if x.dtype not in STORAGE:
                raise TypeError(f"{name} has dtype {x.dtype}; it must be one of {', '.join(STORAGE)}")
            if x.dtype != described[0].dtype:
                raise TypeError(f"{name} has dtype {x.dtype} and the first array {described[0].dtype}; convert to one")
            if len(x.shape) < 2 or 0 in x.shape:
                raise ValueError(f"{name} has shape {x.shape}; it must be (..., n, d) with no empty dimension")
            if x.shape[:-2] != described[0].shape[:-2]:
                raise ValueError(f"{name} has leading shape {x.shape[:-2]}; it must be {described[0].shape[:-2]}")
        shapes = {name: x.shape for name, x in zip(arrays, described, strict=True)}
        if "key" in shapes and shapes["key"][-1] != shapes["query"][-1]:
            raise ValueError(f"key has d = {shapes['key'][-1]} and query d = {shapes['query'][-1]}; they must be equal")
        for name, rows in (("value", "key"), ("y", "query")):
            if name in shapes and shapes[name][-2] != shapes[rows][-2]:
                raise ValueError(f"{name} has {shapes[name][-2]} rows and {rows} {shapes[rows][-2]}; make them equal")
            if name in shapes and shapes[name][-1] > MAX_WIDTH:
                raise ValueError(f"{name} has {shapes[name][-1]} columns; the CUDA kernels take at most {MAX_WIDTH}")
        return described

    def _matrix(self, x: Array) -> list:
        """What the kernels call a Matrix: the data, and where its rows, columns and heads lie."""
        *lead, row, column = x.strides
        starts = np.zeros(1, np.int64)
        for n, stride in zip(x.shape, lead, strict=False):
            starts = np.add.outer(starts, stride * np.arange(n)).ravel()
        return [x, self.device.upload(np.r_[row, column, starts].astype(np.int64))]

    def _mask(self, mask, n_q: int, n_k: int) -> list:
        """The mask as block numbers of views, or as a dense matrix of bytes."""
        nothing = np.uint64(0)
        if mask is None:
            return [nothing, nothing, np.int32(0), nothing]
        if isinstance(mask, Rectangle):
            query_blocks, key_blocks = block_numbers(mask)
            uploaded = self.device.upload(query_blocks), self.device.upload(key_blocks)
            return [*uploaded, np.int32(len(query_blocks)), nothing]
        dense = self._auxiliary("mask", mask, "uint8")
        if dense.shape != (n_q, n_k):
            raise ValueError(f"mask has shape {dense.shape}; it must be (n_q, n_k) = {(n_q, n_k)}")
        return [nothing, nothing, np.int32(0), dense]

    def _auxiliary(self, name: str, x, dtype: str) -> Array:
        """Decisions and row data, which may lie on the host or on the device, as a contiguous array of this dtype."""
        if isinstance(x, np.ndarray):
            return self.device.upload(np.ascontiguousarray(x, dtype))
        return self.device.cast(self.device.describe(name, x), dtype)

    def _upload(self, tables: Tables) -> dict:
        """The tables on the device; of each wave also the number of sweeps and the longest one."""
        waves = [(self.device.upload(w), len(w), int(w["n_q"].max())) for w in tables.waves]
        names = ("segments", "indices", "weights")
        return {name: self.device.upload(getattr(tables, name)) for name in names} | {
            "waves": waves,
            "carries": tables.carries,
        }


def tensor_kernel(dtype: str, d: int, d_v: int) -> tuple[Kernel, int]:
    """The kernel for tensor cores and its shared memory: a tile of queries and two of keys and values, rows padded."""
    depth, width = (-(-x // 16) * 16 for x in (d, d_v))
    widest = max(depth, width)
    keys = 64 if widest <= 64 else 32 if widest <= 128 else 16
    numbers = TILE * (depth + 8) + 2 * keys * (depth + 8 + width + 8)
    defines = (f"STORAGE={STORAGE[dtype]}", f"DEPTH={depth}", f"WIDTH={width}", f"KEYS={keys}")
    return Kernel("attend_tensor.cu", "attend_tensor", defines), 2 * numbers + 2 * 8 * keys


def _storage(x: Array) -> str:
    return f"STORAGE={STORAGE[x.dtype]}"


def _real(x: Array) -> str:
    """The dtype of the arithmetic."""
    return "float64" if x.dtype == "float64" else "float32"


def _size(x: Array) -> int:
    return np.dtype(_real(x)).itemsize


def _width(d: int) -> int:
    """Columns of a value as the portable kernels are compiled for: 16, 32, 64, 128 or 256."""
    return max(16, 1 << (d - 1).bit_length())


def _integers(*numbers: int) -> list[np.int32]:
    return [np.int32(x) for x in numbers]


# Bytes of the structs of shared memory in `cuda/`: tiles of 64, rows padded to 68 numbers, 16 coordinates at a time.


def _operand_bytes(x: Array) -> int:
    return 2 * 16 * 68 * _size(x)


def _row_bytes(x: Array) -> int:
    return _operand_bytes(x) + 2 * 4 * TILE


def _weighted_bytes(x: Array, width: int) -> int:
    return (TILE * 68 + (8 if _size(x) == 4 else 2) * width) * _size(x)
