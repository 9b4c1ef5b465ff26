// y = gelu(scale * gate) * x
#include "gpu/common.cuh"

template <typename T> __device__ void gated_gelu(const T *gate, const T *x, T *y, Index count, float scale)
{
    const Index first = Index(thread_number()) * WIDTH<T>;
    if (first >= count) return;
    const int own = min(Index(WIDTH<T>), count - first);
    float gates[WIDTH<T>], values[WIDTH<T>];
    load(gate + first, own, gates);
    load(x + first, own, values);
    for (int i = 0; i < WIDTH<T>; i++) values[i] *= gelu_tanh(scale * gates[i]);
    store(y + first, own, values);
}

EACH_TYPE(gated_gelu, (const T *gate, const T *x, T *y, Index count, float scale), (gate, x, y, count, scale))
