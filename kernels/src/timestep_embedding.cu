// Sines and cosines of a value times falling frequencies.
#include "gpu/common.cuh"

__device__ void embed(const float *values, float *y, int count, int channels, int cosines_first, float freq_shift)
{
    const int half = channels / 2;
    const int row = thread_number() / half, i = thread_number() % half;
    if (row >= count) return;
    const float exponent = -9.2103404f * i / (half - freq_shift);
    const float angle = values[row] * expf(exponent);
    float *to = y + Index(row) * channels;
    to[cosines_first ? half + i : i] = sinf(angle);
    to[cosines_first ? i : half + i] = cosf(angle);
    if (i == 0 && channels % 2 == 1) to[channels - 1] = 0.0f;
}

KERNEL(timestep_embedding,
       (const float *values, float *y, int count, int channels, int cosines_first, float freq_shift),
       embed(values, y, count, channels, cosines_first, freq_shift))
