// CUDA C++ on a CPU, for tests: the subset that backends/cuda uses, compiled by g++.
//
// Every CUDA thread is a fiber: a function with a stack of its own that runs until it must wait for others. One block
// runs at a time. A barrier, a shuffle, a match, a matrix instruction are meetings: the fiber notes what it waits for
// and hands over to the scheduler; the last one to arrive does the work for all. What a GPU leaves undefined is made to
// show:
//
//   order      a schedule says which fiber runs next: all forwards, all backwards, one warp as far as it goes, random;
//   memory     shared memory starts as NaN in every block, and has exactly the size of the kernel's struct, so that an
//              address sanitizer sees what lies outside;
//   copies     an asynchronous copy puts NaN in its place when it is issued, and the data there when it is waited for;
//   meetings   lanes that wait for different things, or for lanes that are gone, are an error, and so is a deadlock.
//
// Not shown: speed, bank conflicts, the rounding inside tensor cores, races through global memory, and a __syncwarp
// that is missing next to another meeting of the same warp: here every meeting orders memory.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED(Type, name) Type &name = *static_cast<Type *>(emulation::static_shared(sizeof(Type)))
#define DYNAMIC_SHARED(Type, name) Type &name = *static_cast<Type *>(emulation::dynamic_shared(sizeof(Type)))

struct uint3 {
    unsigned int x, y, z;
};

