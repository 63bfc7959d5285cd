// Enough of CUDA's C++ to run a kernel on a CPU: blocks one after another, the threads of a block as fibers that hand over
// at __syncthreads().
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(...)

struct Dim {
    unsigned int x;
};
static Dim gridDim, blockIdx, blockDim, threadIdx;

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __uint_as_float(unsigned int bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned int __float_as_uint(float x) {
    unsigned int bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static void (*call_kernel)(void*);
static void* kernel_call;

static void run_fiber() {
    call_kernel(kernel_call);
    fibers[threadIdx.x].done = true;
}

inline void __syncthreads() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

// Every round takes each thread of the block from one __syncthreads() to the next. Odd rounds run backwards, so that code
// which relies on an order of threads between two barriers gives different numbers.
static void run_block(unsigned int threads) {
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    for (unsigned int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        fiber.done = false;
        makecontext(&fiber.context, run_fiber, 0);
    }
    bool waiting = true;
    for (int round = 0; waiting; ++round) {
        waiting = false;
        for (unsigned int i = 0; i < threads; ++i) {
            threadIdx.x = round % 2 ? threads - 1 - i : i;
            Fiber& fiber = fibers[threadIdx.x];
            if (fiber.done) continue;
            swapcontext(&scheduler, &fiber.context);
            waiting = waiting || !fiber.done;
        }
    }
}

// As cuLaunchKernel: `arguments` points to one address an argument, and nothing checks their types.
template <typename... Arguments, size_t... I>
void launch_on_cpu(
    void (*kernel)(Arguments...), unsigned int blocks, unsigned int threads, void** arguments, std::index_sequence<I...>) {
    auto call = [&] { kernel(*static_cast<std::remove_cv_t<Arguments>*>(arguments[I])...); };
    call_kernel = [](void* bound) { (*static_cast<decltype(call)*>(bound))(); };
    kernel_call = &call;
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(threads);
}

template <typename... Arguments>
void launch_on_cpu(void (*kernel)(Arguments...), unsigned int blocks, unsigned int threads, void** arguments) {
    launch_on_cpu(kernel, blocks, threads, arguments, std::index_sequence_for<Arguments...>());
}
