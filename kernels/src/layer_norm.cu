// Layer normalisation of rows, each by one warp: (offset + scale) * norm(x) + shift.
#include "gpu/common.cuh"

// Scale and shift belong to `tokens` rows each: to all of them, or to those of one sample.
template <typename T>
__device__ void layer_norm(const T *x, const float *scale, const float *shift, T *y, unsigned rows, unsigned tokens,
                           int channels, float offset, float eps)
{
    constexpr int N = WIDTH<T>;
    const unsigned row = thread_number() / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T *from = x + Index(row) * channels;
    float values[N];
    // The row is read three times, the last two from the cache.
    float sum = 0.0f;
    for (int c = lane * N; c < channels; c += 32 * N) {
        load(from + c, channels - c, values);
        for (float value : values) sum += value;
    }
    const float mean = warp_sum(sum) / channels;
    float squares = 0.0f;
    for (int c = lane * N; c < channels; c += 32 * N) {
        load(from + c, channels - c, values);
        for (int i = 0; i < N; i++) {
            const float distance = c + i < channels ? values[i] - mean : 0.0f;
            squares += distance * distance;
        }
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / channels + eps);
    const Index own = Index(row / tokens) * channels;
    for (int c = lane * N; c < channels; c += 32 * N) {
        float scales[N], shifts[N];
        load(from + c, channels - c, values);
        load(scale + own + c, channels - c, scales);
        load(shift + own + c, channels - c, shifts);
        for (int i = 0; i < N; i++) values[i] = (values[i] - mean) * inverse * (offset + scales[i]) + shifts[i];
        store(y + Index(row) * channels + c, channels - c, values);
    }
}

EACH_TYPE(layer_norm,
          (const T *x, const float *scale, const float *shift, T *y, unsigned rows, unsigned tokens, int channels,
           float offset, float eps),
          (x, scale, shift, y, rows, tokens, channels, offset, eps))
