// Attention on tensor cores: the sweeps of attend.cu for float16 and bfloat16, accumulated in float32.
//
// Four warps share a tile of QUERIES queries: one or two strips of 16 for each. For every tile of KEYS keys a warp
// computes 16 x KEYS logits for each strip (mma.m16n8k16), makes them weights in registers, rounds these to the type of
// the arrays, and multiplies them with the values. The accumulator of the first product has the layout of the left
// factor of the second, so that weights never leave the registers. Two strips read every key and value from shared
// memory once instead of twice: with one strip this reading takes longer than the products.
//
// The tiles of all segments of a sweep are one sequence. While a tile is computed the next one is copied, whichever
// segment it belongs to, and towards the end the keys of the one after that are looked up; one barrier for each tile.
// Copies are asynchronous, 16 bytes at a time, into two buffers in turn. A row of a tile is padded by 16 bytes: with an
// odd number of 16-byte pieces the eight rows of a matrix lie in different banks.
//
// Registers are scarce: with two strips, logits and sums take 128 of 168. So what is the same in all threads (the
// segments, where the matrices lie) is kept in shared memory. A product begins with the log-weight of its key, divided
// by the scale, so that a logit needs no operation of its own before its exponential.
//
// STORAGE: Half or Bfloat. DEPTH, WIDTH: coordinates of a key and of a value, rounded up to a multiple of 16, at most
// 256; rows of the arrays are contiguous, at multiples of 16 bytes, less than 2^31 bytes apart. QUERIES: 128 or 64.
// KEYS: 64, 32 for heads wider than 64, 16 for wider than 128. SHARED_BYTES: dynamic shared memory, sizeof(Tile).
// Grid (sweeps, tiles of QUERIES queries), 128 threads.
#include "plan.cuh"
#include "tensor.cuh"

constexpr int THREADS = 128, LANES = 32, PAD = 8;
constexpr int STRIP = 16, STRIPS = QUERIES / (4 * STRIP), ROWS = 2 * STRIPS;  // strips of a warp; rows of a lane
constexpr int GROUPS = KEYS / 8, COLUMNS = 2 * GROUPS;  // of eight keys: one accumulator each; columns of a lane

// Blocks on a multiprocessor: registers must allow them without spilling. For newer GPUs the compiler wants more.
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = 2;
#else
constexpr int BLOCKS = KEYS > 32 ? 3 : 2;
#endif

// SHARE threads copy a row together, 8 coordinates each; a thread copies of every STEPth row, of COPIED rows of keys.
constexpr int WIDEST = DEPTH > WIDTH ? DEPTH : WIDTH;
constexpr int SHARE = WIDEST > 128 ? 32 : WIDEST > 64 ? 16 : WIDEST > 32 ? 8 : WIDEST > 16 ? 4 : 2;
constexpr int STEP = THREADS / SHARE, COPIED = KEYS / STEP;

// The largest logit may be so much above `top`, in base 2: a weight is then at most 256, as exact as any other.
constexpr float SLACK = 8;

// Which numbers of a tile a thread has. Of the 16 x 8 numbers of an accumulator (fragment c of tensor.cuh) a lane holds
// the rows lane / 4 and lane / 4 + 8, and of these one pair of columns. Over all strips and groups of a warp that makes
// its rows r < ROWS and its columns c < COLUMNS.
__device__ inline int lane() { return threadIdx.x % LANES; }
__device__ inline int first_row_of_warp() { return threadIdx.x / LANES * (STRIP * STRIPS); }
__device__ inline int row_of(int r) { return first_row_of_warp() + lane() / 4 + 8 * r; }
__device__ inline int column_of(int c) { return 8 * (c / 2) + 2 * (threadIdx.x % 4) + c % 2; }
__device__ inline bool is_first_of_row() { return threadIdx.x % 4 == 0; }  // of the four lanes that share a row

