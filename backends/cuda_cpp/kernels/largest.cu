// The largest absolute entry of an array: what must be known before logits and weights can be trusted to be finite.
//
// A thread reads 16 bytes at a time where rows lie so, else single entries. `result` holds 0 before, and the largest
// magnitude afterwards.
//
// Grid (heads, tiles of 256 rows), 256 threads.
#include "magnitude.cuh"
#include "plan.cuh"

typedef Magnitudes<Arithmetic<STORAGE>::Real>::Bits Bits;

constexpr int LANES = 32, WARPS = 8, THREADS = WARPS * LANES, ROWS = 256;
constexpr int WHOLE = 16 / sizeof(STORAGE);  // entries in 16 bytes

typedef OfWarps<Bits, WARPS> Tile;

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

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    largest(const STORAGE *x_data, const long long *x_layout, int n, int d, Bits *result) {
    SHARED(Tile, tile);
    const int start = blockIdx.y * ROWS, n_rows = smaller(ROWS, n - start);
    const Matrix<STORAGE> rows(x_data, x_layout, blockIdx.x, start);
    const Bits bits = rows.is_aligned(d) ? largest_of<WHOLE>(rows, n_rows, d) : largest_of<1>(rows, n_rows, d);
    bring_largest(tile, bits, result);
}
