// A sum of up to eight tensors with scalar weights, from left to right.
#include "gpu/common.cuh"

constexpr int TERMS = 8;

template <typename T>
__device__ void weighted_sum(const T *const (&terms)[TERMS], const float (&weights)[TERMS], int used, T *sum, Index count)
{
    const Index first = Index(thread_number()) * WIDTH<T>;
    if (first >= count) return;
    const int own = min(Index(WIDTH<T>), count - first);
    float sums[WIDTH<T>] = {};
#pragma unroll
    for (int term = 0; term < TERMS; term++) {
        if (term >= used) break;
        float values[WIDTH<T>];
        load(terms[term] + first, own, values);
        for (int i = 0; i < WIDTH<T>; i++) {
            // Product and sum are rounded each, as in the reference that samplers are compared with.
            const float product = __fmul_rn(weights[term], values[i]);
            sums[i] = term == 0 ? product : __fadd_rn(sums[i], product);
        }
    }
    store(sum + first, own, sums);
}

EACH_TYPE(weighted_sum,
          (const T *a, const T *b, const T *c, const T *d, const T *e, const T *f, const T *g, const T *h,
           float wa, float wb, float wc, float wd, float we, float wf, float wg, float wh, int used, T *sum, Index count),
          ({a, b, c, d, e, f, g, h}, {wa, wb, wc, wd, we, wf, wg, wh}, used, sum, count))