// Where a lane holds the number of its row r and its column c: in accumulators, ...
template <int N> __device__ inline float &entry(float (&sums)[STRIPS][N][4], int r, int c) {
    return sums[r / 2][c / 2][2 * (r % 2) + c % 2];
}
// ... in left factors, which hold the columns c and c + 1 in one register, ...
template <int N> __device__ inline unsigned int &pair_at(unsigned int (&factors)[STRIPS][N][4], int r, int c) {
    return factors[r / 2][c / 4][r % 2 + 2 * (c / 2 % 2)];
}
// ... and as a bit of the word of its strip.
__device__ inline unsigned int bit_of(int r, int c) { return 1u << (16 * (r % 2) + c); }

// The row of eight numbers that a lane points load_matrices to, in the 16 x 16 numbers from (row, column) on. Of the
// four matrices, 0 and 1 lie below each other and make a left factor, or transposed two right ones; or ...
template <int N, int M>
__device__ inline const STORAGE *down_first(const STORAGE (&matrix)[N][M], int row, int column) {
    return &matrix[row + lane() % 16][column + 8 * (lane() / 16)];
}
// ... they lie beside each other, and make two right factors: eight rows, and the next eight.
template <int N, int M>
__device__ inline const STORAGE *across_first(const STORAGE (&matrix)[N][M], int row, int column) {
    return &matrix[row + 8 * (lane() / 16) + lane() % 8][column + 8 * (lane() / 8 % 2)];
}

// What a thread copies: of every STEPth row, from its first one on, the piece of eight columns from its column on.
__device__ inline int copied_row(int i = 0) { return static_cast<int>(threadIdx.x) / SHARE + i * STEP; }
__device__ inline int copied_column() { return threadIdx.x % SHARE * 8; }

// The logit of a pair that does not count: -infinity, so that no scale makes it matter beside NO_KEY.
__device__ inline float nothing() { return float_of_bits(0xff800000u); }

// One tile of keys. Where it is plain (every query meets every key, with the weight 1) it holds the matrices alone.
struct alignas(16) Stage {
    STORAGE keys[KEYS][DEPTH + PAD], values[KEYS][WIDTH + PAD];
    int key[KEYS], block[KEYS];  // number of the key, and that of its block in the first view
    float log_weight[KEYS];      // in units of a product; `nothing` for a key that no query meets
    int part;                    // to which it belongs, -1 if it is plain
};

// A segment as this tile of queries meets it; positions as in a Segment.
struct Part {
    long long keys, weights;
    Range range;
    int views, inside, causal;
    int plain;  // as far as this place its tiles are plain
};

// The rows of a matrix, `row` bytes from one to the next.
struct Rows {
    const unsigned char *data;
    int row;

    __device__ Rows(const Matrix<STORAGE> &matrix)
        : data(reinterpret_cast<const unsigned char *>(matrix.data)), row(static_cast<int>(2 * matrix.row)) {}
};

// The piece of 16 bytes of every row that this thread copies; it is 0 in a missing row, -1, and beyond d.
struct Pieces {
    const unsigned char *data;
    int row;
    bool exists;

    __device__ Pieces(const Rows &rows, int d) : row(rows.row) {
        const int column = copied_column();
        exists = column < d;
        data = rows.data + (exists ? 2 * column : 0);
    }
    __device__ void copy(int i, void *to) const {
        copy_16_bytes(to, data + static_cast<long long>(larger(i, 0)) * row, exists && i >= 0);
    }
};

struct Tile {
    STORAGE queries[QUERIES][DEPTH + PAD];
    Stage stage[2];
    int query[QUERIES], block[QUERIES];  // number of the query, and that of its block in the first view
    Part parts[MOST_SEGMENTS];
    Rows k, v;
    float weight_unit;  // log-weights times this are in units of a product
};
static_assert(sizeof(Tile) == SHARED_BYTES, "the launch gives another size of shared memory than sizeof(Tile)");

// The running softmax of a lane's rows.
struct State {
    float top[ROWS], total[ROWS];  // `total` is spread over the four lanes of a row; `top` is the same in all of them
    float sums[STRIPS][WIDTH / 8][4];
};

