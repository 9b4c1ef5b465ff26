// A warp's products of small matrices on the tensor cores, from sm_75 on.
//
// Fragments, for `lane / 4 = g` and `2 * (lane % 4) = p`: of A, 16 x 16, each lane has the pairs (g, p), (g + 8, p),
// (g, p + 8), (g + 8, p + 8); of B, 16 x 8, the rows p, p + 1 and p + 8, p + 9 of column g; of the sum, 16 x 8, row g
// and row g + 8 of columns p, p + 1. Source: "Matrix Fragments for mma.m16n8k16" in NVIDIA's PTX ISA.
#pragma once
#include "common.cuh"

template <typename T> __device__ __forceinline__ uint32_t both(T first, T second)
{
    const Pack<T, 2> pack{first, second};
    return *reinterpret_cast<const uint32_t *>(&pack);
}

#ifdef EMULATED

template <typename T> float element(const uint32_t *parts, int index)
{
    T value;
    memcpy(&value, reinterpret_cast<const T *>(parts) + index, sizeof(T));
    return to_float(value);
}

template <typename T> void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    struct Parts {
        uint32_t a[4], b[2];
    };
    const int g = emulator::lane() / 4, p = emulator::lane() % 4 * 2;
    const Parts mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulator::exchange(mine, [&](auto of) {
        for (int i = 0; i < 4; i++) {
            const int row = g + i / 2 * 8, column = p + i % 2;
            for (int k = 0; k < 16; k++) {
                const Parts &left = of(row % 8 * 4 + k % 8 / 2), &right = of(column * 4 + k % 8 / 2);
                sum[i] += element<T>(&left.a[k / 8 * 2 + row / 8], k % 2) * element<T>(&right.b[k / 8], k % 2);
            }
        }
        return 0;
    });
}

template <bool TRANSPOSED, typename T> void load_eight(uint32_t (&parts)[4], const T *row)
{
    const int g = emulator::lane() / 4, p = emulator::lane() % 4 * 2;
    if (reinterpret_cast<size_t>(row) % 16 != 0) abort();
    emulator::exchange(row, [&](auto of) {
        for (int i = 0; i < 4; i++) {
            const T first = TRANSPOSED ? of(i * 8 + p)[g] : of(i * 8 + g)[p];
            const T second = TRANSPOSED ? of(i * 8 + p + 1)[g] : of(i * 8 + g)[p + 1];
            parts[i] = both(first, second);
        }
        return 0;
    });
}

template <typename T> void load_matrices(uint32_t (&parts)[4], const T *row) { load_eight<false>(parts, row); }
template <typename T> void load_transposed(uint32_t (&parts)[4], const T *row) { load_eight<true>(parts, row); }

#else

// sum += A B
template <typename T>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<f16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // There are no such products before sm_80; the host does not ask for them.
    __trap();
#endif
}

// Four 8x8 matrices of rows in shared memory, aligned to 16 bytes: lane i has the address of row i % 8 of matrix i / 8.
template <typename T> __device__ __forceinline__ void load_matrices(uint32_t (&parts)[4], const T *row)
{
    const uint32_t address = __cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address));
}

// The same, each matrix transposed.
template <typename T> __device__ __forceinline__ void load_transposed(uint32_t (&parts)[4], const T *row)
{
    const uint32_t address = __cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(address));
}

#endif
