// The first half of a row's channels times the GELU of the second.
#include "gpu/common.cuh"

template <typename T> __device__ void geglu(const T *x, T *y, unsigned rows, int channels)
{
    const Piece at = piece_of<WIDTH<T>>(thread_number(), channels);
    if (at.row >= rows) return;
    float values[WIDTH<T>], gates[WIDTH<T>];
    const T *from = x + Index(at.row) * 2 * channels + at.column;
    load(from, at.count, values);
    load(from + channels, at.count, gates);
    for (int i = 0; i < WIDTH<T>; i++) values[i] *= gelu(gates[i]);
    store(y + Index(at.row) * channels + at.column, at.count, values);
}

EACH_TYPE(geglu, (const T *x, T *y, unsigned rows, int channels), (x, y, rows, channels))