// One of the tiles of keys that all parts have, behind each other. Empty parts have none.
struct Place {
    int part, begin;

    // Goes on to the next part that has keys, if none is left in this one; false if there is none.
    __device__ bool find(const Tile &tile, int n_parts) {
        while (part < n_parts && begin >= tile.parts[part].range.end)
            if (++part < n_parts) begin = tile.parts[part].range.begin;
        return part < n_parts;
    }
    __device__ bool is_plain(const Tile &tile) const { return begin + KEYS <= tile.parts[part].plain; }
};

// A causal part has no list, and its queries no order: query and key numbers are places.
__device__ inline Part part_of(Segment segment, const Blocks &blocks, const int *indices, int start, int first_query,
                               int last_query) {
    const Range range = range_of(segment, blocks, indices, first_query, last_query);
    const int views = static_cast<int>(segment.views), causal = static_cast<int>(segment.causal);
    const bool plain = segment.weights < 0 && range.block < 0 && views == 0;
    const int end = !plain ? 0 : causal ? smaller(range.end, start + 1) : range.end;
    return {segment.keys, segment.weights, range, views, static_cast<int>(segment.inside), causal, end};
}

// The numbers of the queries, -1 for none, and their rows; the copies are committed with the first tile of keys.
__device__ inline void fetch_queries(Tile &tile, const Pieces &q, int start, int last, const int *order) {
    const int column = copied_column();
    for (int row = copied_row(); row < QUERIES; row += STEP) {
        const int query = row > last ? -1 : order ? order[row] : start + row;
        if (column == 0) tile.query[row] = query;
        if (column < DEPTH) q.copy(query, &tile.queries[row][column]);
    }
}

// The queries' block numbers in the first view, if any part needs them; a later barrier makes them visible to all.
__device__ inline void read_blocks(Tile &tile, int n_parts, const Blocks &blocks) {
    for (int p = 0; p < n_parts; ++p)
        if (tile.parts[p].views > 0)
            for (int row = threadIdx.x; row < QUERIES; row += THREADS)
                tile.block[row] = blocks.of_query(0, larger(tile.query[row], 0));
}

// A scale that is not positive: logits count in units of its absolute value, its sign or 0 goes to the queries. Every
// thread changes what it has copied.
__device__ inline void turn_queries(Tile &tile, bool negative) {
    commit_copies();
    wait_for_copies<0>();
    for (int row = copied_row(); row < QUERIES; row += STEP)
        for (int column = copied_column(); column < smaller(DEPTH, copied_column() + 8); ++column) {
            unsigned short &bits = tile.queries[row][column].bits;
            bits = negative ? bits ^ 0x8000u : 0;
        }
}

// The keys of which this thread copies a piece; -1 for none.
__device__ inline void read_keys(int (&key)[COPIED], const Part &part, int begin, const int *indices) {
    const int *const list = indices + part.keys;
    const bool listed = part.keys >= 0;
#pragma unroll
    for (int i = 0; i < COPIED; ++i) {
        const int place = begin + copied_row(i);
        key[i] = place < part.range.end ? place : -1;
        if (listed && place < part.range.end) key[i] = list[place];
    }
}

__device__ inline void fetch(Tile &tile, Stage &stage, int d, int d_v, const int (&key)[COPIED]) {
    const int column = copied_column();
    const Pieces k(tile.k, d), v(tile.v, d_v);
#pragma unroll
    for (int i = 0; i < COPIED; ++i) {
        if (column < DEPTH) k.copy(key[i], &stage.keys[copied_row(i)][column]);
        if (column < WIDTH) v.copy(key[i], &stage.values[copied_row(i)][column]);
    }
    commit_copies();
}

