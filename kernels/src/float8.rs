//! Floats of eight bits, as checkpoints store them (OCP 8-bit Floating Point Specification, 2023).

use half::f16;

/// A float with four bits of exponent and three of mantissa: no infinity, and NaN only where all of them are set.
#[inline(always)]
pub(crate) fn e4m3(byte: u8) -> f32 {
    let sign = (u32::from(byte) & 0x80) << 24;
    let magnitude = u32::from(byte) & 0x7f;
    let normal = (magnitude << 20) + (120 << 23);
    // Below the smallest normal number, 2^-6, it counts units of 2^-9. Signed integers convert in one instruction.
    let small = (magnitude as i32 as f32 * (1.0 / 512.0)).to_bits();
    let bits = if magnitude < 8 { small } else { normal };
    let bits = if magnitude == 0x7f { 0x7fc0_0000 } else { bits };
    f32::from_bits(bits | sign)
}

/// [`e4m3`] of the lower eight bytes, with the registers of AVX2.
///
/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn e4m3_eight(bytes: std::arch::x86_64::__m128i) -> std::arch::x86_64::__m256 {
    use std::arch::x86_64::*;
    // SAFETY: the caller's contract.
    unsafe {
        let wide = _mm256_cvtepu8_epi32(bytes);
        let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(wide, _mm256_set1_epi32(0x80)));
        let magnitude = _mm256_and_si256(wide, _mm256_set1_epi32(0x7f));
        let normal = _mm256_add_epi32(_mm256_slli_epi32::<20>(magnitude), _mm256_set1_epi32(120 << 23));
        let small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(1.0 / 512.0));
        let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
        let bits = _mm256_blendv_epi8(normal, _mm256_castps_si256(small), is_small);
        let is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
        let bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc0_0000), is_nan);
        _mm256_castsi256_ps(_mm256_or_si256(bits, sign))
    }
}

/// The largest number that [`e4m3`] gives.
pub(crate) const LARGEST_E4M3: f32 = 448.0;

/// The nearest float with four bits of exponent and three of mantissa, halves to even; what is larger than all of them
/// is the largest.
#[inline(always)]
pub(crate) fn nearest_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let size = x.abs();
    if size.is_nan() {
        return sign | 0x7f;
    }
    let size = size.min(LARGEST_E4M3);
    // Below the smallest normal number, 2^-6, codes count units of 2^-9.
    if size < 1.0 / 64.0 {
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    let bits = size.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// A float with five bits of exponent and two of mantissa: the upper half of an f16.
#[inline(always)]
pub(crate) fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite number comes back, and what lies between goes to the nearest.
    #[test]
    fn numbers_go_to_the_nearest_code() {
        for code in 0..0x7eu8 {
            let (low, high) = (e4m3(code), e4m3(code + 1));
            assert_eq!((nearest_e4m3(low), nearest_e4m3(-low)), (code, 0x80 | code));
            let even = code + code % 2;
            assert_eq!(nearest_e4m3((low + high) / 2.0), even, "between {low} and {high}");
            assert_eq!(nearest_e4m3(low + (high - low) * 0.49), code);
            assert_eq!(nearest_e4m3(low + (high - low) * 0.51), code + 1);
        }
        assert_eq!((nearest_e4m3(448.0), nearest_e4m3(1e9), nearest_e4m3(-1e9)), (0x7e, 0x7e, 0xfe));
        assert!(e4m3(nearest_e4m3(f32::NAN)).is_nan());
    }

    /// Sign, exponent and mantissa by the formula of the specification, in f64.
    fn value(byte: u8, exponent_bits: i32) -> f64 {
        let mantissa_bits = 7 - exponent_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let (exponent, mantissa) =
            (i32::from(byte & 0x7f) >> mantissa_bits, i32::from(byte) & ((1 << mantissa_bits) - 1));
        let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
        };
        if byte & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_byte_is_the_formula() {
        for byte in 0..=255u8 {
            let e4m3 = e4m3(byte);
            if byte & 0x7f == 0x7f {
                assert!(e4m3.is_nan(), "{byte:#x}");
            } else {
                assert_eq!(f64::from(e4m3), value(byte, 4), "{byte:#x}");
                assert_eq!(e4m3.is_sign_negative(), byte >= 0x80, "{byte:#x}");
            }
            match byte & 0x7f {
                0x7c => assert_eq!(e5m2(byte).abs(), f32::INFINITY),
                0x7d..=0x7f => assert!(e5m2(byte).is_nan()),
                _ => assert_eq!(f64::from(e5m2(byte)), value(byte, 5), "{byte:#x}"),
            }
        }
    }
}
