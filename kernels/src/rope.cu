// RMS normalisation of each head's channels and their rotation, one warp a head of a token.
#include "gpu/common.cuh"

// The tokens of `x` and then those of `also`, each normalised with a weight of its own. `sine` is negative for the
// first of a pair.
template <typename T>
__device__ void rms_norm_rope(const T *x, const float *weight, const T *also, const float *also_weight,
                              const float *cosine, const float *sine, T *y, unsigned all_heads, int tokens,
                              int also_tokens, int heads, int d, float eps)
{
    // A pair never lies in two packs, and 128 channels are one pack a lane.
    constexpr int N = 4;
    const unsigned number = thread_number() / 32;
    const int lane = threadIdx.x % 32;
    if (number >= all_heads) return;
    const int all_tokens = tokens + also_tokens;
    const int token = number / heads % all_tokens, head = number % heads;
    const Index sample = number / heads / all_tokens;
    const bool first = token < tokens;
    const Index row = first ? sample * tokens + token : sample * also_tokens + token - tokens;
    const T *from = (first ? x : also) + (row * heads + head) * d;
    float values[N], squares = 0.0f;
    for (int c = lane * N; c < d; c += 32 * N) {
        load(from + c, d - c, values);
        for (float value : values) squares += value * value;
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / d + eps);
    const float *weights_of = first ? weight : also_weight;
    const Index angles = Index(token) * d;
    for (int c = lane * N; c < d; c += 32 * N) {
        float weights[N], cosines[N], sines[N], turned[N];
        load(from + c, d - c, values);
        load(weights_of + c, d - c, weights);
        load(cosine + angles + c, d - c, cosines);
        load(sine + angles + c, d - c, sines);
        for (int i = 0; i < N; i++) values[i] *= inverse * weights[i];
        for (int i = 0; i < N; i++) turned[i] = values[i] * cosines[i] + values[i ^ 1] * sines[i];
        store(y + Index(number) * d + c, d - c, turned);
    }
}

EACH_TYPE(rms_norm_rope,
          (const T *x, const float *weight, const T *also, const float *also_weight, const float *cosine,
           const float *sine, T *y, unsigned all_heads, int tokens, int also_tokens, int heads, int d, float eps),
          (x, weight, also, also_weight, cosine, sine, y, all_heads, tokens, also_tokens, heads, d, eps))