// What a stage holds besides matrices: of every row by one of the threads that copy it.
__device__ inline void describe(Stage &stage, const Part &part, int begin, const int (&key)[COPIED],
                                const Blocks &blocks, const double *weights, float weight_unit) {
    static_assert(COPIED <= SHARE, "a thread describes one row");
    const int mine = threadIdx.x % SHARE, row = copied_row(mine);
    if (mine >= COPIED) return;
    int number = key[0];
#pragma unroll
    for (int i = 1; i < COPIED; ++i)
        if (mine == i) number = key[i];
    stage.key[row] = number;
    if (part.views > 0) stage.block[row] = blocks.of_key(0, larger(number, 0));
    const double weight = number >= 0 && part.weights >= 0 ? weights[part.weights + begin + row] : 0;
    const bool met = number >= 0 && part.range.meets(part.views, blocks, number);
    stage.log_weight[row] = met ? static_cast<float>(weight) * weight_unit : nothing();
}

// The pairs of this lane that do not count: bit_of(r, c) of marks[r / 2]. They are found before the products: together
// both would need more registers than a lane has.
__device__ inline void mark(unsigned int (&marks)[STRIPS], const Tile &tile, const Stage &stage, const Part &part,
                            const Blocks &blocks) {
    if (part.causal) {
        const int ahead = tile.query[row_of(0)] - stage.key[column_of(0)];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
                if (8 * (c / 2) + c % 2 - 8 * r > ahead) marks[r / 2] |= bit_of(r, c);
    }
    for (int view = 0; view < part.views; ++view) {
        const bool must_hold = part.inside && view == part.views - 1;
        int query[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = row_of(r);
            query[r] = view == 0 ? tile.block[row] : blocks.of_query(view, larger(tile.query[row], 0));
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const int column = column_of(c);
            const int key = view == 0 ? stage.block[column] : blocks.of_key(view, larger(stage.key[column], 0));
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                if ((query[r] == key) != must_hold) marks[r / 2] |= bit_of(r, c);
        }
    }
}

// Logits of the warp's queries and KEYS keys in units of a product, with the log-weights of the keys: logits[r][c] is
// that of the lane's row r and column column_of(c).
__device__ inline void multiply(const Tile &tile, const Stage &stage, bool is_plain, float (&logits)[ROWS][COLUMNS]) {
    float products[STRIPS][GROUPS][4];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        const float weight = is_plain ? 0 : stage.log_weight[column_of(c)];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) entry(products, r, c) = weight;
    }
#pragma unroll(DEPTH > 128 ? 4 : DEPTH / 16)  // long rows would take registers ahead of their use
    for (int depth = 0; depth < DEPTH; depth += 16) {
        unsigned int a[STRIPS][4];
#pragma unroll
        for (int s = 0; s < STRIPS; ++s)
            load_matrices(a[s], down_first(tile.queries, first_row_of_warp() + STRIP * s, depth));
#pragma unroll
        for (int j = 0; j < GROUPS; j += 2) {
            unsigned int b[4];  // eight keys in b[0], b[1], the next eight in b[2], b[3]
            load_matrices(b, across_first(stage.keys, 8 * j, depth));
#pragma unroll
            for (int s = 0; s < STRIPS; ++s) {
                multiply_add(STORAGE(), products[s][j], a[s], {b[0], b[1]});
                multiply_add(STORAGE(), products[s][j + 1], a[s], {b[2], b[3]});
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) logits[r][c] = entry(products, r, c);
}

__device__ inline void hide(const unsigned int (&marks)[STRIPS], float (&logits)[ROWS][COLUMNS]) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            if (marks[r / 2] & bit_of(r, c)) logits[r][c] = nothing();
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

// One step of the running softmax. The weights 2^(unit logit - top) come out rounded, in pairs, as the left factor of
// the second product. `top` follows the largest logit only if that is far above it: `total` and `sums` are multiplied
// at the first tile, and hardly ever again. Each row goes by its own logits.
__device__ inline void rescale(State &state, float unit, float (&logits)[ROWS][COLUMNS],
                               unsigned int (&weights)[STRIPS][KEYS / 16][4]) {
    float top[ROWS];
    bool rises = false;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        float largest = logits[r][0];
#pragma unroll
        for (int c = 1; c < COLUMNS; ++c) largest = larger(largest, logits[r][c]);
        largest = row_largest(largest) * unit;
        const bool far = largest > state.top[r] + SLACK;
        top[r] = far ? largest : state.top[r];
        rises |= far;
    }
    if (__any_sync(ALL_LANES, rises)) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float decay = fast_power_of_two(state.top[r] - top[r]);
            state.top[r] = top[r];
            state.total[r] *= decay;
#pragma unroll
            for (int c = 0; c < WIDTH / 4; ++c) entry(state.sums, r, c) *= decay;
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; c += 2) {
            const float first = fast_power_of_two(fmaf(logits[r][c], unit, -state.top[r]));
            const float second = fast_power_of_two(fmaf(logits[r][c + 1], unit, -state.top[r]));
            state.total[r] += first;
            state.total[r] += second;
            pair_at(weights, r, c) = pack(STORAGE(), first, second);
        }
}

