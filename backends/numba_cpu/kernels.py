"""The compiled kernels of the Numba backend.

All of them are in this one long file because Numba's on-disk cache is renewed when the file of the called kernel
changes, and only then: a function compiled into a kernel must be in the kernel's file.

Design. A tile is up to `LANES` queries, and a lane of a vector is a query: the tile's queries, logits and running sums
are kept transposed, (d, lanes), (keys, lanes) and (d_v, lanes), so that a maximum or a sum over keys runs down the
lanes and no vector is ever reduced within itself. Everything stays in cache: the tile of logits is `STEP` x `LANES`.

- `multiply` is the only matrix product: C (rows x lanes) += A B in register blocks of vectors.
- Every key enters the state of its queries in the same way: `dot` makes logits, pairs that do not count are hidden,
  `fold` takes the maximum, the exponentials and the sums. Exact attention, blocks, exact keys, sampled keys and causal
  leaves differ in which keys these are.
- Logits are in base 2: the queries are multiplied by scale * log2(e), and `exp2` is a polynomial.
- The state (sums, top, total) of a query is normalised after its last part. To continue from the stored state *is* the
  merge.
- `hidden_logit`, and `empty_top` of a query that has met no key, are finite, so that no difference is ever NaN.

The first arguments of a kernel are its piece of the work. It writes rows of its own: any split over threads gives the
same bits.
"""

# mypy does not see the types that Numba infers.
# mypy: ignore-errors

from __future__ import annotations

import math
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .compile_cache import CompileCache

LANES = 64
"""Queries in a tile: four vectors of AVX-512 in float32."""
STEP = 128
"""Keys in a tile of logits, which is 32 kB in float32; sums over one step are added to those so far."""
GROUP = 512
"""Queries that share one gathering of their blocks' keys, and keys gathered at a time, at most."""
LIST_ROWS = 16
"""Queries of a block of lists that are computed together, at most."""
SCORED = 16
"""Blocks whose scores are computed together."""
LIST_CHUNKS = 16
"""Tiles of LANES keys of a list whose logits are computed before the softmax of them."""
PREFETCH_DISTANCE = 8
"""How many rows ahead are prefetched, where rows are read in a permuted order."""
LN_2 = math.log(2)

_FAST = {"contract", "nsz"}  # no more: "nnan", "ninf" and "reassoc" would let the compiler remove what guards exp2
_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}
compiled = njit(**_OPTIONS)
vectorised = njit(fastmath=_FAST, **_OPTIONS)
reordered = njit(fastmath=_FAST | {"reassoc"}, **_OPTIONS)  # for sums of products, which vectors make in another order


def kernel(function):
    """What the backend calls, kept on disk; everything else becomes part of these."""
    dispatcher = compiled(function)
    dispatcher._cache = CompileCache(function)
    return dispatcher


def instruction_set() -> tuple[int, bool]:
    """Bytes in a vector and whether it multiplies and adds in one instruction, on the CPU that Numba compiles for.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES choose another one; they are part of the key of Numba's cache.
    """
    if config.CPU_FEATURES is None:
        features = {name for name, is_there in llvm.get_host_cpu_features().items() if is_there}
    else:
        features = {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    if not llvm.get_default_triple().startswith(("x86", "i686")):
        return 16, True
    fused = "fma" in features
    return 64 if "avx512f" in features and fused else 32 if "avx" in features else 16, fused


VECTOR_BYTES, IS_FUSED = instruction_set()
ROWS = 4
VECTORS = 4 if VECTOR_BYTES == 64 else 2  # ROWS x VECTORS accumulators and their operands fit the 32 or 16 registers


# --- The matrix product ----------------------------------------------------------------------------------------------


def _register_block(rows: int, vectors: int):
    """C[r, lane] = [decay[lane] C[r, lane] +] sum over t < n_terms of A[r, t] B[t, lane].

    For `rows` rows and `vectors` vectors of lanes; the bracket only if `is_added`. Each array comes with the offset of
    its first entry and its strides, counted in entries. The sums stay in registers over the whole loop, and what C held
    is added last: sums of sums, whose rounding grows more slowly. n_terms is at least 1.
    """

    @intrinsic
    def block(_, a, a0, a_row, a_term, b, lane, b_term, c, c0, c_row, n_terms, is_added, decay):
        def generate(context, builder, signature, args):
            return _generate_block(rows, vectors, context, builder, signature, args)

        integer = types.intp
        matrices = a, *[integer] * 3, b, *[integer] * 2, c, *[integer] * 2
        return types.void(*matrices, integer, types.boolean, decay), generate

    return block


def _generate_block(rows, vectors, context, builder, signature, args):
    """LLVM code of `_register_block`.

    In C, where `spread` fills a vector with one number, and all loops but the one over t are unrolled:

    for (t = 0; t < n_terms; t++)
        for (r = 0; r < rows; r++)
            for (w = 0; w < vectors; w++)  // sums[r][w], one register each, start from zero
                sums[r][w] += spread(A[a0 + r * a_row + t * a_term]) * vector_at(&B[lane + t * b_term + w * width]);
    for (r = 0; r < rows; r++)
        for (w = 0; w < vectors; w++) {
            vector *target = vector_at(&C[c0 + r * c_row + w * width]);
            *target = is_added ? *target * vector_at(&decay[lane + w * width]) + sums[r][w] : sums[r][w];
        }
    """
    a0, a_row, a_term, lane0, b_term, c0, c_row, n_terms, is_added = (args[i] for i in (1, 2, 3, 5, 6, 8, 9, 10, 11))
    a, b, c, decay = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 4, 7, 12))
    bits = signature.args[7].dtype.bitwidth
    width = 8 * VECTOR_BYTES // bits
    index, number = ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(context.get_value_type(signature.args[7].dtype), width)
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{width}f{bits}"
    )

    def at(start, *steps):
        """`start` plus count x stride for each of `steps`."""
        for count, stride in steps:
            count = ir.Constant(index, count) if isinstance(count, int) else count
            start = builder.add(start, builder.mul(count, stride))
        return start

    def pointer(base, offset):
        return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

    def lanes(base, offset, w):
        """Vector number w from an offset on."""
        return pointer(base, builder.add(offset, ir.Constant(index, w * width)))

    def load(place):
        x = builder.load(place)
        x.align = bits // 8
        return x

    def spread(x):
        x = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.Constant(number, 0))
        return builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(number, width), [0] * width))

    def multiply_add(x, y, z):
        return builder.call(fma, [x, y, z]) if IS_FUSED else builder.fadd(builder.fmul(x, y), z)

    places = [(r, w) for r in range(rows) for w in range(vectors)]
    c_at = {(r, w): lanes(c, at(c0, (r, c_row)), w) for r, w in places}
    start = builder.block
    loop, add, keep, end = (builder.append_basic_block(name) for name in ("loop", "add", "keep", "end"))
    builder.branch(loop)
    builder.position_at_end(loop)
    t = builder.phi(index)
    sums = {place: builder.phi(vector) for place in places}
    b_t = [load(lanes(b, at(lane0, (t, b_term)), w)) for w in range(vectors)]
    a_t = [spread(builder.load(builder.gep(a, [at(a0, (r, a_row), (t, a_term))]))) for r in range(rows)]
    updated = {(r, w): multiply_add(a_t[r], b_t[w], sums[r, w]) for r, w in places}
    next_t = builder.add(t, ir.Constant(index, 1))
    t.add_incoming(ir.Constant(index, 0), start)
    t.add_incoming(next_t, loop)
    for place in places:
        sums[place].add_incoming(ir.Constant(vector, [0.0] * width), start)
        sums[place].add_incoming(updated[place], loop)
    builder.cbranch(builder.icmp_signed("<", next_t, n_terms), loop, end)
    builder.position_at_end(end)
    builder.cbranch(is_added, add, keep)
    builder.position_at_end(add)
    factors = [load(lanes(decay, lane0, w)) for w in range(vectors)]
    for r, w in places:
        builder.store(multiply_add(load(c_at[r, w]), factors[w], updated[r, w]), c_at[r, w]).align = bits // 8
    done = builder.append_basic_block("done")
    builder.branch(done)
    builder.position_at_end(keep)
    for place in places:
        builder.store(updated[place], c_at[place]).align = bits // 8
    builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


_block, _block_1 = _register_block(ROWS, VECTORS), _register_block(ROWS, 1)
_row, _row_1 = _register_block(1, VECTORS), _register_block(1, 1)


@compiled
def multiply(a, a_row, a_term, n_rows, b, n_lanes, c, n_terms, is_added, decay):
    """C (n_rows, n_lanes) = [C diag(decay) +] A B; A has the strides a_row and a_term, rows of B and C are contiguous.

    n_lanes is a multiple of 16, hence of every vector.
    """
    width = VECTOR_BYTES // c.itemsize
    b_row, c_row = b.shape[1], c.strides[0] // c.itemsize
    whole_rows = n_rows // ROWS * ROWS
    lane = 0
    while lane < n_lanes:
        is_wide = n_lanes - lane >= VECTORS * width
        for r in range(0, whole_rows, ROWS):
            at_a, at_c = r * a_row, r * c_row + lane
            if is_wide:
                _block(a, at_a, a_row, a_term, b, lane, b_row, c, at_c, c_row, n_terms, is_added, decay)
            else:
                _block_1(a, at_a, a_row, a_term, b, lane, b_row, c, at_c, c_row, n_terms, is_added, decay)
        for r in range(whole_rows, n_rows):
            at_a, at_c = r * a_row, r * c_row + lane
            if is_wide:
                _row(a, at_a, a_row, a_term, b, lane, b_row, c, at_c, c_row, n_terms, is_added, decay)
            else:
                _row_1(a, at_a, a_row, a_term, b, lane, b_row, c, at_c, c_row, n_terms, is_added, decay)
        lane += (VECTORS if is_wide else 1) * width


