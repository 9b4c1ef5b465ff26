// Nearest-neighbour resizing of channels-last features.
#include "gpu/common.cuh"

template <typename T>
__device__ void upsample(const T *x, T *y, unsigned pixels, int height, int width, int to_height, int to_width, int channels)
{
    const Piece at = piece_of<WIDTH<T>>(thread_number(), channels);
    if (at.row >= pixels) return;
    const unsigned column = at.row % to_width, line = at.row / to_width;
    const unsigned sample = line / to_height;
    const unsigned from_line = sample * height + Index(line % to_height) * height / to_height;
    const unsigned from_column = Index(column) * width / to_width;
    float values[WIDTH<T>];
    load(x + (Index(from_line) * width + from_column) * channels + at.column, at.count, values);
    store(y + Index(at.row) * channels + at.column, at.count, values);
}

EACH_TYPE(upsample,
          (const T *x, T *y, unsigned pixels, int height, int width, int to_height, int to_width, int channels),
          (x, y, pixels, height, width, to_height, to_width, channels))
