"""The arguments of each operation, as the conformance suite passes them, and what rounding allows of the results."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hyperattention_ref.foundation.backend import Backend, each_head
from hyperattention_ref.foundation.memory import Memory
from hyperattention_ref.plan.block_mask import dense_mask
from hyperattention_ref.plan.head_plan import Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.plan_file import KEY_ARRAYS

from .error_bound import (
    Rounding,
    capped_bounds,
    error_bounds,
    gradient_bounds,
    head_terms,
    sums_bounds,
    transposed_bounds,
    without_far_parts,
)
from .far_error import FarError, far_error, with_far_parts


class _Example:
    """The arguments of one call of an operation: the fields of a dataclass.

    Each class has `operation`, `call(backend)` (name -> result) and, for arithmetic,
    `bounds(expected, dtypes, random_walk)` (name -> elementwise bound), `expected` being the results of the reference.
    A backend gets the arrays `in_memory` in its own memory; all others stay on the host.
    """

    in_memory: tuple[str, ...] = ("query", "key")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {name: x for name, x in vars(self).items() if name in self.in_memory or isinstance(x, np.ndarray)}

    def copied_to(self, memory: Memory):
        """The same arguments with the arrays in this memory, layouts kept."""
        return replace(self, **{name: memory.from_host(getattr(self, name)) for name in self.in_memory})  # type: ignore

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={_describe(x)}" for name, x in vars(self).items())
        return f"{self.operation}({arguments})"  # type: ignore[attr-defined]

    def _repr_pretty_(self, printer, cycle) -> None:  # what Hypothesis prints
        printer.text(repr(self))


@dataclass(frozen=True, eq=False, repr=False)
class HashInputs(_Example):
    """Arguments of `hash_codes`: x (..., n, d) and planes (r, d)."""

    x: np.ndarray
    planes: np.ndarray

    operation, in_memory = "hash_codes", ("x",)

    def call(self, backend: Backend) -> dict:
        """The codes."""
        return {"codes": backend.hash_codes(self.x, self.planes)}

    def decided(self) -> np.ndarray:
        """(..., n) the rows in which no sign is within rounding of turning."""
        x, planes, d = self.x.astype(np.float64), self.planes, self.planes.shape[1]
        u, t, _ = Rounding.of(self.x.dtype)
        size = 2 * (d + 3) * u * np.abs(x) @ np.abs(planes).T  # γ_{d+2} |x|ᵀ|w|, for the backend and the reference
        lost = 4 * t * (d + np.abs(x).sum(axis=-1, keepdims=True)) * (1 + np.abs(planes).sum(axis=1))
        return (np.abs(x @ planes.T) > size + lost).all(axis=-1) | ~x.any(axis=-1)  # a zero row is zero in any case


@dataclass(frozen=True, eq=False, repr=False)
class AttentionInputs(_Example):
    """Arguments of `exact_attention`, or of `planned_attention` if there is a plan.

    Attributes
    ----------
    query, key, value : (..., n_q, d), (..., n_k, d) and (..., n_k, d_v), as a backend gets them.
    scale : multiplies the logits.
    is_causal : whether the attention, or the plan, is causal; then n_q == n_k.
    plan : a Plan with one head for each head of the arrays, or None.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    is_causal: bool
    plan: Plan | None = None

    in_memory = ("query", "key", "value")

    @property
    def operation(self) -> str:
        return "exact_attention" if self.plan is None else "planned_attention"

    def call(self, backend: Backend) -> dict:
        """`out` and `lse`."""
        q, k, v = self.query, self.key, self.value
        if self.plan is None:
            pair = backend.exact_attention(q, k, v, scale=self.scale, is_causal=self.is_causal)
        else:
            pair = backend.planned_attention(q, k, v, self.plan, scale=self.scale)
        return dict(zip(("out", "lse"), pair, strict=True))

    def bounds(self, expected, dtypes, *, random_walk: bool = False) -> dict[str, np.ndarray]:
        """The bounds of `error_bounds`, for all heads."""
        out, lse = expected["out"], expected["lse"]
        bounds = {"out": np.empty(out.shape), "lse": np.empty(lse.shape)}
        for index, head_plan, q, k, v in each_head(self.plan, self.query, self.key, self.value):
            terms = head_terms(q, k, self.scale, is_causal=self.is_causal, head_plan=head_plan)
            rounding = Rounding.of(self.query.dtype, random_walk)
            fars = [] if head_plan is None else self._far_errors(head_plan, q, k, v, random_walk)
            exact_out, exact_lse = without_far_parts(terms, v) if fars else (out[index], lse[index])
            dtype, out_dtype = self.query.dtype, dtypes["out"]
            pair = error_bounds(terms, v, exact_out, exact_lse, dtype, out_dtype, random_walk=random_walk)
            if fars:
                pair = with_far_parts((exact_out, exact_lse), pair, fars, rounding, out_dtype)
            bounds["out"][index], bounds["lse"][index] = pair
        return bounds

    def _far_errors(self, head_plan, q, k, v, random_walk: bool) -> list[FarError]:
        """Those of the rectangles that have a far part."""
        errors = []
        for r in head_plan.rectangles:
            rows, keys = r.rows_and_keys
            arrays, listed = (q[rows], k[keys], v[keys]), head_plan.listed(r, range(r.n_q), range(r.n_k))
            errors.append(far_error(*arrays, r, listed, self.scale, self.query.dtype, random_walk=random_walk))
        return [error for error in errors if error is not None]