# --- The exponential -------------------------------------------------------------------------------------------------


def exp2(t):
    """2^t for t <= 1, within 2 units in the last place; 0 below the smallest normal number, for -inf too.

    Derived (page "numerics"): 2^t = 2^n p(f), n the nearest integer, f = t - n exactly; p is the polynomial of least
    relative error on [-1/2, 1/2] with p(0) = 1, 2.6e-9 in float32 and 1.8e-17 in float64. Adding 1.5 2^23 (1.5 2^52)
    rounds to an integer and leaves it in the last bits, from where a shift moves it to the exponent.
    """
    return _exp2_float32(t) if isinstance(t, np.float32) else _exp2_float64(t)


@overload(exp2, inline="always")
def _exp2_compiled(t):
    return _exp2_float32 if t == types.float32 else _exp2_float64


def _exp2_float32(t):
    f32, lowest, rounder = np.float32, np.float32(-126.0), np.float32(12582912.0)
    u = t if t > lowest else lowest
    n = f32(u + rounder)
    f = u - (n - rounder)
    p = f32(0.00961769297299) + f * (f32(0.00134066439024) + f * f32(0.000155946781613))
    p = f32(0.693147214968) + f * (f32(0.240226527829) + f * (f32(0.0555031055101) + f * p))
    power = np.int32(f32(f32(1.0) + f * p).view(np.int32) + np.int32(n.view(np.int32) << np.int32(23)))
    return power.view(np.float32) if t >= lowest else f32(0.0)


def _exp2_float64(t):
    lowest, rounder = -1022.0, 6755399441055744.0
    u = t if t > lowest else lowest
    n = np.float64(u + rounder)
    f = u - (n - rounder)
    p = 1.018064765923413888846e-7 + f * (7.072570412814423509578e-9 + f * 4.078071929588336665004e-10)
    p = 0.00001525272738519386819689 + f * (0.000001321544267532982214324 + f * p)
    p = 0.001333355815343996474705 + f * (0.000154035304415721303297 + f * p)
    p = 0.05550410866479039455165 + f * (0.009618129107607002379584 + f * p)
    p = 0.6931471805599456967506 + f * (0.2402265069591009800657 + f * p)
    power = np.int64(np.float64(1.0 + f * p).view(np.int64) + np.int64(n.view(np.int64) << np.int64(52)))
    return power.view(np.float64) if t >= lowest else 0.0


# --- Tiles -----------------------------------------------------------------------------------------------------------


def empty_top(x):
    """The largest logit of a query that has met no key, of the type of the array `x`: below every real logit.

    The input checks admit logits, and log-weights, up to a quarter of the largest number; in base 2 they stay below
    0.37 of it, and their sum above -0.74 of it.
    """
    return _share_of_largest(-0.77, x)


def hidden_logit(x):
    """The logit of a pair that does not count, of the type of `x`: its distance to `empty_top` has exp2 = 0."""
    return _share_of_largest(-0.97, x)


def _share_of_largest(share, x):
    """`share` times the largest number of the type of the array `x`."""
    dtype = np.dtype(str(x.dtype))
    return dtype.type(share * float(np.finfo(dtype).max))


def _as_constant(function):
    """Let compiled code call a function of an array's type alone: its value is a constant there."""

    def compiled_for(x):
        constant = function(x)
        return lambda x: constant

    overload(function, inline="always")(compiled_for)


_as_constant(empty_top)
_as_constant(hidden_logit)


class Tile(NamedTuple):
    """The working memory of a thread. Lanes are queries where rows of P are summed, keys where columns are.

    Each vector is an array of its own: the compiler would take two rows of one array for overlapping.

    Attributes
    ----------
    columns : (d, LANES) the queries, or keys, transposed and multiplied by scale log2(e).
    logits : (STEP, LANES) in base 2, then weights.
    sums : (d_v, LANES) weighted sums of values, relative to 2^top.
    top, total : (LANES,) the largest logit so far and the sum of weights, relative to 2^top.
    part, decay : (LANES,) the sum over one step, and the factor by which it makes former sums shrink.
    blocks : (views, LANES) int32 block numbers of the queries.
    """

    columns: np.ndarray
    logits: np.ndarray
    sums: np.ndarray
    top: np.ndarray
    total: np.ndarray
    part: np.ndarray
    decay: np.ndarray
    blocks: np.ndarray


class State(NamedTuple):
    """What is known of queries between two parts, in memory: sums (n_q, d_v), top and total (n_q,), as in a Tile.

    In the end `out` holds the attention and `top` the log-sum-exps.
    """

    out: np.ndarray
    top: np.ndarray
    total: np.ndarray


class Mask(NamedTuple):
    """Marked pairs: equal block numbers in some view, or an exact key, or an entry of a dense mask.

    `query_blocks` (views, n_q) and `key_blocks` (views, n_k) int32, `is_exact` (n_k,), `dense` (n_q, n_k) or (0, 0).
    """

    query_blocks: np.ndarray
    key_blocks: np.ndarray
    is_exact: np.ndarray
    dense: np.ndarray


class Lists(NamedTuple):
    """BlockLists, and the place in them of the first query and the first key of a rectangle; no `pages` if no lists."""

    block_size: int
    page_size: int
    offsets: np.ndarray
    pages: np.ndarray
    is_causal: bool
    first_query: int
    first_key: int


class Shared(NamedTuple):
    """Keys that all queries of a rectangle meet: the exact keys and the sampled keys that are not exact.

    Gathered `keys` and `values`, `log_weights` in base 2, `blocks` (views, .) int32, -1 in those of the exact keys;
    `indices` are those of the keys in the rectangle.
    """

    keys: np.ndarray
    values: np.ndarray
    log_weights: np.ndarray
    blocks: np.ndarray
    indices: np.ndarray


@compiled
def new_tile(d, d_v, n_views, like):
    """Memory for tiles of the type of `like`."""
    dtype = like.dtype
    columns, logits, sums = np.empty((d, LANES), dtype), np.empty((STEP, LANES), dtype), np.empty((d_v, LANES), dtype)
    top, total = np.empty(LANES, dtype), np.empty(LANES, dtype)
    part, decay = np.empty(LANES, dtype), np.empty(LANES, dtype)
    return Tile(columns, logits, sums, top, total, part, decay, np.empty((n_views, LANES), np.int32))


@compiled
def padded(n):
    """`n` lanes rounded up to whole vectors of every type."""
    return (n + 15) // 16 * 16


