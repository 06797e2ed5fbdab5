// Types of numbers, and the few definitions that differ between the GPU and the tests' emulation on the CPU.
//
// STORAGE is the type of the arrays: Half, Bfloat, float or double. Real is the type of the arithmetic: double for
// double, float for all others. No CUDA header is included, so that NVRTC needs nothing but itself.
#pragma once

#ifdef CUDA_EMULATION
#include "emulation.h"
#else
// The one struct of shared memory of a kernel. Over 48 KB it must be dynamic: its size is given at the launch.
#define SHARED(Type, name) __shared__ Type name
#define DYNAMIC_SHARED(Type, name)                           \
    extern __shared__ __align__(16) unsigned char shared_[]; \
    Type &name = *reinterpret_cast<Type *>(shared_)

__device__ inline float float_of_half(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ inline unsigned short half_of_float(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

__device__ inline unsigned int bits_of_float(float x) { return __float_as_uint(x); }
__device__ inline float float_of_bits(unsigned int bits) { return __uint_as_float(bits); }
__device__ inline unsigned long long bits_of_double(double x) { return __double_as_longlong(x); }
__device__ inline double double_of_bits(unsigned long long bits) { return __longlong_as_double(bits); }
#endif

struct Half {
    unsigned short bits;
};
struct Bfloat {
    unsigned short bits;
};

template <class Storage> struct Arithmetic {
    typedef float Real;
};
template <> struct Arithmetic<double> {
    typedef double Real;
};

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Half x) { return float_of_half(x.bits); }
__device__ inline float widen(Bfloat x) { return float_of_bits(static_cast<unsigned int>(x.bits) << 16); }

__device__ inline void narrow(double x, double &result) { result = x; }
__device__ inline void narrow(float x, float &result) { result = x; }
__device__ inline void narrow(float x, Half &result) { result.bits = half_of_float(x); }
// Rounds to nearest even: half a unit of the kept bits is added, one less where the last is even. NaN would overflow.
__device__ inline void narrow(float x, Bfloat &result) {
    const unsigned int bits = bits_of_float(x);
    result.bits = static_cast<unsigned short>(x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// A float that is rounded once more: the float next to x towards zero, its last bit set if it is not x itself. The
// second rounding then goes where that of x would go, since no tie is made and none is lost.
__device__ inline float rounded_to_odd(double x) {
    const float nearest = static_cast<float>(x);
    if (nearest == x) return nearest;
    return float_of_bits((bits_of_float(nearest) - (fabs(nearest) > fabs(x))) | 1u);
}
__device__ inline void narrow(double x, float &result) { result = static_cast<float>(x); }
__device__ inline void narrow(double x, Half &result) { narrow(rounded_to_odd(x), result); }
__device__ inline void narrow(double x, Bfloat &result) { narrow(rounded_to_odd(x), result); }

__device__ inline float power_of_two(float x) { return exp2f(x); }
__device__ inline double power_of_two(double x) { return exp2(x); }
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float larger(float x, float y) { return fmaxf(x, y); }
__device__ inline double larger(double x, double y) { return fmax(x, y); }
__device__ inline float smaller(float x, float y) { return fminf(x, y); }
__device__ inline double smaller(double x, double y) { return fmin(x, y); }
__device__ inline int larger(int x, int y) { return x > y ? x : y; }
__device__ inline int smaller(int x, int y) { return x < y ? x : y; }
__device__ inline unsigned int larger(unsigned int x, unsigned int y) { return x > y ? x : y; }
__device__ inline unsigned long long larger(unsigned long long x, unsigned long long y) { return x > y ? x : y; }

constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;
constexpr unsigned int ALL_LANES = 0xffffffffu;

// The largest logit of a query that has met no key, and the logit of a pair that does not count. Both are finite, so
// that no infinity is ever subtracted from another; a hidden pair stays far below even the former: 2^(-1e30) is 0.
constexpr double NO_KEY = -1e30, HIDDEN = -2e30;
