// The instructions of tensor cores and asynchronous copies, as inline PTX (compute capability 8.0 and later).
//
// Fragments, as the PTX manual lays them out for mma.m16n8k16. Lane l of a warp has group g = l / 4 and pair t = l % 4:
//   a (16 x 16, rows by depth)     a[i]: row g + 8 (i % 2), depth 2 t and 2 t + 1, plus 8 (i / 2)
//   b (16 x 8, depth by columns)   b[i]: depth 2 t and 2 t + 1, plus 8 i; column g
//   c (16 x 8, rows by columns)    c[i]: row g + 8 (i / 2), column 2 t + i % 2
// A register of a or b holds two numbers of 16 bits, the lower one first.
#pragma once
#include "numbers.cuh"

#ifndef CUDA_EMULATION
__device__ inline unsigned int shared_address(const void *pointer) {
    return static_cast<unsigned int>(__cvta_generic_to_shared(pointer));
}

#define MULTIPLY_ADD(type)                                     \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type \
        ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "                  \
        "{%8,%9}, {%0,%1,%2,%3};"                              \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// c += a b for one warp, accumulated in float32.
__device__ inline void multiply_add_half(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    MULTIPLY_ADD("f16");
}
__device__ inline void multiply_add_bfloat(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    MULTIPLY_ADD("bf16");
}

// Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8 (a multiple of 16
// bytes). Lane l gets from each matrix the entries (l / 4, 2 (l % 4)) and the next one; transposed: of its transpose.
__device__ inline void load_matrices(unsigned int (&result)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ inline void load_matrices_transposed(unsigned int (&result)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins to copy 16 bytes to shared memory; where `exists` is false they become 0 and nothing is read.
__device__ inline void copy_16_bytes(void *to, const void *from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(exists ? 16 : 0)
                 : "memory");
}
// The copies begun since the last commit are one group; wait until at most so many groups are unfinished.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N_LEFT> __device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N_LEFT) : "memory");
}

// Two numbers, rounded, in one register: the first one in the lower half.
__device__ inline unsigned int pack_half(float first, float second) {
    unsigned int pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
__device__ inline unsigned int pack_bfloat(float first, float second) {
    unsigned int pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// Both numbers of a pair times those of another, rounded. Nothing is flushed: numbers below the normal ones count.
__device__ inline unsigned int multiply_pair_bfloat(unsigned int x, unsigned int y) {
    unsigned int product;  // sm_80 has no mul.bf16x2; x y - 0 is x y
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(x), "r"(y), "r"(0x80008000u));
    return product;
}

// 2^x with an error of two units in the last place; results below the normal numbers are 0.
__device__ inline float fast_power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
#endif

__device__ inline void multiply_add(Half, float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    multiply_add_half(c, a, b);
}
__device__ inline void multiply_add(Bfloat, float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    multiply_add_bfloat(c, a, b);
}

__device__ inline unsigned int pack(Half, float first, float second) { return pack_half(first, second); }
__device__ inline unsigned int pack(Bfloat, float first, float second) { return pack_bfloat(first, second); }
