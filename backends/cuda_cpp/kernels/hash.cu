// Bucket numbers of rows (Definition 1): the signs of their products with up to 62 hyperplanes, as the rank of that bit
// pattern in the Gray sequence.
//
// A row is first multiplied by the power of two that brings its largest entry into [1/2, 1): signs stay, and no product
// leaves the range of the type. The planes, (sets, n_planes, d), come scaled. A block takes 64 rows of one Side. Half a
// warp takes four of them: thread x has the columns x, x + 16, .. and takes eight planes at a time, so that a row is
// read once from memory, and from the cache when its products are made; the 32 sums of a thread are then added up over
// the half warp. Nothing but the largest magnitude passes through shared memory.
//
// `largest`, if it is given, holds 0 before, and the largest magnitude of all rows afterwards.
// Grid (sides, tiles of 64 rows of the longest side), 256 threads.
#include "gray.cuh"
#include "magnitude.cuh"
#include "tile.cuh"

typedef Arithmetic<STORAGE>::Real Real;
typedef Magnitudes<Real>::Bits Bits;
typedef OfWarps<Bits, THREADS / 32> Tile;

constexpr int PART = 4, GROUP = 8;  // rows and planes of a thread at a time

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
__device__ inline float two_to(int exponent, float) { return ldexpf(1.f, exponent); }
__device__ inline double two_to(int exponent, double) { return ldexp(1., exponent); }

// The powers of two for this thread's rows, each as two factors: one alone may be out of range. Returns the largest
// magnitude of these rows.
__device__ inline Bits scales_of(const Matrix<STORAGE> &rows, int n_rows, int d, Real (&first)[PART],
                                 Real (&second)[PART]) {
    Bits of_all = 0;
#pragma unroll
    for (int r = 0; r < PART; ++r) {
        Bits largest = 0;
        if (r < n_rows)
            for (int j = threadIdx.x % SIDE; j < d; j += SIDE)
                largest = larger(largest, magnitude(widen(*rows.at(r, j))));
        largest = row_largest(largest);
        const int exponent = -exponent_of(number_of(largest));
        first[r] = two_to(exponent / 2, Real());
        second[r] = two_to(exponent - exponent / 2, Real());
        of_all = larger(of_all, largest);
    }
    return of_all;
}

// Adds up the sums of the 16 threads of half a warp: in each step a thread keeps one half of them and gives the other
// half to the thread LANE away. Thread x is left with the sums 2 x and 2 x + 1, as the first two.
template <int LANE> __device__ inline void add_up(Real (&sums)[PART * GROUP]) {
    constexpr int KEPT = PART * GROUP / SIDE * LANE;
    const bool keeps_upper = threadIdx.x & LANE;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const Real lower = sums[i], upper = sums[i + KEPT];
        sums[i] = (keeps_upper ? upper : lower) + __shfl_xor_sync(ALL_LANES, keeps_upper ? lower : upper, LANE);
    }
    if constexpr (LANE > 1) add_up<LANE / 2>(sums);
}

extern "C" __global__ void __launch_bounds__(THREADS, (sizeof(Real) == 4 ? 3 : 1))
    hash_codes(const STORAGE *x_data, const long long *x_layout, const Side *sides, const Real *planes, int d,
               int n_planes, long long *codes, Bits *largest) {
    SHARED(Tile, tile);
    const Side side = sides[blockIdx.x];
    if (blockIdx.y * ROWS >= side.n) return;
    const int x = threadIdx.x % SIDE, start = blockIdx.y * ROWS + threadIdx.x / SIDE * PART;
    const int n_rows = static_cast<int>(side.n) - start;  // that are left
    const Matrix<STORAGE> rows(x_data, x_layout, side.head, side.start + start);
    planes += side.planes * n_planes * d;
    Real first[PART], second[PART];
    const Bits of_rows = scales_of(rows, n_rows, d, first, second);
    // now: later it would cost registers
    if (largest) bring_largest(tile, of_rows, largest);
    unsigned long long pattern = 0;  // of row x / 4, the first plane on top
    int plane = 0;
    for (; plane < n_planes; plane += GROUP) {
        Real sums[PART * GROUP] = {};
        for (int j = x; j < d; j += SIDE) {
            Real normal[GROUP];
#pragma unroll
            for (int p = 0; p < GROUP; ++p) normal[p] = plane + p < n_planes ? planes[(plane + p) * d + j] : Real(0);
#pragma unroll
            for (int r = 0; r < PART; ++r) {
                const Real entry = r < n_rows ? widen(*rows.at(r, j)) * first[r] * second[r] : Real(0);
#pragma unroll
                for (int p = 0; p < GROUP; ++p) sums[r * GROUP + p] += entry * normal[p];
            }
        }
        add_up<SIDE / 2>(sums);  // thread x has the row x / 4 and the planes 2 (x % 4) and the next one
        int signs = ((sums[0] > 0) * 2 + (sums[1] > 0)) << (GROUP - 2 - 2 * (x % 4));
        signs |= __shfl_xor_sync(ALL_LANES, signs, 1);
        signs |= __shfl_xor_sync(ALL_LANES, signs, 2);
        pattern = pattern << GROUP | signs;
    }
    if (x % 4 == 0 && x / 4 < n_rows) codes[side.codes + start + x / 4] = gray_rank(pattern >> (plane - n_planes));
}
