"""Checks of all arguments, made once, where a public function is called.

Each error names the argument, its value, the requirement and the remedy. All other code assumes finite floating-point
arrays of matching shapes.
"""

from __future__ import annotations

import math
import numbers
import operator

import numpy as np

from hyperattention_ref.foundation.extremes import Extremes
from hyperattention_ref.foundation.host_arrays import dtype_name
from hyperattention_ref.foundation.memory import HOST, Memory, working_dtype


def floating(name: str, x, memory: Memory = HOST):
    """`x` as an array of a floating dtype with finite entries, in the required memory."""
    x = memory.view(name, x)
    _ = Extremes(memory, {name: x}).values
    return x


def head(name: str, x, memory: Memory = HOST):
    """One head `(n, d)`, n, d >= 1, as float64, the input of the literal functions."""
    x = floating(name, x, memory)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"{name} has shape {x.shape}; it must be one head (n, d) with n, d >= 1: pass one head at a time"
        )
    return memory.copy(x, "float64")


def query_key(q, k, memory: Memory = HOST):
    """One query head `(n_q, d)` and one key head `(n_k, d)`, as float64."""
    q, k = head("query", q, memory), head("key", k, memory)
    _matching(q, k)
    return q, k


def value(v, n_k: int, memory: Memory = HOST):
    """One value head `(n_k, d_v)` as float64."""
    v = head("value", v, memory)
    if v.shape[0] != n_k:
        raise ValueError(f"value has {v.shape[0]} rows and key has {n_k}; they must be equal")
    return v


def causal_lengths(n_q: int, n_k: int) -> None:
    """Raise an error for causal attention of unequal lengths."""
    if n_q != n_k:
        raise ValueError(
            f"is_causal with {n_q} queries and {n_k} keys; causal attention is defined for n_q == n_k here: "
            "pass equal lengths or is_causal=False"
        )


def heads(q, k, v=..., *, is_causal: bool = False, enable_gqa: bool = False, memory: Memory = HOST):
    """Heads `(..., n, d)` of one dtype, finite; grouped-query heads become views; `v` may be omitted.

    Returns
    -------
    query, key, value : arrays of equal leading shape. With `enable_gqa` and group size g the query `(..., h, n_q, d)`
        is viewed as `(..., h/g, g, n_q, d)`; key and value are broadcast along g with stride 0, without a copy.
        `value` is None if it was omitted.
    """
    *arrays, largest = measured_heads(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa, memory=memory)
    _ = largest.values
    return tuple(arrays)


def measured_heads(q, k, v=..., *, is_causal: bool = False, enable_gqa: bool = False, memory: Memory = HOST):
    """As `heads`, followed by their Extremes, with which `logit_range` detects non-finite or too large entries."""
    is_causal, enable_gqa = boolean("is_causal", is_causal), boolean("enable_gqa", enable_gqa)
    given = {"query": q, "key": k} | ({} if v is ... else {"value": v})
    named = {name: memory.view(name, x) for name, x in given.items()}
    arrays = tuple(named.values())
    for name, x in named.items():
        if x.ndim < 2 or 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}; it must be (..., n, d) with no empty dimension")
    dtypes = {name: dtype_name(given[name], x) for name, x in named.items()}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"dtypes differ ({found}); all must be the same: convert them to one")
    if is_causal:
        causal_lengths(arrays[0].shape[-2], arrays[1].shape[-2])
    _matching(*arrays)
    largest = Extremes(memory, named)
    if enable_gqa:
        arrays = _grouped(*arrays, memory=memory)
    for name, x in zip(("key", "value"), arrays[1:], strict=False):
        if x.shape[:-2] != arrays[0].shape[:-2]:
            hint = "" if enable_gqa else "; for grouped-query heads pass enable_gqa=True"
            if x.ndim != arrays[0].ndim:
                hint = "; give all of them the same number of dimensions: x[None] adds one"
            raise ValueError(
                f"query has leading shape {arrays[0].shape[:-2]} and {name} has {x.shape[:-2]}; "
                f"they must be equal{hint}"
            )
    return *arrays, *([None] if v is ... else []), largest


def _matching(q, k, v=None) -> None:
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"query has d = {q.shape[-1]} and key has d = {k.shape[-1]}; they must be equal")
    if v is not None and v.shape[-2] != k.shape[-2]:
        raise ValueError(f"value has {v.shape[-2]} rows and key has {k.shape[-2]}; they must be equal")


