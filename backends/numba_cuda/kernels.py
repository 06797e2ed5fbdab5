"""The CUDA kernels of the Numba backend, to be read beside `reference.py`.

How a kernel is laid out. A block has TILE x TILE threads; thread (x, y) works on one pair of a tile of logits: its row
y, its column x. There is no matrix of logits: tile after tile is computed, folded into a few sums and forgotten.

`reference.py` on dense matrices                    | here, one tile at a time
----------------------------------------------------|------------------------------------------------------------
logits = scale * q @ k.T                            | `dot`, a block's product in slabs of TILE coordinates
np.where(mask, logits, -np.inf)                     | `is_marked` and the conditions around it; a hidden logit is -inf
softmax_average(logits, v), merge_attention         | `start`, then any number of `attend`, then `finish`
sum over a row of exp(logits), its entropy          | `row_sums`: `join` folds each thread's keys, then the threads
sum over a column of P, P**2                        | `column_sums`
P.T @ y                                             | `transposed`
sum over the draws of min(exp(logits), cap)         | `capped_rows`
hamming_sorted_lsh                                  | `hash_rows`
max |x|; x.astype(...), x[rows], x - center         | `largest`; `convert`

Three conventions keep the kernels short.

- The largest logit of a query that has met no key is -inf, the neutral element of a maximum, exactly as in the
  reference. Before it is subtracted it is replaced by 0, so that -inf - (-inf) never arises.
- The exact keys of a rectangle, if there are any, are one more view, the first: all queries and the exact keys are in
  block 0, the other keys in no block (-1). A pair is in the mask M exactly if some view gives both the same block
  number.
- Row -1 stands for no row: a thread beyond the last query or key takes part in every barrier, with zeros.

The type of the arithmetic is that of the sums (float32, or float64 for float64 inputs); a Python literal in it would
turn float32 into float64, hence `real(0)`. Indices have 64 bits.
"""

# mypy takes threadIdx and blockIdx for functions; Numba replaces them when it compiles.
# mypy: ignore-errors

from __future__ import annotations

import math

from numba import cuda

TILE = 16
"""Rows and columns of a tile: 256 threads, and at most 10 KB of shared memory in float64."""
PITCH = TILE + 1
"""Columns that a tile has in shared memory: with one more than it needs, a column of it lies in 16 different banks."""


# --- Building blocks, called by every thread of a block together ------------------------------------------------------


@cuda.jit(device=True)
def dot(a, row, b, other, a_tile, b_tile):
    """The product of two rows for the pair of this thread: row y of the tile of a with row x of the tile of b.

    Thread (x, y) loads an entry of row y of both tiles into shared memory, from a[row] and b[other]; the row of b that
    it multiplies with was loaded by other threads. Rows are cut into slabs of TILE coordinates, so that shared memory
    does not limit d; what lies beyond the last coordinate, or belongs to no row, is zero.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = a_tile.dtype.type
    total = real(0)
    for first in range(0, a.shape[1], TILE):
        e = first + x
        cuda.syncthreads()  # the tiles may still be in use
        a_tile[y, x] = real(a[row, e]) if row >= 0 and e < a.shape[1] else real(0)
        b_tile[y, x] = real(b[other, e]) if other >= 0 and e < a.shape[1] else real(0)
        cuda.syncthreads()
        for c in range(TILE):
            total += a_tile[y, c] * b_tile[x, c]
    return total


@cuda.jit(device=True)
def is_marked(p, s, query_blocks, key_blocks, n_views):
    """Whether one of the first n_views views has query number p and key number s in one block."""
    marked = False
    for view in range(n_views):
        marked |= query_blocks[view, p] == key_blocks[view, s]
    return marked


@cuda.jit(device=True)
def add_product(weights, values, other, decay, sums, row, tile):
    """sums[row] = decay * sums[row] + the weights of row y times the rows `other` of values, TILE columns at a time.

    Each entry of `sums` belongs to one thread for the whole kernel, so it may lie in global memory without a barrier.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = tile.dtype.type
    for first in range(0, values.shape[1], TILE):
        e = first + x
        cuda.syncthreads()
        tile[y, x] = real(values[other, e]) if other >= 0 and e < values.shape[1] else real(0)
        cuda.syncthreads()
        if row >= 0 and e < values.shape[1]:
            total = real(0)
            for c in range(TILE):
                total += weights[y, c] * tile[c, x]
            sums[row, e] = decay * sums[row, e] + total


