// Root-mean-square normalisation of rows, each by one warp.
#include "gpu/common.cuh"

template <typename T>
__device__ void rms_norm(const T *x, const float *weight, T *y, unsigned rows, int channels, float eps)
{
    constexpr int N = WIDTH<T>;
    const unsigned row = thread_number() / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T *from = x + Index(row) * channels;
    float values[N], squares = 0.0f;
    for (int c = lane * N; c < channels; c += 32 * N) {
        load(from + c, channels - c, values);
        for (float value : values) squares += value * value;
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / channels + eps);
    for (int c = lane * N; c < channels; c += 32 * N) {
        float weights[N];
        load(from + c, channels - c, values);
        load(weight + c, channels - c, weights);
        for (int i = 0; i < N; i++) values[i] *= inverse * weights[i];
        store(y + Index(row) * channels + c, channels - c, values);
    }
}

EACH_TYPE(rms_norm, (const T *x, const float *weight, T *y, unsigned rows, int channels, float eps),
          (x, weight, y, rows, channels, eps))
