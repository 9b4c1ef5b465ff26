// CUDA's words for a C++ compiler: the emulator that runs our kernels in tests, on machines without a GPU.
//
// Blocks run one after the other. The threads of a block are fibers on one stack each. A warp runs as far as the next
// barrier of the block before the next warp starts, in an order that differs from one barrier to the next, and its lanes
// likewise from one operation of the whole warp to the next: a kernel that leaves out a barrier reads what is not yet
// written.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __shared__ static thread_local
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(emulator::dynamic_shared)
#define REGISTER(name) static const emulator::Registration register_##name(#name, name);

struct uint3 {
    unsigned x, y, z;
};
extern thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return (float)x.value; }
inline __half __float2half_rn(float x) { return {(_Float16)x}; }

struct __nv_bfloat16 {
    uint16_t bits;
};
inline uint32_t __float_as_uint(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x)
{
    const uint32_t bits = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
using std::fmaxf;
using std::fminf;
inline int min(int x, int y) { return x < y ? x : y; }
inline int max(int x, int y) { return x > y ? x : y; }

namespace emulator {

extern thread_local unsigned char *dynamic_shared;

void block_barrier();
void warp_barrier();
// Bytes that a lane shows to the others of its warp.
constexpr size_t SHOWN = 64;
unsigned char *shown(unsigned lane);
inline unsigned lane() { return threadIdx.x % 32; }

// What every lane of the warp showed, as one of them sees it.
template <typename T, typename F> auto exchange(const T &mine, F look)
{
    static_assert(sizeof(T) <= SHOWN, "too large to show");
    memcpy(shown(lane()), &mine, sizeof(T));
    warp_barrier();
    auto result = look([](unsigned lane) -> const T & { return *reinterpret_cast<const T *>(shown(lane)); });
    warp_barrier();
    return result;
}

using Call = void (*)(void *function, void **arguments);

struct Registration {
    const char *name;
    void *function;
    Call call;
    const Registration *next;
    static const Registration *first;

    template <typename... A>
    Registration(const char *name, void (*kernel)(A...))
        : name(name), function(reinterpret_cast<void *>(kernel)), next(first)
    {
        call = [](void *function, void **arguments) {
            unpack(reinterpret_cast<void (*)(A...)>(function), arguments, std::index_sequence_for<A...>());
        };
        first = this;
    }

    template <typename... A, size_t... I>
    static void unpack(void (*kernel)(A...), void **arguments, std::index_sequence<I...>)
    {
        kernel(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
    }
};

} // namespace emulator

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int distance)
{
    return emulator::exchange(value, [&](auto of) { return of(emulator::lane() ^ distance); });
}
