// Bit patterns in the order of the Gray sequence (Definition 1).
#pragma once
#include "numbers.cuh"

// The rank of a bit pattern in the Gray sequence: bit p is the exclusive or of the bits from the top one down to p.
__device__ inline unsigned long long gray_rank(unsigned long long pattern) {
#pragma unroll
    for (int shift = 1; shift < 64; shift *= 2) pattern ^= pattern >> shift;
    return pattern;
}
