"""Arrays and plans of every kind, as Hypothesis strategies, and what rounding allows of the results.

The strategies serve the conformance suite, and any test that wants `plans()` or `attention_inputs()`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "the conformance suite needs Hypothesis; install it with: pip install 'hyperattention-ref[test]'"
    ) from error

from hyperattention_ref.foundation.backend import Backend, each_head
from hyperattention_ref.foundation.memory import Memory
from hyperattention_ref.plan.block_mask import BlockMask, dense_mask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.noise import MAX_BITS
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.plan_file import KEY_ARRAYS
from hyperattention_ref.plan.tiling import split_point

from ..reference import Reference
from .error_bound import (
    Rounding,
    capped_bounds,
    error_bounds,
    head_terms,
    sums_bounds,
    transposed_bounds,
)

DTYPES = (np.float32, np.float64, np.float16)
LEADING_SHAPES = ((), (1,), (3,), (2, 2), (2, 3))
LAYOUTS = ("contiguous", "fortran", "transposed", "every second row", "reversed", "read-only", "one row", "one head")
ROWS = ("gaussian", "gaussian", "gaussian", "off centre", "zero rows", "equal rows")
TOP_LOGITS = (None, None, 80.0, 500.0)
VIEWS = ("blocks", "ragged", "all pairs", "no pair")
LOG_WEIGHTS = ("uniform", "zero", "mixed", "large")
CAPS = ("none", "all", "some", "ties", "mixed")


# --- The arguments of each operation ---------------------------------------------------------------------------------
# Each class has `operation`, `arrays` (name -> array), `call(backend)` (name -> result) and, for arithmetic,
# `bounds(expected, dtypes, random_walk)` (name -> elementwise bound), `expected` being the results of the reference.
# The arrays `in_memory` are those that a backend gets in its own memory; all others stay on the host.


class _Described:
    in_memory: tuple[str, ...] = ("query", "key")

    def moved(self, memory: Memory):
        """The same arguments with the arrays in this memory, layouts kept."""
        return replace(self, **{name: memory.from_host(getattr(self, name)) for name in self.in_memory})  # type: ignore

    def _repr_pretty_(self, printer, cycle) -> None:  # what Hypothesis prints
        printer.text(repr(self))


@dataclass(frozen=True, eq=False, repr=False)
class HashInputs(_Described):
    """Arguments of `hash_codes`: x (..., n, d) and planes (r, d)."""

    x: np.ndarray
    planes: np.ndarray

    operation, in_memory = "hash_codes", ("x",)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"x": self.x, "planes": self.planes}

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

    def __repr__(self) -> str:
        return f"hash_codes({_describe(self.arrays)})"


@dataclass(frozen=True, eq=False, repr=False)
class AttentionInputs(_Described):
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

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"query": self.query, "key": self.key, "value": self.value}

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
            bounds["out"][index], bounds["lse"][index] = error_bounds(
                terms, v, out[index], lse[index], self.query.dtype, dtypes["out"], random_walk=random_walk
            )
        return bounds

    def __repr__(self) -> str:
        last = f"is_causal={self.is_causal}" if self.plan is None else f"plan={_describe_plan(self.plan)}"
        return f"{self.operation}({_describe(self.arrays)}, scale={self.scale:.6g}, {last})"


@dataclass(frozen=True, eq=False, repr=False)
class SumsInputs(_Described):
    """Arguments of `attention_sums`: one head, and a mask that is None, a Rectangle or a dense boolean array."""

    query: np.ndarray
    key: np.ndarray
    mask: Rectangle | np.ndarray | None
    scale: float
    is_causal: bool

    operation = "attention_sums"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        masks = {"mask": self.mask} if isinstance(self.mask, np.ndarray) else {}
        return {"query": self.query, "key": self.key} | masks

    def call(self, backend: Backend) -> dict:
        """The fields of AttentionSums."""
        return vars(backend.attention_sums(self.query, self.key, self.mask, scale=self.scale, is_causal=self.is_causal))

    def bounds(self, expected, dtypes, *, random_walk: bool = False) -> dict[str, np.ndarray]:
        """The bounds of `sums_bounds`."""
        terms = head_terms(self.query, self.key, self.scale, is_causal=self.is_causal)
        marked = dense_mask(self.mask, len(self.query), len(self.key))
        return sums_bounds(terms, marked, expected, self.query.dtype, random_walk=random_walk)

    def __repr__(self) -> str:
        mask = f", mask={_describe_rectangle(self.mask)}" if isinstance(self.mask, Rectangle) else ""
        return f"attention_sums({_describe(self.arrays)}{mask}, scale={self.scale:.6g}, is_causal={self.is_causal})"


@dataclass(frozen=True, eq=False, repr=False)
class TransposedInputs(_Described):
    """Arguments of `transposed_attention`: one head, y (n_q, c) and the exact log-sum-exps (n_q,)."""

    query: np.ndarray
    key: np.ndarray
    y: np.ndarray
    lse: np.ndarray
    scale: float
    is_causal: bool

    operation, in_memory = "transposed_attention", ("query", "key", "y")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {"query": self.query, "key": self.key, "y": self.y, "lse": self.lse}

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

    def __repr__(self) -> str:
        return f"transposed_attention({_describe(self.arrays)}, scale={self.scale:.6g}, is_causal={self.is_causal})"


@dataclass(frozen=True, eq=False, repr=False)
class CappedInputs(_Described):
    """Arguments of `capped_sums`: one head, a mask as in `SumsInputs`, samples (m,) and log_caps (n_q,)."""

    query: np.ndarray
    key: np.ndarray
    mask: Rectangle | np.ndarray | None
    samples: np.ndarray
    log_caps: np.ndarray
    scale: float

    operation = "capped_sums"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        masks = {"mask": self.mask} if isinstance(self.mask, np.ndarray) else {}
        return {"query": self.query, "key": self.key, "samples": self.samples, "log_caps": self.log_caps} | masks

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

    def __repr__(self) -> str:
        mask = f", mask={_describe_rectangle(self.mask)}" if isinstance(self.mask, Rectangle) else ""
        return f"capped_sums({_describe(self.arrays)}{mask}, scale={self.scale:.6g})"


def _describe(arrays: dict[str, np.ndarray]) -> str:
    """Dtype, shape and strides of arrays, and the entries where they are few."""
    kinds = {name: f"{name}: {x.dtype} {x.shape} strides {x.strides}" for name, x in arrays.items()}
    return ", ".join(f"{kinds[name]}{_entries(x)}" for name, x in arrays.items())


def _describe_plan(plan: Plan) -> str:
    """The first rectangles of the first head."""
    rectangles = plan.heads[0].rectangles
    return ", ".join([repr(plan), *map(_describe_rectangle, rectangles[:2]), *["..."] * (len(rectangles) > 2)])


def _describe_rectangle(r: Rectangle) -> str:
    kinds = [repr(view) + "".join(_entries(x) for x in (view.query_blocks(), view.key_blocks())) for view in r.views]
    keys = [f"{getattr(r, name).size} {name}{_entries(getattr(r, name))}" for name in KEY_ARRAYS]
    return f"rectangle {r.n_q} x {r.n_k} at ({r.query_start}, {r.key_start}) with {', '.join(kinds + keys)}"


def _entries(x: np.ndarray) -> str:
    return " = " + np.array2string(x, separator=", ").replace("\n", "") if x.size <= 12 else ""


# --- Strategies ------------------------------------------------------------------------------------------------------


@st.composite
def hash_inputs(draw) -> HashInputs:
    """Arguments of `hash_codes`: rows of every kind, 1 to 62 hyperplanes."""
    rng = draw(_generators())
    shape = (*draw(st.sampled_from(LEADING_SHAPES)), draw(_lengths()), draw(st.integers(1, 20)))
    x = _rows(rng, shape, draw(st.sampled_from(ROWS))) * draw(st.sampled_from((1.0, 1e-3, 1e3)))
    planes = rng.standard_normal((draw(st.integers(1, MAX_BITS)), shape[-1]))
    return HashInputs(_lay_out(x.astype(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(LAYOUTS))), planes)


@st.composite
def attention_inputs(draw, *, planned: bool = False) -> AttentionInputs:
    """Arguments of `exact_attention`, or with `planned` of `planned_attention`.

    Lengths are 1, small, ragged, or past the usual tiles, n_q != n_k unless causal, d_v != d. Rows are Gaussian, equal,
    zero or all near one direction; logits reach about 1, 80 or 500; layouts are contiguous, Fortran, transposed,
    strided, reversed, read-only, or of stride 0 along rows or heads; the dtype is float16, float32 or float64.
    """
    is_causal = draw(st.booleans())
    n_q = draw(_lengths())
    n_k = n_q if is_causal else draw(_lengths(around=1025))
    lead = draw(st.sampled_from(LEADING_SHAPES)) if max(n_q, n_k) < 100 else ()
    d, d_v = draw(st.sampled_from((1, 2, 3, 8, 17, 64))), draw(st.integers(1, 9))
    scale = draw(st.sampled_from((1 / math.sqrt(d), 1.0, -0.5, 3.0, 0.0)))
    rng, dtype = draw(_generators()), draw(st.sampled_from(DTYPES))
    q = _rows(rng, (*lead, n_q, d), draw(st.sampled_from(ROWS)))
    k = _rows(rng, (*lead, n_k, d), draw(st.sampled_from(ROWS)))
    v = draw(st.sampled_from((1.0, 100.0))) * _rows(rng, (*lead, n_k, d_v), draw(st.sampled_from(ROWS)))
    q, k = _with_top_logit(q, k, scale, draw(st.sampled_from(TOP_LOGITS)))
    q, k, v = (_lay_out(x.astype(dtype), draw(st.sampled_from(LAYOUTS))) for x in (q, k, v))
    plan = None
    if planned:
        shape = draw(st.sampled_from([lead, (math.prod(lead),)]))  # grouped-query heads reach a backend unfolded
        plan = draw(plans(shape=shape, n_q=n_q, n_k=n_k, is_causal=is_causal))
    return AttentionInputs(q, k, v, scale, is_causal, plan)


@st.composite
def plans(
    draw,
    *,
    shape: tuple[int, ...] | None = None,
    n_q: int | None = None,
    n_k: int | None = None,
    is_causal: bool | None = None,
) -> Plan:
    """Plans of every kind that the ten rules allow; what is None is drawn too.

    Up to three views with regular, ragged or empty blocks, the same pair in several of them; exact keys; sampled keys
    with repetitions, among them masked ones; log-weights of a uniform draw, zero, mixed, or up to ±1000; queries that
    meet no key. Causal: leaves at random depth, rectangles stored in any order.
    """
    is_causal = draw(st.booleans()) if is_causal is None else is_causal
    n_q = draw(_lengths()) if n_q is None else n_q
    if n_k is None:
        n_k = n_q if is_causal else draw(_lengths())
    shape = draw(st.sampled_from(LEADING_SHAPES)) if shape is None else shape
    rng = draw(_generators())
    style = {
        "views": draw(st.lists(st.sampled_from(VIEWS), max_size=3)),
        "exact_share": draw(st.sampled_from((0.0, 0.2, 1.0))),
        "samples": draw(st.sampled_from((0, 1, 5, 2 * n_k))),
        "log_weights": draw(st.sampled_from(LOG_WEIGHTS)),
    }
    leaf_chance = draw(st.sampled_from((0.2, 0.0, 0.6)))

    def one_head() -> HeadPlan:
        if not is_causal:
            return HeadPlan(n_q, n_k, (_rectangle(rng, n_q, n_k, 0, 0, **style),))
        leaves, places = _random_tiling(rng, n_q, leaf_chance)
        rectangles = [_rectangle(rng, c - s, s - a, s, a, **style) for a, s, c in rng.permutation(places).tolist()]
        return HeadPlan(n_q, n_k, tuple(rectangles), leaves)

    return Plan(shape, tuple(one_head() for _ in range(math.prod(shape))))


@st.composite
def sums_inputs(draw) -> SumsInputs:
    """Arguments of `attention_sums`: heads as in `attention_inputs`, masks of every kind."""
    one = draw(attention_inputs())
    head = (0,) * (one.query.ndim - 2)
    q, k = one.query[head], one.key[head]
    rectangle = draw(plans(shape=(), n_q=len(q), n_k=len(k), is_causal=False)).heads[0].rectangles[0]
    mask = draw(st.sampled_from((None, rectangle, rectangle.toarray())))
    return SumsInputs(q, k, mask, one.scale, one.is_causal)


@st.composite
def capped_inputs(draw) -> CappedInputs:
    """Arguments of `capped_sums`: heads as in `attention_inputs`, masks of every kind, draws few or many.

    The mask is None, dense, or a Rectangle, which may have sampled keys of its own. Caps are infinite, below all
    logits, among them, or exactly on one of them, in all rows alike or in each row otherwise.
    """
    one = draw(attention_inputs())
    head = (0,) * (one.query.ndim - 2)
    q, k, scale = one.query[head], one.key[head], one.scale
    rng, m = draw(_generators()), draw(st.sampled_from((17, 1, 2, 5, 1025)))
    views = draw(st.sampled_from(((), ("blocks",), ("ragged", "blocks"), ("all pairs",))))
    exact_share = draw(st.sampled_from((0.2, 0.0)))
    style = {"views": views, "exact_share": exact_share, "samples": 2 * len(k), "log_weights": "zero"}
    rectangle = _rectangle(rng, len(q), len(k), 0, 0, **style)
    mask = draw(st.sampled_from((None, rectangle, rectangle.toarray())))
    samples = rng.integers(len(k), size=m)
    logits = scale * q.astype(np.float64) @ k[samples].astype(np.float64).T
    caps = {
        "none": np.full(len(q), np.inf),
        "all": logits.min(axis=1) - 1,
        "some": logits.mean(axis=1),
        "ties": logits[:, 0],
    }
    kind = draw(st.sampled_from(CAPS))
    log_caps = np.choose(rng.integers(len(caps), size=len(q)), list(caps.values())) if kind == "mixed" else caps[kind]
    return CappedInputs(q, k, mask, samples, log_caps, scale)


@st.composite
def transposed_inputs(draw) -> TransposedInputs:
    """Arguments of `transposed_attention`: heads as in `attention_inputs`."""
    one = draw(attention_inputs())
    head = (0,) * (one.query.ndim - 2)
    q, k, v = one.query[head], one.key[head], one.value[head]
    y = _rows(draw(_generators()), (len(q), 3), "gaussian").astype(q.dtype)
    _, lse = Reference().exact_attention(q, k, v, scale=one.scale, is_causal=one.is_causal)
    return TransposedInputs(q, k, _lay_out(y, draw(st.sampled_from(LAYOUTS))), lse, one.scale, one.is_causal)


def _generators():
    """Numbers inside arrays come from a seeded generator: only shapes and kinds are worth shrinking."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def _lengths(around: int = 513):
    """1 to 9, ragged up to 90, and now and then a length just past the tiles that backends use."""
    small, ragged = st.integers(1, 9), st.integers(1, 90)
    return st.one_of(small, small, small, ragged, ragged, st.sampled_from((129, around)))


