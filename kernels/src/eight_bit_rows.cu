// Sums of eight-bit codes: activation(row_scale * column_scale * sum + bias) + residual. What is not there is null.
#include "gpu/common.cuh"

template <typename S, typename T>
__device__ void scale_sums(const S *sums, const float *row_scales, const float *column_scales, const float *bias,
                           const T *residual, T *y, unsigned rows, int channels, int function)
{
    constexpr int N = WIDTH<T>;
    const Piece at = piece_of<N>(thread_number(), channels);
    if (at.row >= rows) return;
    const Index offset = Index(at.row) * channels + at.column;
    const float row_scale = row_scales[at.row];
    float values[N], other[N];
    for (int i = 0; i < N; i++) values[i] = i < at.count ? static_cast<float>(sums[offset + i]) : 0.0f;
    load(column_scales + at.column, at.count, other);
    for (int i = 0; i < N; i++) values[i] *= row_scale * other[i];
    if (bias) {
        load(bias + at.column, at.count, other);
        for (int i = 0; i < N; i++) values[i] += other[i];
    }
    for (float &value : values) value = activate(value, function);
    if (residual) {
        load(residual + offset, at.count, other);
        for (int i = 0; i < N; i++) values[i] += other[i];
    }
    store(y + offset, at.count, values);
}

template <typename T>
__device__ void scale_whole(const int *sums, const float *row_scales, const float *column_scales, const float *bias,
                            const T *residual, T *y, unsigned rows, int channels, int function)
{
    scale_sums(sums, row_scales, column_scales, bias, residual, y, rows, channels, function);
}

template <typename T>
__device__ void scale_float(const float *sums, const float *row_scales, const float *column_scales, const float *bias,
                            const T *residual, T *y, unsigned rows, int channels, int function)
{
    scale_sums(sums, row_scales, column_scales, bias, residual, y, rows, channels, function);
}

EACH_TYPE(scale_whole,
          (const int *sums, const float *row_scales, const float *column_scales, const float *bias, const T *residual,
           T *y, unsigned rows, int channels, int function),
          (sums, row_scales, column_scales, bias, residual, y, rows, channels, function))
EACH_TYPE(scale_float,
          (const float *sums, const float *row_scales, const float *column_scales, const float *bias,
           const T *residual, T *y, unsigned rows, int channels, int function),
          (sums, row_scales, column_scales, bias, residual, y, rows, channels, function))
