// Attention on any GPU: exact, causal, and that of a Plan, in one kernel.
//
// A block holds a tile of 64 queries of one Sweep (plan.cuh) and folds in one tile of up to 64 keys after another: the
// keys of the blocks that its queries touch, the exact keys, the sampled keys with their log-weights. The state of a
// query is the running softmax in base 2: the largest logit `top`, `total` = sum of 2^(logit - top), and `sums`, the
// same sum with the values. When the largest logit rises, total and sums are multiplied by 2^(old - new). The n x n
// logits exist only tile by tile in registers; keys are gathered where they lie, never copied.
//
// A sweep that is not the last of its queries stores the state; a later one takes it up: that is the merge.
//
// STORAGE: type of the arrays. WIDTH: coordinates of a value, rounded up to 16, 32, 64, 128 or 256.
// Grid (sweeps, tiles of 64 queries), 256 threads.
#include "tile.cuh"

typedef Arithmetic<STORAGE>::Real Real;

struct Tile {
    union {  // never in use at the same time
        Operands<Real> operands;
        Weighted<Real, WIDTH> weighted;
    };
    int query[ROWS], key[COLUMNS];
    Real log_weight[COLUMNS];  // in base 2
};

struct State {
    Real top[4], total[4];  // `total` of a row is spread over its 16 threads; `top` is the same in all of them
    Real sums[4][WIDTH / SIDE];
};

// The logits of this thread in base 2, those of pairs that do not count hidden.
__device__ inline void logits_of(Tile &tile, const Matrix<STORAGE> &q, const Matrix<STORAGE> &k, int d, Real scale,
                                 const Segment &segment, const Blocks &blocks, bool is_whole, Real (&logits)[4][4]) {
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    multiply(
        tile.operands, d,
        [&](int row, int j) { return tile.query[row] < 0 ? Real(0) : scale * widen(*q.at(tile.query[row], j)); },
        [&](int row, int j) { return tile.key[row] < 0 ? Real(0) : widen(*k.at(tile.key[row], j)); }, logits);
    int query[4], key[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        query[i] = tile.query[4 * y + i];
        key[i] = tile.key[4 * x + i];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) logits[r][c] = logits[r][c] * Real(LOG2_E) + tile.log_weight[4 * x + c];
    if (!is_whole) hide_absent(segment.causal, query, key, logits);
    hide_marked(blocks, static_cast<int>(segment.views), segment.inside, query, key, logits);
}

// One step of the running softmax; logits become weights 2^(logit - top).
__device__ inline void rescale(State &state, Real (&logits)[4][4]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        Real top = state.top[r];
#pragma unroll
        for (int c = 0; c < 4; ++c) top = larger(top, logits[r][c]);
        top = row_largest(top);
        const Real decay = power_of_two(state.top[r] - top);
        state.top[r] = top;
        state.total[r] *= decay;
#pragma unroll
        for (int c = 0; c < WIDTH / SIDE; ++c) state.sums[r][c] *= decay;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            logits[r][c] = power_of_two(logits[r][c] - top);
            state.total[r] += logits[r][c];
        }
    }
}

// What is carried of a query between sweeps: sums (d_v), top, total.
__device__ inline void load(State &state, const Real *carried, const Sweep &sweep, int d_v, int row, int r) {
    const int x = threadIdx.x % SIDE;
    const bool fresh = sweep.first || row < 0;
    state.top[r] = fresh ? Real(NO_KEY) : carried[d_v];
    state.total[r] = fresh || x > 0 ? Real(0) : carried[d_v + 1];
#pragma unroll
    for (int c = 0; c < WIDTH / SIDE; ++c) {
        const int j = x + c * SIDE;
        state.sums[r][c] = fresh || j >= d_v ? Real(0) : carried[j];
    }
}

__device__ inline void store(const State &state, Real *carried, int d_v, Real total, int r) {
    const int x = threadIdx.x % SIDE;
#pragma unroll
    for (int c = 0; c < WIDTH / SIDE; ++c)
        if (x + c * SIDE < d_v) carried[x + c * SIDE] = state.sums[r][c];
    if (x == 0) {
        carried[d_v] = state.top[r];
        carried[d_v + 1] = total;
    }
}