// sums += weights times values.
__device__ inline void add_weighted(State &state, const unsigned int (&weights)[STRIPS][KEYS / 16][4],
                                    const Stage &stage) {
#pragma unroll
    for (int keys = 0; keys < KEYS; keys += 16)
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j += 2) {
            unsigned int b[4];  // eight coordinates in b[0], b[1], the next eight in b[2], b[3]
            load_matrices_transposed(b, down_first(stage.values, keys, 8 * j));
#pragma unroll
            for (int s = 0; s < STRIPS; ++s) {
                multiply_add(STORAGE(), state.sums[s][j], weights[s][keys / 16], {b[0], b[1]});
                multiply_add(STORAGE(), state.sums[s][j + 1], weights[s][keys / 16], {b[2], b[3]});
            }
        }
}

// What is carried of a query between sweeps: sums (d_v), top, total; as in attend.cu.
__device__ inline void load(State &state, const float *carried, bool fresh, int d_v, int r) {
    state.top[r] = fresh ? static_cast<float>(NO_KEY) : carried[d_v];
    state.total[r] = fresh || !is_first_of_row() ? 0.f : carried[d_v + 1];
#pragma unroll
    for (int c = 0; c < WIDTH / 4; ++c)
        entry(state.sums, r, c) = fresh || column_of(c) >= d_v ? 0.f : carried[column_of(c)];
}

__device__ inline void store(State &state, float *carried, int d_v, float total, int r) {
#pragma unroll
    for (int c = 0; c < WIDTH / 4; ++c)
        if (column_of(c) < d_v) carried[column_of(c)] = entry(state.sums, r, c);
    if (is_first_of_row()) {
        carried[d_v] = state.top[r];
        carried[d_v + 1] = total;
    }
}

