// Pointwise activations.
#include "gpu/common.cuh"

template <typename T> __device__ void activation(const T *x, T *y, Index count, int function)
{
    const Index first = Index(thread_number()) * WIDTH<T>;
    if (first >= count) return;
    const int own = min(Index(WIDTH<T>), count - first);
    float values[WIDTH<T>];
    load(x + first, own, values);
    for (float &value : values) value = activate(value, function);
    store(y + first, own, values);
}

EACH_TYPE(activation, (const T *x, T *y, Index count, int function), (x, y, count, function))
