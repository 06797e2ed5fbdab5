// What the two kernels share that sum over the keys of a row without values: the tile, and a logarithm of a sum.
//
// The sums run in base e, one for each thread: thread (y, x) sees every 16th group of four keys, and the 16 sums of a
// row are merged once, at the end.
#pragma once
#include "mask.cuh"
#include "tile.cuh"

template <class Real> struct RowTile {
    Operands<Real> operands;
    int query[ROWS], key[COLUMNS];
};

// log of a sum of exponentials: `total` = sum of e^(logit - top).
template <class Real> struct LogSum {
    Real top = NO_KEY, total = 0;

    // Makes room for four logits; returns e^(old top - new top).
    __device__ Real rise(const Real (&logits)[4]) {
        const Real old = top;
#pragma unroll
        for (int c = 0; c < 4; ++c) top = larger(top, logits[c]);
        const Real decay = exponential(old - top);
        total *= decay;
        return decay;
    }
    __device__ void add(const Real (&logits)[4]) {
        rise(logits);
#pragma unroll
        for (int c = 0; c < 4; ++c) total += exponential(logits[c] - top);
    }
    // The same number in all 16 threads of the row; nothing at all gives -infinity.
    __device__ Real merged() const {
        const Real largest = row_largest(top);
        return largest + logarithm(row_sum(total * exponential(top - largest)));
    }
};

// The logits of this thread, q and k being one head. Queries and keys of the tile must have been written before.
template <class Real, class Storage>
__device__ inline void row_logits(RowTile<Real> &tile, const Matrix<Storage> &q, const Matrix<Storage> &k, int d,
                                  Real scale, int (&query)[4], int (&key)[4], Real (&logits)[4][4]) {
    multiply(
        tile.operands, d,
        [&](int row, int j) { return tile.query[row] < 0 ? Real(0) : scale * widen(*q.at(tile.query[row], j)); },
        [&](int row, int j) { return tile.key[row] < 0 ? Real(0) : widen(*k.at(tile.key[row], j)); }, logits);
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        query[i] = tile.query[4 * y + i];
        key[i] = tile.key[4 * x + i];
    }
}
