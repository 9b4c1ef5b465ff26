// Group normalisation of channels-last features: statistics of pieces, then of samples, then one pass over the input.
#include "gpu/common.cuh"

// Mean and squared distances from it for each channel of a part of a sample's pixels. A block has `lanes` threads for
// each pack of channels, and leaves its channels' statistics in shared memory, where each group is then summed by a
// warp.
//
// part: (samples, parts, groups, 2): mean and squared distances of groups.
template <typename T>
__device__ void group_norm_gather(const T *x, float *part, int pixels, int part_pixels, int channels, int groups)
{
    constexpr int N = WIDTH<T>;
    DYNAMIC_SHARED(float, shared);
    const int packs = (channels + N - 1) / N;
    const int lanes = max(1, int(blockDim.x) / packs);
    float *means = shared, *squares = shared + lanes * channels;
    const int first = blockIdx.x * part_pixels;
    const int count = min(part_pixels, pixels - first);
    const T *sample = x + Index(blockIdx.y) * pixels * channels;

    for (int work = threadIdx.x; work < lanes * packs; work += blockDim.x) {
        const int lane = work / packs, c = work % packs * N;
        // Distances are taken from the lane's first pixel: where the mean is far larger than the deviation, squares of
        // the values themselves would leave nothing of it.
        float origin[N], sum[N] = {}, square[N] = {};
        int own = 0;
        for (int pixel = lane; pixel < count; pixel += lanes, own++) {
            float values[N];
            load(sample + Index(first + pixel) * channels + c, channels - c, values);
            for (int i = 0; i < N; i++) {
                if (own == 0) origin[i] = values[i];
                const float distance = values[i] - origin[i];
                sum[i] += distance;
                square[i] += distance * distance;
            }
        }
        for (int i = 0; i < N && c + i < channels; i++) {
            const float mean = own == 0 ? 0.0f : sum[i] / own;
            means[lane * channels + c + i] = own == 0 ? 0.0f : origin[i] + mean;
            squares[lane * channels + c + i] = fmaxf(square[i] - sum[i] * mean, 0.0f);
        }
    }
    __syncthreads();

    const int width = channels / groups;
    const int thread = threadIdx.x % 32;
    for (int group = threadIdx.x / 32; group < groups; group += blockDim.x / 32) {
        float sum = 0.0f;
        for (int i = thread; i < lanes * width; i += 32) {
            const int lane = i / width, own = (count - lane + lanes - 1) / lanes;
            sum += own * means[lane * channels + group * width + i % width];
        }
        const float mean = warp_sum(sum) / (float(count) * width);
        float square = 0.0f;
        for (int i = thread; i < lanes * width; i += 32) {
            const int lane = i / width, own = (count - lane + lanes - 1) / lanes;
            const int at = lane * channels + group * width + i % width;
            const float distance = means[at] - mean;
            square += squares[at] + own * distance * distance;
        }
        square = warp_sum(square);
        if (thread == 0) {
            float *to = part + ((Index(blockIdx.y) * gridDim.x + blockIdx.x) * groups + group) * 2;
            to[0] = mean;
            to[1] = square;
        }
    }
}

// What is taken from each channel of a sample, and what it is then multiplied by; one warp a group.
//
// means, scales: (samples, channels)
__device__ void fold(const float *part, const float *weight, float *means, float *scales, int pixels, int part_pixels,
                     int parts, int channels, int groups, float eps)
{
    const int group = blockIdx.x, lane = threadIdx.x;
    const int width = channels / groups;
    const float *from = part + (Index(blockIdx.y) * parts * groups + group) * 2;
    float sum = 0.0f;
    for (int i = lane; i < parts; i += 32) {
        sum += float(min(part_pixels, pixels - i * part_pixels)) * from[Index(i) * groups * 2];
    }
    const float mean = warp_sum(sum) / pixels;
    float square = 0.0f;
    for (int i = lane; i < parts; i += 32) {
        const float count = float(min(part_pixels, pixels - i * part_pixels)) * width;
        const float distance = from[Index(i) * groups * 2] - mean;
        square += from[Index(i) * groups * 2 + 1] + count * distance * distance;
    }
    const float inverse = 1.0f / sqrtf(warp_sum(square) / (float(pixels) * width) + eps);
    for (int c = group * width + lane; c < (group + 1) * width; c += 32) {
        means[Index(blockIdx.y) * channels + c] = mean;
        scales[Index(blockIdx.y) * channels + c] = weight[c] * inverse;
    }
}

template <typename T>
__device__ void group_norm_apply(const T *x, const float *means, const float *scales, const float *bias, T *y, unsigned rows,
                      unsigned pixels, int channels, int function)
{
    constexpr int N = WIDTH<T>;
    const Piece at = piece_of<N>(thread_number(), channels);
    if (at.row >= rows) return;
    const Index offset = Index(at.row) * channels + at.column;
    const Index own = Index(at.row / pixels) * channels + at.column;
    float values[N], mean[N], scale[N], shift[N];
    load(x + offset, at.count, values);
    load(means + own, at.count, mean);
    load(scales + own, at.count, scale);
    load(bias + at.column, at.count, shift);
    for (int i = 0; i < N; i++) values[i] = activate((values[i] - mean[i]) * scale[i] + shift[i], function);
    store(y + offset, at.count, values);
}

EACH_TYPE(group_norm_gather, (const T *x, float *part, int pixels, int part_pixels, int channels, int groups),
          (x, part, pixels, part_pixels, channels, groups))
KERNEL(group_norm_fold,
       (const float *part, const float *weight, float *means, float *scales, int pixels, int part_pixels, int parts,
        int channels, int groups, float eps),
       fold(part, weight, means, scales, pixels, part_pixels, parts, channels, groups, eps))
EACH_TYPE(group_norm_apply,
          (const T *x, const float *means, const float *scales, const float *bias, T *y, unsigned rows, unsigned pixels,
           int channels, int function),
          (x, means, scales, bias, y, rows, pixels, channels, function))
