// The orders of Algorithm 1: a stable sort of bucket numbers, many runs (plan.cuh) at once, and the blocks they are cut
// into.
//
// A run is sorted by counting, eight bits at a time, the last ones first; the usual r <= 8 hyperplanes take one pass.
// A pass is three kernels:
//
//   count_digits   of each chunk of 4096 rows and each of the 256 digits: how many rows there are;
//   scan_digits    where they begin in sorted order: digit by digit, and chunk by chunk within a digit;
//   place_rows     every row goes there, behind the rows of its chunk that come before it and have the same digit.
//
// These are the rows of earlier warps (a warp takes 512 rows in a row), those of earlier rounds of the same warp (32
// rows each), and those in earlier lanes, which __match_any_sync finds. Nothing depends on which thread comes first: an
// order has no freedom, and nothing is added atomically.
//
// Codes are below 2^(8 n_passes). Between passes the order so far stands among the orders or in `spare` (as long as the
// codes), in turn, so that the last pass leaves it among the orders; one pass needs no `spare`.
//
// Grid (runs, chunks of the longest run), for scan_digits (runs, 1); 256 threads.
#include "plan.cuh"

constexpr int LANES = 32, WARPS = 8, ROUNDS = 16;
constexpr int THREADS = WARPS * LANES, CHUNK = THREADS * ROUNDS;
constexpr int BITS = 8, DIGITS = 1 << BITS;  // as many as threads: thread i looks after digit i
constexpr int NO_DIGIT = DIGITS;             // of a lane without a row

struct Tile {
    int counts[WARPS][DIGITS + 1];  // in place_rows later: the place of each warp's first row with this digit
};

struct Sums {
    int sums[DIGITS];
};

// One pass over a run: the digit by which it sorts, the order it finds and the one it leaves.
struct Pass {
    const long long *codes;
    const int *from;  // none: the rows in their own order
    int *to;
    int shift;

    __device__ Pass(const Run &run, const long long *all_codes, int pass, int n_passes, int *indices, int *spare)
        : codes(all_codes + run.codes), shift(BITS * pass) {
        int *const order = indices + run.order, *const other = spare + run.codes;
        const bool is_odd = (n_passes - pass) % 2;
        to = is_odd ? order : other;
        from = pass == 0 ? nullptr : is_odd ? other : order;
    }
    __device__ int row(int place) const { return from ? from[place] : place; }
    __device__ int digit(int place) const { return static_cast<int>(codes[row(place)] >> shift) & (DIGITS - 1); }
};

// Where the counts of this block's chunk are, and later its first place for each digit.
__device__ inline long long chunk_place(const Run &run) { return run.counts + blockIdx.y * DIGITS; }

// Counts the digits of a warp's rows, the places first + lane, first + lane + 32, ... below n. `before` becomes the
// number of rows before each that have its digit, within the warp.
__device__ inline void count(int (&counts)[DIGITS + 1], const Pass &pass, int first, int n, int (&digit)[ROUNDS],
                             int (&before)[ROUNDS]) {
    const int lane = threadIdx.x % LANES;
    for (int i = lane; i <= NO_DIGIT; i += LANES) counts[i] = 0;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int place = first + round * LANES + lane;
        digit[round] = place < n ? pass.digit(place) : NO_DIGIT;
    }
    __syncwarp();  // the counts are zero
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const unsigned int same = __match_any_sync(ALL_LANES, digit[round]);
        const unsigned int earlier = same & ((1u << lane) - 1);
        before[round] = counts[digit[round]] + __popc(earlier);
        __syncwarp();  // all lanes have read the counts
        if (!earlier) counts[digit[round]] += __popc(same);
        __syncwarp();  // the counts hold this round
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    count_digits(const Run *runs, const long long *codes, int pass, int n_passes, int *indices, int *spare,
                 int *counts) {
    SHARED(Tile, tile);
    const Run run = runs[blockIdx.x];
    const int start = blockIdx.y * CHUNK, warp = threadIdx.x / LANES, n = static_cast<int>(run.n);
    if (start >= n) return;
    int digit[ROUNDS], before[ROUNDS];
    count(tile.counts[warp], Pass(run, codes, pass, n_passes, indices, spare), start + warp * LANES * ROUNDS, n, digit,
          before);
    __syncthreads();  // all warps have counted
    int sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) sum += tile.counts[w][threadIdx.x];
    counts[chunk_place(run) + threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) scan_digits(const Run *runs, int *counts) {
    SHARED(Sums, tile);
    const Run run = runs[blockIdx.x];
    const int digit = threadIdx.x, n_chunks = static_cast<int>((run.n + CHUNK - 1) / CHUNK);
    int *const mine = counts + run.counts + digit;
    int sum = 0;
    for (int chunk = 0; chunk < n_chunks; ++chunk) sum += mine[chunk * DIGITS];
    tile.sums[digit] = sum;
    __syncthreads();  // the sums are written
    // after each step a sum is that of 2 step digits up to its own
    for (int step = 1; step < DIGITS; step *= 2) {
        const int below = digit < step ? 0 : tile.sums[digit - step];
        __syncthreads();  // all have read the sums
        tile.sums[digit] += below;
        __syncthreads();  // the sums have grown
    }
    int next = tile.sums[digit] - sum;
    for (int chunk = 0; chunk < n_chunks; ++chunk) {
        const int n_rows = mine[chunk * DIGITS];
        mine[chunk * DIGITS] = next;
        next += n_rows;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    place_rows(const Run *runs, const long long *codes, int pass, int n_passes, int *indices, int *spare,
               const int *counts) {
    SHARED(Tile, tile);
    const Run run = runs[blockIdx.x];
    const int start = blockIdx.y * CHUNK, warp = threadIdx.x / LANES, n = static_cast<int>(run.n);
    if (start >= n) return;
    const Pass current(run, codes, pass, n_passes, indices, spare);
    const int first = start + warp * LANES * ROUNDS;
    int digit[ROUNDS], before[ROUNDS];
    count(tile.counts[warp], current, first, n, digit, before);
    __syncthreads();  // all warps have counted
    int next = counts[chunk_place(run) + threadIdx.x];
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        const int n_rows = tile.counts[w][threadIdx.x];
        tile.counts[w][threadIdx.x] = next;
        next += n_rows;
    }
    __syncthreads();  // all places are known
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int place = first + round * LANES + threadIdx.x % LANES;
        if (place >= n) continue;
        const int row = current.row(place), sorted = tile.counts[warp][digit[round]] + before[round];
        current.to[sorted] = row;
        if (pass == n_passes - 1)
            indices[run.blocks + row] = static_cast<int>(sorted * run.others / run.n / run.block_size);
    }
}
