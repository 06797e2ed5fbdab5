// Bucket numbers of rows (Definition 1): the signs of their products with up to 62 hyperplanes, as the rank of that bit
// pattern in the Gray sequence.
//
// A row is first multiplied by the power of two that brings its largest entry into [1/2, 1): signs stay, and no product
// leaves the range of the type. The planes come scaled. A block takes 64 rows of one head; all planes fit one tile.
//
// Grid (heads, tiles of 64 rows), 256 threads. Shared memory: sizeof(Tile).
#include "tile.cuh"

typedef Arithmetic<STORAGE>::Real Real;

struct Tile {
    Operands<Real> operands;
    int exponent[ROWS];
    unsigned char sign[ROWS][COLUMNS];
};

__device__ inline int exponent_of(float x) {
    int exponent;
    frexpf(x, &exponent);
    return exponent;
}
__device__ inline int exponent_of(double x) {
    int exponent;
    frexp(x, &exponent);
    return exponent;
}
__device__ inline float shifted(float x, int exponent) { return ldexpf(x, exponent); }
__device__ inline double shifted(double x, int exponent) { return ldexp(x, exponent); }

extern "C" __global__ void __launch_bounds__(THREADS, (BLOCKS<Real, 0>))
    hash_codes(const STORAGE *x_data, const long long *x_layout, const Real *planes, int n, int d, int n_planes,
               long long *codes) {
    SHARED(Tile, tile);
    const int start = blockIdx.y * ROWS, x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const Matrix<STORAGE> rows(x_data, x_layout, blockIdx.x, start);
    const int n_rows = smaller(ROWS, n - start);
#pragma unroll
    for (int r = 0; r < 4; ++r) {  // the 16 threads of a row look for its largest entry
        const int row = 4 * y + r;
        Real largest = 0;
        if (row < n_rows)
            for (int j = x; j < d; j += SIDE) {
                const Real entry = widen(*rows.at(row, j));
                largest = larger(largest, larger(entry, -entry));
            }
        largest = row_largest(largest);
        if (x == 0) tile.exponent[row] = exponent_of(largest);
    }
    Real products[4][4];
    multiply(
        tile.operands, d,
        [&](int row, int j) { return row < n_rows ? shifted(widen(*rows.at(row, j)), -tile.exponent[row]) : Real(0); },
        [&](int plane, int j) { return plane < n_planes ? planes[plane * d + j] : Real(0); }, products);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) tile.sign[4 * y + r][4 * x + c] = products[r][c] > 0;
    __syncthreads();  // all signs are there
    const int row = threadIdx.x;
    if (row >= n_rows) return;
    long long rank = 0;
    int bit = 0;
    for (int plane = 0; plane < n_planes; ++plane) {  // bit p of the rank is the exclusive or of the signs 0 .. p
        bit ^= tile.sign[row][plane];
        rank = 2 * rank + bit;
    }
    codes[static_cast<long long>(blockIdx.x) * n + start + row] = rank;
}
