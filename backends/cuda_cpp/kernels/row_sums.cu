// Sums over the keys of every query of one head, in one pass over all logits.
//
//   log_total     log of D_i = sum of e^(logit)
//   log_unmasked  the same over the pairs outside the mask; -infinity where the mask covers the row
//   entropy       -sum of P log P = log D_i - sum of P (logit), P = e^(logit) / D_i, relative to the largest logit
//   low, high     the smallest and the largest logit
//
// Grid (1, tiles of 64 queries), 256 threads.
#include "rows.cuh"

typedef Arithmetic<STORAGE>::Real Real;

struct RowSums {
    LogSum<Real> all, unmasked;
    Real spread = 0;  // sum of e^(logit - top) (logit - top)
    Real low = -Real(NO_KEY);

    __device__ void add(const Real (&logits)[4]) {
        const Real old = all.top, before = all.total;
        const Real decay = all.rise(logits);
        spread = decay * (spread + before * (old - all.top));
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const Real below = logits[c] - all.top, weight = exponential(below);
            all.total += weight;
            spread += weight * below;
            if (logits[c] > Real(NO_KEY)) low = smaller(low, logits[c]);
        }
    }
    // log D_i minus the mean of the logits, both relative to the largest logit of the row.
    __device__ Real entropy() const {
        const Real top = row_largest(all.top), decay = exponential(all.top - top);
        const Real total = row_sum(all.total * decay);
        return logarithm(total) - row_sum(decay * (spread + all.total * (all.top - top))) / total;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<Real, 0>))
    row_sums(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
             int n_q, int n_k, int d, double scale, int is_causal, const int *query_blocks, const int *key_blocks,
             int views, const unsigned char *dense, Real *log_total, Real *log_unmasked, Real *entropy, Real *low,
             Real *high) {
    SHARED(RowTile<Real>, tile);
    const int start = (gridDim.y - 1 - blockIdx.y) * ROWS;  // the longest causal tiles go first
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const Matrix<STORAGE> q(q_data, q_layout, 0, 0), k(k_data, k_layout, 0, 0);
    const Mask mask = {{query_blocks, key_blocks, n_q, n_k}, views, dense};
    RowSums sums[4];
    const int end = is_causal ? smaller(n_k, start + ROWS) : n_k;
    for (int begin = 0; begin < end; begin += COLUMNS) {
        __syncthreads();  // all have read the keys before
        if (threadIdx.x < ROWS) {
            const int query = start + threadIdx.x, key = begin + threadIdx.x;
            tile.query[threadIdx.x] = query < n_q ? query : -1;
            tile.key[threadIdx.x] = key < end ? key : -1;
        }
        __syncthreads();
        int query[4], key[4];
        Real logits[4][4];
        row_logits(tile, q, k, d, static_cast<Real>(scale), query, key, logits);
        hide_absent(is_causal, query, key, logits);
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[r].add(logits[r]);
        mask.hide(query, key, logits);
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[r].unmasked.add(logits[r]);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int query = start + 4 * y + r;
        const Real results[5] = {sums[r].all.merged(), sums[r].unmasked.merged(), sums[r].entropy(),
                                 row_smallest(sums[r].low), row_largest(sums[r].all.top)};
        Real *const places[5] = {log_total, log_unmasked, entropy, low, high};
        if (x == 0 && query < n_q)
#pragma unroll
            for (int i = 0; i < 5; ++i) places[i][query] = results[i];
    }
}