def _rows(rng, shape, kind: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    if kind == "zero rows":
        x[..., ::2, :] = 0
    elif kind == "equal rows":
        x[...] = x[..., :1, :]
    elif kind == "off centre":
        x += 3 * rng.standard_normal(shape[-1])
    return x


def _with_top_logit(q, k, scale: float, top: float | None):
    """q and k multiplied so that the largest |logit| is near `top`; ill-conditioned pairs stay smaller."""
    if top is None:
        return q, k
    logit = np.abs(scale * q @ k.swapaxes(-1, -2)).max()
    size = (abs(scale) * np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max()
    factor = math.sqrt(top / max(logit, size / 10)) if size else 1.0
    return factor * q, factor * k


def _lay_out(x: np.ndarray, layout: str) -> np.ndarray:
    """The same numbers (for stride 0: the first row or head repeated) in another memory layout."""
    if layout == "fortran":
        return np.asfortranarray(x)
    if layout == "transposed":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if layout == "every second row":
        return np.repeat(x, 2, axis=-2)[..., ::2, :]
    if layout == "reversed":
        return x[..., ::-1, :].copy()[..., ::-1, :]
    if layout == "one row":
        return np.broadcast_to(x[..., :1, :], x.shape)
    if layout == "one head" and x.ndim > 2:
        return np.broadcast_to(x[:1], x.shape)
    if layout == "read-only":
        x.setflags(write=False)
    return x


def _random_tiling(rng, n: int, leaf_chance: float):
    """Leaves and (start, split, stop) of a causal recursion that ends at random, at the latest below n/32 or at 1."""
    leaves, places, least = [], [], max(1, n // 32)
    ranges = [(0, n)]
    while ranges:
        a, c = ranges.pop()
        if c - a <= least or rng.random() < leaf_chance:
            leaves.append((a, c))
            continue
        split = split_point(a, c)
        places.append((a, split, c))
        ranges += [(a, split), (split, c)]
    return tuple(leaves), np.array(places, dtype=np.int64).reshape(-1, 3)


def _rectangle(rng, n_q, n_k, query_start, key_start, *, views, exact_share, samples, log_weights) -> Rectangle:
    sampled = rng.integers(n_k, size=rng.integers(samples + 1))
    m = max(sampled.size, 1)
    weights = {
        "uniform": np.full(sampled.size, math.log(n_k / m)),
        "zero": np.zeros(sampled.size),
        "mixed": 3 * rng.standard_normal(sampled.size),
        "large": rng.uniform(-1000, 1000, sampled.size),
    }[log_weights]
    return Rectangle(
        n_q,
        n_k,
        tuple(_view(rng, n_q, n_k, kind) for kind in views if rng.random() < 0.9),
        exact_keys=np.flatnonzero(rng.random(n_k) < exact_share),
        sampled_keys=sampled,
        log_weights=weights,
        query_start=query_start,
        key_start=key_start,
    )


def _view(rng, n_q: int, n_k: int, kind: str) -> BlockMask:
    orders = rng.permutation(n_q), rng.permutation(n_k)
    if kind == "blocks":
        return BlockMask.from_orders(*orders, int(rng.integers(1, n_k + 2)))
    if kind == "all pairs":
        return BlockMask(*orders, np.array([0, n_q]), np.array([0, n_k]))
    if kind == "no pair":
        return BlockMask(*orders, np.array([0, n_q, n_q]), np.array([0, 0, n_k]))
    cuts = int(rng.integers(6))
    return BlockMask(*orders, *(np.r_[0, np.sort(rng.integers(n + 1, size=cuts)), n] for n in (n_q, n_k)))