// The quotient and the log-sum-exp in base e; a query that met no key gets (0, -infinity).
__device__ inline void finish(const State &state, STORAGE *out, Real *lse, int d_v, Real total, int r) {
    const int x = threadIdx.x % SIDE;
    const bool met = total > 0;
#pragma unroll
    for (int c = 0; c < WIDTH / SIDE; ++c)
        if (x + c * SIDE < d_v) narrow(met ? state.sums[r][c] / total : Real(0), out[x + c * SIDE]);
    if (x == 0) *lse = state.top[r] * Real(LN_2) + logarithm(total);
}

extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<Real, WIDTH>))
    attend(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
           const STORAGE *v_data, const long long *v_layout, const Sweep *sweeps, const Segment *segments,
           const int *indices, const double *weights, long long n_q, int d, int d_v, double scale, STORAGE *out,
           Real *lse, Real *carried) {
    SHARED(Tile, tile);
    const Sweep sweep = sweeps[blockIdx.x];
    const int start = (gridDim.y - 1 - blockIdx.y) * ROWS;  // causal tiles near the end are the longest: they go first
    if (start >= sweep.n_q) return;
    const int y = threadIdx.x / SIDE;
    const Matrix<STORAGE> q(q_data, q_layout, sweep.head, sweep.query_start);
    const Matrix<STORAGE> k(k_data, k_layout, sweep.head, sweep.key_start);
    const Matrix<STORAGE> v(v_data, v_layout, sweep.head, sweep.key_start);
    const Blocks blocks = blocks_of(sweep, indices);
    const auto query_at = [&](int place) { return sweep.query_order < 0 ? place : indices[sweep.query_order + place]; };
    if (threadIdx.x < ROWS) {
        const int place = start + threadIdx.x;
        tile.query[threadIdx.x] = place < sweep.n_q ? query_at(place) : -1;
    }
    __syncthreads();  // the queries are known

    const long long first_row = sweep.head * n_q + sweep.query_start;  // of out, lse and carried
    State state;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int query = tile.query[4 * y + r];
        load(state, carried + (first_row + larger(query, 0)) * (d_v + 2), sweep, d_v, query, r);
    }
    for (int s = 0; s < sweep.n_segments; ++s) {
        Segment segment = segments[sweep.segment + s];
        const int last = smaller(start + ROWS, static_cast<int>(sweep.n_q)) - 1;
        const Range range = range_of(segment, blocks, indices, query_at(start), query_at(last));
        for (int begin = range.begin; begin < range.end; begin += COLUMNS) {
            if (threadIdx.x < COLUMNS) {  // the keys before are no longer read: all have fetched their last values
                const int place = begin + threadIdx.x;
                const bool exists = place < range.end;
                const int key = !exists ? -1 : segment.keys < 0 ? place : indices[segment.keys + place];
                const double weight = exists && segment.weights >= 0 ? weights[segment.weights + place] : 0;
                const bool met = !exists || range.meets(static_cast<int>(segment.views), blocks, key);
                tile.key[threadIdx.x] = key;
                tile.log_weight[threadIdx.x] = static_cast<Real>(met ? weight * LOG2_E : HIDDEN);
            }
            Real logits[4][4];
            const bool is_whole = range.is_whole(begin, COLUMNS, segment, start);
            logits_of(tile, q, k, d, static_cast<Real>(scale), segment, blocks, is_whole, logits);
            rescale(state, logits);
            add_weighted(
                tile.weighted, logits, smaller(COLUMNS, range.end - begin),
                [&](int row, int j) {
                    return j < d_v && tile.key[row] >= 0 ? widen(*v.at(tile.key[row], j)) : Real(0);
                },
                state.sums);
        }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int query = tile.query[4 * y + r];
        const Real total = row_sum(state.total[r]);
        if (query < 0) continue;
        const long long row = first_row + query;
        if (sweep.last) finish(state, out + row * d_v, lse + row, d_v, total, r);
        else store(state, carried + row * (d_v + 2), d_v, total, r);
    }
}