__device__ inline void finish(State &state, STORAGE *out, float *lse, int d_v, float total, int r) {
    const bool met = total > 0;
    const float inverse = 1 / total;
#pragma unroll
    for (int c = 0; c < WIDTH / 4; c += 2) {
        const float first = entry(state.sums, r, c) * inverse, second = entry(state.sums, r, c + 1) * inverse;
        if (4 * c < d_v)  // d_v is a multiple of 8
            *reinterpret_cast<unsigned int *>(out + column_of(c)) = met ? pack(STORAGE(), first, second) : 0u;
    }
    if (is_first_of_row()) *lse = state.top[r] * static_cast<float>(LN_2) + logarithm(total);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attend_tensor(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
                  const STORAGE *v_data, const long long *v_layout, const Sweep *sweeps, const Segment *segments,
                  const int *indices, const double *weights, long long n_q, int d, int d_v, double scale, STORAGE *out,
                  float *lse, float *carried) {
    DYNAMIC_SHARED(Tile, tile);
    const Sweep sweep = sweeps[blockIdx.x];
    const int start = (gridDim.y - 1 - blockIdx.y) * QUERIES;  // causal tiles near the end are the longest
    if (start >= sweep.n_q) return;
    const int last = smaller(QUERIES, static_cast<int>(sweep.n_q) - start) - 1;
    const int n_parts = static_cast<int>(sweep.n_segments);
    const int *const order = sweep.query_order < 0 ? nullptr : indices + sweep.query_order + start;
    const Blocks blocks = blocks_of(sweep, indices);
    const float factor = static_cast<float>(scale * LOG2_E), unit = factor == 0 ? 1 : fabsf(factor);

    const Matrix<STORAGE> q(q_data, q_layout, sweep.head, sweep.query_start);
    fetch_queries(tile, Pieces(q, d), start, last, order);
    if (!(factor > 0)) turn_queries(tile, factor < 0);
    if (static_cast<int>(threadIdx.x) < n_parts)
        tile.parts[threadIdx.x] = part_of(segments[sweep.segment + threadIdx.x], blocks, indices, start,
                                          order ? order[0] : start, order ? order[last] : start + last);
    if (threadIdx.x == THREADS - 1) {
        tile.k = Matrix<STORAGE>(k_data, k_layout, sweep.head, sweep.key_start);
        tile.v = Matrix<STORAGE>(v_data, v_layout, sweep.head, sweep.key_start);
        tile.weight_unit = static_cast<float>(LOG2_E) / unit;
    }
    __syncthreads();  // the numbers of the queries, the parts and the places of the matrices are written
    read_blocks(tile, n_parts, blocks);

    Place next = {0, tile.parts[0].range.begin};
    int key[COPIED];  // of the next tile
    bool more = next.find(tile, n_parts);
    const auto fetch_next = [&](Stage &stage) {
        fetch(tile, stage, d, d_v, key);
        const Part &part = tile.parts[next.part];
        const bool is_plain = next.is_plain(tile);
        if (!is_plain) describe(stage, part, next.begin, key, blocks, weights, tile.weight_unit);
        if (threadIdx.x == 0) stage.part = is_plain ? -1 : next.part;
    };
    const auto look_up_next = [&] {
        next.begin += KEYS;
        if (next.find(tile, n_parts)) read_keys(key, tile.parts[next.part], next.begin, indices);
    };
    if (more) {
        read_keys(key, tile.parts[next.part], next.begin, indices);
        fetch_next(tile.stage[0]);
        look_up_next();
    }
    const long long first_row = sweep.head * n_q + sweep.query_start;  // of out, lse and carried
    State state;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int query = tile.query[row_of(r)];
        const bool fresh = sweep.first || query < 0;
        load(state, carried + (first_row + larger(query, 0)) * (d_v + 2), fresh, d_v, r);
    }
    for (int current = 0; more; current ^= 1) {
        const Stage &stage = tile.stage[current];
        wait_for_copies<0>();
        __syncthreads();  // this tile has arrived, and all are done with the one before: its buffer may be filled
        more = next.part < n_parts;
        if (more) fetch_next(tile.stage[current ^ 1]);
        const bool is_plain = stage.part < 0;
        unsigned int marks[STRIPS] = {}, pairs[STRIPS][KEYS / 16][4];
        float logits[ROWS][COLUMNS];
        if (!is_plain) mark(marks, tile, stage, tile.parts[stage.part], blocks);
        multiply(tile, stage, is_plain, logits);
        if (marks[0] | marks[STRIPS - 1]) hide(marks, logits);
        rescale(state, unit, logits, pairs);
        if (more) look_up_next();  // the keys arrive while the products are computed
        add_weighted(state, pairs, stage);
    }
    commit_copies();  // the queries, if no tile of keys followed them
    wait_for_copies<0>();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int query = tile.query[row_of(r)];
        const float total = row_sum(state.total[r]);
        if (query < 0) continue;
        const long long row = first_row + query;
        if (sweep.last) finish(state, out + row * d_v, lse + row, d_v, total, r);
        else store(state, carried + row * (d_v + 2), d_v, total, r);
    }
}
