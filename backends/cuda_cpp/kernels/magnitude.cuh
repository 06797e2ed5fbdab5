// Magnitudes: the bits of |x|, an unsigned integer that rises with |x|. Infinity is above everything finite, and NaN
// above infinity.
#pragma once
#include "numbers.cuh"

__device__ inline unsigned int magnitude(float x) { return bits_of_float(x) & 0x7fffffffu; }
__device__ inline unsigned long long magnitude(double x) { return bits_of_double(x) & 0x7fffffffffffffffull; }
__device__ inline float number_of(unsigned int magnitude) { return float_of_bits(magnitude); }
__device__ inline double number_of(unsigned long long magnitude) { return double_of_bits(magnitude); }

// The magnitudes of a type of numbers. An array's largest one is found where 0 stood before.
template <class Real> struct Magnitudes;
template <> struct Magnitudes<float> {
    typedef unsigned int Bits;
};
template <> struct Magnitudes<double> {
    typedef unsigned long long Bits;
};

// One number of shared memory for each warp of a block.
template <class Bits, int WARPS> struct OfWarps {
    Bits largest[WARPS];
};

// Makes `result` the largest of what it is and of what the block's threads bring; all of them must come.
template <class Bits, int WARPS>
__device__ inline void bring_largest(OfWarps<Bits, WARPS> &shared, Bits bits, Bits *result) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) bits = larger(bits, __shfl_xor_sync(ALL_LANES, bits, lane));
    if (threadIdx.x % 32 == 0) shared.largest[threadIdx.x / 32] = bits;
    __syncthreads();  // all warps have looked
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int warp = 1; warp < WARPS; ++warp) bits = larger(bits, shared.largest[warp]);
    atomicMax(result, bits);  // a maximum is the same in any order
}
