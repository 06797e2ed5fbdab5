// The pairs that a measure leaves out: those which some view holds, or those which a dense matrix of bytes marks.
#pragma once
#include "plan.cuh"

struct Mask {
    Blocks blocks;
    int views;
    const unsigned char *dense;  // (n_q, n_k), or null

    template <int N_ROWS, int N_COLUMNS, class Real>
    __device__ void hide(const int (&query)[N_ROWS], const int (&key)[N_COLUMNS],
                         Real (&logits)[N_ROWS][N_COLUMNS]) const {
        hide_marked(blocks, views, false, query, key, logits);
        if (!dense) return;
#pragma unroll
        for (int r = 0; r < N_ROWS; ++r)
#pragma unroll
            for (int c = 0; c < N_COLUMNS; ++c) {
                const long long pair = larger(query[r], 0) * static_cast<long long>(blocks.n_k) + larger(key[c], 0);
                if (dense[pair]) logits[r][c] = Real(HIDDEN);
            }
    }
};