@cuda.jit(device=True)
def join(top, total, spread, top_2, total_2, spread_2):
    """The sum over two sets of keys, each given as (top, total, spread).

    For logits x: top = max x, total = sum e^(x - top), spread = sum e^(x - top) (top - x). A commutative monoid, its
    neutral element (-inf, 0, 0); a single key is (x, 1, 0). The log-sum-exp is top + log(total), and the entropy of the
    softmax log(total) + spread / total, sums of positive terms only.
    """
    if top_2 > top:
        top, total, spread, top_2, total_2, spread_2 = top_2, total_2, spread_2, top, total, spread
    if total_2 > 0:
        rise = top - top_2
        decay = math.exp(-rise)
        total += decay * total_2
        spread += decay * spread_2 + decay * total_2 * rise
    return top, total, spread


@cuda.jit(device=True)
def join_row(top, total, spread, tops, totals, spreads):
    """`join` over the TILE threads of a row; each of them gets the result."""
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = tops.dtype.type
    cuda.syncthreads()
    tops[y, x], totals[y, x], spreads[y, x] = top, total, spread
    cuda.syncthreads()
    top, total, spread = real(-math.inf), real(0), real(0)
    for c in range(TILE):
        top, total, spread = join(top, total, spread, tops[y, c], totals[y, c], spreads[y, c])
    return top, total, spread


@cuda.jit(device=True)
def add_row(value, tile):
    """The sum of `value` over the TILE threads of a row; each of them gets it."""
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    cuda.syncthreads()
    tile[y, x] = value
    cuda.syncthreads()
    total = tile[y, 0]
    for c in range(1, TILE):
        total += tile[y, c]
    return total


@cuda.jit(device=True)
def log_sum(top, total):
    """top + log(total); -inf for no key at all."""
    return top + math.log(total) if total > 0 else top


# --- Attention: start, attend, finish ---------------------------------------------------------------------------------


@cuda.jit
def start(sums, top, total):
    """No key met yet: the state of every query becomes the neutral element."""
    i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
    if i < sums.shape[0]:
        real = sums.dtype.type
        for e in range(cuda.threadIdx.x, sums.shape[1], TILE):
            sums[i, e] = real(0)
        if cuda.threadIdx.x == 0:
            top[i], total[i] = real(-math.inf), real(0)


