// The emulator of emulator.h, and all kernels compiled for it. Tests build this file as a shared library.
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

thread_local unsigned char *dynamic_shared;
const Registration *Registration::first = nullptr;

namespace {

constexpr size_t STACK = 128 << 10;

enum class State { Ready, AtWarpBarrier, AtBlockBarrier, Done };

struct Fiber {
    std::vector<unsigned char> stack;
    ucontext_t start;
    jmp_buf at;
    State state = State::Done;
    bool started = false;
    alignas(16) unsigned char shown[SHOWN];
};

struct Block {
    std::vector<Fiber> fibers;
    size_t threads = 0;
    Fiber *current = nullptr;
    jmp_buf scheduler;
    const Registration *kernel = nullptr;
    void **arguments = nullptr;
    std::mt19937 order;
};

thread_local Block block;

[[noreturn]] void fail(const char *what)
{
    fprintf(stderr, "emulator: %s: %s\n", block.kernel->name, what);
    abort();
}

void leave(State state)
{
    Fiber *me = block.current;
    me->state = state;
    const uint3 index = threadIdx;
    if (_setjmp(me->at) == 0) _longjmp(block.scheduler, 1);
    threadIdx = index;
}

void begin()
{
    block.kernel->call(block.kernel->function, block.arguments);
    block.current->state = State::Done;
    _longjmp(block.scheduler, 1);
}

void resume(size_t thread)
{
    Fiber &fiber = block.fibers[thread];
    block.current = &fiber;
    threadIdx = {(unsigned)thread, 0, 0};
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

// Runs the warp whose first thread is `first` until all its lanes wait at a barrier of the block or are done.
void run_warp(size_t first)
{
    const size_t shift = block.order() % 32;
    const bool backwards = block.order() % 2;
    for (;;) {
        for (size_t i = 0; i < 32; i++) {
            const size_t lane = (backwards ? 31 - i : i) ^ shift;
            if (block.fibers[first + lane].state == State::Ready) resume(first + lane);
        }
        size_t waiting = 0;
        for (size_t i = first; i < first + 32; i++) waiting += block.fibers[i].state == State::AtWarpBarrier;
        if (waiting == 0) return;
        if (waiting < 32) fail("lanes of a warp have gone elsewhere before an operation of all");
        for (size_t i = first; i < first + 32; i++) block.fibers[i].state = State::Ready;
    }
}

void run_block()
{
    for (size_t i = 0; i < block.threads; i++) {
        Fiber &fiber = block.fibers[i];
        if (fiber.stack.empty()) fiber.stack.resize(STACK);
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.data();
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, begin, 0);
        fiber.started = false;
        fiber.state = State::Ready;
    }
    const size_t warps = block.threads / 32;
    for (size_t waiting = 1; waiting > 0;) {
        const size_t shift = block.order() % warps;
        for (size_t i = 0; i < warps; i++) run_warp((i + shift) % warps * 32);
        waiting = 0;
        for (size_t i = 0; i < block.threads; i++) {
            Fiber &fiber = block.fibers[i];
            if (fiber.state != State::AtBlockBarrier) continue;
            fiber.state = State::Ready;
            waiting++;
        }
    }
}

} // namespace

void block_barrier() { leave(State::AtBlockBarrier); }
void warp_barrier() { leave(State::AtWarpBarrier); }
unsigned char *shown(unsigned lane) { return block.fibers[threadIdx.x / 32 * 32 + lane].shown; }

} // namespace emulator

// Runs a kernel. Returns 0, or 1 where there is none of this name or blocks are no whole warps.
extern "C" int emulate(const char *name, const unsigned *grid, unsigned threads, unsigned shared_bytes, void **arguments)
{
    using namespace emulator;
    if (threads % 32 != 0) return 1;
    const Registration *kernel = Registration::first;
    while (kernel && strcmp(kernel->name, name) != 0) kernel = kernel->next;
    if (!kernel) return 1;
    block.kernel = kernel;
    block.arguments = arguments;
    block.threads = threads;
    if (block.fibers.size() < threads) block.fibers.resize(threads);
    block.order.seed(threads);
    std::vector<unsigned char> shared(shared_bytes + 16);
    dynamic_shared = shared.data() + (16 - reinterpret_cast<size_t>(shared.data()) % 16) % 16;
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++) {
        for (unsigned y = 0; y < grid[1]; y++) {
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                // What the block before left behind must not help; 0xff are NaNs.
                std::fill(shared.begin(), shared.end(), 0xff);
                run_block();
            }
        }
    }
    return 0;
}

#include "common.cuh"

namespace activation_kernels {
#include "../activation.cu"
}
namespace attention_kernels {
#include "../attention.cu"
}
namespace conv2d_kernels {
#include "../conv2d.cu"
}
namespace gated_gelu_kernels {
#include "../gated_gelu.cu"
}
namespace gated_residual_kernels {
#include "../gated_residual.cu"
}
namespace geglu_kernels {
#include "../geglu.cu"
}
namespace group_norm_kernels {
#include "../group_norm.cu"
}
namespace layer_norm_kernels {
#include "../layer_norm.cu"
}
namespace linear_kernels {
#include "../linear.cu"
}
namespace eight_bit_rows_kernels {
#include "../eight_bit_rows.cu"
}
namespace quantise_kernels {
#include "../quantise.cu"
}
namespace rgb8_kernels {
#include "../rgb8.cu"
}
namespace rms_norm_kernels {
#include "../rms_norm.cu"
}
namespace rope_kernels {
#include "../rope.cu"
}
namespace timestep_embedding_kernels {
#include "../timestep_embedding.cu"
}
namespace upsample_kernels {
#include "../upsample.cu"
}
namespace weighted_sum_kernels {
#include "../weighted_sum.cu"
}

// What shows that the emulator notices mistakes.
namespace mistakes {

__device__ void reverse(const float *x, float *y, int barrier)
{
    __shared__ float shared[64];
    shared[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncthreads();
    y[threadIdx.x] = shared[63 - threadIdx.x];
    if (!barrier) shared[threadIdx.x] = NAN;
}

KERNEL(reverse_64, (const float *x, float *y, int barrier), reverse(x, y, barrier))
KERNEL(write_beside, (const float *x, float *y), y[threadIdx.x + 1] = x[threadIdx.x])

} // namespace mistakes
