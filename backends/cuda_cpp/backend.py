"""The operations of a backend as launches of the CUDA kernels in `kernels/`.

This file decides which kernel runs, in which variant, on which grid; the headers of the kernels say what they compute.
They run on a `Device` (module `device`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.backend import BLOCK_LISTS, GRADIENTS, LANDMARKS, AttentionSums
from hyperattention_ref.foundation.memory import library_of
from hyperattention_ref.plan.head_plan import Rectangle

from ..device_array import DeviceArray, require_one, torch_view
from . import cupy_device
from .device import (
    MAX_LENGTH,
    MAX_WIDTH,
    STORAGE,
    Device,
    Kernel,
    Layouts,
    launch,
    real,
    storage,
    transposed_kernel,
    width_of,
)
from .leaves import carried_state, leaves_attention, leaves_obstacle
from .memory import CudaMemory
from .sort_lsh import DrawnIndices, Hyperplanes, hash_sides
from .tables import Tables, drawn_tables, exact_tables, head_sides, plan_tables
from .torch_attention import PRIMITIVES, ExactPrimitive

PATHS = ("auto", "portable", "tensor")
TENSOR_THREADS = 128
ROOMY = 160_000  # bytes of shared memory that a block may have on GPUs where a multiprocessor has more than twice 64 KB
MAX_ROWS = 2**31 - 1  # of all heads together
MAX_STRIDE = 2**30  # elements from one row to the next, for tensor cores

AnyTables = TypeVar("AnyTables", bound=Tables)


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
    exact : computes exact attention and the leaves of causal plans: an `ExactPrimitive`, which takes torch tensors and
        is refused where it cannot run; None for the kernels of this library.
    """

    lacks = frozenset({BLOCK_LISTS, LANDMARKS, GRADIENTS})

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
            sides = head_sides(math.prod(lead), n).uploaded(self.device)
            uploaded = Hyperplanes.of(self.device, np.asarray(planes)[None], rows, self.path)
            hash_sides(self.layouts, rows, sides, uploaded, codes)
            return codes.owner

    def exact_attention(self, q, k, v, *, scale, is_causal):
        arrays = self._views(query=q, key=k, value=v)
        with self.device.scope(arrays[0]):
            *lead, n_q, _ = arrays[0].shape
            if self.exact:
                return self._by_primitive(self.exact, arrays, ((0, n_q),) if is_causal else (), scale)
            tables = exact_tables(math.prod(lead), n_q, arrays[1].shape[-2], is_causal)
            return self._attend(arrays, tables.uploaded(self.device), scale)

    def planned_attention(self, q, k, v, plan, *, scale):
        arrays = self._views(query=q, key=k, value=v)
        with self.device.scope(arrays[0]):
            leaf_results = None
            if self.exact and plan.is_causal:
                leaves = {head.leaves for head in plan.heads}
                if len(leaves) > 1:
                    raise ValueError(
                        f"the exact primitive {self.exact.name!r} needs one set of leaves for all heads, and those of "
                        f"the plan have {len(leaves)}: leave `exact` out, or pass heads of one set at a time"
                    )
                leaf_results = self._by_primitive(self.exact, arrays, leaves.pop(), scale)
            tables = self._uploaded(plan, lambda: plan_tables(plan, leaves=not leaf_results))
            return self._attend(arrays, tables, scale, leaf_results=leaf_results)

    def drawn_attention(self, q, k, v, noise, planner, *, scale, extremes):
        """(out, lse) of the attention of the Plan that `planner` makes from this noise, without a Plan on the host.

        Paper: the practical algorithm, steps 1 to 4. The device computes hash codes, orders and block numbers before
        the wave of sweeps that needs them; the host sends hyperplanes and sampled keys. The results have the bits of
        `planned_attention` with the plan that `make_plan` makes on this backend.

        Parameters
        ----------
        q, k, v, scale : as in `planned_attention`.
        noise : a function that returns the Draw of all heads, (heads, rectangles, ...): `planner.noise` with its
            arguments. It is called once the leaves have been launched: the host draws while the device computes them.
        planner : a Planner whose recipe is plain (`Recipe.is_plain`). What is read: `is_causal`, `leaves`, `places`,
            and `block_size`, `sample_size` and `lsh_bits` of `recipe`.
        extremes : the `foundation.extremes.Extremes` of query, key and value. They have not been checked: the search
            for large and non-finite entries begins here, and the caller refuses them after the call. Hashing finds the
            largest entries of query and key where it reads all their rows, that is, if not causal.
        """
        arrays = self._views(query=q, key=k, value=v)
        with self.device.scope(arrays[0]):
            query, key, _ = arrays
            extremes.begin(*(["query", "key", "value"] if planner.is_causal else ["value"]))
            leaf_results = None
            if self.exact and planner.is_causal:
                leaf_results = self._by_primitive(self.exact, arrays, planner.leaves, scale)
            open_tables = drawn_tables(
                math.prod(query.shape[:-2]),
                query.shape[-2],
                planner.leaves,
                planner.places,
                block_size=planner.recipe.block_size,
                sample_size=planner.recipe.sample_size,
                resumes=leaf_results is not None,
            )
            tables = self._uploaded(open_tables, lambda: open_tables)
            drawn = DrawnIndices(
                self.layouts,
                tables,
                query=query,
                key=key,
                planner=planner,
                noise=noise,
                path=self.path,
                extremes=None if planner.is_causal else extremes,
            )
            return self._attend(arrays, tables, scale, leaf_results=leaf_results, drawn=drawn)

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        query, key = self._views(query=q, key=k)
        with self.device.scope(query):
            (n_q, d), n_k = query.shape, key.shape[0]
            rows = [self.device.empty((n_q,), real(query), like=query) for _ in range(5)]
            columns = [self.device.empty((n_k,), real(query), like=query) for _ in range(2)]
            pair = [*self.layouts.matrix(query), *self.layouts.matrix(key), n_q, n_k, d, float(scale), is_causal]
            kernel = Kernel("row_sums.cu", "row_sums", (storage(query),))
            launch(self.device, kernel, (1, n_q), [*pair, *self._mask(mask), *rows])
            kernel = Kernel("columns.cu", "column_sums", (storage(query), f"WIDTH={width_of(1)}"))
            launch(self.device, kernel, (1, n_k), [*pair, rows[0], *columns])
            fields = ("log_total", "log_unmasked", "entropy", "column_sums", "column_squares")
            return AttentionSums(
                **{name: x.owner for name, x in zip(fields, (*rows[:3], *columns), strict=True)},
                logit_min=float(self.device.download(rows[3]).min()),
                logit_max=float(self.device.download(rows[4]).max()),
            )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        query, key, values = self._views(query=q, key=k, y=y)
        with self.device.scope(query):
            (n_q, d), n_k, width = query.shape, key.shape[0], values.shape[1]
            product = self.device.empty((n_k, width), real(query), like=query)
            args = [x for array in (query, key, values) for x in self.layouts.matrix(array)]
            args += [n_q, n_k, d, width, float(scale), is_causal, self._row_data("lse", lse, real(query)), product]
            launch(self.device, transposed_kernel(query, width), (1, n_k), args)
            return product.owner

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        query, key = self._views(query=q, key=k)
        with self.device.scope(query):
            (n_q, d), n_k = query.shape, key.shape[0]
            log_sums = self.device.empty((n_q,), real(query), like=query)
            n_capped = self.device.empty((n_q,), "int64", like=query)
            samples = self.device.upload(np.ascontiguousarray(samples, np.int32))
            args = [*self.layouts.matrix(query), *self.layouts.matrix(key), n_q, n_k, d, float(scale)]
            args += [samples, samples.size, *self._mask(mask)]
            args += [self._row_data("log_caps", log_caps, real(query)), log_sums, n_capped]
            launch(self.device, Kernel("capped_sums.cu", "capped_sums", (storage(query),)), (1, n_q), args)
            return log_sums.owner, n_capped.owner

    def attention_path(self, q, k, v) -> AttentionPath:
        """Which kernels `exact_attention` and `planned_attention` run for these arrays, and why not tensor cores.

        A ValueError where path="tensor" is impossible, as in the call itself.
        """
        *arrays, _ = inputs.measured_heads(q, k, v, memory=self.memory)
        with self.device.scope(arrays[0]):
            return self._path(*arrays)

    def _path(self, q: DeviceArray, k: DeviceArray, v: DeviceArray) -> AttentionPath:
        obstacle = self._tensor_obstacle(q, k, v)
        if self.path == "tensor" and obstacle:
            raise ValueError(f"path='tensor' is impossible: {obstacle}; use path='auto' or 'portable'")
        if self.path == "portable":
            obstacle = "path='portable' was asked for"
        elif self.path == "auto" and q.dtype != "bfloat16":
            obstacle = f"path='auto' takes tensor cores for bfloat16 only, and query has dtype {q.dtype}"
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

    def _attend(
        self,
        arrays: list[DeviceArray],
        tables: Tables,
        scale: float,
        *,
        leaf_results: tuple | None = None,
        drawn: DrawnIndices | None = None,
    ):
        """(out, lse): the waves of sweeps of uploaded tables.

        `leaf_results` is (out, lse) of the leaves, whose memory the results take. `drawn` fills in the indices of each
        wave where the tables do not have them.
        """
        q, k, v = arrays
        (*lead, n_q, d), d_v = q.shape, v.shape[-1]
        if leaf_results:
            out, lse = (self.device.view("a result", x) for x in leaf_results)
            state = self.device.view("the state", carried_state(*leaf_results))
        else:
            out = self.device.empty((*lead, n_q, d_v), q.dtype, like=q)
            lse = self.device.empty((*lead, n_q), real(q), like=q)
            state = self.device.empty((math.prod(lead) * n_q if tables.carries else 0, d_v + 2), real(q))
        kernel = self._attention_kernel(q, k, v)
        matrices = [x for array in arrays for x in self.layouts.matrix(array)]
        for number, wave in enumerate(tables.waves):
            indices = drawn.before(number) if drawn else tables.indices
            args = [*matrices, wave.sweeps.records, tables.segments, indices, tables.weights]
            args += [np.int64(n_q), d, d_v, float(scale), out, lse, state]
            launch(self.device, kernel, wave.sweeps.grid, args)
        return out.owner, lse.owner

    def _by_primitive(self, primitive: ExactPrimitive, arrays: list[DeviceArray], leaves, scale: float):
        """(out, lse) of exact attention by the primitive: causal inside each leaf; of all pairs if there are none."""
        foreign = [x for x in arrays if library_of(x.owner) != "torch"]
        if foreign:
            kind = f"{library_of(foreign[0].owner)}.{type(foreign[0].owner).__name__}"
            raise TypeError(
                f"the exact primitive {primitive.name!r} takes torch tensors, and an array is a {kind}: pass "
                "torch.from_dlpack of it, or leave `exact` out"
            )
        q, k, v = (torch_view(x) for x in arrays)
        if leaves:
            reason = leaves_obstacle(primitive, q, k, v, leaves, scale=scale)
        else:
            reason = primitive.obstacle(q, k, v, is_causal=False, scale=scale)
        if reason:
            raise ValueError(f"the exact primitive {primitive.name!r} cannot run: {reason}; leave `exact` out")
        if leaves:
            return leaves_attention(primitive, q, k, v, leaves, scale=scale)
        return primitive(q, k, v, scale=scale, is_causal=False)

    def _attention_kernel(self, q: DeviceArray, k: DeviceArray, v: DeviceArray) -> Kernel:
        if self._path(q, k, v).path == "tensor":
            return tensor_kernel(q.dtype, q.shape[-1], v.shape[-1], self.device.shared_limit())
        return Kernel("attend.cu", "attend", (storage(q), f"WIDTH={width_of(v.shape[-1])}"))

    def _views(self, **arrays) -> list[DeviceArray]:
        """The caller's arrays, which have been checked; refused is what only these kernels do not take."""
        views = {name: self.memory.view(name, x) for name, x in arrays.items()}
        require_one(views, "device")
        for name, x in views.items():
            if x.shape[-2] > MAX_LENGTH:
                raise ValueError(f"{name} has {x.shape[-2]} rows; the CUDA kernels take at most {MAX_LENGTH}")
            if math.prod(x.shape[:-1]) > MAX_ROWS:
                raise ValueError(f"{name} has shape {x.shape}, over {MAX_ROWS} rows; pass fewer heads at a time")
            if name in ("value", "y") and x.shape[-1] > MAX_WIDTH:
                raise ValueError(f"{name} has {x.shape[-1]} columns; the CUDA kernels take at most {MAX_WIDTH}")
        return list(views.values())

    def _mask(self, mask) -> list:
        """The mask as arguments: block numbers of views, how many views, and a dense matrix of bytes."""
        if mask is None:
            return [None, None, 0, None]
        if isinstance(mask, Rectangle):
            blocks = mask.block_numbers(exact_keys=True)
            return [*map(self.device.upload, blocks), len(blocks[0]), None]
        return [None, None, 0, self.device.upload(np.ascontiguousarray(mask, np.uint8))]

    def _row_data(self, name: str, x, dtype: str) -> DeviceArray:
        """One number for each row, from the host or from the device, as a contiguous array of this dtype."""
        if isinstance(x, np.ndarray):
            return self.device.upload(np.ascontiguousarray(x, dtype))
        view = self.device.view(name, x)
        return view if view.dtype == dtype and view.is_contiguous else self.memory.copy(view[:, None], dtype)

    def _uploaded(self, source, make: Callable[[], AnyTables]) -> AnyTables:
        """Tables on the device in use, uploaded once and kept as long as `source` lives."""
        by_device = self._tables.setdefault(source, {})
        if self.device.key() not in by_device:
            by_device[self.device.key()] = make().uploaded(self.device)
            self.device.synchronize()  # a later call may use the tables from another stream
        return by_device[self.device.key()]


