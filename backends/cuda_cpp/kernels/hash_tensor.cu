// Bucket numbers of rows of 16-bit numbers on tensor cores: what hash.cu computes, by mma.m16n8k16.
//
// A warp takes 16 rows of a Side as the left factor and eight planes at a time as the right one; r <= 8 is one round.
// Products with tensor cores have factors of 16 bits, so a plane comes as three parts of the storage type whose sum is
// the float32 number. The first part is summed by itself, so that the two small ones suffer no large rounding.
//
// A lane reads 16 bytes of a row at a time: eight columns, where a fragment has two and two. What the tensor cores take
// for columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 are then others; the sum is the same, as the planes are read in the
// same way. Rows that do not lie at multiples of 16 bytes are read number by number, to the same result.
//
// The hash must not depend on the scale of a row. Half: the products lie between 2^-48 and 2^31, where float32 holds
// them and their sums, whatever the row. Bfloat: a row is first multiplied by the power of two that brings its largest
// entry into [2^-6, 2^-5), one bfloat between 2^-126 and 2^121. That is exact but for entries 2^120 times smaller than
// the largest. At the ends of the range less will do: entries of 2^121 and above come to less than 4, rows below the
// normal numbers to 2^-12 at least, and neither leads float32 out of its range.
//
// STORAGE: Half or Bfloat. DEPTH: d rounded up to a multiple of 32, at most 256. `planes`, of STORAGE: (sets, groups of
// eight planes, 3 parts, 8, DEPTH), zero where there is none. `largest`, if it is given, holds 0 before, and the
// largest magnitude of all rows afterwards.
// Grid (sides, tiles of 128 rows of the longest side), 256 threads.
#include "gray.cuh"
#include "magnitude.cuh"
#include "plan.cuh"
#include "tensor.cuh"

constexpr int LANES = 32, WARPS = 8, THREADS = WARPS * LANES, ROWS = 16 * WARPS;
constexpr int GROUP = 8, PARTS = 3;          // planes of a round, and parts of a plane
constexpr int BLOCKS = DEPTH <= 64 ? 4 : 2;  // on a multiprocessor: registers must allow it
constexpr int N_PIECES = DEPTH / 32;         // of a lane for each row

typedef OfWarps<unsigned int, WARPS> Tile;

struct alignas(16) Piece {  // eight numbers, the lower half of a pair first
    unsigned int pair[4];
};

// The lane's pieces of the rows g and g + 8; zeros beyond the last row and the last column. WHOLE: pieces lie at
// multiples of 16 bytes.
template <bool WHOLE>
__device__ inline void fetch(Piece (&rows)[2][N_PIECES], const Matrix<STORAGE> &matrix, int n_rows, int d) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int i = 0; i < N_PIECES; ++i) {
            const int row = threadIdx.x % LANES / 4 + 8 * r, column = 32 * i + 8 * (threadIdx.x % 4);
            Piece &piece = rows[r][i];
            piece = {};
            if (row >= n_rows || column >= d) continue;
            if (WHOLE) piece = *reinterpret_cast<const Piece *>(matrix.at(row, column));
#pragma unroll
            for (int j = 0; j < 8; ++j)
                if (!WHOLE && column + j < d)
                    piece.pair[j / 2] |= static_cast<unsigned int>(matrix.at(row, column + j)->bits) << 16 * (j % 2);
        }
}

// The largest magnitude of a row, over the lane's pieces and those of the row's other three lanes.
__device__ inline unsigned int largest_of(const Piece (&pieces)[N_PIECES]) {
    unsigned int doubled = 0;  // twice the bits: signs drop out, and what follows an upper number breaks ties only
#pragma unroll
    for (int i = 0; i < N_PIECES; ++i)
#pragma unroll
        for (int p = 0; p < 4; ++p) doubled = larger(doubled, larger(pieces[i].pair[p] << 1, pieces[i].pair[p] << 17));
    doubled = larger(doubled, __shfl_xor_sync(ALL_LANES, doubled, 1));
    doubled = larger(doubled, __shfl_xor_sync(ALL_LANES, doubled, 2));
    STORAGE largest;
    largest.bits = static_cast<unsigned short>(doubled >> 17);
    return magnitude(widen(largest));
}

