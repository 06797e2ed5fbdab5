"""Arrays and plans of every kind, as Hypothesis strategies: for the conformance suite, and for any other test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("the conformance suite needs Hypothesis; install it with: pip install hypothesis") from error

from hyperattention_ref.foundation.backend import BLOCK_LISTS, LANDMARKS
from hyperattention_ref.plan.block_lists import BlockLists
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.landmarks import Landmarks
from hyperattention_ref.plan.noise import MAX_BITS
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.tiling import split_point

from ..reference import Reference
from .examples import AttentionInputs, CappedInputs, GradientInputs, HashInputs, SumsInputs, TransposedInputs

DTYPES = (np.float32, np.float64, np.float16)
LEADING_SHAPES = ((), (1,), (3,), (2, 2), (2, 3))
LAYOUTS = ("contiguous", "fortran", "transposed", "every second row", "reversed", "read-only", "one row", "one head")
ROWS = ("gaussian", "gaussian", "gaussian", "off centre", "zero rows", "equal rows")
TOP_LOGITS = (None, None, 80.0, 500.0)
VIEWS = ("blocks", "ragged", "all pairs", "no pair")
LOG_WEIGHTS = ("uniform", "zero", "mixed", "large")
LAWS = ("wide", "narrow", "one query")
CAPS = ("none", "all", "some", "ties", "mixed")


@st.composite
def hash_inputs(draw) -> HashInputs:
    """Arguments of `hash_codes`: rows of every kind, 1 to 62 hyperplanes."""
    rng = draw(_generators())
    shape = (*draw(st.sampled_from(LEADING_SHAPES)), draw(_lengths()), draw(st.integers(1, 20)))
    x = _rows(rng, shape, draw(st.sampled_from(ROWS))) * draw(st.sampled_from((1.0, 1e-3, 1e3)))
    planes = rng.standard_normal((draw(st.integers(1, MAX_BITS)), shape[-1]))
    return HashInputs(_lay_out(x.astype(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(LAYOUTS))), planes)


@st.composite
def attention_inputs(draw, *, planned: bool = False, lacking=frozenset()) -> AttentionInputs:
    """Arguments of `exact_attention`, or with `planned` of `planned_attention`.

    Lengths are 1, small, ragged, or past the usual tiles, n_q != n_k unless causal, d_v != d. Rows are Gaussian, equal,
    zero or all near one direction; logits reach about 1, 80 or 500; layouts are contiguous, Fortran, transposed,
    strided, reversed, read-only, or of stride 0 along rows or heads; the dtype is float16, float32 or float64.
    No plan has the parts that are `lacking`; half have each of the others. Where block lists and landmarks are lacking,
    one plan in eight is one block of all pairs, of few queries and more keys than backends gather at a time.
    """
    is_one_block = planned and lacking >= {BLOCK_LISTS, LANDMARKS} and draw(st.integers(0, 7)) == 0
    is_causal = not is_one_block and draw(st.booleans())
    n_q = draw(st.integers(1, 9) if is_one_block else _lengths())
    n_k = n_q if is_causal else 1025 if is_one_block else draw(_lengths(around=1025))
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
        views = ["all pairs"] if is_one_block else None
        lists = BLOCK_LISTS not in lacking
        with_landmarks = d if LANDMARKS not in lacking and draw(st.booleans()) else None
        kind = plans(
            shape=shape,
            n_q=n_q,
            n_k=n_k,
            is_causal=is_causal,
            views=views,
            lists=lists,
            landmarks_d=with_landmarks,
        )
        plan = draw(kind)
    return AttentionInputs(q, k, v, scale, is_causal, plan)


@st.composite
def gradient_inputs(draw, *, lacking=frozenset()) -> GradientInputs:
    """Arguments of `attention_gradient`: as in `attention_inputs`, a quarter without a plan, none with landmarks.

    Upstream gradients are of order 1; in half of the examples that of the log-sum-exp is 0, as it is to who uses the
    output alone.
    """
    planned = draw(st.sampled_from((True, True, True, False)))
    lacking = {BLOCK_LISTS, LANDMARKS} if draw(st.booleans()) else lacking | {LANDMARKS}
    one = draw(attention_inputs(planned=planned, lacking=lacking))
    arrays, options = (one.query, one.key, one.value), {"scale": one.scale}
    if one.plan is None:
        out, lse = Reference().exact_attention(*arrays, **options, is_causal=one.is_causal)
    else:
        out, lse = Reference().planned_attention(*arrays, one.plan, **options)
    rng, dtype = draw(_generators()), one.query.dtype
    work = np.promote_types(dtype, np.float32)
    dout = _lay_out(_rows(rng, out.shape, "gaussian").astype(dtype), draw(st.sampled_from(LAYOUTS)))
    dlse = draw(st.sampled_from((0, 1))) * rng.standard_normal(lse.shape)
    upstream = out.astype(dtype), lse.astype(work), dout, dlse.astype(work)
    return GradientInputs(*arrays, *upstream, one.scale, one.is_causal, one.plan)


@st.composite
def plans(
    draw,
    *,
    shape: tuple[int, ...] | None = None,
    n_q: int | None = None,
    n_k: int | None = None,
    is_causal: bool | None = None,
    views: list[str] | None = None,
    lists: bool = True,
    landmarks_d: int | None = None,
) -> Plan:
    """Plans of every kind that the rules allow; what is None is drawn too, `views` from VIEWS.

    Up to three views with regular, ragged or empty blocks, the same pair in several of them; exact keys; sampled keys
    with repetitions, among them masked ones; log-weights of a uniform draw, zero, mixed, or up to ±1000; queries that
    meet no key. Causal: leaves at random depth, rectangles stored in any order. With `lists`, half of them have block
    lists, with rectangles or without, of blocks and pages of any size, empty lists among them. With `landmarks_d`, the
    d of the queries, rectangles have landmarks instead of sampled keys.
    """
    is_causal = draw(st.booleans()) if is_causal is None else is_causal
    n_q = draw(_lengths()) if n_q is None else n_q
    if n_k is None:
        n_k = n_q if is_causal else draw(_lengths())
    shape = draw(st.sampled_from(LEADING_SHAPES)) if shape is None else shape
    rng = draw(_generators())
    style = {
        "views": draw(st.lists(st.sampled_from(VIEWS), max_size=3)) if views is None else views,
        "exact_share": draw(st.sampled_from((0.0, 0.2, 1.0))),
        "samples": draw(st.sampled_from((0, 1, 5, 2 * n_k))),
        "log_weights": draw(st.sampled_from(LOG_WEIGHTS)),
    }
    if landmarks_d is not None:
        style["samples"] = 0
        style["law"] = draw(st.sampled_from(LAWS)), landmarks_d
    leaf_chance = draw(st.sampled_from((0.2, 0.0, 0.6)))

    has_lists = lists and draw(st.booleans())
    has_rectangles = not has_lists or draw(st.booleans())

    def one_head() -> HeadPlan:
        block_lists = _lists(rng, n_q, n_k, is_causal) if has_lists else None
        if not has_rectangles:
            return HeadPlan(n_q, n_k, (), (), block_lists)
        if not is_causal:
            return HeadPlan(n_q, n_k, (_rectangle(rng, n_q, n_k, 0, 0, **style),), (), block_lists)
        leaves, places = _random_tiling(rng, n_q, leaf_chance)
        rectangles = [_rectangle(rng, c - s, s - a, s, a, **style) for a, s, c in rng.permutation(places).tolist()]
        return HeadPlan(n_q, n_k, tuple(rectangles), () if has_lists else leaves, block_lists)

    return Plan(shape, tuple(one_head() for _ in range(math.prod(shape))))


@st.composite
def sums_inputs(draw) -> SumsInputs:
    """Arguments of `attention_sums`: heads as in `attention_inputs`, masks of every kind.

    In some, half of the rows have nearly all of their sum in the mask: all but 1e-22 of it, or more than the range of
    the working type can tell.
    """
    one = draw(attention_inputs())
    head = (0,) * (one.query.ndim - 2)
    q, k = one.query[head], one.key[head]
    rectangle = draw(plans(shape=(), n_q=len(q), n_k=len(k), is_causal=False, lists=False)).heads[0].rectangles[0]
    far = -2 * math.log(np.finfo(np.promote_types(q.dtype, np.float32)).tiny)
    gap = draw(st.sampled_from((0.0, 50.0, far, far))) if one.scale else 0.0
    if gap:
        q, k, rectangle = _dominated(draw(_generators()), q, k, rectangle, gap / one.scale)
    mask = draw(st.sampled_from((rectangle, rectangle.toarray()) if gap else (None, rectangle, rectangle.toarray())))
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


def _dominated(rng, q, k, rectangle: Rectangle, product: float):
    """The same with a few exact keys, whose products with about half of the queries are larger by `product`."""
    keys = np.unique(np.append(rng.integers(len(k), size=2), 0))
    q, k = q.copy(), k.copy()
    q[:, 0], k[:, 0] = 16 * rng.integers(2, size=len(q)), 0
    k[keys, 0] = product / 16
    return q, k, replace(rectangle, exact_keys=keys)


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


def _lists(rng, n_q: int, n_k: int, is_causal: bool) -> BlockLists:
    sizes = {"block_size": int(rng.integers(1, 20)), "page_size": int(rng.integers(1, 20))}
    shape = [-(-n // size) for n, size in zip((n_q, n_k), sizes.values(), strict=True)]
    listed = rng.random(shape) < rng.choice([0.1, 0.5, 1.0])
    return BlockLists.from_mask(listed, n_q, n_k, **sizes, is_causal=is_causal)


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


def _rectangle(
    rng, n_q, n_k, query_start, key_start, *, views, exact_share, samples, log_weights, law=None
) -> Rectangle:
    sampled = rng.integers(n_k, size=rng.integers(samples + 1))
    m = max(sampled.size, 1)
    weights = {
        "uniform": np.full(sampled.size, math.log(n_k / m)),
        "zero": np.zeros(sampled.size),
        "mixed": 3 * rng.standard_normal(sampled.size),
        "large": rng.uniform(-1000, 1000, sampled.size),
    }[log_weights]
    is_exact = rng.random(n_k) < exact_share
    landmarks = None if law is None else _landmarks(rng, n_k, *law)
    if landmarks is not None:
        is_exact[landmarks.keys] = True
    return Rectangle(
        n_q,
        n_k,
        tuple(_view(rng, n_q, n_k, kind) for kind in views if rng.random() < 0.9),
        exact_keys=np.flatnonzero(is_exact),
        sampled_keys=sampled,
        log_weights=weights,
        query_start=query_start,
        key_start=key_start,
        landmarks=landmarks,
    )


def _landmarks(rng, n_k: int, law: str, d: int) -> Landmarks:
    """A few keys, and a law that has to do with the queries or not: any law makes a valid plan."""
    keys = np.sort(rng.choice(n_k, size=rng.integers(1, min(n_k, 12) + 1), replace=False))
    width = {"wide": 1.0, "narrow": 0.1, "one query": 0.0}[law]
    return Landmarks(keys, rng.standard_normal(d), width * rng.standard_normal((d, int(rng.integers(1, d + 2)))))


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
