//! Rows of a weight turned into panels of 16 columns in f32, a stretch at a time, while they are multiplied with.
//!
//! A file has a weight row after row; the matrix kernels want the same step of 16 rows side by side. What is turned at a
//! time stays in the first-level cache while all rows of a piece of work are multiplied with it, so that turning costs
//! a few hundredths of the product, and a weight can stay where it is: in its file, mapped.

use half::{bf16, f16};

use super::by_level;
use super::tile::PANEL;
use crate::float8;

/// Sixteen columns of one step of the sum, on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; PANEL]);

/// What a row consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
    I8,
}

impl Element {
    /// Bytes of one.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 => 1,
        }
    }
}

by_level! {
    /// Turns the same stretch of 16 rows: element `i` of each becomes a line of `to`.
    ///
    /// The rows hold `to.len()` elements. In filters those of one channel, one a part, stand together; in `to` the
    /// channels of one part do. What follows each row is what will be turned next of it.
    pub(super) fn turn(element: Element, rows: &[&[u8]; PANEL], parts: usize, to: &mut [Line]) = turn_body;
}

#[inline(always)]
fn turn_body<const FUSED: bool>(element: Element, rows: &[&[u8]; PANEL], parts: usize, to: &mut [Line]) {
    match element {
        Element::F32 => turn_as::<F32, FUSED>(rows, parts, to),
        Element::F16 => turn_as::<F16, FUSED>(rows, parts, to),
        Element::Bf16 => turn_as::<Bf16, FUSED>(rows, parts, to),
        Element::F8E4M3 => turn_as::<F8E4M3, FUSED>(rows, parts, to),
        Element::F8E5M2 => turn_as::<F8E5M2, FUSED>(rows, parts, to),
        Element::I8 => turn_as::<I8, FUSED>(rows, parts, to),
    }
}

#[inline(always)]
fn turn_as<T: Stored, const FUSED: bool>(rows: &[&[u8]; PANEL], parts: usize, to: &mut [Line]) {
    let (steps, channels) = (to.len(), to.len() / parts);
    let (mut channel, mut part) = (0, 0);
    let mut next_step = || {
        let step = part * channels + channel;
        part += 1;
        if part == parts {
            (channel, part) = (channel + 1, 0);
        }
        step
    };
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if FUSED {
        assert!(rows.iter().all(|row| row.len() == steps * T::BYTES));
        while done + 8 <= steps {
            let eight: [usize; 8] = std::array::from_fn(|_| next_step());
            if done * T::BYTES % 64 < 8 * T::BYTES {
                // A stretch of a row is too short for the processor to see it coming.
                for row in rows {
                    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                    let next = row.as_ptr().wrapping_add(done * T::BYTES + row.len());
                    // SAFETY: any address may be prefetched.
                    unsafe { _mm_prefetch::<_MM_HINT_T1>(next.cast()) };
                }
            }
            // SAFETY: the rows have eight elements more, every step is below their count, and the levels with a fused
            // multiply-add have AVX2 and F16C.
            unsafe { turn_eight::<T>(rows, done * T::BYTES, eight, to) };
            done += 8;
        }
    }
    for i in done..steps {
        let step = next_step();
        to[step] = Line(std::array::from_fn(|lane| T::wide(&rows[lane][i * T::BYTES..])));
    }
}

/// Turns eight elements of each row.
///
/// # Safety
/// From `at` on every row must hold eight elements; `steps` must lie in `to`; the machine must have AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn turn_eight<T: Stored>(rows: &[&[u8]; PANEL], at: usize, steps: [usize; 8], to: &mut [Line]) {
    use std::arch::x86_64::*;
    for (half, rows) in rows.chunks_exact(8).enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            let r: [__m256; 8] = std::array::from_fn(|i| T::wide_eight(rows[i].as_ptr().add(at)));
            // Pairs of rows, then fours, then the halves of eight.
            let pairs: [__m256; 8] = std::array::from_fn(|i| {
                let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
                if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
            });
            let fours: [__m256; 8] = std::array::from_fn(|i| {
                let (a, b) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
                if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xee>(a, b) }
            });
            for (i, step) in steps.into_iter().enumerate() {
                let (a, b) = (fours[i % 4], fours[i % 4 + 4]);
                let column = if i < 4 {
                    _mm256_permute2f128_ps::<0x20>(a, b)
                } else {
                    _mm256_permute2f128_ps::<0x31>(a, b)
                };
                _mm256_storeu_ps(to.as_mut_ptr().add(step).cast::<f32>().add(8 * half), column);
            }
        }
    }
}