namespace emulation {

constexpr int WARP = 32;
constexpr size_t STACK_BYTES = 256 << 10;

struct Copy {
    void *to;
    const void *from;
    size_t bytes;  // of 16; the rest becomes 0
};

// The fibers that meet: a block or a warp.
struct Group {
    int first, last;  // fibers
    int members;      // that have not left
    int arrived = 0;
    const char *meeting = nullptr;  // what the arrived wait for
};

struct Fiber {
    uint3 thread;
    int index = 0, lane = 0, warp = 0;
    bool started = false, done = false;
    Group *waiting = nullptr;  // whom it waits for,
    void *argument = nullptr;  // and what it brings
    ucontext_t context;
    jmp_buf place;
    std::vector<Copy> issued;
    std::deque<std::vector<Copy>> committed;
    std::unique_ptr<char[]> stack;
};

struct Block {
    uint3 index, size, grid;
    std::vector<Fiber> fibers;
    Group everyone;
    std::vector<Group> warps;
    size_t dynamic_bytes;               // of shared memory, as the launch says
    std::vector<unsigned char> shared;  // allocated by the first thread that asks for it
    std::function<void()> body;
    std::string error;
};

inline Block *block = nullptr;
inline Fiber *current = nullptr;
inline ucontext_t scheduler_context;
inline jmp_buf scheduler_place;

// Back to the scheduler, until it picks this fiber again.
inline void hand_over() {
    Fiber *self = current;
    if (!_setjmp(self->place)) _longjmp(scheduler_place, 1);
}

// The block is abandoned: this fiber is never picked again.
[[noreturn]] inline void fail(const std::string &message) {
    char where[120];
    snprintf(where, sizeof where, "block (%u, %u), thread %d: ", block->index.x, block->index.y, current->index);
    if (block->error.empty()) block->error = where + message;
    for (;;) hand_over();
}

inline void *static_shared(size_t bytes) {
    if (block->shared.empty()) block->shared.assign(bytes, 0xff);
    if (block->shared.size() != bytes) fail("the emulation knows kernels with one struct of shared memory only");
    return block->shared.data();
}

inline void *dynamic_shared(size_t bytes) {
    if (bytes != block->dynamic_bytes)
        fail("the kernel needs " + std::to_string(bytes) + " bytes of shared memory, the launch gives " +
             std::to_string(block->dynamic_bytes));
    return static_shared(bytes);
}

inline void release(Group &group) {
    for (int i = group.first; i < group.last; ++i)
        if (block->fibers[i].waiting == &group) block->fibers[i].waiting = nullptr;
    group.arrived = 0;
}

// Waits until the whole group has arrived; the last fiber to come does `work`.
template <class Work> void meet(Group &group, const char *meeting, void *argument, Work work) {
    if (group.arrived && strcmp(group.meeting, meeting))
        fail(std::string(meeting) + " while other lanes wait in " + group.meeting);
    Fiber *self = current;
    self->argument = argument;
    group.meeting = meeting;
    if (++group.arrived < group.members) {
        self->waiting = &group;
        while (self->waiting) hand_over();
    } else {
        work();
        release(group);
    }
}

template <class Work> void meet_warp(const char *meeting, void *argument, Work work) {
    Group &warp = block->warps[current->warp];
    meet(warp, meeting, argument, [&] { work(&block->fibers[warp.first]); });
}

inline void barrier() {
    meet(block->everyone, "__syncthreads", nullptr, [] {});
}

inline void run_fiber() {
    block->body();
    if (!current->issued.empty() || !current->committed.empty()) fail("it ends with asynchronous copies in flight");
    current->done = true;
    Group &everyone = block->everyone;  // a barrier waits for those who have not left
    if (--everyone.members == everyone.arrived) release(everyone);
    for (;;) hand_over();
}

inline void resume(Fiber &fiber) {
    current = &fiber;
    if (_setjmp(scheduler_place)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    setcontext(&fiber.context);
}

// The order in which one round of the scheduler visits the fibers.
inline std::vector<int> visits(const std::string &schedule, int n, std::mt19937 &random) {
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = schedule == "backwards" ? n - 1 - i : i;
    if (schedule == "random")
        for (int i = n - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
    return order;
}

inline bool visit(int i) {
    Fiber &fiber = block->fibers[i];
    if (fiber.done || fiber.waiting || !block->error.empty()) return false;
    resume(fiber);
    return true;
}

inline std::string run_block(Block &b, const std::string &schedule, std::mt19937 &random) {
    block = &b;
    const int n = static_cast<int>(b.fibers.size());
    for (bool alive = true; alive && b.error.empty();) {
        bool progress = false;
        if (schedule == "warps") {  // one warp as far as it goes, the last one first
            for (int warp = (n - 1) / WARP; warp >= 0; --warp)
                for (bool again = true; again; progress |= again) {
                    again = false;
                    for (int i = warp * WARP; i < n && i < (warp + 1) * WARP; ++i) again |= visit(i);
                }
        } else {
            for (int i : visits(schedule, n, random)) progress |= visit(i);
        }
        alive = false;
        for (const Fiber &fiber : b.fibers) alive |= !fiber.done;
        if (!progress && alive && b.error.empty()) {
            b.error = "deadlock:";
            for (const Fiber &fiber : b.fibers)
                if (!fiber.done) b.error += " " + std::to_string(fiber.index) + " in " + fiber.waiting->meeting;
        }
    }
    return b.error;
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Arguments> *>(arguments[I])...);
}

// What cuLaunchKernel does; the message of the first error, or nothing.
template <class... Arguments>
std::string launch(void (*kernel)(Arguments...), const unsigned int *grid, unsigned int threads, size_t dynamic_bytes,
                   const std::string &schedule, unsigned int seed, void **arguments) {
    std::mt19937 random(seed);
    static std::vector<std::unique_ptr<char[]>> stacks;
    while (stacks.size() < threads) stacks.emplace_back(new char[STACK_BYTES]);
    for (unsigned int y = 0; y < grid[1]; ++y)
        for (unsigned int x = 0; x < grid[0]; ++x) {
            Block b;
            b.index = {x, y, 0};
            b.size = {threads, 1, 1};
            b.grid = {grid[0], grid[1], 1};
            b.dynamic_bytes = dynamic_bytes;
            b.body = [&] { call(kernel, arguments, std::index_sequence_for<Arguments...>{}); };
            const int n = static_cast<int>(threads);
            b.everyone = {0, n, n};
            for (int first = 0; first < n; first += WARP) b.warps.push_back({first, first + WARP, WARP});
            b.fibers.resize(threads);
            for (unsigned int i = 0; i < threads; ++i) {
                Fiber &fiber = b.fibers[i];
                fiber.thread = {i, 0, 0};
                fiber.index = static_cast<int>(i);
                fiber.lane = fiber.index % WARP;
                fiber.warp = fiber.index / WARP;
                fiber.stack = std::move(stacks[i]);
            }
            const std::string error = run_block(b, schedule, random);
            for (unsigned int i = 0; i < threads; ++i) stacks[i] = std::move(b.fibers[i].stack);
            if (!error.empty()) return error;
        }
    return "";
}

// The symbol that the tests call.
#define EMULATED_KERNEL(kernel)                                                                              \
    extern "C" int emulated_##kernel(const unsigned int *grid, unsigned int threads, size_t dynamic_bytes,   \
                                     const char *schedule, unsigned int seed, void **arguments, char *error, \
                                     size_t error_bytes) {                                                   \
        const std::string message =                                                                          \
            emulation::launch(kernel, grid, threads, dynamic_bytes, schedule, seed, arguments);              \
        snprintf(error, error_bytes, "%s", message.c_str());                                                 \
        return !message.empty();                                                                             \
    }

// --- Matrix instructions: the layouts of fragments are those of the PTX manual --------------------------------------

inline float float_of_half(uint16_t bits) {
    _Float16 x;
    memcpy(&x, &bits, 2);
    return static_cast<float>(x);
}

inline float float_of_bfloat(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

struct Product {
    float *c;
    const uint32_t *a, *b;
};

// c (16 x 8) += a (16 x 16) b (16 x 8). Lane l holds rows l / 4 and l / 4 + 8, and pairs of columns from 2 (l % 4).
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float (*number)(uint16_t)) {
    Product mine{c, a, b};
    meet_warp("mma", &mine, [&](Fiber *lanes) {
        float rows[16][16], columns[8][16];
        for (int l = 0; l < WARP; ++l) {
            const Product &p = *static_cast<Product *>(lanes[l].argument);
            const int group = l / 4, pair = 2 * (l % 4);
            for (int half = 0; half < 2; ++half) {
                for (int i = 0; i < 4; ++i)
                    rows[group + 8 * (i % 2)][pair + half + 8 * (i / 2)] = number(uint16_t(p.a[i] >> 16 * half));
                for (int i = 0; i < 2; ++i) columns[group][pair + half + 8 * i] = number(uint16_t(p.b[i] >> 16 * half));
            }
        }
        for (int l = 0; l < WARP; ++l) {
            const Product &p = *static_cast<Product *>(lanes[l].argument);
            for (int i = 0; i < 4; ++i) {
                const float *row = rows[l / 4 + 8 * (i / 2)], *column = columns[2 * (l % 4) + i % 2];
                float sum = 0;
                for (int j = 0; j < 16; ++j) sum += row[j] * column[j];
                p.c[i] += sum;
            }
        }
    });
}

struct Load {
    uint32_t *result;
    const void *row;
};

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
inline void load_matrices(uint32_t (&result)[4], const void *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix from an address that is no multiple of 16");
    Load mine{result, row};
    meet_warp(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, [&](Fiber *lanes) {
        for (int m = 0; m < 4; ++m) {
            uint16_t matrix[8][8];
            for (int r = 0; r < 8; ++r) memcpy(matrix[r], static_cast<Load *>(lanes[8 * m + r].argument)->row, 16);
            for (int l = 0; l < WARP; ++l) {
                const int r = l / 4, c = 2 * (l % 4);
                const uint32_t low = transposed ? matrix[c][r] : matrix[r][c];
                const uint32_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
                static_cast<Load *>(lanes[l].argument)->result[m] = low | high << 16;
            }
        }
    });
}

}  // namespace emulation

