// A tile of 64 x 64 products on any GPU, with ordinary multiply-adds.
//
// 256 threads stand in a square of 16 x 16. Thread (y, x) owns rows 4 y .. 4 y + 3 and columns 4 x .. 4 x + 3. The two
// operands pass through shared memory 16 coordinates at a time, so that any head dimension fits: 2 x 16 x 68 numbers.
// For each coordinate a thread reads two vectors of four and does 16 multiply-adds. The 16 threads of one y are half a
// warp, so that rows are reduced by shuffles.
#pragma once
#include "plan.cuh"

constexpr int SIDE = 16, THREADS = SIDE * SIDE;
constexpr int ROWS = 64, COLUMNS = 64, DEPTH = 16;
constexpr int PITCH = ROWS / 4 + 1;  // in vectors of four; the last spreads a column of a tile over the banks

// Blocks that the registers of a multiprocessor must allow at once, for sums of so many coordinates; more would spill.
template <class Real, int N> constexpr int BLOCKS = sizeof(Real) == 4 && N <= 128 ? 2 : 1;

template <class Real> struct alignas(16) Four {
    Real x[4];
};

template <class Real> struct Operands {
    Four<Real> a[DEPTH][PITCH], b[DEPTH][PITCH];
};

// products[r][c] = sum over j < d of a(row, j) b(column, j), for the row 4 y + r and the column 4 x + c of the tile.
// a and b are functions (row or column of the tile, coordinate) -> Real. Loops of doubles are not unrolled: that would
// cost registers.
template <class Real, class A, class B>
__device__ inline void multiply(Operands<Real> &shared, int d, A a, B b, Real (&products)[4][4]) {
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) products[r][c] = 0;
    for (int start = 0; start < d; start += DEPTH) {
        __syncthreads();  // all have read what these buffers held before
        for (int e = threadIdx.x; e < ROWS * DEPTH; e += THREADS) {
            const int row = e / DEPTH, depth = e % DEPTH, j = start + depth;
            shared.a[depth][row / 4].x[row % 4] = j < d ? a(row, j) : Real(0);
            shared.b[depth][row / 4].x[row % 4] = j < d ? b(row, j) : Real(0);
        }
        __syncthreads();  // the buffers are filled
#pragma unroll(sizeof(Real) == 4 ? DEPTH : 1)
        for (int depth = 0; depth < DEPTH; ++depth) {
            const Four<Real> row = shared.a[depth][y], column = shared.b[depth][x];
#pragma unroll
            for (int r = 0; r < 4; ++r)
#pragma unroll
                for (int c = 0; c < 4; ++c) products[r][c] += row.x[r] * column.x[c];
        }
    }
}

// The second product of attention: sums[r][c] += sum over the 64 columns of weights times values. Thread (y, x) owns
// rows 4 y .. 4 y + 3 and the coordinates x, x + 16, .. of the values. A few terms are summed before they join the
// others: eight make the rounding error of a long sum of like terms eight times smaller, for one more addition.
template <class Real, int N> struct Weighted {
    static constexpr int STEP = sizeof(Real) == 4 ? 8 : 2;  // rows of values in shared memory at a time
    Four<Real> weights[COLUMNS][PITCH];
    Real values[STEP][N];
};

template <class Real, int N, class Values>
__device__ inline void add_weighted(Weighted<Real, N> &shared, const Real (&weights)[4][4], int n_columns,
                                    Values values, Real (&sums)[4][N / SIDE]) {
    constexpr int STEP = Weighted<Real, N>::STEP;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    __syncthreads();  // all have read the weights of the tile before
#pragma unroll
    for (int c = 0; c < 4; ++c)
        shared.weights[4 * x + c][y] = {weights[0][c], weights[1][c], weights[2][c], weights[3][c]};
    for (int start = 0; start < n_columns; start += STEP) {
        __syncthreads();  // all have read the values before; the first time: the weights are written
        for (int e = threadIdx.x; e < STEP * N; e += THREADS)
            shared.values[e / N][e % N] = values(start + e / N, e % N);
        __syncthreads();  // the values are written
        Four<Real> weight[STEP];
#pragma unroll
        for (int column = 0; column < STEP; ++column) weight[column] = shared.weights[start + column][y];
#pragma unroll
        for (int c = 0; c < N / SIDE; ++c) {
            Real part[4] = {0, 0, 0, 0};
#pragma unroll
            for (int column = 0; column < STEP; ++column) {
                const Real value = shared.values[column][x + c * SIDE];
#pragma unroll
                for (int r = 0; r < 4; ++r) part[r] += weight[column].x[r] * value;
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) sums[r][c] += part[r];
        }
    }
}

// The largest number of a row, and the sum of a row: over the 16 threads that share it.
template <class Real> __device__ inline Real row_largest(Real x) {
#pragma unroll
    for (int lane = SIDE / 2; lane > 0; lane /= 2) x = larger(x, __shfl_xor_sync(ALL_LANES, x, lane));
    return x;
}

template <class Real> __device__ inline Real row_smallest(Real x) { return -row_largest(-x); }

template <class Real> __device__ inline Real row_sum(Real x) {
#pragma unroll
    for (int lane = SIDE / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}
