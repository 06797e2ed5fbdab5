"""The operations of a backend as launches of the CUDA kernels in `kernels/`.

This file decides which kernel runs, in which variant, on which grid; the kernels say in their headers what they
compute. Where they run is a `Device` (`device`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from hyperattention_ref.foundation.backend import AttentionSums
from hyperattention_ref.foundation.memory import library_of
from hyperattention_ref.plan.head_plan import Rectangle

from ..device_array import DeviceArray, require_one, torch_view
from . import cupy_device
from .device import (
    MAX_LENGTH,
    MAX_WIDTH,
    STORAGE,
    THREADS,
    TILE,
    Device,
    Kernel,
    Layouts,
    integers,
    launch,
    real,
    real_bytes,
    row_bytes,
    storage,
    tiles,
    transposed_kernel,
    weighted_bytes,
    width_of,
)
from .leaves import carried_state, leaves_attention, leaves_obstacle
from .memory import CudaMemory
from .sort_lsh import DrawnIndices, Hyperplanes, SortingOnDevice, hash_sides
from .tables import (
    DrawnTables,
    Tables,
    block_numbers,
    drawn_tables,
    exact_tables,
    head_sides,
    plan_tables,
)
from .torch_attention import PRIMITIVES, ExactPrimitive

PATHS = ("auto", "portable", "tensor")
TENSOR_THREADS = 128
TENSOR_TABLES = 192  # bytes of shared memory for the parts of a sweep and the places of its matrices
ROOMY = 160_000  # bytes of shared memory that a block may have on GPUs where a multiprocessor has more than twice 64 KB
MAX_ROWS = 2**31 - 1  # of all heads together
MAX_STRIDE = 2**30  # elements from one row to the next, for tensor cores


class Launched(NamedTuple):
    """An attention kernel and how it is launched: queries in a tile, threads and bytes of shared memory of a block."""

    kernel: Kernel
    rows: int
    threads: int
    tile_bytes: int


class AttentionPath(NamedTuple):
    """Which kernels compute attention: "tensor" or "portable", and why not tensor cores, or None if they do."""

    path: str
    reason: str | None


class CudaBackend:
    """The operations of a backend over a `Device`.

    Parameters
    ----------
    device : where the kernels run.
    path : "portable" (ordinary multiply-adds), "tensor" (tensor cores: float16 or bfloat16, compute capability 8.0,
        and what `attention_path` names; refused where impossible), or "auto": tensor cores for bfloat16 where they
        are possible, else portable. `attention_path` tells which it is. Hashing has float32 accuracy either way, and
        takes tensor cores for float16 and bfloat16 where the device has them, unless the path is "portable".
    exact : who computes exact attention and the leaves of causal plans: None for the kernels of this library, or an
        `ExactPrimitive`, which takes torch tensors and is refused where it cannot run.
    """

    def __init__(self, device: Device, path: str = "auto", exact: ExactPrimitive | None = None):
        if path not in PATHS:
            raise ValueError(f"path is {path!r}; it must be one of {', '.join(PATHS)}")
        self.device, self.path, self.exact = device, path, exact
        self.layouts = Layouts(device)
        self.memory = CudaMemory(device, self.layouts)
        self._tables: WeakKeyDictionary = WeakKeyDictionary()

    def hash_codes(self, x, planes):
        (rows,) = self._views(x=x)
        with self.device.scope(rows):
            *lead, n, _ = rows.shape
            codes = self.device.empty((*lead, n), "int64", like=rows)
            heads = math.prod(lead)
            sides = self.device.upload(head_sides(heads, n))
            uploaded = Hyperplanes.of(self.device, np.asarray(planes)[None], rows, self.path)
            hash_sides(self.device, self.layouts, rows, sides, (heads, n), uploaded, codes)
            return codes.owner

    def exact_attention(self, q, k, v, *, scale, is_causal):
        arrays = self._views(query=q, key=k, value=v)
        with self.device.scope(arrays[0]):
            *lead, n_q, _ = arrays[0].shape
            n_k = arrays[1].shape[-2]
            if is_causal and n_q != n_k:
                raise ValueError(f"is_causal with {n_q} queries and {n_k} keys; causal attention needs equal lengths")
            if self.exact:
                return self._by_primitive(arrays, ((0, n_q),), scale, is_causal)
            tables = self._upload(exact_tables(math.prod(lead), n_q, n_k, is_causal))
            return self._results(self._run(tables, self._begin(arrays, tables.carries, scale)))

    def planned_attention(self, q, k, v, plan, *, scale):
        arrays = self._views(query=q, key=k, value=v)
        with self.device.scope(arrays[0]):
            begun = None
            if self.exact and plan.is_causal:
                leaves = {head.leaves for head in plan.heads}
                if len(leaves) > 1:
                    raise ValueError(f"the exact primitive {self.exact.name!r} needs one set of leaves for all heads")
                begun = self._by_primitive(arrays, leaves.pop(), scale, True)
            tables = self._kept(plan, lambda: self._upload(plan_tables(plan, leaves=not begun)))
            return self._results(self._run(tables, self._begin(arrays, tables.carries, scale, begun)))

    def drawn_attention(self, q, k, v, noise, planner, *, scale, extremes=None):
        """(out, lse) of the attention of the Plan that `planner` makes from this noise, without a Plan on the host.

        Paper: the practical algorithm, steps 1 to 4. Hash codes, orders and block numbers come into being on the
        device, before each wave of sweeps its own; the host sends hyperplanes and sampled keys. The results have the
        bits of `planned_attention` with the plan that `make_plan` makes on this backend.

        Parameters
        ----------
        q, k, v, scale : as in `planned_attention`.
        noise : a function that gives the Draw (heads, rectangles, ...) of `planner.noise`. It is called once the leaves
            have been launched, so that the host draws while the device computes them.
        planner : a `recipe.Planner` whose recipe is plain.
        extremes : the `inputs.Extremes` of query, key and value, to be begun here: of queries and keys hashing finds
            them, if it sees all of these. Nobody has looked at them yet; bad entries make bad results, nothing worse.
        """
        arrays = self._views(query=q, key=k, value=v)
        with self.device.scope(arrays[0]):
            query, key, _ = arrays
            hashed = None if planner.is_causal else extremes  # no rectangle has the first queries or the last keys
            if extremes:
                extremes.begin(*(["value"] if hashed else ["query", "key", "value"]))
            leaves, recipe, begun = planner.leaves, planner.recipe, None
            if self.exact and leaves:
                begun = self._by_primitive(arrays, leaves, scale, True)
            tables = drawn_tables(
                math.prod(query.shape[:-2]),
                query.shape[-2],
                key.shape[-2],
                leaves,
                planner.places,
                block_size=recipe.block_size,
                sample_size=recipe.sample_size,
                begun=bool(begun),
            )
            there = self._kept(tables, lambda: self._upload(tables))
            made = tables, there.sorting, planner, noise, self.path, hashed
            drawn = DrawnIndices(self.device, self.layouts, query, key, *made)
            return self._results(self._run(there, self._begin(arrays, there.carries, scale, begun), drawn))

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        query, key = self._views(query=q, key=k)
        with self.device.scope(query):
            n_q, n_k, d = query.shape[0], key.shape[0], query.shape[1]
            rows = [self.device.empty((n_q,), real(query), like=query) for _ in range(5)]
            columns = [self.device.empty((n_k,), real(query), like=query) for _ in range(2)]
            head = [*self.layouts.matrix(query), *self.layouts.matrix(key), *integers(n_q, n_k, d)]
            head += [np.float64(scale), np.int32(is_causal)]
            kernel = Kernel("row_sums.cu", "row_sums", (storage(query),))
            args = [*head, *self._mask(mask, n_q, n_k), *rows]
            launch(self.device, kernel, row_bytes(query), (1, tiles(n_q)), args)
            kernel = Kernel("columns.cu", "column_sums", (storage(query), f"WIDTH={width_of(1)}"))
            tile_bytes = weighted_bytes(query, width_of(1))
            launch(self.device, kernel, tile_bytes, (1, tiles(n_k)), [*head, rows[0], *columns])
            fields = ("log_total", "log_unmasked", "entropy", "column_sums", "column_squares")
            return AttentionSums(
                **{name: x.owner for name, x in zip(fields, (*rows[:3], *columns), strict=True)},
                logit_min=float(self.device.download(rows[3]).min()),
                logit_max=float(self.device.download(rows[4]).max()),
            )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        query, key, values = self._views(query=q, key=k, y=y)
        with self.device.scope(query):
            n_q, n_k, d, width = query.shape[0], key.shape[0], query.shape[1], values.shape[1]
            product = self.device.empty((n_k, width), real(query), like=query)
            args = [x for array in (query, key, values) for x in self.layouts.matrix(array)]
            args += [*integers(n_q, n_k, d, width), np.float64(scale), np.int32(is_causal)]
            args += [self._row_data("lse", lse, real(query)), product]
            launch(self.device, *transposed_kernel(query, width), (1, tiles(n_k)), args)
            return product.owner

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        query, key = self._views(query=q, key=k)
        with self.device.scope(query):
            n_q, n_k, d = query.shape[0], key.shape[0], query.shape[1]
            log_sums = self.device.empty((n_q,), real(query), like=query)
            n_capped = self.device.empty((n_q,), "int64", like=query)
            samples = self.device.upload(np.ascontiguousarray(samples, np.int32))
            args = [*self.layouts.matrix(query), *self.layouts.matrix(key), *integers(n_q, n_k, d), np.float64(scale)]
            args += [samples, np.int32(samples.size), *self._mask(mask, n_q, n_k)]
            args += [self._row_data("log_caps", log_caps, real(query)), log_sums, n_capped]
            kernel = Kernel("capped_sums.cu", "capped_sums", (storage(query),))
            launch(self.device, kernel, row_bytes(query), (1, tiles(n_q)), args)
            return log_sums.owner, n_capped.owner

    def attention_path(self, q, k, v) -> AttentionPath:
        """Which kernels `exact_attention` and `planned_attention` run for these arrays, and why not tensor cores.

        A ValueError where path="tensor" is impossible, as in the call itself.
        """
        views = self._views(query=q, key=k, value=v)
        with self.device.scope(views[0]):
            obstacle = self._tensor_obstacle(*views)
        if self.path == "tensor" and obstacle:
            raise ValueError(f"path='tensor' is impossible: {obstacle}; use path='auto' or 'portable'")
        if self.path == "portable":
            obstacle = "path='portable' was asked for"
        elif self.path == "auto" and views[0].dtype != "bfloat16":
            obstacle = f"path='auto' takes tensor cores for bfloat16 only, and query has dtype {views[0].dtype}"
        return AttentionPath("portable" if obstacle else "tensor", obstacle)

    def _tensor_obstacle(self, q: DeviceArray, k: DeviceArray, v: DeviceArray) -> str | None:
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
            if abs(x.strides[-2]) >= MAX_STRIDE:
                return f"{name} has strides {x.strides}; rows less than 2 GiB apart are needed"
        return None

    def _begin(self, arrays: list[DeviceArray], carries: bool, scale: float, begun=None) -> Attending:
        """Memory for the results and for the states in between, and what every launch passes on.

        `begun` is (out, lse) of all queries so far, in memory that the results may take.
        """
        q, k, v = arrays
        d, d_v = q.shape[-1], v.shape[-1]
        if begun:
            carried = self.device.view("the state", carried_state(begun[0], begun[1], d_v))
            out, lse = (self.device.view("a result", x) for x in begun)
        else:
            out = self.device.empty((*q.shape[:-1], d_v), q.dtype, like=q)
            lse = self.device.empty(q.shape[:-1], real(q), like=q)
            carried = self.device.empty((math.prod(q.shape[:-1]) if carries else 0, d_v + 2), real(q))
        matrices = [x for array in arrays for x in self.layouts.matrix(array)]
        rest = [np.int64(q.shape[-2]), *integers(d, d_v), np.float64(scale), out, lse, carried]
        return Attending(self._attention_kernel(q, k, v), matrices, rest, out, lse)

    def _run(self, tables: OnDevice, state: Attending, drawn: DrawnIndices | None = None) -> Attending:
        """Run the waves of sweeps; `drawn` makes the indices of each wave where the tables do not hold them."""
        (kernel, rows, threads, tile_bytes), indices = state.kernel, tables.indices
        for number, (sweeps, n_sweeps, longest) in enumerate(tables.waves):
            if drawn:
                indices = drawn.before(number)
            args = [*state.matrices, sweeps, tables.segments, indices, tables.weights, *state.rest]
            launch(self.device, kernel, tile_bytes, (n_sweeps, tiles(longest, rows)), args, threads)
        return state

    def _results(self, state: Attending):
        return state.out.owner, state.lse.owner

    def _by_primitive(self, arrays: list[DeviceArray], leaves, scale: float, is_causal: bool):
        """(out, lse) of exact attention by the primitive: of all keys, or if causal inside each leaf."""
        assert self.exact is not None
        wrong = [x for x in arrays if library_of(x.owner) != "torch"]
        if wrong:
            kind = f"{library_of(wrong[0].owner)}.{type(wrong[0].owner).__name__}"
            raise TypeError(
                f"the exact primitive {self.exact.name!r} takes torch tensors, and an array is a {kind}: pass "
                "torch.from_dlpack of it, or leave `exact` out"
            )
        q, k, v = (torch_view(x) for x in arrays)
        if is_causal:
            reason = leaves_obstacle(self.exact, q, k, v, leaves, scale=scale)
        else:
            reason = self.exact.obstacle(q, k, v, is_causal=False, scale=scale)
        if reason:
            raise ValueError(f"the exact primitive {self.exact.name!r} cannot run: {reason}")
        if is_causal:
            return leaves_attention(self.exact, q, k, v, leaves, scale=scale)
        return self.exact(q, k, v, scale=scale, is_causal=False)

    def _attention_kernel(self, q: DeviceArray, k: DeviceArray, v: DeviceArray) -> Launched:
        if self.attention_path(q, k, v).path == "tensor":
            return tensor_kernel(q.dtype, q.shape[-1], v.shape[-1], self.device.shared_limit())
        width = width_of(v.shape[-1])
        tile_bytes = weighted_bytes(q, width) + 2 * 4 * TILE + real_bytes(q) * TILE
        return Launched(Kernel("attend.cu", "attend", (storage(q), f"WIDTH={width}")), TILE, THREADS, tile_bytes)

    def _views(self, **arrays) -> list[DeviceArray]:
        """The caller's arrays, checked: on one device, of one known dtype, of shapes that fit."""
        named = {name: self.memory.view(name, x) for name, x in arrays.items()}
        require_one(named, "device")
        require_one(named, "dtype")
        views = list(named.values())
        for name, x in named.items():
            if x.ndim < 2 or 0 in x.shape:
                raise ValueError(f"{name} has shape {x.shape}; it must be (..., n, d) with no empty dimension")
            if x.shape[:-2] != views[0].shape[:-2]:
                raise ValueError(f"{name} has leading shape {x.shape[:-2]}; it must be {views[0].shape[:-2]}")
            if x.shape[-2] > MAX_LENGTH:
                raise ValueError(f"{name} has {x.shape[-2]} rows; the CUDA kernels take at most {MAX_LENGTH}")
            if math.prod(x.shape[:-1]) > MAX_ROWS:
                raise ValueError(f"{name} has shape {x.shape}, over {MAX_ROWS} rows; pass fewer heads at a time")
        if "key" in named and named["key"].shape[-1] != views[0].shape[-1]:
            raise ValueError(f"query has d = {views[0].shape[-1]} and key {named['key'].shape[-1]}; make them equal")
        for name, rows in (("value", "key"), ("y", "query")):
            if name not in named:
                continue
            (n, width), needed = named[name].shape[-2:], named[rows].shape[-2]
            if n != needed:
                raise ValueError(f"{name} has {n} rows and {rows} {needed}; make them equal")
            if width > MAX_WIDTH:
                raise ValueError(f"{name} has {width} columns; the CUDA kernels take at most {MAX_WIDTH}")
        return views

    def _mask(self, mask, n_q: int, n_k: int) -> list:
        """The mask as block numbers of views, or as a dense matrix of bytes."""
        nothing = np.uint64(0)
        if mask is None:
            return [nothing, nothing, np.int32(0), nothing]
        if isinstance(mask, Rectangle):
            query_blocks, key_blocks = block_numbers(mask)
            uploaded = self.device.upload(query_blocks), self.device.upload(key_blocks)
            return [*uploaded, np.int32(len(query_blocks)), nothing]
        if mask.shape != (n_q, n_k):
            raise ValueError(f"mask has shape {mask.shape}; it must be (n_q, n_k) = {(n_q, n_k)}")
        return [nothing, nothing, np.int32(0), self.device.upload(np.ascontiguousarray(mask, np.uint8))]

    def _row_data(self, name: str, x, dtype: str) -> DeviceArray:
        """One number for each row, from the host or from the device, as a contiguous array of this dtype."""
        if isinstance(x, np.ndarray):
            return self.device.upload(np.ascontiguousarray(x, dtype))
        view = self.device.view(name, x)
        return view if view.dtype == dtype and view.is_contiguous else self.memory.copy(view[:, None], dtype)

    def _kept(self, source, make: Callable[[], OnDevice]) -> OnDevice:
        """Tables on the device in use, made once and kept as long as `source` lives."""
        on_devices = self._tables.setdefault(source, {})
        if self.device.key() not in on_devices:
            on_devices[self.device.key()] = make()
            self.device.synchronize()  # a later call may use the tables from another stream
        return on_devices[self.device.key()]

    def _upload(self, tables: Tables) -> OnDevice:
        """The tables on the device."""
        waves = tuple((self.device.upload(w), len(w), int(w["n_q"].max())) for w in tables.waves)
        segments, indices, weights = map(self.device.upload, (tables.segments, tables.indices, tables.weights))
        steps = tables.sorting if isinstance(tables, DrawnTables) else ()
        sorting = tuple(SortingOnDevice.of(self.device, x) for x in steps)
        return OnDevice(waves, segments, indices, weights, tables.carries, sorting)