// --- What kernels call ----------------------------------------------------------------------------------------------

#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)

inline void __syncthreads() { emulation::barrier(); }

inline void __syncwarp() {
    emulation::meet_warp("__syncwarp", nullptr, [](emulation::Fiber *) {});
}

inline int __popc(unsigned int x) { return __builtin_popcount(x); }

// The lanes that bring the same number.
inline unsigned int __match_any_sync(unsigned int lanes, int x) {
    if (lanes != 0xffffffffu) emulation::fail("the emulation knows matches of whole warps only");
    struct Match {
        int brought;
        unsigned int same;
    } mine{x, 0};
    emulation::meet_warp("match", &mine, [](emulation::Fiber *warp) {
        for (int l = 0; l < emulation::WARP; ++l) {
            Match &match = *static_cast<Match *>(warp[l].argument);
            for (int other = 0; other < emulation::WARP; ++other)
                if (static_cast<Match *>(warp[other].argument)->brought == match.brought) match.same |= 1u << other;
        }
    });
    return mine.same;
}

// One fiber runs at a time, so that a plain read and write are one step; returns what was there.
template <class T> T atomicMax(T *place, T x) {
    const T before = *place;
    if (x > before) *place = x;
    return before;
}

template <class T> T __shfl_xor_sync(unsigned int lanes, T x, int mask) {
    if (lanes != 0xffffffffu) emulation::fail("the emulation knows shuffles of whole warps only");
    struct Exchange {
        int from;
        T brought, taken;
    } mine{emulation::current->lane ^ mask, x, x};
    emulation::meet_warp("shuffle", &mine, [](emulation::Fiber *warp) {
        for (int l = 0; l < emulation::WARP; ++l) {
            Exchange &exchange = *static_cast<Exchange *>(warp[l].argument);
            exchange.taken = static_cast<Exchange *>(warp[exchange.from].argument)->brought;
        }
    });
    return mine.taken;
}

