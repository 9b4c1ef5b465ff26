// x + gate * y, with a gate of each sample's own.
#include "gpu/common.cuh"

template <typename T>
__device__ void gated_residual(const T *x, const float *gate, const T *y, T *sum, unsigned rows, unsigned tokens, int channels)
{
    const Piece at = piece_of<WIDTH<T>>(thread_number(), channels);
    if (at.row >= rows) return;
    const Index offset = Index(at.row) * channels + at.column;
    float values[WIDTH<T>], added[WIDTH<T>];
    load(x + offset, at.count, values);
    load(y + offset, at.count, added);
    const float *gates = gate + Index(at.row / tokens) * channels + at.column;
    for (int i = 0; i < WIDTH<T>; i++) {
        if (i < at.count) values[i] += gates[i] * added[i];
    }
    store(sum + offset, at.count, values);
}

EACH_TYPE(gated_residual,
          (const T *x, const float *gate, const T *y, T *sum, unsigned rows, unsigned tokens, int channels),
          (x, gate, y, sum, rows, tokens, channels))
