// Small kernels with known answers and known faults: what the emulation must compute, and what it must refuse.
#include "tensor.cuh"

constexpr int THREADS = 64;

// One product of a warp: d = a b with a (16, 16) and b (8, 16) row by row, through shared memory like the real kernels.
extern "C" __global__ void product(const unsigned short *a, const unsigned short *b, float *d, int transposed) {
    struct Tile {
        Half a[16][16], b[16][16];
    };
    SHARED(Tile, tile);
    const int lane = threadIdx.x;
    for (int e = lane; e < 256; e += 32) {
        tile.a[e / 16][e % 16].bits = a[e];
        tile.b[e / 16][e % 16].bits = b[e];
    }
    __syncthreads();
    unsigned int left[4], right[4];
    load_matrices(left, &tile.a[lane % 16][8 * (lane / 16)]);
    if (transposed) load_matrices_transposed(right, &tile.b[lane % 16][8 * (lane / 16)]);
    else load_matrices(right, &tile.b[8 * (lane / 16) + lane % 8][8 * (lane / 8 % 2)]);
    for (int j = 0; j < 2; ++j) {
        float c[4] = {0, 0, 0, 0};
        multiply_add(Half(), c, left, {right[2 * j], right[2 * j + 1]});
        for (int i = 0; i < 4; ++i) d[(lane / 4 + 8 * (i / 2)) * 16 + 8 * j + 2 * (lane % 4) + i % 2] = c[i];
    }
}

// Products of pairs of bfloat numbers.
extern "C" __global__ void pairs(const unsigned int *x, const unsigned int *y, unsigned int *result) {
    result[threadIdx.x] = multiply_pair_bfloat(x[threadIdx.x], y[threadIdx.x]);
}

// Every thread reads what its neighbour wrote; `fault` leaves out the barrier.
extern "C" __global__ void neighbour(float *result, int fault) {
    struct Tile {
        float x[THREADS];
    };
    SHARED(Tile, tile);
    tile.x[threadIdx.x] = threadIdx.x;
    if (!fault) __syncthreads();
    result[threadIdx.x] = tile.x[(threadIdx.x + 37) % THREADS];
}

// Every block tells what it finds in shared memory, and leaves a number there.
extern "C" __global__ void left_behind(float *result) {
    struct Tile {
        float x[32];
    };
    SHARED(Tile, tile);
    if (threadIdx.x == 0) result[blockIdx.x] = tile.x[0];
    __syncthreads();
    tile.x[threadIdx.x] = 1;
}

// An asynchronous copy is read; `fault` 1 does not wait for it, 2 leaves it in flight, 3 uses a wrong address.
extern "C" __global__ void copied(const float *x, float *result, int fault) {
    struct alignas(16) Tile {
        float x[4 * THREADS + 4];
    };
    DYNAMIC_SHARED(Tile, tile);
    float *mine = &tile.x[4 * threadIdx.x + (fault == 3)];
    copy_16_bytes(mine, x + 4 * threadIdx.x, threadIdx.x % 2 == 0);
    commit_copies();
    if (fault != 1 && fault != 2) wait_for_copies<0>();
    result[threadIdx.x] = mine[1];
    if (fault == 1) wait_for_copies<0>();
}

// Lanes that part: half a warp meets in a shuffle, the others at the barrier, or they leave.
extern "C" __global__ void parted(float *result, int leave) {
    struct Tile {
        float x[1];
    };
    SHARED(Tile, tile);
    tile.x[0] = 1;
    if (threadIdx.x % 32 < 16) result[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.f, 1);
    else if (!leave) __syncthreads();
}

// Of every lane the lanes that hold the same number; `lanes` other than all are refused.
extern "C" __global__ void matched(const int *x, unsigned int *same, int lanes) {
    same[threadIdx.x] = __match_any_sync(lanes, x[threadIdx.x]);
}

// Whether any lane of the warp brings a number but 0; `lanes` other than all are refused.
extern "C" __global__ void voted(const int *x, int *any, int lanes) {
    any[threadIdx.x] = __any_sync(lanes, x[threadIdx.x]);
}

// The number of bits, and the largest number of all.
extern "C" __global__ void counted(const unsigned int *x, int *bits, unsigned int *largest) {
    bits[threadIdx.x] = __popc(x[threadIdx.x]);
    atomicMax(largest, x[threadIdx.x]);
}

// Every lane reads what another lane of its warp wrote; `fault` leaves out the barrier.
extern "C" __global__ void lane_neighbour(float *result, int fault) {
    struct Tile {
        float x[THREADS];
    };
    SHARED(Tile, tile);
    const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
    tile.x[threadIdx.x] = threadIdx.x;
    if (!fault) __syncwarp();
    result[threadIdx.x] = tile.x[first + (lane + 17) % 32];
}

// Half a warp waits for its lanes, the others match.
extern "C" __global__ void parted_warp(unsigned int *result) {
    if (threadIdx.x % 32 < 16) __syncwarp();
    else result[threadIdx.x] = __match_any_sync(ALL_LANES, 0);
}
