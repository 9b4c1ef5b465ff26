//! The vector registers that the matrix kernels are written on, one implementation an instruction set.
#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "every function is one or two intrinsics under its trait's contract"
)]

/// A register of `LANES` floats.
///
/// # Safety
/// Every function may run only on a machine that has the instruction set. Pointers must be valid for as many floats
/// as the name of the function says; none needs to be aligned.
pub(super) trait Simd {
    /// The register.
    type V: Copy;
    /// Floats in a register.
    const LANES: usize;
    /// All lanes 0.
    unsafe fn zero() -> Self::V;
    /// All lanes `*p`.
    unsafe fn splat(p: *const f32) -> Self::V;
    /// `LANES` floats.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores `LANES` floats.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n <= LANES` floats, 0 in the other lanes.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n <= LANES` floats.
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize);
    /// `a + b`
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the machine can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

/// Eight lanes in plain Rust, for machines without an own implementation.
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn splat(p: *const f32) -> Self::V {
        [*p; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        p.cast::<[f32; 8]>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        p.cast::<[f32; 8]>().write_unaligned(v);
    }

    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 8];
        std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
        v
    }

    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        std::ptr::copy_nonoverlapping(v.as_ptr(), p, n);
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Two roundings: a fused multiply-add in software would be a hundred times slower.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// AVX2 with FMA.
    pub(in crate::cpu) struct Avx2;

    impl Avx2 {
        #[inline(always)]
        unsafe fn mask(n: usize) -> __m256i {
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
        }
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self::V {
            _mm256_setzero_ps()
        }

        #[inline(always)]
        unsafe fn splat(p: *const f32) -> Self::V {
            _mm256_set1_ps(*p)
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            _mm256_loadu_ps(p)
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            _mm256_storeu_ps(p, v);
        }

        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
            _mm256_maskload_ps(p, Self::mask(n))
        }

        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
            _mm256_maskstore_ps(p, Self::mask(n), v);
        }

        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            _mm256_add_ps(a, b)
        }

        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            _mm256_fmadd_ps(a, b, c)
        }
    }

    /// AVX-512F.
    pub(in crate::cpu) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self::V {
            _mm512_setzero_ps()
        }

        #[inline(always)]
        unsafe fn splat(p: *const f32) -> Self::V {
            _mm512_set1_ps(*p)
        }

        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            _mm512_loadu_ps(p)
        }

        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            _mm512_storeu_ps(p, v);
        }

        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
            _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p)
        }

        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
            _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v);
        }

        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            _mm512_add_ps(a, b)
        }

        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            _mm512_fmadd_ps(a, b, c)
        }
    }
}