@intrinsic
def _prefetch(_, x, offset):
    """Prefetch the cache line of an entry of the array x, in flat order."""

    def generate(context, builder, signature, args):
        place = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(prefetch, [builder.bitcast(place, byte), *(ir.Constant(flag, x) for x in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(x, types.intp), generate


@compiled
def prefetch_row(x, rows, i):
    """Prefetch the row of the matrix x that is PREFETCH_DISTANCE entries after entry i of `rows`."""
    if i + PREFETCH_DISTANCE < rows.size:
        d = x.shape[1]
        for e in range(0, d, 64 // x.itemsize):
            _prefetch(x, rows[i + PREFETCH_DISTANCE] * d + e)


@compiled
def gather(x, rows, out):
    """out[:rows.size] = x[rows]."""
    for i in range(rows.size):
        prefetch_row(x, rows, i)
        source, target = x[rows[i]], out[i]
        for e in range(x.shape[1]):
            target[e] = source[e]


@compiled
def load_columns(tile, x, rows, factor):
    """Columns of the tile = factor * x[rows] transposed, zero in the unused lanes."""
    columns = tile.columns
    for lane in range(rows.size):
        prefetch_row(x, rows, lane)
        row = x[rows[lane]]
        for e in range(x.shape[1]):
            columns[e, lane] = row[e] * factor
    columns[:, rows.size : padded(rows.size)] = 0


@compiled
def load_blocks(tile, query_blocks, rows):
    """Block numbers of the tile's queries; -2, which no key has, in the unused lanes."""
    for view in range(query_blocks.shape[0]):
        for lane in range(rows.size):
            tile.blocks[view, lane] = query_blocks[view, rows[lane]]
        tile.blocks[view, rows.size :] = -2


@compiled
def dot(tile, x, n, lanes):
    """Logits of the first n rows of x with the columns of the tile."""
    d = x.shape[1]
    multiply(x, d, 1, n, tile.columns, lanes, tile.logits, d, False, tile.decay)  # decay is not read


# --- The running softmax ---------------------------------------------------------------------------------------------


@vectorised
def _raise_top(logits, n, lanes, top):
    """top = max(top, the largest logit of each lane)."""
    for j in range(n):
        row = logits[j]
        for lane in range(lanes):
            x, y = row[lane], top[lane]
            top[lane] = x if x > y else y


@vectorised
def _exponentials(logits, n, lanes, top, part):
    """Logits become weights 2^(logit - top); `part` becomes their sums."""
    part[:lanes] = 0
    for j in range(n):
        row = logits[j]
        for lane in range(lanes):
            weight = exp2(row[lane] - top[lane])
            row[lane] = weight
            part[lane] += weight


@vectorised
def _add_part(total, part, lanes, top, decay):
    """On entry decay holds the former tops; afterwards the factor that each former sum shrinks by."""
    for lane in range(lanes):
        decay[lane] = exp2(decay[lane] - top[lane])
        total[lane] = total[lane] * decay[lane] + part[lane]


@compiled
def weigh(tile, n, lanes):
    """A step of the running softmax: logits become weights, relative to the largest logit so far."""
    tile.decay[:lanes] = tile.top[:lanes]
    _raise_top(tile.logits, n, lanes, tile.top)
    _exponentials(tile.logits, n, lanes, tile.top, tile.part)
    _add_part(tile.total, tile.part, lanes, tile.top, tile.decay)


@compiled
def fold(tile, values, n, lanes):
    """Fold n logits and the rows of `values` that belong to them into the state of the tile."""
    weigh(tile, n, lanes)
    d_v = values.shape[1]
    multiply(values, 1, d_v, d_v, tile.logits, lanes, tile.sums, n, True, tile.decay)


@compiled
def load_state(tile, state, rows, is_new):
    """The state of some queries: from memory, or, if they are new, that of queries that have met no key."""
    tile.top[:], tile.total[:], tile.sums[:] = empty_top(tile.top), 0, 0
    if is_new:
        return
    for lane in range(rows.size):
        prefetch_row(state.out, rows, lane)
        i = rows[lane]
        tile.top[lane], tile.total[lane] = state.top[i], state.total[i]
        row = state.out[i]
        for e in range(row.size):
            tile.sums[e, lane] = row[e]


@compiled
def store_state(tile, state, rows, is_final):
    """Write the state of some queries to memory; after their last part as output and natural log-sum-exp."""
    for lane in range(rows.size):
        prefetch_row(state.out, rows, lane)
        store_row(tile.sums[:, lane], tile.top[lane], tile.total[lane], state, rows[lane], is_final)


@compiled
def store_row(sums, top, total, state, i, is_final):
    """Write the state of query i to memory; after its last part as output and natural log-sum-exp."""
    factor = state.total.dtype.type(1)
    if not is_final:
        state.top[i], state.total[i] = top, total
    elif total > 0:
        factor /= total
        state.top[i] = (top + np.log2(total)) * state.total.dtype.type(LN_2)
    else:
        state.top[i] = -np.inf
    row = state.out[i]
    for e in range(row.size):
        row[e] = sums[e] * factor


# --- Pairs that do not count -----------------------------------------------------------------------------------------


@vectorised
def _set_equal(row, lanes, blocks, block, x):
    for lane in range(lanes):
        row[lane] = x if blocks[lane] == block else row[lane]


@vectorised
def _set_unequal(row, lanes, blocks, block, x):
    for lane in range(lanes):
        row[lane] = row[lane] if blocks[lane] == block else x


@compiled
def set_marked(tile, n, lanes, mask, rows, first_key, x):
    """logits[j, lane] = x where the mask marks key first_key + j for the query rows[lane]."""
    for j in range(n):
        key, row = first_key + j, tile.logits[j]
        if mask.is_exact[key]:
            row[:lanes] = x
        for view in range(mask.key_blocks.shape[0]):
            _set_equal(row, lanes, tile.blocks[view], mask.key_blocks[view, key], x)
        if mask.dense.size > 0:
            for lane in range(rows.size):
                if mask.dense[rows[lane], key]:
                    row[lane] = x


@compiled
def hide_future(logits, n, rows, first_key):
    """Hide keys after their query: lanes are the queries `rows`, in rising order, logits[j] is of key first_key + j."""
    for j in range(max(0, rows[0] + 1 - first_key), n):
        for lane in range(rows.size):
            if rows[lane] < first_key + j:
                logits[j, lane] = hidden_logit(logits)


@compiled
def set_listed(row, rows, key, lists, x):
    """In the row of logits of a key, row = x for the queries `rows` whose block has the page of the key in its list."""
    page = (lists.first_key + key) // lists.page_size
    for lane in range(rows.size):
        query = lists.first_query + rows[lane]
        block = query // lists.block_size
        stop = lists.offsets[block + 1]
        place = lists.offsets[block] + np.searchsorted(lists.pages[lists.offsets[block] : stop], page)
        if place < stop and lists.pages[place] == page and not (lists.is_causal and lists.first_key + key > query):
            row[lane] = x


@compiled
def hide_past(logits, n, lanes, first_key, first_query):
    """Hide keys after their query: lanes are the keys from first_key on, logits[i] is of query first_query + i."""
    for i in range(min(n, max(0, first_key + lanes - 1 - first_query))):
        for lane in range(max(0, first_query + i + 1 - first_key), lanes):
            logits[i, lane] = hidden_logit(logits)


# --- Attention -------------------------------------------------------------------------------------------------------


@kernel
def exact_rows(first_row, stop_row, first_key, q, k, v, factor, is_causal, is_final, state):
    """Attention of some queries to the keys from first_key on: to all of them, or to those not after the query."""
    tile = new_tile(q.shape[1], v.shape[1], 0, q)
    for first in range(first_row, stop_row, LANES):
        rows = np.arange(first, min(first + LANES, stop_row))
        lanes = padded(rows.size)
        load_columns(tile, q, rows, factor)
        load_state(tile, state, rows, True)
        stop_key = rows[-1] + 1 if is_causal else k.shape[0]
        for key in range(first_key, stop_key, STEP):
            n = min(STEP, stop_key - key)
            dot(tile, k[key:], n, lanes)
            if is_causal:
                hide_future(tile.logits, n, rows, key)
            fold(tile, v[key:], n, lanes)
        store_state(tile, state, rows, is_final)


@kernel
def make_groups(query_offsets, key_offsets):
    """Cut the blocks of a view into groups (first query, stop query, first key, stop key, blocks) of sorted positions.

    A group shares one gathering of its keys. Blocks of more than GROUP queries are cut; small neighbours are put
    together, as long as they fill no more than one tile.
    """
    n_blocks = query_offsets.size - 1
    groups = np.empty((n_blocks + query_offsets[-1] // GROUP + 1, 5), np.int64)
    n, block = 0, 0
    while block < n_blocks:
        stop = block + 1
        while (
            stop < n_blocks
            and query_offsets[stop + 1] - query_offsets[block] <= LANES
            and key_offsets[stop + 1] - key_offsets[block] <= STEP
        ):
            stop += 1
        for first in range(query_offsets[block], query_offsets[stop], GROUP):
            groups[n, 0], groups[n, 1] = first, min(first + GROUP, query_offsets[stop])
            groups[n, 2], groups[n, 3], groups[n, 4] = key_offsets[block], key_offsets[stop], stop - block
            n += 1
        block = stop
    return groups[:n]


@compiled
def attend_block(tile, keys, values, key_indices, mask, lists, rows, view, is_mixed, lanes):
    """Fold the gathered keys of one or several blocks of a view, less listed pairs and those of earlier views."""
    for start in range(0, key_indices.size, STEP):
        n = min(STEP, key_indices.size - start)
        dot(tile, keys[start:], n, lanes)
        for j in range(n):
            row, key = tile.logits[j], key_indices[start + j]
            if is_mixed:
                _set_unequal(row, lanes, tile.blocks[view], mask.key_blocks[view, key], hidden_logit(row))
            for earlier in range(view):
                _set_equal(row, lanes, tile.blocks[earlier], mask.key_blocks[earlier, key], hidden_logit(row))
            if lists.pages.size > 0:
                set_listed(row, rows, key, lists, hidden_logit(row))
        fold(tile, values[start:], n, lanes)


@vectorised
def _add_weight(row, lanes, log_weight):
    for lane in range(lanes):
        row[lane] += log_weight


@compiled
def attend_shared(tile, shared, lists, rows, lanes):
    """Fold the shared keys, less listed pairs and those that some view holds."""
    for start in range(0, shared.keys.shape[0], STEP):
        n = min(STEP, shared.keys.shape[0] - start)
        dot(tile, shared.keys[start:], n, lanes)
        for j in range(n):
            row = tile.logits[j]
            _add_weight(row, lanes, shared.log_weights[start + j])
            for view in range(shared.blocks.shape[0]):
                _set_equal(row, lanes, tile.blocks[view], shared.blocks[view, start + j], hidden_logit(row))
            if lists.pages.size > 0:
                set_listed(row, rows, shared.indices[start + j], lists, hidden_logit(row))
        fold(tile, shared.values[start:], n, lanes)


@kernel
def view_rows(groups, q, k, v, factor, query_order, key_order, view, mask, lists, shared, is_new, is_final, state):
    """Attention of the queries of some groups of a view to the keys of their blocks, then to the shared keys.

    All arrays are a rectangle's; `query_order` and `key_order` are those of view number `view`. Exact keys are shared,
    and skipped in blocks; so are listed pairs. With every view but the last `shared` is empty. `is_new`: no part of
    these queries came before; `is_final`: none follows.
    """
    tile = new_tile(q.shape[1], v.shape[1], mask.query_blocks.shape[0], q)
    keys, values = np.empty((GROUP, k.shape[1]), q.dtype), np.empty((GROUP, v.shape[1]), q.dtype)
    key_indices = np.empty(GROUP, np.int64)
    for g in range(groups.shape[0]):
        key, stop_key, is_mixed, is_first = groups[g, 2], groups[g, 3], groups[g, 4] > 1, True
        while is_first or key < stop_key:
            n = 0
            while key < stop_key and n < GROUP:
                key_indices[n] = key_order[key]
                n += not mask.is_exact[key_order[key]]
                key += 1
            gather(k, key_indices[:n], keys)
            gather(v, key_indices[:n], values)
            is_last = key == stop_key
            for first in range(groups[g, 0], groups[g, 1], LANES):
                rows = query_order[first : min(first + LANES, groups[g, 1])]
                lanes = padded(rows.size)
                load_columns(tile, q, rows, factor)
                load_blocks(tile, mask.query_blocks, rows)
                load_state(tile, state, rows, is_new and is_first)
                attend_block(tile, keys, values, key_indices[:n], mask, lists, rows, view, is_mixed, lanes)
                if is_last:
                    attend_shared(tile, shared, lists, rows, lanes)
                store_state(tile, state, rows, is_last and is_final)
            is_first = False


# --- Block lists -----------------------------------------------------------------------------------------------------


class ListTile(NamedTuple):
    """The working memory of a thread for block lists, where lanes are keys: a block has too few queries to fill them.

    Attributes
    ----------
    queries : (LIST_ROWS, d) multiplied by scale log2(e).
    columns : (d, LANES) gathered keys, transposed.
    values : (LANES, d_v rounded up to whole vectors) their values.
    keys : (LIST_CHUNKS, LANES) their indices.
    logits : (LIST_CHUNKS, LIST_ROWS, LANES) in base 2, then weights.
    sums : (LIST_ROWS, d_v rounded up) weighted sums of values, relative to 2^top.
    top, total : (LIST_ROWS,) the largest logit so far and the sum of weights, relative to 2^top.
    part : (LIST_ROWS, LANES) largest logits, then sums, of each lane.
    ones : (d_v rounded up,) the decay of sums that do not shrink.
    """

    queries: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    keys: np.ndarray
    logits: np.ndarray
    sums: np.ndarray
    top: np.ndarray
    total: np.ndarray
    part: np.ndarray
    ones: np.ndarray


@compiled
def new_list_tile(d, d_v, like):
    """Memory for blocks of lists, of the type of `like`."""
    dtype, width = like.dtype, padded(d_v)
    return ListTile(
        np.empty((LIST_ROWS, d), dtype),
        np.empty((d, LANES), dtype),
        np.zeros((LANES, width), dtype),
        np.empty((LIST_CHUNKS, LANES), np.int64),
        np.empty((LIST_CHUNKS, LIST_ROWS, LANES), dtype),
        np.empty((LIST_ROWS, width), dtype),
        np.empty(LIST_ROWS, dtype),
        np.empty(LIST_ROWS, dtype),
        np.empty((LIST_ROWS, LANES), dtype),
        np.ones(width, dtype),
    )


@kernel
def transpose_pages(first_page, stop_page, k, page_size, out):
    """out[p, e, j] = k[p page_size + j, e]: within a page the keys are the lanes. out is (pages, d, page_size)."""
    for page in range(first_page, stop_page):
        first = page * page_size
        for j in range(min(page_size, k.shape[0] - first)):
            for e in range(k.shape[1]):
                out[page, e, j] = k[first + j, e]


MOVED = 8
"""Entries that `_move` moves: a page of 8 keys has as many in each coordinate."""


@intrinsic
def _move(_, target, to, source, start):
    """target[to + i] = source[start + i] for i < MOVED, in flat order: one load and one store.

    The compiler makes none of a loop, where it cannot exclude that the arrays overlap or an index is negative.
    """

    def generate(context, builder, signature, args):
        number = context.get_value_type(signature.args[0].dtype)
        places = []
        for kind, array, offset in ((signature.args[0], args[0], args[1]), (signature.args[2], args[2], args[3])):
            data = context.make_array(kind)(context, builder, array).data
            place = builder.gep(data, [offset])
            places.append(builder.bitcast(place, ir.VectorType(number, MOVED).as_pointer()))
        loaded = builder.load(places[1])
        loaded.align = signature.args[0].dtype.bitwidth // 8
        builder.store(loaded, places[0]).align = signature.args[0].dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp), generate


@compiled
def _copy_lanes(columns, lane, key_pages, page, first, n):
    """columns[:, lane : lane + n] = key_pages[page, :, first : first + n]."""
    d, size = key_pages.shape[1:]
    whole = n // MOVED * MOVED
    width, start = columns.shape[1], page * d * size + first
    for i in range(0, whole, MOVED):
        for e in range(d):
            _move(columns, e * width + lane + i, key_pages, e * size + start + i)
    if whole < n:
        for e in range(d):
            source, target = key_pages[page, e, first:], columns[e, lane:]
            for i in range(whole, n):
                target[i] = source[i]


@compiled
def _gather_values(v, keys, values):
    """values[: keys.size, : d_v] = v[keys]."""
    d_v = v.shape[1]
    whole = d_v // MOVED * MOVED
    for j in range(keys.size):
        to, start = j * values.shape[1], keys[j] * d_v
        for i in range(0, whole, MOVED):
            _move(values, to + i, v, start + i)
        if whole < d_v:
            source, target = v[keys[j]], values[j]
            for i in range(whole, d_v):
                target[i] = source[i]


@compiled
def _gather_lanes(tile, chunk, key_pages, n_keys, lists, first_page, place, stop, first):
    """Fill the lanes with keys of the pages from `place` on, of which `first` keys are done; (keys, place, first).

    Pages are counted from first_page.
    """
    n, keys = 0, tile.keys[chunk]
    while place < stop and n < LANES:
        page = lists.pages[place] - first_page
        left = min(lists.page_size, n_keys - page * lists.page_size) - first
        taken = min(left, LANES - n)
        _copy_lanes(tile.columns, n, key_pages, page, first, taken)
        for j in range(taken):
            keys[n + j] = page * lists.page_size + first + j
        n += taken
        first += taken
        if taken == left:
            place, first = place + 1, 0
    return n, place, first


@vectorised
def _lane_tops(logits, n_rows, lanes, part):
    """part = max(part, logits)."""
    for i in range(n_rows):
        row, tops = logits[i], part[i]
        for lane in range(lanes):
            x, y = row[lane], tops[lane]
            tops[lane] = x if x > y else y


@vectorised
def _lane_weights(logits, n_rows, lanes, top, part):
    """Logits become weights 2^(logit - top of the row); `part` collects their sums."""
    for i in range(n_rows):
        row, total, highest = logits[i], part[i], top[i]
        for lane in range(lanes):
            weight = exp2(row[lane] - highest)
            row[lane] = weight
            total[lane] += weight


@vectorised
def _halve(part, n_rows, lanes, is_sum):
    """part[:, :lanes] = the larger, or the sum, of it and of the next as many lanes."""
    for i in range(n_rows):
        low, high = part[i], part[i, lanes:]
        for lane in range(lanes):
            x, y = low[lane], high[lane]
            low[lane] = x + y if is_sum else (x if x > y else y)


@compiled
def _raise_list_tops(tile, n_rows, n_chunks):
    """The largest logit of each row; former sums shrink accordingly."""
    tile.part[:n_rows] = empty_top(tile.part)
    for chunk in range(n_chunks):
        _lane_tops(tile.logits[chunk], n_rows, LANES, tile.part)
    _halve(tile.part, n_rows, LANES // 2, False)
    _halve(tile.part, n_rows, LANES // 4, False)
    for i in range(n_rows):
        former, top = tile.top[i], tile.top[i]
        for lane in range(LANES // 4):
            top = max(top, tile.part[i, lane])
        tile.top[i] = top
        shrink = exp2(former - top)
        tile.total[i] *= shrink
        tile.sums[i] *= shrink


@compiled
def _fold_lists(tile, v, n_rows, n_chunks, n_last):
    """Fold some chunks of logits, whose last one has n_last keys, and their values into the state of the rows."""
    _raise_list_tops(tile, n_rows, n_chunks)
    tile.part[:n_rows] = 0
    width = tile.values.shape[1]
    for chunk in range(n_chunks):
        weights, n = tile.logits[chunk], n_last if chunk == n_chunks - 1 else LANES
        _lane_weights(weights, n_rows, LANES, tile.top, tile.part)
        _gather_values(v, tile.keys[chunk, :n], tile.values)
        multiply(weights, LANES, 1, n_rows, tile.values, width, tile.sums, n, True, tile.ones)
    _halve(tile.part, n_rows, LANES // 2, True)
    _halve(tile.part, n_rows, LANES // 4, True)
    for i in range(n_rows):
        for lane in range(LANES // 4):
            tile.total[i] += tile.part[i, lane]


@compiled
def _hide_lanes(tile, chunk, first_row, n_rows, n, is_causal):
    """Hide the lanes without a key, and keys that come after their query."""
    logits, keys = tile.logits[chunk], tile.keys[chunk]
    for i in range(n_rows):
        logits[i, n:] = hidden_logit(logits)
        if is_causal and keys[n - 1] > first_row + i:  # keys rise
            for lane in range(n):
                if keys[lane] > first_row + i:
                    logits[i, lane] = hidden_logit(logits)


@kernel
def listed_rows(first_block, stop_block, q, key_pages, v, factor, lists, is_final, state):
    """Attention of the queries of some blocks to the pages in their lists; no part of these queries came before.

    `key_pages` are the keys from `transpose_pages`.
    """
    tile = new_list_tile(q.shape[1], v.shape[1], q)
    d = q.shape[1]
    for block in range(first_block, stop_block):
        stop_row = min((block + 1) * lists.block_size, q.shape[0])
        for first_row in range(block * lists.block_size, stop_row, LIST_ROWS):
            n_rows = min(LIST_ROWS, stop_row - first_row)
            for i in range(n_rows):
                source, target = q[first_row + i], tile.queries[i]
                for e in range(d):
                    target[e] = source[e] * factor
            tile.top[:], tile.total[:], tile.sums[:] = empty_top(tile.top), 0, 0
            place, stop, first = lists.offsets[block], lists.offsets[block + 1], 0
            while place < stop:
                n_chunks = n = 0
                while place < stop and n_chunks < LIST_CHUNKS:
                    n, place, first = _gather_lanes(tile, n_chunks, key_pages, v.shape[0], lists, 0, place, stop, first)
                    logits = tile.logits[n_chunks]
                    multiply(tile.queries, d, 1, n_rows, tile.columns, padded(n), logits, d, False, tile.ones)
                    _hide_lanes(tile, n_chunks, first_row, n_rows, n, lists.is_causal)
                    n_chunks += 1
                _fold_lists(tile, v, n_rows, n_chunks, n)
            for i in range(n_rows):
                store_row(tile.sums[i], tile.top[i], tile.total[i], state, first_row + i, is_final)


# --- The choice of pages ---------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What the scores of the blocks at one level share; all numbers are float32, logarithms are in base 2.

    Attributes
    ----------
    q_mean : (blocks, d) mean queries, multiplied by scale log2(e).
    k_mean : (pages, d) mean keys.
    columns : (chunks, d, LANES) the same from `transpose_pages`, if all blocks have the same candidates: all pages.
    log_sizes : (pages,) logarithms of the sizes of pages.
    candidates : (blocks, .) pages of each block, or (1, .) those of all, rising; what is no page stands at the end.
    first_pages, before, after, own : as in `plan.pages.Level`.
    pickers : (pages,) `Level.pickers`.
    is_causal : whether the average share is over the blocks so far.
    """

    q_mean: np.ndarray
    k_mean: np.ndarray
    columns: np.ndarray
    log_sizes: np.ndarray
    candidates: np.ndarray
    first_pages: int
    before: np.ndarray
    after: np.ndarray
    own: np.ndarray
    pickers: np.ndarray
    is_causal: bool


class ScoreTile(NamedTuple):
    """The working memory of a thread for the scores of up to SCORED blocks that have the same candidates.

    Attributes
    ----------
    rows : (SCORED, .) logarithms of the masses of the candidates, then scores; hidden where a page may not be picked.
    share : (.,) shares of the candidates, of one block.
    log_sizes, total, pickers : (.,) of each candidate: its entries of `Scores`, and the sum of its shares so far.
    part : (16,) largest entries, then sums, of each lane.
    """

    rows: np.ndarray
    share: np.ndarray
    log_sizes: np.ndarray
    total: np.ndarray
    pickers: np.ndarray
    part: np.ndarray


@compiled
def new_score_tile(scores):
    """Memory for scores of all candidates."""
    width, dtype = (scores.candidates.shape[1] + LANES - 1) // LANES * LANES, np.float32
    return ScoreTile(
        np.empty((SCORED, width), dtype),
        np.empty(width, dtype),
        np.zeros(width, dtype),
        np.zeros(width, dtype),
        np.zeros(width, dtype),
        np.empty(16, dtype),
    )


@compiled
def _below(pages, n, page):
    """How many of the first n of these rising pages come before a page."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if pages[middle] < page:
            low = middle + 1
        else:
            high = middle
    return low


@reordered
def _products(x, k_mean, pages, n, out):
    """out = the products of x with the mean keys of the first n pages."""
    for j in range(n):
        key, product = k_mean[pages[j]], np.float32(0)
        for e in range(x.size):
            product += x[e] * key[e]
        out[j] = product


@vectorised
def _add(row, x, n):
    for j in range(n):
        row[j] += x[j]


@compiled
def _score_blocks(tile, scores, block, stop_block):
    """rows = logarithms of the masses of candidates for some blocks; the candidates, their number, the rows' width.

    The blocks are as many of the next ones as have the same candidates. What may not be picked is hidden.
    """
    is_shared = scores.candidates.shape[0] == 1
    n_blocks = min(SCORED, stop_block - block) if is_shared else 1
    pages = scores.candidates[0 if is_shared else block]
    n = _below(pages, pages.size, scores.before[block + n_blocks - 1] if scores.is_causal else scores.log_sizes.size)
    width, log_sizes = (n + LANES - 1) // LANES * LANES, tile.log_sizes
    for j in range(n):
        log_sizes[j] = scores.log_sizes[pages[j]]
    if is_shared:
        d = scores.q_mean.shape[1]
        for start in range(0, width, LANES):
            columns, part = scores.columns[start // LANES], tile.rows[:, start : start + LANES]
            multiply(scores.q_mean[block:], d, 1, n_blocks, columns, LANES, part, d, False, log_sizes)
    else:
        _products(scores.q_mean[block], scores.k_mean, pages, n, tile.rows[0])
    for i in range(n_blocks):
        row, b = tile.rows[i], block + i
        _add(row, log_sizes, n)
        row[: _below(pages, n, scores.first_pages)] = hidden_logit(row)
        row[_below(pages, n, scores.before[b]) : _below(pages, n, scores.after[b])] = hidden_logit(row)
        row[n:width] = hidden_logit(row)
    return n_blocks, pages, n, width


@vectorised
def _largest_entry(row, n, part):
    """The largest of the first n entries, a multiple of 16."""
    part[:16] = row[:16]
    for p in range(0, n, 16):
        for lane in range(16):
            x, y = row[p + lane], part[lane]
            part[lane] = x if x > y else y
    top = part[0]
    for lane in range(1, 16):
        top = max(top, part[lane])
    return top


@vectorised
def _share_sum(row, n, top, part, share):
    """share = 2^(row - top); their sum."""
    part[:16] = 0
    for p in range(n):
        share[p] = exp2(row[p] - top)
    for p in range(0, n, 16):
        for lane in range(16):
            part[lane] += share[p + lane]
    total = part[0]
    for lane in range(1, 16):
        total += part[lane]
    return total


@vectorised
def _add_shares(share, n, factor, total):
    for p in range(n):
        total[p] += share[p] * factor


@kernel
def page_totals(first_block, stop_block, piece, scores, totals):
    """totals[piece] = the sums of the shares of each page over some blocks."""
    tile, sums, block = new_score_tile(scores), totals[piece], first_block
    total = tile.total
    while block < stop_block:
        n_blocks, pages, n, width = _score_blocks(tile, scores, block, stop_block)
        total[:] = 0
        for i in range(n_blocks):
            top = _largest_entry(tile.rows[i], width, tile.part)
            if top > empty_top(tile.part):
                mass = _share_sum(tile.rows[i], width, top, tile.part, tile.share)
                _add_shares(tile.share, width, np.float32(1) / mass, total)
        for j in range(n):
            sums[pages[j]] += total[j]
        block += n_blocks


@vectorised
def _log2(x):
    """log2 of a positive normal float32, within 3e-5, which is enough to rank pages: a polynomial of the mantissa."""
    f32 = np.float32
    bits = f32(x).view(np.int32)
    exponent = f32((bits >> np.int32(23)) - np.int32(127))
    m = np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F800000)).view(np.float32) - f32(1.5)
    p = f32(0.14171816) + m * (f32(-0.08001088) + m * f32(0.04392863))
    return exponent + (f32(0.5849505) + m * (f32(0.96182123) + m * (f32(-0.3197491) + m * p)))


@vectorised
def _lift(row, n, log_total, lift, total, pickers, blocks, prior, prior_blocks):
    """row = log2 of share / average share^lift; what is hidden stays hidden, its distance being far larger."""
    for p in range(n):
        count = max(pickers[p] + blocks, np.float32(0))
        average = (total[p] + prior) / (count + prior_blocks)
        row[p] = row[p] - log_total - lift * _log2(average)


@vectorised
def _count_from(row, first, stop, low):
    """How many of these entries are at least `low`."""
    count = np.int32(0)
    for p in range(first, stop):
        count += np.int32(row[p] >= low)
    return count


@compiled
def _threshold(row, n, top, high):
    """A number that exactly `top` entries reach, or, if ties prevent that, their value; `high` is the largest entry.

    Bisection; it ends when no number lies between.
    """
    if _count_from(row, 0, n, high) >= top:
        return high
    low = high - np.float32(1)
    while _count_from(row, 0, n, low) < top:
        low -= np.float32(2) * (high - low)
    while True:
        middle = np.float32(0.5) * (low + high)
        if middle <= low or middle >= high:
            return low
        found = _count_from(row, 0, n, middle)
        if found == top:
            return middle
        if found > top:
            low = middle
        else:
            high = middle


@compiled
def _take_from(row, n, low, wanted, pages, picked):
    """The pages of the `wanted` entries above `low`, and, if there are fewer, of the first of those equal to it."""
    tied, found = wanted, 0
    for p in range(n):
        tied -= row[p] > low
    for first in range(0, n, LANES):
        if _count_from(row, first, first + LANES, low) == 0:
            continue
        for p in range(first, first + LANES):
            if row[p] > low or (row[p] == low and tied > 0):
                tied -= row[p] == low
                picked[found] = pages[p]
                found += 1


@kernel
def pick_rows(first_block, stop_block, piece, scores, top, lift, prior_blocks, totals, picked):
    """The `top` candidates of the largest lifted score for some blocks; all where there are no more.

    totals[piece] holds the sums of shares over the blocks before these, or over all blocks if not causal. It is
    changed.
    """
    tile, sums, block = new_score_tile(scores), totals[piece], first_block
    total, pickers = tile.total, tile.pickers
    while block < stop_block:
        n_blocks, pages, n, width = _score_blocks(tile, scores, block, stop_block)
        for j in range(n):
            total[j], pickers[j] = sums[pages[j]], scores.pickers[pages[j]]
        for i in range(n_blocks):
            _pick(tile, scores, block + i, tile.rows[i], width, pages, top, lift, prior_blocks, picked[block + i])
        if scores.is_causal:
            for j in range(n):
                sums[pages[j]] = total[j]
        block += n_blocks


@compiled
def _pick(tile, scores, block, row, width, pages, top, lift, prior_blocks, picked):
    """The picks of a block from the logarithms of masses in `row`, and its own page, the last."""
    has_own = scores.own[block] < scores.log_sizes.size
    n_far = _count_from(row, 0, width, empty_top(row))
    wanted = min(top - has_own, n_far)
    if n_far > 0:
        top_row, blocks, low = _largest_entry(row, width, tile.part), np.float32(0), empty_top(row)
        mass = _share_sum(row, width, top_row, tile.part, tile.share)
        if scores.is_causal:
            _add_shares(tile.share, width, np.float32(1) / mass, tile.total)
            blocks = np.float32(block + 1)
        if wanted < n_far:
            prior, log_mass = prior_blocks / np.float32(n_far), np.float32(top_row + np.log2(mass))
            _lift(row, width, log_mass, lift, tile.total, tile.pickers, blocks, prior, prior_blocks)
            low = _threshold(row, width, wanted, _largest_entry(row, width, tile.part))
        _take_from(row, width, low, wanted, pages, picked)
    if has_own:
        picked[wanted] = scores.own[block]


# --- The far part of landmarks --------------------------------------------------------------------------------------


class Pilots(NamedTuple):
    """The pilots of a far part: `columns` (d, padded r), transposed and times scale log2(e), and `lse`, in base 2.

    Both are zero in the padding.
    """

    columns: np.ndarray
    lse: np.ndarray


@vectorised
def _shares_of_pilots(logits, n, lanes, lse):
    """Logits of n keys with the pilots become shares 2^(logit - lse), at most 1."""
    zero = lse.dtype.type(0)
    for j in range(n):
        row = logits[j]
        for lane in range(lanes):
            x = row[lane] - lse[lane]
            row[lane] = exp2(x if x < zero else zero)


@kernel
def take_out_rows(groups, pilots, k, values, query_order, key_order, view, mask, lists, sums):
    """Far sums -= (u_i·P_l) values_l over the pairs in the blocks of some groups of a view, in no earlier view or list.

    A row of `sums` is the far sums of a query, then its combination u of the pilots; P_l are their shares of key l.
    Groups, orders, view and mask are as in `view_rows`.
    """
    d, d_v = k.shape[1], values.shape[1]
    lanes_of_pilots = pilots.lse.size
    tile = new_tile(lanes_of_pilots, d_v, mask.query_blocks.shape[0], k)
    tile.columns[sums.shape[1] - d_v :] = 0
    keys, key_values = np.empty((STEP, d), k.dtype), np.empty((STEP, d_v), k.dtype)
    shares, key_indices = np.empty((STEP, lanes_of_pilots), k.dtype), np.empty(STEP, np.int64)
    for g in range(groups.shape[0]):
        key, stop_key, is_mixed = groups[g, 2], groups[g, 3], groups[g, 4] > 1
        while key < stop_key:
            n = 0
            while key < stop_key and n < STEP:
                key_indices[n] = key_order[key]
                n += not mask.is_exact[key_order[key]]
                key += 1
            if n == 0:
                continue
            gather(k, key_indices[:n], keys)
            gather(values, key_indices[:n], key_values)
            multiply(keys, d, 1, n, pilots.columns, lanes_of_pilots, shares, d, False, pilots.lse)  # lse is not read
            _shares_of_pilots(shares, n, lanes_of_pilots, pilots.lse)
            for first in range(groups[g, 0], groups[g, 1], LANES):
                rows = query_order[first : min(first + LANES, groups[g, 1])]
                take_out(tile, shares, key_values, rows, key_indices[:n], view, is_mixed, mask, lists, sums)


@compiled
def take_out(tile, shares, key_values, rows, key_indices, view, is_mixed, mask, lists, sums):
    """The pairs of a tile of queries with the keys that have these shares and values."""
    n, lanes, d_v = key_indices.size, padded(rows.size), key_values.shape[1]
    load_columns(tile, sums[:, d_v:], rows, shares.dtype.type(1))
    load_blocks(tile, mask.query_blocks, rows)
    dot(tile, shares, n, lanes)
    for j in range(n):
        row, key = tile.logits[j], key_indices[j]
        if is_mixed:
            _set_unequal(row, lanes, tile.blocks[view], mask.key_blocks[view, key], 0)
        for earlier in range(view):
            _set_equal(row, lanes, tile.blocks[earlier], mask.key_blocks[earlier, key], 0)
        if lists.pages.size > 0:
            set_listed(row, rows, key, lists, row.dtype.type(0))
    multiply(key_values, 1, d_v, d_v, tile.logits, lanes, tile.sums, n, False, tile.decay)  # decay is not read
    for lane in range(rows.size):
        target = sums[rows[lane]]
        for e in range(d_v):
            target[e] -= tile.sums[e, lane]


@kernel
def shares_of_pages(first_page, stop_page, k, pilots, page_size, before, out):
    """out[p, c, j] = P_lc of the key l = p page_size + j - before, as in `take_out_rows`; out is (pages, r, page_size).

    `before` keys come before these in the first page; what is no key is not written.
    """
    lanes = pilots.lse.size
    shares = np.empty((page_size, lanes), k.dtype)
    for page in range(first_page, stop_page):
        first, stop = max(page * page_size - before, 0), min((page + 1) * page_size - before, k.shape[0])
        n, shift = stop - first, first + before - page * page_size
        multiply(k[first:], k.shape[1], 1, n, pilots.columns, lanes, shares, k.shape[1], False, pilots.lse)
        _shares_of_pilots(shares, n, lanes, pilots.lse)
        for c in range(out.shape[1]):
            target = out[page, c]
            for j in range(n):
                target[shift + j] = shares[j, c]


@kernel
def take_out_listed(first_block, stop_block, share_pages, values, is_taken, lists, first_page, sums):
    """As `take_out_rows`, for the listed pairs of some blocks in a rectangle, with the shares of keys as lanes.

    `share_pages` are the shares from `shares_of_pages`, from page `first_page` of the lists on; `values` and
    `is_taken`, whether the pairs of a key are to be taken out, have the same rows.
    """
    r, d_v, n_keys = share_pages.shape[1], values.shape[1], values.shape[0]
    tile = new_list_tile(r, d_v, values)
    keys, weights, width = tile.keys[0], tile.logits[0], tile.values.shape[1]
    for block in range(first_block, stop_block):
        pages = lists.pages[lists.offsets[block] : lists.offsets[block + 1]]
        begin = lists.offsets[block] + np.searchsorted(pages, first_page)
        stop = lists.offsets[block] + np.searchsorted(pages, first_page + share_pages.shape[0])
        stop_row = min((block + 1) * lists.block_size - lists.first_query, sums.shape[0])
        for row in range(max(block * lists.block_size - lists.first_query, 0), stop_row, LIST_ROWS):
            n_rows = min(LIST_ROWS, stop_row - row)
            for i in range(n_rows):
                source, target = sums[row + i], tile.queries[i]
                for c in range(r):
                    target[c] = source[d_v + c]
            place, first = begin, 0
            tile.sums[:] = 0
            while place < stop:
                n, place, first = _gather_lanes(tile, 0, share_pages, n_keys, lists, first_page, place, stop, first)
                multiply(tile.queries, r, 1, n_rows, tile.columns, padded(n), weights, r, False, tile.ones)
                for lane in range(n):
                    if not is_taken[keys[lane]]:
                        weights[:n_rows, lane] = 0
                _gather_values(values, keys[:n], tile.values)
                multiply(weights, LANES, 1, n_rows, tile.values, width, tile.sums, n, True, tile.ones)
            for i in range(n_rows):
                source, target = tile.sums[i], sums[row + i]
                for e in range(d_v):
                    target[e] -= source[e]


@kernel
def finish_rows(first_row, stop_row, state):
    """From states to outputs and log-sum-exps, where it was not known beforehand which part is the last."""
    tile = new_tile(1, state.out.shape[1], 0, state.out)
    for first in range(first_row, stop_row, LANES):
        rows = np.arange(first, min(first + LANES, stop_row))
        load_state(tile, state, rows, False)
        store_state(tile, state, rows, True)


# --- Sums over rows --------------------------------------------------------------------------------------------------


class RowSumArrays(NamedTuple):
    """For each query, in base 2: the least and the largest logit, and sums relative to 2^top.

    `total` of weights, `moment` of weights times (logit - top), `outside` of weights outside the mask; all (n_q,).
    """

    least: np.ndarray
    top: np.ndarray
    total: np.ndarray
    moment: np.ndarray
    outside: np.ndarray


@vectorised
def _extend_range(logits, n, lanes, least, top):
    """least and top take in the logits that are not hidden."""
    for j in range(n):
        row = logits[j]
        for lane in range(lanes):
            x = row[lane]
            low, high = least[lane], top[lane]
            least[lane] = x if x > empty_top(row) and x < low else low
            top[lane] = x if x > high else high


@vectorised
def _weigh_moments(logits, n, lanes, top, part, moment):
    """As `_exponentials`; `moment` becomes the sums of weight x (logit - top)."""
    part[:lanes] = 0
    moment[:lanes] = 0
    for j in range(n):
        row = logits[j]
        for lane in range(lanes):
            x = row[lane] - top[lane]
            weight = exp2(x)
            row[lane] = weight
            part[lane] += weight
            moment[lane] += weight * max(x, row.dtype.type(-2000))  # where the weight is 0, so must the product be


@vectorised
def _add_moments(lanes, top, decay, total, part, moment, part_moment):
    """As `_add_part`; `moment` is relative to the largest logit in both factors."""
    for lane in range(lanes):
        fall = max(decay[lane] - top[lane], top.dtype.type(-2000))
        decay[lane] = exp2(fall)
        moment[lane] = decay[lane] * (moment[lane] + fall * total[lane]) + part_moment[lane]
        total[lane] = decay[lane] * total[lane] + part[lane]


@vectorised
def _add_rows(weights, n, lanes, part, total, decay):
    """total = decay total + the sums of `weights`."""
    part[:lanes] = 0
    for j in range(n):
        row = weights[j]
        for lane in range(lanes):
            part[lane] += row[lane]
    for lane in range(lanes):
        total[lane] = decay[lane] * total[lane] + part[lane]


@kernel
def row_sums(order, q, k, factor, is_causal, mask, has_mask, is_mask_hidden, sums):
    """RowSumArrays of the queries `order`, which rise. With `is_mask_hidden` marked pairs count as non-existent."""
    tile = new_tile(q.shape[1], 1, mask.query_blocks.shape[0], q)
    least, moment, outside = np.empty(LANES, q.dtype), np.empty(LANES, q.dtype), np.empty(LANES, q.dtype)
    part_moment, logits, zero = np.empty(LANES, q.dtype), tile.logits, q.dtype.type(0)
    for first in range(0, order.size, LANES):
        rows = order[first : first + LANES]
        lanes = padded(rows.size)
        load_columns(tile, q, rows, factor)
        load_blocks(tile, mask.query_blocks, rows)
        least[:], tile.top[:], tile.total[:], moment[:], outside[:] = -empty_top(least), empty_top(least), 0, 0, 0
        stop_key = rows[-1] + 1 if is_causal else k.shape[0]
        for key in range(0, stop_key, STEP):
            n = min(STEP, stop_key - key)
            dot(tile, k[key:], n, lanes)
            if is_causal:
                hide_future(logits, n, rows, key)
            if is_mask_hidden:
                set_marked(tile, n, lanes, mask, rows, key, hidden_logit(logits))
            tile.decay[:] = tile.top
            _extend_range(logits, n, lanes, least, tile.top)
            _weigh_moments(logits, n, lanes, tile.top, tile.part, part_moment)
            _add_moments(lanes, tile.top, tile.decay, tile.total, tile.part, moment, part_moment)
            if has_mask:
                set_marked(tile, n, lanes, mask, rows, key, zero)
                _add_rows(logits, n, lanes, tile.part, outside, tile.decay)
        for lane in range(rows.size):
            i = rows[lane]
            sums.least[i], sums.top[i], sums.total[i] = least[lane], tile.top[lane], tile.total[lane]
            sums.moment[i], sums.outside[i] = moment[lane], outside[lane]


@vectorised
def _cap(logits, n, lanes, caps, n_capped):
    for j in range(n):
        row = logits[j]
        for lane in range(lanes):
            n_capped[lane] += row[lane] > caps[lane]
            row[lane] = min(row[lane], caps[lane])


@kernel
def capped_rows(first_row, stop_row, q, sampled, factor, mask, log_caps, tops, totals, counts):
    """Sums of min(2^logit, 2^cap) over the sampled keys outside the mask, relative to the largest; and what was capped.

    The mask has the columns of the sampled keys, in their order.
    """
    tile = new_tile(q.shape[1], 1, mask.query_blocks.shape[0], q)
    cap, n_capped = np.zeros(LANES, q.dtype), np.empty(LANES, np.int64)
    for first in range(first_row, stop_row, LANES):
        rows = np.arange(first, min(first + LANES, stop_row))
        lanes = padded(rows.size)
        load_columns(tile, q, rows, factor)
        load_blocks(tile, mask.query_blocks, rows)
        tile.top[:], tile.total[:], n_capped[:] = empty_top(cap), 0, 0
        cap[: rows.size] = log_caps[first : first + rows.size]
        for key in range(0, sampled.shape[0], STEP):
            n = min(STEP, sampled.shape[0] - key)
            dot(tile, sampled[key:], n, lanes)
            set_marked(tile, n, lanes, mask, rows, key, hidden_logit(cap))
            _cap(tile.logits, n, lanes, cap, n_capped)
            weigh(tile, n, lanes)
        for lane in range(rows.size):
            i = rows[lane]
            tops[i], totals[i], counts[i] = tile.top[lane], tile.total[lane], n_capped[lane]


# --- Sums over columns -----------------------------------------------------------------------------------------------


@vectorised
def _probabilities(logits, n, lanes, top, share):
    """Logits, one query a row, become probabilities 2^(logit - top) share."""
    for i in range(n):
        row, highest, factor = logits[i], top[i], share[i]
        for lane in range(lanes):
            row[lane] = exp2(row[lane] - highest) * factor


@vectorised
def _add_squares(p, n, lanes, total, squares):
    for i in range(n):
        row = p[i]
        for lane in range(lanes):
            x = row[lane]
            total[lane] += x
            squares[lane] += x * x


@kernel
def column_sums(first_key, stop_key, q, k, factor, is_causal, top, share, sums, squares):
    """Sums of P_ij and of P_ij^2 over the queries i, for some keys j; P_ij = 2^(logit - top_i) share_i.

    Each step is summed in the working type, the steps in float64.
    """
    tile = new_tile(q.shape[1], 1, 0, q)
    column, square = tile.total, tile.part
    for key in range(first_key, stop_key, LANES):
        rows = np.arange(key, min(key + LANES, stop_key))
        lanes = padded(rows.size)
        load_columns(tile, k, rows, factor)
        sums[key : key + rows.size], squares[key : key + rows.size] = 0, 0
        for query in range(key if is_causal else 0, q.shape[0], STEP):
            n = min(STEP, q.shape[0] - query)
            dot(tile, q[query:], n, lanes)
            if is_causal:
                hide_past(tile.logits, n, lanes, key, query)
            _probabilities(tile.logits, n, lanes, top[query:], share[query:])
            column[:], square[:] = 0, 0
            _add_squares(tile.logits, n, lanes, column, square)
            for lane in range(rows.size):
                sums[key + lane] += column[lane]
                squares[key + lane] += square[lane]


@kernel
def transposed_rows(first_key, stop_key, q, k, y, factor, is_causal, lse, share, out):
    """Some rows of P^T y, P_ij = 2^(logit - lse_i) share_i."""
    tile = new_tile(q.shape[1], y.shape[1], 0, q)
    tile.decay[:] = 1
    for key in range(first_key, stop_key, LANES):
        rows = np.arange(key, min(key + LANES, stop_key))
        lanes = padded(rows.size)
        load_columns(tile, k, rows, factor)
        tile.sums[:] = 0
        for query in range(key if is_causal else 0, q.shape[0], STEP):
            n = min(STEP, q.shape[0] - query)
            dot(tile, q[query:], n, lanes)
            if is_causal:
                hide_past(tile.logits, n, lanes, key, query)
            _probabilities(tile.logits, n, lanes, lse[query:], share[query:])
            multiply(y[query:], 1, y.shape[1], y.shape[1], tile.logits, lanes, tile.sums, n, True, tile.decay)
        for lane in range(rows.size):
            for e in range(y.shape[1]):
                out[key + lane, e] = tile.sums[e, lane]


# --- Gradients -------------------------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """Keys in the order in which queries meet them; all arrays have an entry for each.

    Attributes
    ----------
    indices, targets : its row in k and v, and that of its gradients in dk and dv.
    log_weights : in base 2.
    blocks : (views, .) int32 its block numbers.
    """

    indices: np.ndarray
    targets: np.ndarray
    log_weights: np.ndarray
    blocks: np.ndarray


class Queries(NamedTuple):
    """What a part knows of its queries: q (n_q, d), dout (n_q, d_v), lse in base 2, delta and blocks (views, n_q).

    `order` is that in which units count them.
    """

    q: np.ndarray
    dout: np.ndarray
    lse: np.ndarray
    delta: np.ndarray
    blocks: np.ndarray
    order: np.ndarray


class Exclusion(NamedTuple):
    """Pairs that do not count: in one block of the first `n_earlier` views, listed, or, if causal, of a later key.

    In a unit that is mixed pairs count only if view number `n_earlier` has them in one block.
    """

    n_earlier: int
    lists: Lists
    is_causal: bool


class Gradients(NamedTuple):
    """Where gradients are added, and which of them: dq, or dk and dv, or all."""

    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    with_queries: bool
    with_keys: bool


class GradientTile(NamedTuple):
    """The working memory of a thread for gradients, where lanes are queries.

    Attributes
    ----------
    own : a Tile of the queries: its logits become weights, its sums are dq, top and total are lse and delta.
    upstream : a Tile of dout: its logits become the gradients of logits.
    rows, dout_rows : (LANES, d) and (LANES, d_v rounded up to whole vectors) queries and dout, not transposed.
    keys, values : (GROUP, d) and (GROUP, d_v) gathered.
    dk, dv : (GROUP, d) and (GROUP, d_v rounded up) sums of their gradients.
    ones : the decay of sums that do not shrink.
    """

    own: Tile
    upstream: Tile
    rows: np.ndarray
    dout_rows: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    ones: np.ndarray


@compiled
def new_gradient_tile(d, d_v, n_views, like):
    """Memory for gradients, of the type of `like`."""
    dtype, width, width_v = like.dtype, padded(d), padded(d_v)
    return GradientTile(
        new_tile(d, d, n_views, like),
        new_tile(d_v, 1, 0, like),
        np.zeros((LANES, width), dtype),
        np.zeros((LANES, width_v), dtype),
        np.empty((GROUP, d), dtype),
        np.empty((GROUP, d_v), dtype),
        np.empty((GROUP, width), dtype),
        np.empty((GROUP, width_v), dtype),
        np.ones(max(LANES, width, width_v), dtype),
    )


@vectorised
def _logit_gradients(logits, slopes, n, lanes, lse, delta):
    """Logits become weights 2^(logit - lse), slopes do·v become weight (slope - delta)."""
    for j in range(n):
        row, slope = logits[j], slopes[j]
        for lane in range(lanes):
            weight = exp2(row[lane] - lse[lane])
            row[lane] = weight
            slope[lane] = (slope[lane] - delta[lane]) * weight


@compiled
def load_queries(tile, queries, rows, factor):
    """Queries and what comes from upstream, transposed and not."""
    load_columns(tile.own, queries.q, rows, factor)
    load_columns(tile.upstream, queries.dout, rows, queries.dout.dtype.type(1))
    load_blocks(tile.own, queries.blocks, rows)
    gather(queries.q, rows, tile.rows)
    gather(queries.dout, rows, tile.dout_rows)
    tile.own.top[:], tile.own.total[:], tile.own.sums[:] = 0, 0, 0
    for lane in range(rows.size):
        tile.own.top[lane], tile.own.total[lane] = queries.lse[rows[lane]], queries.delta[rows[lane]]


@compiled
def exclude(tile, n, lanes, rows, columns, first, is_mixed, exclusion):
    """Add the log-weights to n logits, of the columns from `first` on, and hide the pairs that do not count."""
    for j in range(n):
        row, key = tile.logits[j], columns.indices[first + j]
        _add_weight(row, lanes, columns.log_weights[first + j])
        for view in range(exclusion.n_earlier):
            _set_equal(row, lanes, tile.blocks[view], columns.blocks[view, first + j], hidden_logit(row))
        if is_mixed:
            view = exclusion.n_earlier
            _set_unequal(row, lanes, tile.blocks[view], columns.blocks[view, first + j], hidden_logit(row))
        if exclusion.lists.pages.size > 0:
            set_listed(row, rows, key, exclusion.lists, hidden_logit(row))
        if exclusion.is_causal and key > rows[0]:
            for lane in range(rows.size):
                if key > rows[lane]:
                    row[lane] = hidden_logit(row)


@compiled
def add_tile(tile, rows, columns, first, n_keys, is_mixed, exclusion, gradients):
    """The gathered keys, columns from `first` on, meet the queries of a tile."""
    lanes, d = padded(rows.size), tile.keys.shape[1]
    weights, slopes = tile.own.logits, tile.upstream.logits
    for start in range(0, n_keys, STEP):
        n = min(STEP, n_keys - start)
        if exclusion.is_causal and columns.indices[first + start] > rows[-1]:
            break  # keys and queries rise
        dot(tile.own, tile.keys[start:], n, lanes)
        exclude(tile.own, n, lanes, rows, columns, first + start, is_mixed, exclusion)
        dot(tile.upstream, tile.values[start:], n, lanes)
        _logit_gradients(weights, slopes, n, lanes, tile.own.top, tile.own.total)
        if gradients.with_queries:
            multiply(tile.keys[start:], 1, d, d, slopes, lanes, tile.own.sums, n, True, tile.ones)
        if gradients.with_keys:
            width, width_v, n_rows = tile.rows.shape[1], tile.dout_rows.shape[1], rows.size
            multiply(slopes, LANES, 1, n, tile.rows, width, tile.dk[start:], n_rows, True, tile.ones)
            multiply(weights, LANES, 1, n, tile.dout_rows, width_v, tile.dv[start:], n_rows, True, tile.ones)


@compiled
def add_rows(sums, targets, factor, out):
    """out[targets] += factor * the first rows of `sums`."""
    for i in range(targets.size):
        source, target = sums[i], out[targets[i]]
        for e in range(target.size):
            target[e] += factor * source[e]


@kernel
def gradient_units(units, queries, k, v, columns, factor, scale, exclusion, gradients):
    """Add the gradients of some units: (first query, stop query, first column, stop column, whether it is mixed).

    Queries are counted in `queries.order`. No two units that run at a time may share a query or a target.
    """
    d, d_v = k.shape[1], v.shape[1]
    tile = new_gradient_tile(d, d_v, queries.blocks.shape[0], queries.q)
    one = k.dtype.type(1)
    for unit in range(units.shape[0]):
        for first in range(units[unit, 2], units[unit, 3], GROUP):
            n = min(GROUP, units[unit, 3] - first)
            gather(k, columns.indices[first : first + n], tile.keys)
            gather(v, columns.indices[first : first + n], tile.values)
            tile.dk[:n], tile.dv[:n] = 0, 0
            for query in range(units[unit, 0], units[unit, 1], LANES):
                rows = queries.order[query : min(query + LANES, units[unit, 1])]
                if exclusion.is_causal and columns.indices[first] > rows[-1]:
                    continue
                load_queries(tile, queries, rows, factor)
                add_tile(tile, rows, columns, first, n, units[unit, 4] != 0, exclusion, gradients)
                if gradients.with_queries:
                    for lane in range(rows.size):
                        target = gradients.dq[rows[lane]]
                        for e in range(d):
                            target[e] += scale * tile.own.sums[e, lane]
            if gradients.with_keys:
                add_rows(tile.dk, columns.targets[first : first + n], scale, gradients.dk)
                add_rows(tile.dv, columns.targets[first : first + n], one, gradients.dv)


# --- Hash codes ------------------------------------------------------------------------------------------------------


@compiled
def _rescaled_dots(x, planes, row, dots):
    """Products of one row with the planes after it was multiplied by a power of two that brings it near 1."""
    _, exponent = math.frexp(np.abs(x).max())
    factor = row.dtype.type(math.ldexp(1.0, min(-exponent, 126)))
    for e in range(x.size):
        row[0, e] = x[e] * factor
    multiply(row, x.size, 1, 1, planes, dots.shape[1], dots, x.size, False, planes)  # no decay is read


@kernel
def hash_rows(first_row, stop_row, x, planes, n_bits, codes):
    """Definition 1 for some rows; planes is (d, padded bits), a column for each bit, the first the most significant.

    Where products may have left the range (all are tiny, or one is huge or NaN) the row is scaled first.
    """
    d, bits = planes.shape
    dots, row = np.empty((LANES, bits), planes.dtype), np.empty((1, d), planes.dtype)
    for first in range(first_row, stop_row, LANES):
        n = min(LANES, stop_row - first)
        multiply(x[first:], d, 1, n, planes, bits, dots, d, False, planes)  # no decay is read
        for i in range(n):
            largest = dots.dtype.type(0)
            for b in range(n_bits):
                largest = max(largest, abs(dots[i, b]))
            if not 1e-20 < largest < 1e30:
                _rescaled_dots(x[first + i], planes, row, dots[i : i + 1])
            code, bit = np.int64(0), np.int64(0)
            for b in range(n_bits):  # the rank in the Gray sequence: each bit is the exclusive or of all signs so far
                bit ^= dots[i, b] > 0
                code = 2 * code + bit
            codes[first + i] = code
