"""The Numba CUDA backend: kernels in Python, for readers who learn from a GPU implementation or check one.

This module launches; the arithmetic is in `numba_cuda_kernels`. Data stays on the device: arrays that offer
`__cuda_array_interface__` (CuPy, PyTorch, Numba, JAX) are read where they lie, with any strides, and results are arrays
of the caller's library. Decisions (plans, hyperplanes, masks, samples) are host data, and are moved to the device.

Numba and the package numba-cuda are imported at the first use.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperattention_ref.definition_1 import scaled_rows
from hyperattention_ref.measures.attention_sums import AttentionSums
from hyperattention_ref.memory import HOST
from hyperattention_ref.plan import HeadPlan, Plan, Rectangle

REMEDY = "pip install 'hyperattention-ref[cuda]'"


class NumbaCuda:
    """Attention on one CUDA device. A call waits for its arrays, and returns when its results are there."""

    name = "numba-cuda"

    def unavailable(self) -> str | None:
        try:
            from numba import config, cuda
        except ImportError as error:
            return f"numba.cuda cannot be imported ({error}); install it with: {REMEDY}"
        if config.ENABLE_CUDASIM:  # type: ignore[attr-defined]  # Numba sets its options at run time
            return "NUMBA_ENABLE_CUDASIM is set, which puts a simulator in the place of the device; unset it"
        if getattr(cuda, "implementation", None) != "NVIDIA":
            return (
                f"the package numba-cuda is missing (Numba's own CUDA target is deprecated); install it with: {REMEDY}"
            )
        if not cuda.is_available():
            reason = " ".join(str(cuda.cuda_error() or "a CUDA library is missing").split()).rstrip(" :.")
            return f"Numba finds no CUDA device ({reason}); it needs an NVIDIA driver and the libraries of: {REMEDY}"
        return None

    def hash_codes(self, x, planes):
        device = self._device()
        (x,) = _given(x=x)
        planes = device.moved(scaled_rows(np.asarray(planes, np.float64)).astype(x.work))
        codes = device.empty((x.n_heads, x.n), np.int64)
        for h, rows in enumerate(x.heads()):
            device.launch("hash_rows", device.tiles(device.tiles(x.n)), rows, planes, codes[h])
        return _returned(x, codes.reshape(*x.lead, x.n))[0]

    def exact_attention(self, q, k, v, *, scale, is_causal):
        self._device()
        query, key, _ = _given(query=q, key=k, value=v)
        if is_causal:  # the plan that is a single leaf, or has every key exact
            head = HeadPlan(query.n, key.n, (), ((0, query.n),))
        else:
            head = HeadPlan(query.n, key.n, (Rectangle(query.n, key.n, exact_keys=np.arange(key.n)),))
        return self.planned_attention(q, k, v, Plan(query.lead, (head,) * query.n_heads), scale=scale)

    def planned_attention(self, q, k, v, plan, *, scale):
        device = self._device()
        q, k, v = _given(query=q, key=k, value=v)
        out, lse = device.empty((q.n_heads, q.n, v.d), q.dtype), device.empty((q.n_heads, q.n), q.work)
        softmax = RunningSoftmax(device, q.work.type(scale), q.n, v.d)
        for h, arrays in enumerate(zip(q.heads(), k.heads(), v.heads(), strict=True)):
            softmax.start()
            softmax.attend_head(plan.heads[h], arrays)
            softmax.finish(out[h], lse[h])
        return _returned(q, out.reshape(*q.lead, q.n, v.d), lse.reshape(*q.lead, q.n))

    def attention_sums(self, q, k, mask, *, scale, is_causal):
        device = self._device()
        q, k = _given(query=q, key=k)
        rows = {name: device.empty(q.n, q.work) for name in ("log_total", "log_unmasked", "entropy")}
        columns = {name: device.empty(k.n, q.work) for name in ("column_sums", "column_squares")}
        lowest, highest = device.empty(q.n, q.work), device.empty(q.n, q.work)
        marks = [device.moved(x) for x in _marks(mask, q.n, k.n)]
        queries, keys, scale, is_causal = q.array(), k.array(), q.work.type(scale), bool(is_causal)
        row_results = *rows.values(), lowest, highest
        device.launch("row_sums", device.tiles(q.n), queries, keys, scale, *marks, is_causal, *row_results)
        log_total, column_results = rows["log_total"], columns.values()
        device.launch("column_sums", device.tiles(k.n), queries, keys, log_total, scale, is_causal, *column_results)
        fields = _returned(q, *rows.values(), *columns.values())
        return AttentionSums(
            **dict(zip(rows | columns, fields, strict=True)),
            logit_min=float(lowest.copy_to_host().min()),
            logit_max=float(highest.copy_to_host().max()),
        )

    def transposed_attention(self, q, k, y, lse, *, scale, is_causal):
        device = self._device()
        (q, k), (y,), (lse,) = _given(query=q, key=k), _given(y=y), _given(lse=lse)
        out = device.moved(np.zeros((k.n, y.d), q.work))
        arrays, scale = [x.array() for x in (q, k, y, lse)], q.work.type(scale)
        device.launch("transposed", device.tiles(k.n), *arrays, scale, bool(is_causal), out)
        return _returned(q, out)[0]

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale):
        device = self._device()
        (q, k), (log_caps,) = _given(query=q, key=k), _given(log_caps=log_caps)
        samples = np.asarray(samples, np.int64)
        query_blocks, key_blocks, dense = _marks(mask, q.n, k.n)
        marks = [device.moved(x) for x in (query_blocks, key_blocks[:, samples], dense, samples)]
        arrays, scale = (q.array(), k.array()), q.work.type(scale)
        log_sums, n_capped = device.empty(q.n, q.work), device.empty(q.n, np.int64)
        device.launch("capped_rows", device.tiles(q.n), *arrays, scale, *marks, log_caps.array(), log_sums, n_capped)
        return _returned(q, log_sums, n_capped)

    def _device(self) -> Device:
        """What launches kernels; or one error that says why none can be launched."""
        if reason := self.unavailable():
            raise RuntimeError(f"backend {self.name!r} cannot run here: {reason}")
        from hyperattention_ref.backends import numba_cuda_kernels

        return Device(numba_cuda_kernels)


@dataclass(frozen=True)
class Device:
    """The current device: its memory, and launches of the kernels of a module."""

    kernels: Any

    def empty(self, shape, dtype):
        """Fresh memory on the device."""
        return self.kernels.cuda.device_array(shape, dtype)

    def moved(self, x):
        """A host array on the device, contiguous."""
        return self.kernels.cuda.to_device(np.ascontiguousarray(x))

    def tiles(self, n: int) -> int:
        """How many tiles cover n rows."""
        return -(-n // self.kernels.TILE)

    def launch(self, name: str, n_blocks: int, *args) -> None:
        """Run a kernel with so many blocks of TILE x TILE threads."""
        threads = self.kernels.TILE, self.kernels.TILE
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Grid size")  # few tiles are no mistake, only few rows
            getattr(self.kernels, name)[n_blocks, threads](*args)


# --- Attention --------------------------------------------------------------------------------------------------------


class RunningSoftmax:
    """The state of the queries of one head, on the device, and the launches that change it.

    Compare `blocked_numpy.RunningSoftmax`; the state is described at the kernel `attend`.
    """

    def __init__(self, device: Device, scale, n_q: int, d_v: int):
        self.device, self.scale, self.n_blocks = device, scale, device.tiles(n_q)
        self.state = [device.empty(shape, scale.dtype) for shape in ((n_q, d_v), n_q, n_q)]

    def start(self):
        self.device.launch("start", self.n_blocks, *self.state)

    def finish(self, out, lse):
        self.device.launch("finish", self.n_blocks, *self.state, out, lse)

    def attend_head(self, head: HeadPlan, arrays):
        """Rules 8 and 9: the causal leaves, then the rectangles in the order of the plan. `arrays` are q, k, v."""
        if head.leaves:
            rows = np.arange(head.n_q)
            tiles = [self._tiles(a, c, first_key=a) for a, c in head.leaves]
            self._attend(arrays, rows, rows, np.concatenate(tiles), is_causal=True)
        for r in head.rectangles:
            self._attend_rectangle(r, arrays)

    def _attend_rectangle(self, r: Rectangle, arrays):
        """Rules 3, 4 and 7: exact keys, then each view, then the sampled keys, every masked pair once.

        The exact keys are view 0, as `numba_cuda_kernels` explains; a sweep skips what the views before it have.
        """
        query_blocks, key_blocks = _view_blocks(r)
        every = np.arange(r.n_q)

        def attend(queries, keys, tiles, **which):
            blocks = query_blocks[:, queries], key_blocks[:, keys]
            self._attend(arrays, r.query_start + queries, r.key_start + keys, tiles, blocks, **which)

        attend(every, r.exact_keys, self._tiles(0, r.n_q, stop_key=r.exact_keys.size))
        for u, view in enumerate(r.views, start=1):
            block, tiles = query_blocks[u, view.query_order], self._tiles(0, r.n_q)
            tiles[:, 2] = view.key_offsets[block[tiles[:, 0]]]  # the keys from the block of its first query
            tiles[:, 3] = view.key_offsets[block[tiles[:, 1] - 1] + 1]  # to that of its last
            attend(view.query_order, view.key_order, tiles, view=u, earlier=u)
        tiles = self._tiles(0, r.n_q, stop_key=r.sampled_keys.size)
        attend(every, r.sampled_keys, tiles, earlier=len(query_blocks), log_weights=r.log_weights)

    def _tiles(self, first: int, stop: int, *, first_key: int = 0, stop_key: int | None = None) -> np.ndarray:
        """Queries first .. stop in tiles, each with the keys first_key .. stop_key, by default up to its last query."""
        size = self.device.kernels.TILE
        firsts = np.arange(first, stop, size)
        stops = np.minimum(firsts + size, stop)
        tiles = np.stack([firsts, stops, np.full_like(firsts, first_key), stops], axis=1)
        if stop_key is not None:
            tiles[:, 3] = stop_key
        return tiles

    def _attend(
        self, arrays, queries, keys, tiles, blocks=None, *, view=-1, earlier=0, is_causal=False, log_weights=()
    ):
        """One sweep: the kernel `attend`, for the tiles that have keys."""
        tiles = tiles[tiles[:, 2] < tiles[:, 3]]
        if len(tiles):
            query_blocks, key_blocks = blocks or np.empty((2, 0, 0), np.int32)
            log_weights = np.asarray(log_weights, self.scale.dtype)
            lists = [self.device.moved(x) for x in (queries, keys, tiles, log_weights, query_blocks, key_blocks)]
            which = view, earlier, is_causal
            self.device.launch("attend", len(tiles), *arrays, self.scale, *lists, *which, *self.state)


def _view_blocks(r: Rectangle) -> tuple[np.ndarray, np.ndarray]:
    """Block numbers (1 + n_views, n_q) and (1 + n_views, n_k); view 0 has all queries and the exact keys in block 0."""
    exact = np.full(r.n_k, -1, np.int32)
    exact[r.exact_keys] = 0
    query_blocks = [np.zeros(r.n_q, np.int32), *(view.query_blocks() for view in r.views)]
    return np.stack(query_blocks), np.stack([exact, *(view.key_blocks() for view in r.views)])


def _marks(mask, n_q: int, n_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `row_sums` and `capped_rows` know a mask by: the block numbers of its views, and a dense boolean array.

    One of the two is empty, or both.
    """
    no_views, no_mask = (np.empty((0, n_q), np.int32), np.empty((0, n_k), np.int32)), np.empty((0, 0), bool)
    if isinstance(mask, Rectangle):
        return *_view_blocks(mask), no_mask
    return *no_views, no_mask if mask is None else mask