@cuda.jit
def attend(
    q, k, v, scale, queries, keys, tiles, log_weights, query_blocks, key_blocks, view, earlier, is_causal,
    sums, top, total,
):  # fmt: skip
    """Fold keys into the running softmax of queries; one block for each row of `tiles`.

    The state of query i is top[i], the largest logit so far, total[i] = sum of e^(logit - top[i]), and sums[i], the
    same sum with the values. It stays in global memory between launches: a launch with other keys takes it up again,
    and that is the merge of the two parts.

    queries, keys : lists of rows of q, and of k and v.
    tiles : (n_tiles, 4), each the ends of a range of `queries`, of at most TILE, and of a range of `keys`.
    log_weights : for each entry of `keys`, added to its logits; or empty for none.
    query_blocks, key_blocks : the block number that each view gives to each entry of `queries` and of `keys`.
    view : pairs count only if this view has them in one block; -1 for no such condition.
    earlier : pairs do not count if one of this many views, the first ones, has them in one block.
    is_causal : pairs count only if the key is not after the query.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = sums.dtype.type
    q_tile = cuda.shared.array((TILE, PITCH), sums.dtype)
    kv_tile = cuda.shared.array((TILE, PITCH), sums.dtype)
    weights = cuda.shared.array((TILE, PITCH), sums.dtype)
    block = cuda.blockIdx.x
    first_key, stop_key = tiles[block, 2], tiles[block, 3]

    p = tiles[block, 0] + y
    i = queries[p] if p < tiles[block, 1] else -1
    largest = top[i] if i >= 0 else real(-math.inf)
    denominator = total[i] if i >= 0 else real(0)
    for tile in range(first_key, stop_key, TILE):
        s = tile + x
        j = keys[s] if s < stop_key else -1  # the key of this thread's pair
        loaded = keys[tile + y] if tile + y < stop_key else -1  # the key that it loads
        logit = scale * dot(q, i, k, loaded, q_tile, kv_tile)
        counts = i >= 0 and j >= 0 and not (is_causal and j > i)
        if counts and view >= 0:
            counts = query_blocks[view, p] == key_blocks[view, s]
        if counts and log_weights.size > 0:
            logit += log_weights[s]
        if counts:
            counts = not is_marked(p, s, query_blocks, key_blocks, earlier)
        weights[y, x] = logit if counts else real(-math.inf)
        cuda.syncthreads()

        former = largest
        for c in range(TILE):
            largest = max(largest, weights[y, c])
        base = largest if largest > real(-math.inf) else real(0)
        decay = math.exp(former - base)
        cuda.syncthreads()  # every thread of the row has read the logits
        weights[y, x] = math.exp(weights[y, x] - base)
        cuda.syncthreads()
        part = real(0)
        for c in range(TILE):
            part += weights[y, c]
        denominator = decay * denominator + part
        add_product(weights, v, loaded, decay, sums, i, kv_tile)
    if i >= 0 and x == 0:
        top[i], total[i] = largest, denominator


@cuda.jit
def finish(sums, top, total, out, lse):
    """out = sums / total, rounded to the type of `out`, and lse = top + log(total); (0, -inf) for no key at all."""
    i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
    if i < sums.shape[0]:
        denominator = total[i] if total[i] > 0 else sums.dtype.type(1)
        for e in range(cuda.threadIdx.x, sums.shape[1], TILE):
            out[i, e] = out.dtype.type(sums[i, e] / denominator)
        if cuda.threadIdx.x == 0:
            lse[i] = log_sum(top[i], total[i])


# --- Sums of rows and columns -----------------------------------------------------------------------------------------


@cuda.jit
def row_sums(
    q, k, scale, query_blocks, key_blocks, dense, is_causal, log_total, log_unmasked, entropy, logit_min, logit_max
):  # fmt: skip
    """Log-sum-exp of each row, of its unmarked pairs, its entropy and its extremes; a block has TILE queries.

    Each thread folds the keys of its own column, one in TILE, into sums of its own; the row is put together at the end.
    dense : the mask as an (n_q, n_k) boolean array, or an empty array where the views or nothing mark the pairs.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = log_total.dtype.type
    a_tile = cuda.shared.array((TILE, PITCH), log_total.dtype)
    b_tile = cuda.shared.array((TILE, PITCH), log_total.dtype)
    c_tile = cuda.shared.array((TILE, PITCH), log_total.dtype)
    n_q, n_k = q.shape[0], k.shape[0]
    first = cuda.blockIdx.x * TILE
    i = first + y if first + y < n_q else -1

    top, total, spread = real(-math.inf), real(0), real(0)
    top_u, total_u, spread_u = real(-math.inf), real(0), real(0)
    smallest = real(math.inf)
    for tile in range(0, min(n_k, first + TILE) if is_causal else n_k, TILE):
        j = tile + x if tile + x < n_k else -1
        loaded = tile + y if tile + y < n_k else -1
        logit = scale * dot(q, i, k, loaded, a_tile, b_tile)
        if i >= 0 and j >= 0 and not (is_causal and j > i):
            smallest = min(smallest, logit)
            top, total, spread = join(top, total, spread, logit, real(1), real(0))
            marked = is_marked(i, j, query_blocks, key_blocks, query_blocks.shape[0])
            if not (marked or (dense.size > 0 and dense[i, j])):
                top_u, total_u, spread_u = join(top_u, total_u, spread_u, logit, real(1), real(0))
    top, total, spread = join_row(top, total, spread, a_tile, b_tile, c_tile)
    top_u, total_u, spread_u = join_row(top_u, total_u, spread_u, a_tile, b_tile, c_tile)
    least, _, _ = join_row(-smallest, real(0), real(0), a_tile, b_tile, c_tile)  # a minimum is minus a maximum
    if i >= 0 and x == 0:
        log_total[i], log_unmasked[i] = log_sum(top, total), log_sum(top_u, total_u)
        entropy[i] = math.log(total) + spread / total
        logit_min[i], logit_max[i] = -least, top