class CupyBackend(CudaBackend):
    """Exact and planned attention, hashing and measures on a GPU.

    Parameters
    ----------
    path : see `CudaBackend`.
    exact : computes exact attention and causal leaves: "flash" or "cudnn" for the operators of PyTorch, or an
        `ExactPrimitive`; None for the kernels of this library.
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


def tensor_kernel(dtype: str, d: int, d_v: int, shared_limit: int) -> Kernel:
    """The kernel for tensor cores: a tile of queries and two of keys and values, rows padded.

    A tile has 128 queries, but 64 for wide heads, which need the registers, and where a multiprocessor has too little
    shared memory for three blocks with 128.
    """
    depth, width = (-(-x // 16) * 16 for x in (d, d_v))
    widest = max(depth, width)
    keys = 64 if widest <= 64 else 32 if widest <= 128 else 16
    queries = 128 if widest <= 128 and shared_limit >= ROOMY else 64
    defines = (f"STORAGE={STORAGE[dtype]}", f"DEPTH={depth}", f"WIDTH={width}", f"KEYS={keys}", f"QUERIES={queries}")
    stage = 2 * keys * (depth + 8 + width + 8) + 12 * keys + 16
    shared_bytes = 2 * queries * (depth + 8) + 2 * stage + 8 * queries + 192  # sizeof(Tile), as the kernel verifies
    return Kernel("attend_tensor.cu", "attend_tensor", defines, queries, TENSOR_THREADS, shared_bytes)