# --- Arrays in, arrays out --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceArray:
    """An array of any library on the device, (..., n, d), or (n,) for one number in each row."""

    owner: Any
    description: dict[str, Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, x) -> DeviceArray:
        """Read what `__cuda_array_interface__` says of x."""
        description = dict(x.__cuda_array_interface__)
        description.pop("stream", None)  # `_given` waits for all streams
        shape, dtype = tuple(description["shape"]), np.dtype(description["typestr"])
        strides = description.get("strides")
        if strides is None:  # contiguous
            strides = [dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(x, description, shape, tuple(strides), dtype)

    @property
    def work(self) -> np.dtype:
        """The type of the arithmetic."""
        return np.promote_types(self.dtype, np.float32)

    @property
    def lead(self) -> tuple[int, ...]:
        return self.shape[:-2]

    @property
    def n_heads(self) -> int:
        return math.prod(self.lead)

    @property
    def n(self) -> int:
        return self.shape[len(self.lead)]

    @property
    def d(self) -> int:
        return self.shape[-1]

    def heads(self):
        """The (n, d) arrays of the heads, in row-major order, as Numba arrays; nothing is copied.

        They are made from pointers because Numba's own indexing gives empty arrays where a stride is 0.
        """
        from numba import cuda

        lead = len(self.lead)
        pointer, is_read_only = self.description["data"]
        for index in np.ndindex(self.lead):
            offset = sum(i * stride for i, stride in zip(index, self.strides, strict=False))
            part = {
                "shape": self.shape[lead:],
                "strides": self.strides[lead:],
                "data": (pointer + offset, is_read_only),
            }
            yield cuda.from_cuda_array_interface(self.description | part, owner=self.owner)

    def array(self):
        """The Numba array of the only head."""
        (head,) = self.heads()
        return head


def _given(**arrays) -> list[DeviceArray]:
    """Arrays of one call that must be on one device and of one dtype, when they are there; refuse others."""
    from numba import cuda

    for name, x in arrays.items():
        if not hasattr(x, "__cuda_array_interface__"):
            raise TypeError(
                f"{name} is a {type(x).__module__}.{type(x).__qualname__} without __cuda_array_interface__: backend "
                "'numba-cuda' works on arrays that are on the device and copies none there or back; move it with "
                "cupy.asarray, numba.cuda.to_device or torch.Tensor.cuda, or choose a backend for host arrays"
            )
    given = [DeviceArray.of(x) for x in arrays.values()]
    dtypes = {name: x.dtype for name, x in zip(arrays, given, strict=True)}
    if len(set(dtypes.values())) > 1 or given[0].dtype.name not in HOST.dtypes:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"dtypes are {listed}; they must be one of float16, float32, float64, the same for all")
    _require_one_device({name: _device_number(x) for name, x in arrays.items()})
    cuda.synchronize()  # PyTorch does not say in which stream an array is being made
    return given