@dataclass(frozen=True, eq=False, repr=False)
class GradientInputs(_Example):
    """Arguments of `attention_gradient`: those of `AttentionInputs`, without landmarks, and what comes from upstream.

    Attributes
    ----------
    query, key, value, scale, is_causal, plan : as in `AttentionInputs`.
    out, lse : the reference's results, in the dtype of the inputs and its working type.
    dout, dlse : arrays of their shapes and dtypes.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    out: np.ndarray
    lse: np.ndarray
    dout: np.ndarray
    dlse: np.ndarray
    scale: float
    is_causal: bool
    plan: Plan | None

    operation = "attention_gradient"
    in_memory = ("query", "key", "value", "out", "lse", "dout", "dlse")

    def call(self, backend: Backend) -> dict:
        """`dq`, `dk` and `dv`."""
        found = backend.attention_gradient(
            self.query,
            self.key,
            self.value,
            self.plan,
            self.out,
            self.lse,
            self.dout,
            self.dlse,
            scale=self.scale,
            is_causal=self.is_causal,
        )
        return dict(zip(("dq", "dk", "dv"), found, strict=True))

    def bounds(self, expected, dtypes, *, random_walk: bool = False) -> dict[str, np.ndarray]:
        """The bounds of `gradient_bounds`, for all heads."""
        bounds = {name: np.empty(x.shape) for name, x in expected.items()}
        heads = each_head(self.plan, self.query, self.key, self.value, self.out, self.dout)
        for index, head_plan, q, k, v, out, dout in heads:
            terms = head_terms(q, k, self.scale, is_causal=self.is_causal, head_plan=head_plan)
            upstream, found = (out, self.lse[index], dout, self.dlse[index]), [x[index] for x in expected.values()]
            dtype, out_dtype = self.query.dtype, dtypes["dq"]
            errors = gradient_bounds(
                terms, (q, k, v), upstream, found, dtype, out_dtype, self.scale, random_walk=random_walk
            )
            for bound, error in zip(bounds.values(), errors, strict=True):
                bound[index] = error
        return bounds


@dataclass(frozen=True, eq=False, repr=False)
class SumsInputs(_Example):
    """Arguments of `attention_sums`: one head, and a mask that is None, a Rectangle or a dense boolean array."""

    query: np.ndarray
    key: np.ndarray
    mask: Rectangle | np.ndarray | None
    scale: float
    is_causal: bool

    operation = "attention_sums"

    def call(self, backend: Backend) -> dict:
        """The fields of AttentionSums."""
        return vars(backend.attention_sums(self.query, self.key, self.mask, scale=self.scale, is_causal=self.is_causal))

    def bounds(self, expected, dtypes, *, random_walk: bool = False) -> dict[str, np.ndarray]:
        """The bounds of `sums_bounds`."""
        terms = head_terms(self.query, self.key, self.scale, is_causal=self.is_causal)
        marked = dense_mask(self.mask, len(self.query), len(self.key))
        return sums_bounds(terms, marked, expected, self.query.dtype, random_walk=random_walk)


@dataclass(frozen=True, eq=False, repr=False)
class TransposedInputs(_Example):
    """Arguments of `transposed_attention`: one head, y (n_q, c) and the exact log-sum-exps (n_q,)."""

    query: np.ndarray
    key: np.ndarray
    y: np.ndarray
    lse: np.ndarray
    scale: float
    is_causal: bool

    operation, in_memory = "transposed_attention", ("query", "key", "y")

    def call(self, backend: Backend) -> dict:
        """P^T y."""
        return {
            "product": backend.transposed_attention(*self.arrays.values(), scale=self.scale, is_causal=self.is_causal)
        }

    def bounds(self, expected, dtypes, *, random_walk: bool = False) -> dict[str, np.ndarray]:
        """The bound of `transposed_bounds`."""
        terms = head_terms(self.query, self.key, self.scale, is_causal=self.is_causal)
        product, dtype = expected["product"], self.query.dtype
        bound = transposed_bounds(terms, self.y, self.lse, product, dtype, dtypes["product"], random_walk=random_walk)
        return {"product": bound}


@dataclass(frozen=True, eq=False, repr=False)
class CappedInputs(_Example):
    """Arguments of `capped_sums`: one head, a mask as in `SumsInputs`, samples (m,) and log_caps (n_q,)."""

    query: np.ndarray
    key: np.ndarray
    mask: Rectangle | np.ndarray | None
    samples: np.ndarray
    log_caps: np.ndarray
    scale: float

    operation = "capped_sums"

    def call(self, backend: Backend) -> dict:
        """`log_sums` and `n_capped`."""
        q, k, mask, samples, log_caps = self.query, self.key, self.mask, self.samples, self.log_caps
        results = backend.capped_sums(q, k, mask, samples, log_caps, scale=self.scale)
        return dict(zip(("log_sums", "n_capped"), results, strict=True))

    def bounds(self, expected, dtypes, *, random_walk: bool = False) -> dict[str, np.ndarray]:
        """The bounds of `capped_bounds`."""
        draws = head_terms(self.query, self.key[self.samples], self.scale)
        marked = dense_mask(self.mask, len(self.query), len(self.key))[:, self.samples]
        log_sums, dtype = expected["log_sums"], self.query.dtype
        pair = capped_bounds(draws, marked, self.log_caps, log_sums, dtype, random_walk=random_walk)
        return dict(zip(("log_sums", "n_capped"), pair, strict=True))


def _describe(x) -> str:
    """An array by dtype, shape and strides, and the entries where they are few; a plan by its first rectangles."""
    if isinstance(x, np.ndarray):
        return f"{x.dtype} {x.shape} strides {x.strides}{_entries(x)}"
    if isinstance(x, Plan):
        rectangles = x.heads[0].rectangles
        return ", ".join([repr(x), *map(_describe, rectangles[:2]), *["..."] * (len(rectangles) > 2)])
    if isinstance(x, Rectangle):
        kinds = [f"{view!r}{_entries(view.query_blocks())}{_entries(view.key_blocks())}" for view in x.views]
        keys = [f"{getattr(x, name).size} {name}{_entries(getattr(x, name))}" for name in KEY_ARRAYS]
        if x.landmarks is not None:
            keys.append(f"landmarks{_entries(x.landmarks.keys)}")
        return f"rectangle {x.n_q} x {x.n_k} at ({x.query_start}, {x.key_start}) with {', '.join(kinds + keys)}"
    return f"{x:.6g}" if isinstance(x, float) else repr(x)


def _entries(x: np.ndarray) -> str:
    return " = " + np.array2string(x, separator=", ").replace("\n", "") if x.size <= 12 else ""