@cuda.jit
def column_sums(q, k, lse, scale, is_causal, sums, squares):
    """sums[j] = sum_i P_ij and squares[j] = sum_i P_ij^2 for P_ij = e^(logit - lse[i]); a block has TILE keys.

    Rows and columns have changed places: thread (x, y) has key y and query x.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = sums.dtype.type
    k_tile = cuda.shared.array((TILE, PITCH), sums.dtype)
    q_tile = cuda.shared.array((TILE, PITCH), sums.dtype)
    n_q, n_k = q.shape[0], k.shape[0]
    first = cuda.blockIdx.x * TILE
    j = first + y if first + y < n_k else -1

    total, total_2 = real(0), real(0)
    for tile in range(first if is_causal else 0, n_q, TILE):  # the queries before a causal key do not see it
        i = tile + x if tile + x < n_q else -1
        loaded = tile + y if tile + y < n_q else -1
        logit = scale * dot(k, j, q, loaded, k_tile, q_tile)
        if i >= 0 and j >= 0 and not (is_causal and j > i):
            p = math.exp(logit - real(lse[i]))
            total += p
            total_2 += p * p
    total, total_2 = add_row(total, k_tile), add_row(total_2, q_tile)
    if j >= 0 and x == 0:
        sums[j], squares[j] = total, total_2


@cuda.jit
def transposed(q, k, y_rows, lse, scale, is_causal, out):
    """out = P^T y for P_ij = e^(logit - lse[i]); a block has TILE keys. `out` must be zero before."""
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = out.dtype.type
    k_tile = cuda.shared.array((TILE, PITCH), out.dtype)
    q_tile = cuda.shared.array((TILE, PITCH), out.dtype)
    weights = cuda.shared.array((TILE, PITCH), out.dtype)
    n_q, n_k = q.shape[0], k.shape[0]
    first = cuda.blockIdx.x * TILE
    j = first + y if first + y < n_k else -1

    for tile in range(first if is_causal else 0, n_q, TILE):
        i = tile + x if tile + x < n_q else -1
        loaded = tile + y if tile + y < n_q else -1
        logit = scale * dot(k, j, q, loaded, k_tile, q_tile)
        counts = i >= 0 and j >= 0 and not (is_causal and j > i)
        weights[y, x] = math.exp(logit - real(lse[i])) if counts else real(0)
        add_product(weights, y_rows, loaded, real(1), out, j, q_tile)


@cuda.jit
def capped_rows(q, k, scale, query_blocks, key_blocks, dense, samples, log_caps, log_sums, n_capped):
    """log of the sum over the unmarked draws of min(e^logit, e^cap), and how many are above; a block has TILE queries.

    samples : rows of k; `key_blocks` has the block numbers of these draws.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = log_sums.dtype.type
    a_tile = cuda.shared.array((TILE, PITCH), log_sums.dtype)
    b_tile = cuda.shared.array((TILE, PITCH), log_sums.dtype)
    c_tile = cuda.shared.array((TILE, PITCH), log_sums.dtype)
    counts = cuda.shared.array((TILE, PITCH), n_capped.dtype)
    first, m = cuda.blockIdx.x * TILE, samples.size
    i = first + y if first + y < q.shape[0] else -1

    cap = real(log_caps[i]) if i >= 0 else real(0)
    top, total, spread = real(-math.inf), real(0), real(0)
    above = 0
    for tile in range(0, m, TILE):
        s = tile + x
        j = samples[s] if s < m else -1
        loaded = samples[tile + y] if tile + y < m else -1
        logit = scale * dot(q, i, k, loaded, a_tile, b_tile)
        if i >= 0 and j >= 0:
            marked = is_marked(i, s, query_blocks, key_blocks, query_blocks.shape[0])
            if not (marked or (dense.size > 0 and dense[i, j])):
                above += logit > cap
                if cap > real(-math.inf):
                    top, total, spread = join(top, total, spread, min(logit, cap), real(1), real(0))
    top, total, spread = join_row(top, total, spread, a_tile, b_tile, c_tile)
    above = add_row(above, counts)
    if i >= 0 and x == 0:
        log_sums[i], n_capped[i] = log_sum(top, total), above


