// Attention on tensor cores: the sweeps of attend.cu for float16 and bfloat16, accumulated in float32.
//
// Four warps share a tile of 64 queries, 16 for each. For every tile of KEYS keys a warp computes 16 x KEYS logits
// (mma.m16n8k16), makes them weights in registers, rounds these to the type of the arrays, and multiplies them with
// the values. The accumulator of the first product has the layout of the left factor of the second, so that weights
// never leave the registers. Tiles of keys and values are gathered by asynchronous copies, 16 bytes at a time, one tile
// ahead of the arithmetic, into two buffers in turn. A row of a tile is padded by 16 bytes: with an odd number of
// 16-byte pieces the eight rows of a matrix lie in different banks.
//
// STORAGE: Half or Bfloat. DEPTH, WIDTH: coordinates of a key and of a value, rounded up to a multiple of 16, at most
// 256; rows of the arrays are multiples of 16 bytes. KEYS: 64, 32 for heads wider than 64, 16 for wider than 128.
// Grid (sweeps, tiles of 64 queries), 128 threads. Shared memory: sizeof(Tile).
#include "plan.cuh"
#include "tensor.cuh"

constexpr int ROWS = 64, THREADS = 128, LANES = 32, PAD = 8;
constexpr int GROUPS = KEYS / 8;           // of eight keys: one accumulator of logits each
constexpr int BLOCKS = KEYS > 32 ? 3 : 2;  // on a multiprocessor: registers must allow it without spilling

struct Stage {  // one tile of keys
    STORAGE keys[KEYS][DEPTH + PAD], values[KEYS][WIDTH + PAD];
    int key[KEYS];
    float log_weight[KEYS];  // in base 2
};

struct Tile {
    STORAGE queries[ROWS][DEPTH + PAD];
    Stage stage[2];
};

// A lane holds two rows of its warp's 16, l / 4 and l / 4 + 8, and of these every fourth pair of columns.
struct State {
    float top[2], total[2];  // `total` is spread over the four lanes of a row; `top` is the same in all of them
    float sums[WIDTH / 8][4];
};

// Begins to copy rows of a matrix, 16 bytes at a time; a row with the number -1 and what lies beyond d become 0.
template <int N_ROWS, int COLUMNS, class Number>
__device__ inline void fetch(STORAGE (&target)[N_ROWS][COLUMNS + PAD], const Matrix<STORAGE> &matrix, int d,
                             Number number) {
    constexpr int PIECES = COLUMNS / 8;
    for (int e = threadIdx.x; e < N_ROWS * PIECES; e += THREADS) {
        const int row = e / PIECES, column = e % PIECES * 8, i = number(row);
        const bool exists = i >= 0 && column < d;
        copy_16_bytes(&target[row][column], matrix.at(exists ? i : 0, exists ? column : 0), exists);
    }
}

__device__ inline void fetch_stage(Stage &stage, const Matrix<STORAGE> &k, const Matrix<STORAGE> &v, int d, int d_v,
                                   const Segment &segment, const int *indices, const double *weights, int begin,
                                   int end) {
    const auto key_at = [&](int row) {
        const int place = begin + row;
        return place >= end ? -1 : segment.keys < 0 ? place : indices[segment.keys + place];
    };
    fetch<KEYS, DEPTH>(stage.keys, k, d, key_at);
    fetch<KEYS, WIDTH>(stage.values, v, d_v, key_at);
    commit_copies();
    if (threadIdx.x < KEYS) {
        const int row = threadIdx.x;
        const bool weighted = segment.weights >= 0 && begin + row < end;
        stage.key[row] = key_at(row);
        stage.log_weight[row] = weighted ? static_cast<float>(weights[segment.weights + begin + row] * LOG2_E) : 0.f;
    }
}

