// Sums over sampled keys of capped entries, for every query of one head (Algorithm 2):
//
//   log of the sum, over the samples outside the mask, of min(e^(logit), C_i);  and how many of them exceed C_i.
//
// Repeated samples count each time. A query that meets no sample gets -infinity.
// Grid (1, tiles of 64 queries), 256 threads.
#include "rows.cuh"

typedef Arithmetic<STORAGE>::Real Real;

extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<Real, 0>))
    capped_sums(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
                int n_q, int n_k, int d, double scale, const int *samples, int n_samples, const int *query_blocks,
                const int *key_blocks, int views, const unsigned char *dense, const Real *log_caps, Real *log_sums,
                long long *n_capped) {
    SHARED(RowTile<Real>, tile);
    const int start = blockIdx.y * ROWS;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const Matrix<STORAGE> q(q_data, q_layout, 0, 0), k(k_data, k_layout, 0, 0);
    const Mask mask = {{query_blocks, key_blocks, n_q, n_k}, views, dense};
    LogSum<Real> sums[4];
    int above[4] = {0, 0, 0, 0};
    for (int begin = 0; begin < n_samples; begin += COLUMNS) {
        __syncthreads();  // all have read the keys before
        if (threadIdx.x < ROWS) {
            const int query = start + threadIdx.x, place = begin + threadIdx.x;
            tile.query[threadIdx.x] = query < n_q ? query : -1;
            tile.key[threadIdx.x] = place < n_samples ? samples[place] : -1;
        }
        __syncthreads();
        int query[4], key[4];
        Real logits[4][4];
        row_logits(tile, q, k, d, static_cast<Real>(scale), query, key, logits);
        hide_absent(false, query, key, logits);
        mask.hide(query, key, logits);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const Real cap = log_caps[larger(query[r], 0)];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                above[r] += logits[r][c] > cap && logits[r][c] > Real(NO_KEY);
                logits[r][c] = smaller(logits[r][c], cap);
            }
            sums[r].add(logits[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int query = start + 4 * y + r;
        const Real log_sum = sums[r].merged();
        const int count = row_sum(above[r]);
        if (x == 0 && query < n_q) {
            log_sums[query] = log_sum;
            n_capped[query] = count;
        }
    }
}
