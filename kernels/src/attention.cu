// Attention that never writes its scores to memory, for head dimensions up to 160; and the softmax of scores that are
// there, for what has others.
#include "gpu/common.cuh"
#include "gpu/warp_matrix.cuh"

// Source: Dao et al. 2022; Milakov and Gimelshein 2018.

constexpr int QUERIES = 64;
constexpr int KEYS = 64;
// Between rows in shared memory, so that eight of them begin in different banks.
constexpr int GAP = 8;

// Copies rows of `d` of `D` channels into shared memory; what is not there is 0.
template <typename T, int D>
__device__ void fetch(const T *from, Index stride, int rows, int d, T (*to)[D + GAP])
{
    constexpr int N = WIDTH<T>;
    for (int i = threadIdx.x; i < KEYS * (D / N); i += blockDim.x) {
        const int row = i / (D / N), c = i % (D / N) * N;
        const int count = row < rows ? min(N, max(d - c, 0)) : 0;
        T *at = &to[row][c];
        if (whole<T, N>(from + row * stride + c, count)) {
            *reinterpret_cast<Pack<T, N> *>(at) = *reinterpret_cast<const Pack<T, N> *>(from + row * stride + c);
        } else {
            for (int j = 0; j < N; j++) at[j] = j < count ? from[row * stride + c + j] : from_float<T>(0.0f);
        }
    }
}

// A block has 64 queries of a head, each of its four warps 16 of them; keys come in tiles of 64. In the fragments a
// thread has rows `own` and `own + 8` of its warp's, and columns `pair` and `pair + 1` of every eight.
template <typename T, int D>
__device__ void attention(const T *q, const T *k, const T *v, const float *bias, T *y, int queries, int keys, int d,
                          float scale, int causal)
{
    constexpr int TILES = KEYS / 8;
    DYNAMIC_SHARED(T, shared);
    T(*key_tile)[D + GAP] = reinterpret_cast<T(*)[D + GAP]>(shared);
    T(*value_tile)[D + GAP] = key_tile + KEYS;

    const int heads = gridDim.y, head = blockIdx.y, sample = blockIdx.z;
    const Index stride = Index(heads) * d;
    const int lane = threadIdx.x % 32, own = lane / 4, pair = lane % 4 * 2;
    const int first_query = blockIdx.x * QUERIES + threadIdx.x / 32 * 16;
    const T *head_keys = k + Index(sample) * keys * stride + head * d;
    const T *head_values = v + Index(sample) * keys * stride + head * d;

    uint32_t query[D / 16][4];
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int part = 0; part < 4; part++) {
            const int row = first_query + own + part % 2 * 8, c = step * 16 + part / 2 * 8 + pair;
            const T *at = q + (Index(sample) * queries + row) * stride + head * d + c;
            const bool here = row < queries;
            query[step][part] = both(here && c < d ? at[0] : from_float<T>(0.0f),
                                     here && c + 1 < d ? at[1] : from_float<T>(0.0f));
        }
    }

    float sum[D / 8][4] = {};
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    const int seen = causal ? min(keys, int(blockIdx.x + 1) * QUERIES) : keys;
    for (int first_key = 0; first_key < seen; first_key += KEYS) {
        // The tile before must have been used by all.
        __syncthreads();
        fetch<T, D>(head_keys + first_key * stride, stride, keys - first_key, d, key_tile);
        fetch<T, D>(head_values + first_key * stride, stride, keys - first_key, d, value_tile);
        __syncthreads();

        float score[TILES][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile += 2) {
                // Four 8x8 matrices: two halves of the step for each of two tiles of keys.
                uint32_t part[4];
                load_matrices(part, &key_tile[tile * 8 + lane / 16 * 8 + lane % 8][step * 16 + lane / 8 % 2 * 8]);
                multiply_add<T>(score[tile], query[step], part[0], part[1]);
                multiply_add<T>(score[tile + 1], query[step], part[2], part[3]);
            }
        }

        float top[2] = {largest[0], largest[1]};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = first_query + own + i / 2 * 8, key = first_key + tile * 8 + pair + i % 2;
                float &s = score[tile][i];
                s *= scale;
                if (bias && row < queries && key < keys) s += bias[(Index(head) * queries + row) * keys + key];
                if (key >= keys || (causal && key > row)) s = -INFINITY;
                top[i / 2] = fmaxf(top[i / 2], s);
            }
        }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Four threads share a row.
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffffu, top[half], 1));
            top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffffu, top[half], 2));
            // Where all scores so far are minus infinity or NaN there is nothing to shrink.
            const float reference = top[half] == -INFINITY ? 0.0f : top[half];
            shrink[half] = expf(largest[half] - reference);
            largest[half] = top[half];
            top[half] = reference;
            total[half] *= shrink[half];
        }
        uint32_t weight[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            float e[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                e[i] = expf(score[tile][i] - top[i / 2]);
                total[i / 2] += e[i];
            }
            weight[tile][0] = both(from_float<T>(e[0]), from_float<T>(e[1]));
            weight[tile][1] = both(from_float<T>(e[2]), from_float<T>(e[3]));
        }
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[c][i] *= shrink[i / 2];
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            const uint32_t weights[4] = {weight[2 * step][0], weight[2 * step][1], weight[2 * step + 1][0],
                                         weight[2 * step + 1][1]};