// Brings a row to the scale at which it is hashed, given its largest magnitude.
__device__ inline void rescale(Half, Piece (&)[N_PIECES], unsigned int) {}
__device__ inline void rescale(Bfloat, Piece (&pieces)[N_PIECES], unsigned int largest) {
    const int exponent = static_cast<int>(largest >> 23);  // of float32, as it is stored: 127 more
    const unsigned int factor = larger(248 - exponent, 1) << 7, both = factor << 16 | factor;
#pragma unroll
    for (int i = 0; i < N_PIECES; ++i)
#pragma unroll
        for (int p = 0; p < 4; ++p) pieces[i].pair[p] = multiply_pair_bfloat(pieces[i].pair[p], both);
}

// Products of 16 rows with eight planes, in the layout of a fragment c. A lane has the pieces of the rows g and g + 8;
// `planes` is where its first piece of plane g lies.
__device__ inline void multiply(const Piece (&rows)[2][N_PIECES], const STORAGE *planes, float (&sums)[4]) {
    float small[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = 0;
#pragma unroll
    for (int i = 0; i < N_PIECES; ++i)
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const Piece plane = *reinterpret_cast<const Piece *>(planes + part * GROUP * DEPTH + 32 * i);
#pragma unroll
            for (int p = 0; p < 4; p += 2) {
                const unsigned int a[4] = {rows[0][i].pair[p], rows[1][i].pair[p], rows[0][i].pair[p + 1],
                                           rows[1][i].pair[p + 1]};
                multiply_add(STORAGE(), part ? small : sums, a, {plane.pair[p], plane.pair[p + 1]});
            }
        }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += small[i];
}

// The signs of a fragment as bits, the first plane on top: those of row g, and eight bits higher those of row g + 8.
__device__ inline unsigned int signs_of(const float (&sums)[4]) {
    unsigned int signs = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) signs |= static_cast<unsigned int>(sums[i] > 0) << (i < 2 ? 1 - i : 11 - i);
    signs <<= GROUP - 2 - 2 * (threadIdx.x % 4);  // the lane has two planes of eight
    signs |= __shfl_xor_sync(ALL_LANES, signs, 1);
    return signs | __shfl_xor_sync(ALL_LANES, signs, 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    hash_codes_tensor(const STORAGE *x_data, const long long *x_layout, const Side *sides, const STORAGE *planes, int d,
                      int n_planes, long long *codes, unsigned int *largest) {
    SHARED(Tile, tile);
    const Side side = sides[blockIdx.x];
    if (blockIdx.y * ROWS >= side.n) return;
    const int lane = threadIdx.x % LANES, group = lane / 4, quarter = lane % 4;
    const int start = blockIdx.y * ROWS + threadIdx.x / LANES * 16;
    const int n_rows = static_cast<int>(side.n) - start;  // that are left
    const Matrix<STORAGE> matrix(x_data, x_layout, side.head, side.start + start);
    Piece rows[2][N_PIECES];
    if (matrix.is_aligned(d)) fetch<true>(rows, matrix, n_rows, d);
    else fetch<false>(rows, matrix, n_rows, d);
    unsigned int of_row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        of_row[r] = largest_of(rows[r]);
        rescale(STORAGE(), rows[r], of_row[r]);
    }
    const int n_groups = (n_planes + GROUP - 1) / GROUP;
    planes += side.planes * n_groups * PARTS * GROUP * DEPTH + group * DEPTH + 8 * quarter;
    unsigned long long pattern = 0;  // of row g in even lanes, of row g + 8 in odd ones
    // more would cost registers, and there is one round for r <= 8
#pragma unroll 1
    for (int i = 0; i < n_groups; ++i, planes += PARTS * GROUP * DEPTH) {
        float sums[4];
        multiply(rows, planes, sums);
        pattern = pattern << GROUP | (signs_of(sums) >> GROUP * (lane % 2) & 0xffu);
    }
    const int row = group + 8 * (lane % 2);
    if (quarter < 2 && row < n_rows)
        codes[side.codes + start + row] = gray_rank(pattern >> (GROUP * n_groups - n_planes));
    if (largest) bring_largest(tile, larger(of_row[0], of_row[1]), largest);
}