// Logits of 16 queries and KEYS keys, in base 2; those that do not count hidden. logits[r][2 j + e] is the lane's row r
// and column 8 j + 2 (l % 4) + e.
__device__ inline void logits_of(const Tile &tile, const Stage &stage, float scale, const Segment &segment,
                                 const Blocks &blocks, bool is_whole, const int (&query)[2],
                                 float (&logits)[2][2 * GROUPS]) {
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    float products[GROUPS][4];
#pragma unroll
    for (int j = 0; j < GROUPS; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) products[j][i] = 0;
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth += 16) {
        unsigned int a[4];
        load_matrices(a, &tile.queries[16 * warp + lane % 16][depth + 8 * (lane / 16)]);
#pragma unroll
        for (int j = 0; j < GROUPS; j += 2) {
            unsigned int b[4];  // eight keys in b[0], b[1], the next eight in b[2], b[3]
            load_matrices(b, &stage.keys[8 * (j + lane / 16) + lane % 8][depth + 8 * (lane / 8 % 2)]);
            multiply_add(STORAGE(), products[j], a, {b[0], b[1]});
            multiply_add(STORAGE(), products[j + 1], a, {b[2], b[3]});
        }
    }
    int key[2 * GROUPS];
#pragma unroll
    for (int c = 0; c < 2 * GROUPS; ++c) {
        const int column = 8 * (c / 2) + 2 * (lane % 4) + c % 2;
        key[c] = stage.key[column];
#pragma unroll
        for (int r = 0; r < 2; ++r)
            logits[r][c] = products[c / 2][2 * r + c % 2] * scale + stage.log_weight[column];
    }
    if (!is_whole) hide_absent(segment.causal, query, key, logits);
    hide_marked(blocks, static_cast<int>(segment.views), segment.inside, query, key, logits);
}

// Over the four lanes of a row.
__device__ inline float row_largest(float x) {
    x = larger(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return larger(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// One step of the running softmax; logits become weights 2^(logit - top).
__device__ inline void rescale(State &state, float (&logits)[2][2 * GROUPS]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float top = state.top[r];
#pragma unroll
        for (int c = 0; c < 2 * GROUPS; ++c) top = larger(top, logits[r][c]);
        top = row_largest(top);
        const float decay = fast_power_of_two(state.top[r] - top);
        state.top[r] = top;
        state.total[r] *= decay;
#pragma unroll
        for (int j = 0; j < WIDTH / 8; ++j) {
            state.sums[j][2 * r] *= decay;
            state.sums[j][2 * r + 1] *= decay;
        }
#pragma unroll
        for (int c = 0; c < 2 * GROUPS; ++c) {
            logits[r][c] = fast_power_of_two(logits[r][c] - top);
            state.total[r] += logits[r][c];
        }
    }
}

// sums += weights times values.
__device__ inline void add_weighted(State &state, const float (&weights)[2][2 * GROUPS], const Stage &stage) {
    const int lane = threadIdx.x % LANES;
#pragma unroll
    for (int keys = 0; keys < KEYS; keys += 16) {
        const int c = keys / 4;  // this lane's first weight of these keys
        const unsigned int a[4] = {
            pack(STORAGE(), weights[0][c], weights[0][c + 1]),
            pack(STORAGE(), weights[1][c], weights[1][c + 1]),
            pack(STORAGE(), weights[0][c + 2], weights[0][c + 3]),
            pack(STORAGE(), weights[1][c + 2], weights[1][c + 3]),
        };
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j += 2) {
            unsigned int b[4];  // eight coordinates in b[0], b[1], the next eight in b[2], b[3]
            load_matrices_transposed(b, &stage.values[keys + lane % 16][8 * (j + lane / 16)]);
            multiply_add(STORAGE(), state.sums[j], a, {b[0], b[1]});
            multiply_add(STORAGE(), state.sums[j + 1], a, {b[2], b[3]});
        }
    }
}

// What is carried of a query between sweeps: sums (d_v), top, total; as in attend.cu.
__device__ inline void load(State &state, const float *carried, bool fresh, int d_v, int r) {
    const int pair = threadIdx.x % 4;
    state.top[r] = fresh ? static_cast<float>(NO_KEY) : carried[d_v];
    state.total[r] = fresh || pair > 0 ? 0.f : carried[d_v + 1];
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int column = 8 * j + 2 * pair + e;
            state.sums[j][2 * r + e] = fresh || column >= d_v ? 0.f : carried[column];
        }
}

__device__ inline void store(const State &state, float *carried, int d_v, float total, int r) {
    const int pair = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
            if (8 * j + 2 * pair + e < d_v) carried[8 * j + 2 * pair + e] = state.sums[j][2 * r + e];
    if (pair == 0) {
        carried[d_v] = state.top[r];
        carried[d_v + 1] = total;
    }
}