#pragma unroll
            for (int c = 0; c < D / 8; c += 2) {
                uint32_t part[4];
                load_transposed(part, &value_tile[step * 16 + lane % 16][c * 8 + lane / 16 * 8]);
                multiply_add<T>(sum[c], weights, part[0], part[1]);
                multiply_add<T>(sum[c + 1], weights, part[2], part[3]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        const int row = first_query + own + half * 8;
        if (row >= queries) continue;
        T *to = y + (Index(sample) * queries + row) * stride + head * d;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            const int at = c * 8 + pair;
            if (at < d) to[at] = from_float<T>(sum[c][half * 2] / total[half]);
            if (at + 1 < d) to[at + 1] = from_float<T>(sum[c][half * 2 + 1] / total[half]);
        }
    }
}

#define ATTENTION(D)                                                                                                 \
    template <typename T>                                                                                            \
    __device__ void attention_##D(const T *q, const T *k, const T *v, const float *bias, T *y, int queries,          \
                                  int keys, int d, float scale, int causal)                                          \
    {                                                                                                                \
        attention<T, D>(q, k, v, bias, y, queries, keys, d, scale, causal);                                          \
    }                                                                                                                \
    HALF_TYPES(attention_##D,                                                                                        \
               (const T *q, const T *k, const T *v, const float *bias, T *y, int queries, int keys, int d,           \
                float scale, int causal),                                                                            \
               (q, k, v, bias, y, queries, keys, d, scale, causal))

ATTENTION(48)
ATTENTION(64)
ATTENTION(80)
ATTENTION(128)
ATTENTION(160)

// The softmax of rows of scores, each by one warp: scale * score + bias. Rows are the queries from `first_query` on of
// each head of each sample; bias: (heads, all queries, keys).
template <typename T>
__device__ void softmax(const T *scores, const float *bias, T *weights, unsigned rows, int queries, int first_query,
                        int all_queries, int heads, int keys, float scale, int causal)
{
    constexpr int N = WIDTH<T>;
    const unsigned row = thread_number() / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const int query = first_query + row % queries, head = row / queries % heads;
    const int seen = causal ? min(keys, query + 1) : keys;
    const T *from = scores + Index(row) * keys;
    const float *added = bias ? bias + (Index(head) * all_queries + query) * keys : nullptr;
    const auto read = [&](int c, float(&values)[N]) {
        load(from + c, seen - c, values);
        for (int i = 0; i < N; i++) {
            values[i] = c + i >= seen ? -INFINITY : values[i] * scale + (added ? added[c + i] : 0.0f);
        }
    };
    float values[N], largest = -INFINITY, sum = 0.0f;
    for (int c = lane * N; c < seen; c += 32 * N) {
        read(c, values);
        for (float value : values) largest = fmaxf(largest, value);
    }
    largest = warp_max(largest);
    for (int c = lane * N; c < seen; c += 32 * N) {
        read(c, values);
        for (float value : values) sum += expf(value - largest);
    }
    const float inverse = 1.0f / warp_sum(sum);
    for (int c = lane * N; c < keys; c += 32 * N) {
        read(c, values);
        for (float &value : values) value = expf(value - largest) * inverse;
        store(weights + Index(row) * keys + c, keys - c, values);
    }
}

EACH_TYPE(softmax,
          (const T *scores, const float *bias, T *weights, unsigned rows, int queries, int first_query, int all_queries,
           int heads, int keys, float scale, int causal),
          (scores, bias, weights, rows, queries, first_query, all_queries, heads, keys, scale, causal))