/// An element as it is stored, little-endian.
trait Stored {
    const BYTES: usize;

    /// The first of some elements.
    fn wide(bytes: &[u8]) -> f32;

    /// The first eight.
    ///
    /// # Safety
    /// There must be as many; the machine must have AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256;
}

#[inline(always)]
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

struct F32;

impl Stored for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn wide(bytes: &[u8]) -> f32 {
        f32::from_le_bytes(first(bytes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's contract.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(bytes.cast()) }
    }
}

struct F16;

impl Stored for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn wide(bytes: &[u8]) -> f32 {
        f16::from_le_bytes(first(bytes)).to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.cast())) }
    }
}

struct Bf16;

impl Stored for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn wide(bytes: &[u8]) -> f32 {
        bf16::from_le_bytes(first(bytes)).to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's contract.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

struct F8E4M3;

impl Stored for F8E4M3 {
    const BYTES: usize = 1;

    #[inline(always)]
    fn wide(bytes: &[u8]) -> f32 {
        float8::e4m3(first::<1>(bytes)[0])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's contract.
        unsafe { float8::e4m3_eight(std::arch::x86_64::_mm_loadl_epi64(bytes.cast())) }
    }
}

struct F8E5M2;

impl Stored for F8E5M2 {
    const BYTES: usize = 1;

    #[inline(always)]
    fn wide(bytes: &[u8]) -> f32 {
        float8::e5m2(first::<1>(bytes)[0])
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's contract.
        unsafe {
            let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(bytes.cast()));
            _mm256_cvtph_ps(_mm_slli_epi16::<8>(wide))
        }
    }
}

struct I8;

impl Stored for I8 {
    const BYTES: usize = 1;

    #[inline(always)]
    fn wide(bytes: &[u8]) -> f32 {
        f32::from(i8::from_le_bytes(first(bytes)))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn wide_eight(bytes: *const u8) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's contract.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes.cast()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    /// Every pattern of bits of a type, or of f32 many, in every step of eight and in a rest.
    #[test]
    fn every_element_widens_at_its_place() {
        use Element::*;
        for element in [F32, F16, Bf16, F8E4M3, F8E5M2, I8] {
            let wide = |bytes: &[u8]| match element {
                Element::F32 => f32::from_le_bytes(first(bytes)),
                Element::F16 => f16::from_le_bytes(first(bytes)).to_f32(),
                Element::Bf16 => bf16::from_le_bytes(first(bytes)).to_f32(),
                Element::F8E4M3 => float8::e4m3(bytes[0]),
                Element::F8E5M2 => float8::e5m2(bytes[0]),
                Element::I8 => f32::from(bytes[0] as i8),
            };
            for (parts, channels) in [(1, 4096), (1, 7), (9, 40), (9, 3), (4, 11), (25, 1)] {
                let steps = parts * channels;
                let bytes: Vec<u8> = match element.bytes() {
                    4 => (0..PANEL * steps).flat_map(|i| ((i as f32).sin()).to_le_bytes()).collect(),
                    2 => (0..PANEL * steps).flat_map(|i| (i as u16).to_le_bytes()).collect(),
                    _ => (0..PANEL * steps).map(|i| i as u8).collect(),
                };
                let rows: [&[u8]; PANEL] = std::array::from_fn(|lane| {
                    &bytes[lane * steps * element.bytes()..][..steps * element.bytes()]
                });
                for level in Level::available() {
                    let mut to = vec![Line([f32::NAN; PANEL]); steps];
                    turn(level, element, &rows, parts, &mut to);
                    for part in 0..parts {
                        for channel in 0..channels {
                            for (lane, row) in rows.iter().enumerate() {
                                let expected = wide(&row[(channel * parts + part) * element.bytes()..]);
                                let value = to[part * channels + channel].0[lane];
                                let same = value.to_bits() == expected.to_bits()
                                    || value.is_nan() && expected.is_nan();
                                assert!(same, "{level:?} {element:?}: {value} instead of {expected}");
                            }
                        }
                    }
                }
            }
        }
    }
}