# --- Hashing ----------------------------------------------------------------------------------------------------------


@cuda.jit
def hash_rows(rows, planes, codes):
    """Bucket numbers of Definition 1; one thread for each row.

    A row is multiplied by the power of two that brings its largest entry into [1/2, 1), so that no product leaves the
    range; signs stay as they are. Bit p of the code, the rank of the signs in the Gray sequence, is the exclusive or of
    the signs 0 .. p, the first bit the most significant.
    """
    i = (cuda.blockIdx.x * TILE + cuda.threadIdx.y) * TILE + cuda.threadIdx.x
    if i < rows.shape[0]:
        real = planes.dtype.type
        largest = real(0)
        for e in range(rows.shape[1]):
            largest = max(largest, abs(real(rows[i, e])))
        _, exponent = math.frexp(largest)
        code, bit = 0, 0
        for p in range(planes.shape[0]):
            product = real(0)
            for e in range(rows.shape[1]):
                product += math.ldexp(real(rows[i, e]), -exponent) * planes[p, e]
            bit ^= product > 0
            code = 2 * code + bit
        codes[i] = code


# --- Memory: what the library does with arrays itself -----------------------------------------------------------------


@cuda.jit
def largest(rows, maxima):
    """maxima[block] = the largest |entry| of TILE x TILE rows; infinity if one of them is infinite or NaN.

    Threads y take every TILE-th of these rows, threads x every TILE-th column. The maximum of a number and NaN depends
    on their order, so NaN is replaced by infinity.
    """
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    real = maxima.dtype.type
    tile = cuda.shared.array((TILE, PITCH), maxima.dtype)
    first = cuda.blockIdx.x * TILE * TILE

    top = real(0)
    for i in range(first + y, min(first + TILE * TILE, rows.shape[0]), TILE):
        for e in range(x, rows.shape[1], TILE):
            entry = abs(real(rows[i, e]))
            top = max(top, entry if entry < real(math.inf) else real(math.inf))
    tile[y, x] = top
    cuda.syncthreads()
    if x == 0 and y == 0:
        for r in range(TILE):
            for c in range(TILE):
                top = max(top, tile[r, c])
        maxima[cuda.blockIdx.x] = top


@cuda.jit
def convert(values, rows, center, out):
    """out[i] = values[rows[i]] - center, rounded to the type of `out`; a block has TILE rows of it.

    rows : row numbers, or empty for row i itself.
    center : one number for each column, or empty for none; the difference is formed in its type.
    """
    real = center.dtype.type
    i = cuda.blockIdx.x * TILE + cuda.threadIdx.y
    if i < out.shape[0]:
        row = rows[i] if rows.size > 0 else i
        for e in range(cuda.threadIdx.x, out.shape[1], TILE):
            entry = real(values[row, e])
            if center.size > 0:
                entry -= center[e]
            out[i, e] = out.dtype.type(entry)
