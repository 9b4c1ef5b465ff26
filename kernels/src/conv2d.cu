// The pixels under a filter's taps as rows of a matrix, channels last.
#include "gpu/common.cuh"

// Rows `first_row` to `first_row + rows` of all output pixels; a row has the taps' pixels one after the other.
template <typename T>
__device__ void unfold(const T *x, T *columns, unsigned first_row, unsigned rows, int height, int width, int channels,
                       int out_height, int out_width, int kernel_height, int kernel_width, int stride, int top, int left)
{
    constexpr int N = WIDTH<T>;
    const int taps = kernel_height * kernel_width;
    const Piece at = piece_of<N>(thread_number(), channels);
    const unsigned row = at.row / taps;
    const int tap = at.row % taps;
    if (row >= rows) return;
    const unsigned pixel = first_row + row;
    const unsigned sample = pixel / out_width / out_height;
    const int from_y = int(pixel / out_width % out_height) * stride + tap / kernel_width - top;
    const int from_x = int(pixel % out_width) * stride + tap % kernel_width - left;
    float values[N] = {};
    if (from_y >= 0 && from_y < height && from_x >= 0 && from_x < width) {
        load(x + ((Index(sample) * height + from_y) * width + from_x) * channels + at.column, at.count, values);
    }
    store(columns + Index(at.row) * channels + at.column, at.count, values);
}

EACH_TYPE(unfold,
          (const T *x, T *columns, unsigned first_row, unsigned rows, int height, int width, int channels, int out_height,
           int out_width, int kernel_height, int kernel_width, int stride, int top, int left),
          (x, columns, first_row, rows, height, width, channels, out_height, out_width, kernel_height, kernel_width,
           stride, top, left))