// Whether any lane brings true.
inline int __any_sync(unsigned int lanes, int x) {
    if (lanes != 0xffffffffu) emulation::fail("the emulation knows votes of whole warps only");
    struct Vote {
        int brought, any;
    } mine{x, 0};
    emulation::meet_warp("vote", &mine, [](emulation::Fiber *warp) {
        int any = 0;
        for (int l = 0; l < emulation::WARP; ++l) any |= static_cast<Vote *>(warp[l].argument)->brought != 0;
        for (int l = 0; l < emulation::WARP; ++l) static_cast<Vote *>(warp[l].argument)->any = any;
    });
    return mine.any;
}

inline float float_of_half(unsigned short bits) { return emulation::float_of_half(bits); }
inline unsigned short half_of_float(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}
inline unsigned int bits_of_float(float x) {
    unsigned int bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of_bits(unsigned int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned long long bits_of_double(double x) {
    unsigned long long bits;
    memcpy(&bits, &x, 8);
    return bits;
}
inline double double_of_bits(unsigned long long bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

inline void multiply_add_half(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    emulation::multiply_add(c, a, b, emulation::float_of_half);
}
inline void multiply_add_bfloat(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2]) {
    emulation::multiply_add(c, a, b, emulation::float_of_bfloat);
}
inline void load_matrices(unsigned int (&result)[4], const void *row) { emulation::load_matrices(result, row, false); }
inline void load_matrices_transposed(unsigned int (&result)[4], const void *row) {
    emulation::load_matrices(result, row, true);
}

inline unsigned int pack_half(float first, float second) {
    return half_of_float(first) | static_cast<unsigned int>(half_of_float(second)) << 16;
}
inline unsigned int pack_bfloat(float first, float second) {
    const auto rounded = [](float x) {
        const unsigned int bits = bits_of_float(x);
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return rounded(first) | rounded(second) << 16;
}
inline unsigned int multiply_pair_bfloat(unsigned int x, unsigned int y) {  // exact, then rounded
    const auto number = [](unsigned int bits) { return emulation::float_of_bfloat(uint16_t(bits)); };
    return pack_bfloat(number(x) * number(y), number(x >> 16) * number(y >> 16));
}
inline float fast_power_of_two(float x) {
    const float power = exp2f(x);
    return power < 0x1p-126f ? 0 : power;
}

inline void copy_16_bytes(void *to, const void *from, bool exists) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
        emulation::fail("cp.async with an address that is no multiple of 16");
    memset(to, 0xff, 16);
    emulation::current->issued.push_back({to, from, exists ? size_t(16) : size_t(0)});
}
inline void commit_copies() {
    emulation::current->committed.push_back(std::move(emulation::current->issued));
    emulation::current->issued.clear();
}
template <int N_LEFT> inline void wait_for_copies() {
    auto &committed = emulation::current->committed;
    for (; committed.size() > N_LEFT; committed.pop_front())
        for (const emulation::Copy &copy : committed.front()) {
            memset(copy.to, 0, 16);
            memcpy(copy.to, copy.from, copy.bytes);
        }
}