def _device_number(x) -> int | None:
    """The number of the device as CuPy (`id`) and PyTorch (`index`) tell it; None where the array does not say."""
    device = getattr(x, "device", None)
    number = getattr(device, "id", getattr(device, "index", None))
    return number if isinstance(number, int) else None


def _require_one_device(devices: dict[str, int | None]) -> None:
    known = {name: number for name, number in devices.items() if number is not None}
    if not known:
        return
    from numba import cuda

    listed = ", ".join(f"{name} on {number}" for name, number in known.items())
    if len(set(known.values())) > 1:
        raise ValueError(f"arrays are on different devices ({listed}); move them to one")
    if set(known.values()) != {cuda.get_current_device().id}:
        raise ValueError(
            f"arrays are not on the current device of Numba, number {cuda.get_current_device().id} ({listed}); "
            "call numba.cuda.select_device with the number of theirs"
        )


def _returned(given: DeviceArray, *results):
    """Results, when they are there, as arrays of the library that `given` came from; nothing is copied."""
    from numba import cuda

    cuda.synchronize()
    library = type(given.owner).__module__.partition(".")[0]
    if library == "cupy":
        import cupy

        return tuple(cupy.asarray(x) for x in results)
    if library == "torch":
        import torch

        return tuple(torch.as_tensor(x, device=given.owner.device) for x in results)
    return results