class CupyBackend(CudaBackend):
    """Exact and planned attention, hashing and measures on a GPU.

    Parameters
    ----------
    path : see `CudaBackend`.
    exact : who computes exact attention and causal leaves: None for the kernels of this library, "flash" or "cudnn" for
        the operators of PyTorch, or an `ExactPrimitive`.
    """

    name = "cupy"

    def __init__(self, path: str = "auto", exact: str | ExactPrimitive | None = None):
        if isinstance(exact, str):
            if exact not in PRIMITIVES:
                known = ", ".join(PRIMITIVES)
                raise ValueError(f"exact is {exact!r}; it must be None, an ExactPrimitive or one of {known}")
            exact = PRIMITIVES[exact]
        super().__init__(cupy_device.CupyDevice(), path, exact)

    def unavailable(self) -> str | None:
        return cupy_device.obstacle()


class OnDevice(NamedTuple):
    """`Tables` on a device; of each wave also the number of its sweeps and the queries of the longest one.

    `sorting` is, of DrawnTables, what comes before each wave.
    """

    waves: tuple[tuple[DeviceArray, int, int], ...]
    segments: DeviceArray
    indices: DeviceArray
    weights: DeviceArray
    carries: bool
    sorting: tuple[SortingOnDevice | None, ...]


class Attending(NamedTuple):
    """Attention under way: the kernel, its arguments, and where the results will be."""

    kernel: Launched
    matrices: list
    rest: list
    out: DeviceArray
    lse: DeviceArray


def tensor_kernel(dtype: str, d: int, d_v: int, shared_limit: int) -> Launched:
    """The kernel for tensor cores: a tile of queries and two of keys and values, rows padded.

    A tile has 128 queries, but 64 for wide heads, which need the registers, and where a multiprocessor has too little
    shared memory for three blocks with 128.
    """
    depth, width = (-(-x // 16) * 16 for x in (d, d_v))
    widest = max(depth, width)
    keys = 64 if widest <= 64 else 32 if widest <= 128 else 16
    queries = 128 if widest <= 128 and shared_limit >= ROOMY else 64
    stage = 2 * keys * (depth + 8 + width + 8) + 12 * keys + 16
    defines = (f"STORAGE={STORAGE[dtype]}", f"DEPTH={depth}", f"WIDTH={width}", f"KEYS={keys}", f"QUERIES={queries}")
    tile_bytes = 2 * queries * (depth + 8) + 2 * stage + 8 * queries + TENSOR_TABLES
    return Launched(Kernel("attend_tensor.cu", "attend_tensor", defines), queries, TENSOR_THREADS, tile_bytes)
