// What follows a product: activation(x + bias + per_sample) + residual. What is not there is null.
#include "gpu/common.cuh"

template <typename T>
__device__ void epilogue(const T *x, const float *bias, const T *per_sample, const T *residual, T *y, unsigned rows,
                         unsigned sample_rows, int channels, int function)
{
    constexpr int N = WIDTH<T>;
    const Piece at = piece_of<N>(thread_number(), channels);
    if (at.row >= rows) return;
    const Index offset = Index(at.row) * channels + at.column;
    float values[N], added[N];
    load(x + offset, at.count, values);
    if (bias) {
        load(bias + at.column, at.count, added);
        for (int i = 0; i < N; i++) values[i] += added[i];
    }
    if (per_sample) {
        load(per_sample + Index(at.row / sample_rows) * channels + at.column, at.count, added);
        for (int i = 0; i < N; i++) values[i] += added[i];
    }
    for (float &value : values) value = activate(value, function);
    if (residual) {
        load(residual + offset, at.count, added);
        for (int i = 0; i < N; i++) values[i] += added[i];
    }
    store(y + offset, at.count, values);
}

EACH_TYPE(epilogue,
          (const T *x, const float *bias, const T *per_sample, const T *residual, T *y, unsigned rows,
           unsigned sample_rows, int channels, int function),
          (x, bias, per_sample, residual, y, rows, sample_rows, channels, function))