__device__ inline void finish(const State &state, STORAGE *out, float *lse, int d_v, float total, int r) {
    const int pair = threadIdx.x % 4;
    const bool met = total > 0;
    const float inverse = 1 / total;
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j)
        if (8 * j < d_v)  // d_v is a multiple of 8
            *reinterpret_cast<unsigned int *>(out + 8 * j + 2 * pair) =
                met ? pack(STORAGE(), state.sums[j][2 * r] * inverse, state.sums[j][2 * r + 1] * inverse) : 0u;
    if (pair == 0) *lse = state.top[r] * static_cast<float>(LN_2) + logarithm(total);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_tensor(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
                  const STORAGE *v_data, const long long *v_layout, const Sweep *sweeps, const Segment *segments,
                  const int *indices, const double *weights, long long n_q, int d, int d_v, double scale, STORAGE *out,
                  float *lse, float *carried) {
    SHARED(Tile, tile);
    const Sweep sweep = sweeps[blockIdx.x];
    const int start = (gridDim.y - 1 - blockIdx.y) * ROWS;  // causal tiles near the end are the longest: they go first
    if (start >= sweep.n_q) return;
    const Matrix<STORAGE> q(q_data, q_layout, sweep.head, sweep.query_start);
    const Matrix<STORAGE> k(k_data, k_layout, sweep.head, sweep.key_start);
    const Matrix<STORAGE> v(v_data, v_layout, sweep.head, sweep.key_start);
    const Blocks blocks = {indices + sweep.query_blocks, indices + sweep.key_blocks, static_cast<int>(sweep.n_q),
                           static_cast<int>(sweep.n_k)};
    const auto query_at = [&](int row) {
        const int place = start + row;
        return place >= sweep.n_q ? -1 : sweep.query_order < 0 ? place : indices[sweep.query_order + place];
    };
    fetch<ROWS, DEPTH>(tile.queries, q, d, query_at);  // committed with the first tile of keys
    const int last = smaller(ROWS, static_cast<int>(sweep.n_q) - start) - 1;
    const float factor = static_cast<float>(scale * LOG2_E);

    const long long first_row = sweep.head * n_q + sweep.query_start;  // of out, lse and carried
    int query[2];
    State state;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        query[r] = query_at(threadIdx.x / LANES * 16 + threadIdx.x % LANES / 4 + 8 * r);
        const bool fresh = sweep.first || query[r] < 0;
        load(state, carried + (first_row + larger(query[r], 0)) * (d_v + 2), fresh, d_v, r);
    }
    for (int s = 0; s < sweep.n_segments; ++s) {
        Segment segment = segments[sweep.segment + s];
        const Range range = range_of(segment, blocks, indices, query_at(0), query_at(last));
        const auto fetch_from = [&](Stage &stage, int begin) {
            fetch_stage(stage, k, v, d, d_v, segment, indices, weights, begin, range.end);
        };
        if (range.begin < range.end) fetch_from(tile.stage[0], range.begin);
        int current = 0;
        for (int begin = range.begin; begin < range.end; begin += KEYS, current ^= 1) {
            if (begin + KEYS < range.end) {
                fetch_from(tile.stage[current ^ 1], begin + KEYS);
                wait_for_copies<1>();  // all but the tile that was begun just now
            } else {
                wait_for_copies<0>();
            }
            __syncthreads();  // everybody's copies of this tile are there
            float logits[2][2 * GROUPS];
            const bool is_whole = range.is_whole(begin, KEYS, segment, start);
            logits_of(tile, tile.stage[current], factor, segment, blocks, is_whole, query, logits);
            rescale(state, logits);
            add_weighted(state, logits, tile.stage[current]);
            __syncthreads();  // this buffer may be filled again
        }
    }
    commit_copies();  // the queries, should there have been no key at all
    wait_for_copies<0>();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float total = row_sum(state.total[r]);
        if (query[r] < 0) continue;
        const long long row = first_row + query[r];
        if (sweep.last) finish(state, out + row * d_v, lse + row, d_v, total, r);
        else store(state, carried + row * (d_v + 2), d_v, total, r);
    }
}
