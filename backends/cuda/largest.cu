// The largest absolute entry of an array: what must be known before logits and weights can be trusted to be finite.
//
// Magnitudes are compared as the bits of |x|, an unsigned integer that rises with the number: NaN is above infinity,
// and infinity above everything finite. A thread reads 16 bytes at a time where rows lie so, else single entries.
//
// `result` holds 0 before: an unsigned integer as wide as Real, the bits of the largest |x| afterwards.
// Grid (heads, tiles of 256 rows), 256 threads. Shared memory: sizeof(Tile).
#include "plan.cuh"

typedef Arithmetic<STORAGE>::Real Real;

__device__ inline unsigned int magnitude(float x) { return bits_of_float(x) & 0x7fffffffu; }
__device__ inline unsigned long long magnitude(double x) { return bits_of_double(x) & 0x7fffffffffffffffull; }
typedef decltype(magnitude(Real())) Bits;

constexpr int LANES = 32, WARPS = 8, THREADS = WARPS * LANES, ROWS = 256;
constexpr int WHOLE = 16 / sizeof(STORAGE);  // entries in 16 bytes

struct Tile {
    Bits of_warp[WARPS];
};

template <int N> struct alignas(N * sizeof(STORAGE)) Piece {
    STORAGE x[N];
};

// Over this thread's pieces of N entries of the first n_rows rows; d is a multiple of N.
template <int N> __device__ inline Bits largest_of(const Matrix<STORAGE> &rows, int n_rows, int d) {
    const int n_pieces = d / N;
    Bits largest = 0;
#pragma unroll 4  // loads under way at a time
    for (int e = threadIdx.x; e < n_rows * n_pieces; e += THREADS) {
        const Piece<N> piece = *reinterpret_cast<const Piece<N> *>(rows.at(e / n_pieces, e % n_pieces * N));
#pragma unroll
        for (int i = 0; i < N; ++i) largest = larger(largest, magnitude(widen(piece.x[i])));
    }
    return largest;
}

// Whether all pieces of 16 bytes lie at multiples of 16 bytes.
__device__ inline bool is_aligned(const Matrix<STORAGE> &rows, int d) {
    const bool starts_so = reinterpret_cast<unsigned long long>(rows.data) % sizeof(Piece<WHOLE>) == 0;
    return starts_so && rows.column == 1 && rows.row % WHOLE == 0 && d % WHOLE == 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    largest(const STORAGE *x_data, const long long *x_layout, int n, int d, Bits *result) {
    SHARED(Tile, tile);
    const int start = blockIdx.y * ROWS, n_rows = smaller(ROWS, n - start);
    const Matrix<STORAGE> rows(x_data, x_layout, blockIdx.x, start);
    Bits bits = is_aligned(rows, d) ? largest_of<WHOLE>(rows, n_rows, d) : largest_of<1>(rows, n_rows, d);
#pragma unroll
    for (int lane = LANES / 2; lane > 0; lane /= 2) bits = larger(bits, __shfl_xor_sync(ALL_LANES, bits, lane));
    if (threadIdx.x % LANES == 0) tile.of_warp[threadIdx.x / LANES] = bits;
    __syncthreads();  // all warps have looked
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) bits = larger(bits, tile.of_warp[warp]);
    atomicMax(result, bits);  // a maximum is the same in any order
}
