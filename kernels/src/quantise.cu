// Rows in eight bits, each with a scale of its own: one warp a row.
#include "gpu/common.cuh"

// The nearest float of four bits of exponent and three of mantissa, halves to even; |x| is 448 at most.
__device__ __forceinline__ unsigned char e4m3_code(float x)
{
    const unsigned bits = __float_as_uint(x);
    const unsigned sign = bits >> 24 & 0x80;
    const float size = __uint_as_float(bits & 0x7fffffff);
    // Below the smallest normal number, 2^-6, codes count units of 2^-9.
    if (size < 0.015625f) return sign | unsigned(rintf(size * 512.0f));
    const unsigned magnitude = bits & 0x7fffffff;
    const unsigned rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
    return sign | ((rounded >> 20) - (120 << 3));
}

__device__ __forceinline__ unsigned char int8_code(float x)
{
    return static_cast<unsigned char>(static_cast<signed char>(rintf(x)));
}

// The larger one; unlike fmaxf it keeps NaN.
__device__ __forceinline__ float larger(float a, float b) { return a != a || b <= a ? a : b; }

// codes * scale is about x; `largest` is the largest code. A row of zeros has scale 1.
template <typename T, typename F>
__device__ void quantise(const T *x, unsigned char *codes, float *scales, unsigned rows, int channels, float largest, F code)
{
    constexpr int N = WIDTH<T>;
    const unsigned row = thread_number() / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T *from = x + Index(row) * channels;
    float values[N], most = 0.0f;
    for (int c = lane * N; c < channels; c += 32 * N) {
        load(from + c, channels - c, values);
        for (float value : values) most = larger(most, fabsf(value));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        most = larger(most, __shfl_xor_sync(0xffffffffu, most, distance));
    }
    const float scale = most == 0.0f ? 1.0f : most / largest;
    if (lane == 0) scales[row] = scale;
    for (int c = lane * N; c < channels; c += 32 * N) {
        load(from + c, channels - c, values);
        for (int i = 0; i < N; i++) {
            const float value = fminf(fmaxf(values[i] / scale, -largest), largest);
            if (c + i < channels) codes[Index(row) * channels + c + i] = code(value);
        }
    }
}

template <typename T>
__device__ void quantise_e4m3(const T *x, unsigned char *codes, float *scales, unsigned rows, int channels)
{
    quantise(x, codes, scales, rows, channels, 448.0f, [](float x) { return e4m3_code(x); });
}

template <typename T>
__device__ void quantise_int8(const T *x, unsigned char *codes, float *scales, unsigned rows, int channels)
{
    quantise(x, codes, scales, rows, channels, 127.0f, [](float x) { return int8_code(x); });
}

EACH_TYPE(quantise_e4m3, (const T *x, unsigned char *codes, float *scales, unsigned rows, int channels),
          (x, codes, scales, rows, channels))
EACH_TYPE(quantise_int8, (const T *x, unsigned char *codes, float *scales, unsigned rows, int channels),
          (x, codes, scales, rows, channels))
