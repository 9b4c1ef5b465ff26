// -1..1 as bytes, rounded to even as numpy does.
#include "gpu/common.cuh"

template <typename T> __device__ void rgb8(const T *x, unsigned char *bytes, Index count)
{
    const Index first = Index(thread_number()) * WIDTH<T>;
    if (first >= count) return;
    const int own = min(Index(WIDTH<T>), count - first);
    float values[WIDTH<T>];
    load(x + first, own, values);
    for (int i = 0; i < own; i++) {
        bytes[first + i] = rintf(fminf(fmaxf(values[i] / 2.0f + 0.5f, 0.0f), 1.0f) * 255.0f);
    }
}

EACH_TYPE(rgb8, (const T *x, unsigned char *bytes, Index count), (x, bytes, count))
