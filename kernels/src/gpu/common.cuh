// What the kernels share: the types of activations, packs of 16 bytes, sums over a warp, pointwise functions.
//
// Activations are f16, bf16 or f32 and all arithmetic is f32. The same sources are compiled for GPUs by nvcc, and by a
// C++ compiler for the emulator that tests run them on.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define REGISTER(name)
#define DYNAMIC_SHARED(T, name)                                  \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    T *name = reinterpret_cast<T *>(shared_bytes)
#endif

using f16 = __half;
using bf16 = __nv_bfloat16;
// Offsets into tensors, which may have more than 2^31 elements.
using Index = long long;

// A kernel under its own name, and templates of kernels as name_f32, name_f16, name_bf16. `T` in the parameters is the
// type. No kernel has more than 256 threads a block.
#define KERNEL(name, parameters, call)                                   \
    extern "C" __global__ void __launch_bounds__(256) name parameters { call; } \
    REGISTER(name)
#define HALF_TYPES(name, parameters, arguments)                                                                     \
    namespace as_f16 { using T = f16; KERNEL(name##_f16, parameters, name<T> arguments) }                          \
    namespace as_bf16 { using T = bf16; KERNEL(name##_bf16, parameters, name<T> arguments) }
#define EACH_TYPE(name, parameters, arguments)                                                                      \
    namespace as_f32 { using T = float; KERNEL(name##_f32, parameters, name<T> arguments) }                        \
    HALF_TYPES(name, parameters, arguments)

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ f16 from_float<f16>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// Elements that one thread reads at once.
template <typename T> constexpr int WIDTH = 16 / sizeof(T);

template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

// Whether N elements lie at `at` and may be read at once.
template <typename T, int N> __device__ __forceinline__ bool whole(const T *at, int count)
{
    return count >= N && reinterpret_cast<size_t>(at) % sizeof(Pack<T, N>) == 0;
}

// Reads `count` elements, at most N; zeros follow them.
template <typename T, int N> __device__ __forceinline__ void load(const T *from, int count, float (&to)[N])
{
    if (whole<T, N>(from, count)) {
        const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N> *>(from);
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = to_float(pack.values[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = i < count ? to_float(from[i]) : 0.0f;
    }
}

// Writes the first `count` of N elements.
template <typename T, int N> __device__ __forceinline__ void store(T *to, int count, const float (&from)[N])
{
    if (whole<T, N>(to, count)) {
        Pack<T, N> pack;
#pragma unroll
        for (int i = 0; i < N; i++) pack.values[i] = from_float<T>(from[i]);
        *reinterpret_cast<Pack<T, N> *>(to) = pack;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i < count) to[i] = from_float<T>(from[i]);
        }
    }
}

// This thread's number among all of a one-dimensional grid.
__device__ __forceinline__ unsigned thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

// A row-major matrix's pack of columns that belongs to this thread.
struct Piece {
    unsigned row;
    int column;
    int count;
};

template <int N> __device__ __forceinline__ Piece piece_of(unsigned number, int columns)
{
    const unsigned packs = (columns + N - 1) / N;
    const int column = number % packs * N;
    return {number / packs, column, columns - column < N ? columns - column : N};
}

__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
__device__ __forceinline__ float gelu_tanh(float x)
{
    return 0.5f * x * (1.0f + tanhf(0.79788456f * x * (1.0f + 0.044715f * x * x)));
}

// The numbers of `Activation` in activation.rs.
__device__ __forceinline__ float activate(float x, int function)
{
    switch (function) {
    case 1: return silu(x);
    case 2: return gelu(x);
    case 3: return gelu_tanh(x);
    case 4: return x / (1.0f + expf(-1.702f * x));
    // Not fmaxf, which would turn NaN into 0.
    case 5: return x < 0.0f ? 0.0f : x;
    default: return x;
    }
}
