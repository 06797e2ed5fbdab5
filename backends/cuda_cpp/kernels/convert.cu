// Copies rows to a contiguous array of another type: a cast, or a choice of rows, or rows less their center.
//
// `rows`, if there are any, are the numbers of the rows that are wanted, in this order, the same for all heads; without
// them row i is row i. `center`, if there is one, is (heads, d) and is subtracted in the wider of the two types. A warp
// copies 8 rows, 32 columns of them at a time.
//
// STORAGE, TARGET: types of the array x and of the result (heads, n, d).
// Grid (heads, tiles of 64 rows), 256 threads.
#include "plan.cuh"

typedef Arithmetic<TARGET>::Real Real;
typedef decltype(Arithmetic<STORAGE>::Real() + Real()) Wide;

constexpr int LANES = 32, WARPS = 8, THREADS = WARPS * LANES, PART = 8;  // rows of a warp

extern "C" __global__ void __launch_bounds__(THREADS, (sizeof(Wide) == 4 ? 4 : 3))
    convert(const STORAGE *x_data, const long long *x_layout, const int *rows, const Real *center, int n, int d,
            TARGET *result) {
    const int start = blockIdx.y * WARPS * PART + threadIdx.x / LANES * PART, n_rows = smaller(PART, n - start);
    const Matrix<STORAGE> x(x_data, x_layout, blockIdx.x, 0);
    result += (static_cast<long long>(blockIdx.x) * n + start) * d;
    int row[PART];
#pragma unroll
    for (int r = 0; r < PART; ++r) row[r] = r >= n_rows ? 0 : rows ? rows[start + r] : start + r;
    for (int j = threadIdx.x % LANES; j < d; j += LANES) {
        Wide entry[PART];
#pragma unroll
        for (int r = 0; r < PART; ++r) entry[r] = r < n_rows ? widen(*x.at(row[r], j)) : Wide(0);
        if (center) {
            const Wide middle = center[static_cast<long long>(blockIdx.x) * d + j];
#pragma unroll
            for (int r = 0; r < PART; ++r) entry[r] -= middle;
        }
#pragma unroll
        for (int r = 0; r < PART; ++r)
            if (r < n_rows) narrow(entry[r], result[r * d + j]);
    }
}
