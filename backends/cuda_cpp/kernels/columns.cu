// Sums over the queries of every key of one head: of P = e^(logit - lse), of P^2, and of P times a matrix y.
//
// The tile is turned: its rows are keys, its columns queries. The log-sum-exps of the queries are known, so nothing is
// rescaled.
//
// WIDTH: coordinates of y, rounded up as in attend.cu.
// Grid (1, tiles of 64 keys), 256 threads.
#include "tile.cuh"

typedef Arithmetic<STORAGE>::Real Real;

struct Tile {
    union {  // never in use at the same time
        Operands<Real> operands;
        Weighted<Real, WIDTH> weighted;
    };
};

// P of the keys key + 4 y + r and the queries query + 4 x + c.
__device__ inline void probabilities_of(Tile &tile, const Matrix<STORAGE> &q, const Matrix<STORAGE> &k, int n_q,
                                        int n_k, int d, Real scale, bool is_causal, const Real *lse, int key, int query,
                                        Real (&p)[4][4]) {
    multiply(
        tile.operands, d, [&](int row, int j) { return key + row < n_k ? widen(*k.at(key + row, j)) : Real(0); },
        [&](int row, int j) { return query + row < n_q ? scale * widen(*q.at(query + row, j)) : Real(0); }, p);
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int j = key + 4 * y + r, i = query + 4 * x + c;
            const bool exists = i < n_q && j < n_k && !(is_causal && j > i);
            p[r][c] = exists ? exponential(p[r][c] - lse[i]) : Real(0);
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<Real, WIDTH>))
    column_sums(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
                int n_q, int n_k, int d, double scale, int is_causal, const Real *lse, Real *sums, Real *squares) {
    SHARED(Tile, tile);
    const int key = blockIdx.y * ROWS, x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const Matrix<STORAGE> q(q_data, q_layout, 0, 0), k(k_data, k_layout, 0, 0);
    Real sum[4] = {0, 0, 0, 0}, square[4] = {0, 0, 0, 0};
    for (int query = is_causal ? key : 0; query < n_q; query += COLUMNS) {
        Real p[4][4];
        probabilities_of(tile, q, k, n_q, n_k, d, static_cast<Real>(scale), is_causal, lse, key, query, p);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                sum[r] += p[r][c];
                square[r] += p[r][c] * p[r][c];
            }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const Real whole = row_sum(sum[r]), whole_square = row_sum(square[r]);
        const int j = key + 4 * y + r;
        if (x == 0 && j < n_k) {
            sums[j] = whole;
            squares[j] = whole_square;
        }
    }
}

// product (n_k, width) = P^T y.
extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<Real, WIDTH>))
    transposed(const STORAGE *q_data, const long long *q_layout, const STORAGE *k_data, const long long *k_layout,
               const STORAGE *y_data, const long long *y_layout, int n_q, int n_k, int d, int width, double scale,
               int is_causal, const Real *lse, Real *product) {
    SHARED(Tile, tile);
    const int key = blockIdx.y * ROWS, x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const Matrix<STORAGE> q(q_data, q_layout, 0, 0), k(k_data, k_layout, 0, 0), values(y_data, y_layout, 0, 0);
    Real sums[4][WIDTH / SIDE];
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < WIDTH / SIDE; ++c) sums[r][c] = 0;
    for (int query = is_causal ? key : 0; query < n_q; query += COLUMNS) {
        Real p[4][4];
        probabilities_of(tile, q, k, n_q, n_k, d, static_cast<Real>(scale), is_causal, lse, key, query, p);
        add_weighted(
            tile.weighted, p, smaller(COLUMNS, n_q - query),
            [&](int row, int j) {
                return j < width && query + row < n_q ? widen(*values.at(query + row, j)) : Real(0);
            },
            sums);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const long long j = key + 4 * y + r;
#pragma unroll
        for (int c = 0; c < WIDTH / SIDE; ++c)
            if (j < n_k && x + c * SIDE < width) product[j * width + x + c * SIDE] = sums[r][c];
    }
}