def _grouped(q, *keys_values, memory: Memory):
    """View query heads as groups that share a key head; broadcast the key heads."""
    n_heads, n_shared = q.shape[-3] if q.ndim > 2 else 0, [x.shape[-3] if x.ndim > 2 else 0 for x in keys_values]
    if 0 in (n_heads, *n_shared) or len(set(n_shared)) > 1 or n_heads % n_shared[0]:
        raise ValueError(
            f"enable_gqa with {n_heads} query heads and {n_shared} key (and value) heads; arrays must be "
            "(..., heads, n, d) and the query heads a multiple of the key heads"
        )
    group = n_heads // n_shared[0]
    q = q.reshape(*q.shape[:-3], n_shared[0], group, *q.shape[-2:])
    return [q] + [memory.broadcast(x[..., None, :, :], (*x.shape[:-2], group, *x.shape[-2:])) for x in keys_values]


def resolve_scale(scale, d: int) -> float:
    """`scale` as a float; None means 1/sqrt(d), as in standard attention."""
    if scale is None:
        return 1.0 / math.sqrt(d)
    return finite("scale", scale)


def logit_range(
    q, k, scale: float, v=None, draws: int = 0, *, largest: Extremes | None = None, memory: Memory = HOST
) -> None:
    """Raise an error if logits or weighted sums could overflow the working type (float32 for shorter ones).

    `draws` is the largest number of sampled keys of a query, which add to the n_k terms of its sums; `largest` is what
    `measured_heads` returns last; without it, it is computed here, in `memory`.
    """
    limit = float(np.finfo(working_dtype(q)).max) / 4
    arrays = {"query": q, "key": k} | ({} if v is None else {"value": v})
    top = (largest or Extremes(memory, arrays)).values
    if not (abs(scale) <= limit and top[0] * top[1] * q.shape[-1] * max(1.0, abs(scale)) <= limit):
        raise ValueError(
            f"logits may overflow {working_dtype(q)}: max|query| = {top[0]:.3g}, max|key| = {top[1]:.3g}, "
            f"scale = {scale:.3g}, d = {q.shape[-1]}; rescale query and key, or pass float64"
        )
    if v is not None and not top[2] * 4 * (v.shape[-2] + draws) <= limit:
        raise ValueError(f"sums of values may overflow {v.dtype}: max|value| = {top[2]:.3g}; rescale value")


def gradient_range(q, v, scale: float, largest: Extremes, upstream: Extremes) -> None:
    """Raise an error if sums of gradients could overflow the working type; `largest` is of query, key and value.

    `upstream` is of dout, and of dlse if it is given.
    """
    limit = float(np.finfo(working_dtype(q)).max) / 4
    top_q, top_k, top_v = largest.values
    dout, dlse = (*upstream.values, 0.0)[:2]
    n_q, d_v = q.shape[-2], v.shape[-1]
    term = (2 * d_v * dout * max(1.0, top_v) + dlse) * max(1.0, abs(scale)) * max(1.0, top_q, top_k)
    if not 2 * n_q * term <= limit:
        raise ValueError(
            f"gradients may overflow {working_dtype(q)}: max|dout| = {dout:.3g}, max|value| = {top_v:.3g}; scale dout "
            "down, or pass float64"
        )


def output(x, shape: tuple[int, ...]):
    """An attention output to be judged, finite and of this shape."""
    x = floating("output", x)
    if x.shape != shape:
        raise ValueError(f"output has shape {x.shape}; it must be (..., n_q, d_v) = {shape}")
    return x


def finite(name: str, x) -> float:
    """A finite real number as a float."""
    if isinstance(x, bool | np.bool_) or not isinstance(x, numbers.Real):
        raise TypeError(f"{name} is {x!r}; it must be a real number")
    try:
        x = float(x)
    except OverflowError:
        raise ValueError(f"{name} is beyond the range of float64; it must be finite") from None
    if not math.isfinite(x):
        raise ValueError(f"{name} is {x}; it must be finite")
    return x


def at_least(name: str, x, low: float) -> float:
    """A finite real number not below `low`."""
    x = finite(name, x)
    if not x >= low:
        raise ValueError(f"{name} is {x}; it must be at least {low}")
    return x


def positive(name: str, x, *, allow_infinite: bool = False) -> float:
    """A positive real number, finite unless `allow_infinite`."""
    if allow_infinite and isinstance(x, float | np.floating) and x == math.inf:
        return math.inf
    x = finite(name, x)
    if not x > 0:
        raise ValueError(f"{name} is {x}; it must be positive")
    return x


def boolean(name: str, x) -> bool:
    """True or False, of Python or NumPy, and nothing that merely counts as one."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{name} is {x!r}; it must be True or False")
    return bool(x)


def count(name: str, x, *, least: int = 1, most: int | None = None) -> int:
    """An integer of at least `least` (and at most `most`)."""
    try:
        if isinstance(x, bool | np.bool_):
            raise TypeError
        x = operator.index(x)
    except TypeError:
        raise TypeError(f"{name} is {x!r}; it must be an integer") from None
    if x < least or (most is not None and x > most):
        need = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} is {x}; it must be {need}")
    return x
