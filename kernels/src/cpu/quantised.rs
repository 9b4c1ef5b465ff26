//! Weights of a block format in panels of 16 columns, decoded while they are read.
//!
//! The blocks of the 16 columns of a panel are interleaved: scales, then codes, each as 16 lanes. Decoding one step of
//! the sum is then one vector operation after the other, with nothing to be transposed. Codes keep their bits; the
//! scales of sub-blocks, six bits or four in a file, take eight.

use half::f16;
use rayon::prelude::*;

use super::by_level;
use super::panels::Line;
use super::tile::PANEL;
use crate::EncodedWeight;
use crate::ggml_block::{Block, Shape};

/// Where the parts of an interleaved block stand.
#[derive(Clone, Copy, Debug)]
struct Layout {
    shape: Shape,
    mins: usize,
    sub_scales: usize,
    sub_mins: usize,
    low: usize,
    high: usize,
    bytes: usize,
}

impl Layout {
    fn new(shape: Shape) -> Self {
        let halves = PANEL * size_of::<f16>();
        let mins = halves;
        let sub_scales = mins + if shape.mins { halves } else { 0 };
        let subs = if shape.sub_scales { PANEL * shape.len / shape.sub } else { 0 };
        let sub_mins = sub_scales + subs;
        let low = sub_mins + if shape.mins { subs } else { 0 };
        let high = low + PANEL * shape.len * shape.low_bits / 8;
        let bytes = high + PANEL * shape.len * (shape.bits - shape.low_bits) / 8;
        Self { shape, mins, sub_scales, sub_mins, low, high, bytes }
    }
}

/// A quantised weight.
#[derive(Debug)]
pub(super) struct QuantisedPanels {
    layout: Layout,
    bytes: Vec<u8>,
    blocks: usize,
}

impl QuantisedPanels {
    /// `None` for the formats without blocks.
    pub(super) fn new(weight: &EncodedWeight) -> Option<Self> {
        let layout = Layout::new(Shape::of(weight.format)?);
        let shape = layout.shape;
        let blocks = weight.columns / shape.len;
        let mut bytes = vec![0u8; weight.rows.div_ceil(PANEL) * blocks * layout.bytes];
        bytes.par_chunks_mut(blocks * layout.bytes).enumerate().for_each(|(panel, panel_bytes)| {
            let mut block = Block::new();
            for (lane, row) in (panel * PANEL..weight.rows.min((panel + 1) * PANEL)).enumerate() {
                let from = &weight.bytes[row * blocks * shape.bytes..][..blocks * shape.bytes];
                let to = panel_bytes.chunks_exact_mut(layout.bytes);
                for (from, to) in from.chunks_exact(shape.bytes).zip(to) {
                    block.read(weight.format, from);
                    interleave(&layout, &block, lane, to);
                }
            }
        });
        Some(Self { layout, bytes, blocks })
    }

    /// Decodes the steps from `from` on of a panel.
    pub(super) fn decode(&self, level: super::Level, panel: usize, from: usize, to: &mut [Line]) {
        let panel_bytes = self.blocks * self.layout.bytes;
        decode(level, &self.layout, &self.bytes[panel * panel_bytes..][..panel_bytes], from, to);
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a column's block to its lane of an interleaved one.
fn interleave(layout: &Layout, block: &Block, lane: usize, to: &mut [u8]) {
    let shape = &layout.shape;
    to[2 * lane..][..2].copy_from_slice(&block.scale.to_le_bytes());
    if shape.mins {
        to[layout.mins + 2 * lane..][..2].copy_from_slice(&block.min.to_le_bytes());
    }
    if shape.sub_scales {
        for j in 0..shape.len / shape.sub {
            to[layout.sub_scales + j * PANEL + lane] = block.sub_scales[j].cast_unsigned();
            if shape.mins {
                to[layout.sub_mins + j * PANEL + lane] = block.sub_mins[j];
            }
        }
    }
    let high_bits = shape.bits - shape.low_bits;
    for (i, &code) in block.codes[..shape.len].iter().enumerate() {
        let (row, shift) = place(shape.low_bits, i);
        to[layout.low + row * PANEL + lane] |= (code & mask(shape.low_bits)) << shift;
        if high_bits > 0 {
            let (row, shift) = place(high_bits, i);
            to[layout.high + row * PANEL + lane] |= (code >> shape.low_bits) << shift;
        }
    }
}

/// The row of 16 bytes in which element `i` has its bits, and how far up.
#[inline(always)]
fn place(bits: usize, i: usize) -> (usize, usize) {
    let together = 8 / bits;
    (i / together, i % together * bits)
}

#[inline(always)]
fn mask(bits: usize) -> u8 {
    (0xffu16 >> (8 - bits)) as u8
}

#[inline(always)]
fn lanes(bytes: &[u8], at: usize) -> &[u8; PANEL] {
    bytes[at..].first_chunk().unwrap_or(&[0; PANEL])
}

#[inline(always)]
fn halves<const FUSED: bool>(bytes: &[u8], at: usize) -> [f32; PANEL] {
    let bytes: &[u8; 2 * PANEL] = bytes[at..].first_chunk().unwrap_or(&[0; 2 * PANEL]);
    let mut to = [0.0; PANEL];
    #[cfg(target_arch = "x86_64")]
    if FUSED {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
        for (from, to) in bytes.chunks_exact(16).zip(to.chunks_exact_mut(8)) {
            // SAFETY: both have eight elements, and the levels with a fused multiply-add have F16C.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
            };
        }
        return to;
    }
    for (half, to) in bytes.chunks_exact(2).zip(&mut to) {
        *to = f16::from_le_bytes([half[0], half[1]]).to_f32();
    }
    to
}

/// Steps of one sub-block: codes of `LOW` bits and of `HIGH` more.
#[inline(always)]
fn steps<const FUSED: bool, const LOW: usize, const HIGH: usize>(
    layout: &Layout,
    block: &[u8],
    first: usize,
    (scale, shift): (&[f32; PANEL], &[f32; PANEL]),
    to: &mut [Line],
) {
    let offset = layout.shape.offset;
    #[cfg(target_arch = "x86_64")]
    if FUSED {
        for (i, to) in to.iter_mut().enumerate() {
            let (row, up) = place(LOW, first + i);
            let low = (lanes(block, layout.low + row * PANEL), up);
            let high = (HIGH > 0).then(|| {
                let (row, up) = place(HIGH.max(1), first + i);
                (lanes(block, layout.high + row * PANEL), up)
            });
            // SAFETY: the levels with a fused multiply-add have AVX2.
            unsafe { avx2_step::<LOW, HIGH>(low, high, offset, (scale, shift), to) };
        }
        return;
    }
    for (i, to) in to.iter_mut().enumerate() {
        let (row, up) = place(LOW, first + i);
        let low = lanes(block, layout.low + row * PANEL);
        let mut code: [i32; PANEL] = std::array::from_fn(|l| i32::from(low[l]) >> up & i32::from(mask(LOW)));
        if HIGH > 0 {
            let (row, up) = place(HIGH.max(1), first + i);
            let high = lanes(block, layout.high + row * PANEL);
            for (code, &high) in code.iter_mut().zip(high) {
                *code |= (i32::from(high) >> up & i32::from(mask(HIGH.max(1)))) << LOW;
            }
        }
        for l in 0..PANEL {
            to.0[l] = scale[l] * (code[l] - offset) as f32 - shift[l];
        }
    }
}

/// One step with the registers of AVX2, in the order of [`steps`]. A loop over 16 lanes is unrolled before it could be
/// vectorised, and takes ten times as long.
///
/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn avx2_step<const LOW: usize, const HIGH: usize>(
    low: (&[u8; PANEL], usize),
    high: Option<(&[u8; PANEL], usize)>,
    offset: i32,
    (scale, shift): (&[f32; PANEL], &[f32; PANEL]),
    to: &mut Line,
) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's contract; every load and store is of the 16 lanes of an array, or of eight of them.
    unsafe {
        let bits = |(lanes, up): (&[u8; PANEL], usize), bits: usize| {
            let bytes = _mm_loadu_si128(lanes.as_ptr().cast());
            let bytes = _mm_srl_epi16(bytes, _mm_cvtsi32_si128(up as i32));
            _mm_and_si128(bytes, _mm_set1_epi8(mask(bits) as i8))
        };
        let mut code = bits(low, LOW);
        if let Some(high) = high {
            // The bits of a lane stay within its byte.
            let high = _mm_sll_epi16(bits(high, HIGH.max(1)), _mm_cvtsi32_si128(LOW as i32));
            code = _mm_or_si128(code, high);
        }
        for (half, code) in [code, _mm_srli_si128::<8>(code)].into_iter().enumerate() {
            let code = _mm256_sub_epi32(_mm256_cvtepu8_epi32(code), _mm256_set1_epi32(offset));
            let (s, t) = (scale.as_ptr().add(8 * half), shift.as_ptr().add(8 * half));
            let scaled = _mm256_mul_ps(_mm256_loadu_ps(s), _mm256_cvtepi32_ps(code));
            _mm256_storeu_ps(to.0.as_mut_ptr().add(8 * half), _mm256_sub_ps(scaled, _mm256_loadu_ps(t)));
        }
    }
}

#[inline(always)]
fn decode_body<const FUSED: bool>(layout: &Layout, panel: &[u8], from: usize, to: &mut [Line]) {
    let shape = &layout.shape;
    let (mut done, mut block_at, mut scale, mut min) = (0, usize::MAX, [0f32; PANEL], [0f32; PANEL]);
    while done < to.len() {
        let (at, first) = ((from + done) / shape.len, (from + done) % shape.len);
        let block = &panel[at * layout.bytes..][..layout.bytes];
        if at != block_at {
            block_at = at;
            scale = halves::<FUSED>(block, 0);
            if shape.mins {
                min = halves::<FUSED>(block, layout.mins);
            }
        }
        let (mut s, mut t) = (scale, min);
        if shape.sub_scales {
            let j = first / shape.sub;
            for (s, &sub) in s.iter_mut().zip(lanes(block, layout.sub_scales + j * PANEL)) {
                *s *= f32::from(sub.cast_signed());
            }
            if shape.mins {
                for (t, &sub) in t.iter_mut().zip(lanes(block, layout.sub_mins + j * PANEL)) {
                    *t *= f32::from(sub);
                }
            }
        }
        let count = (shape.sub - first % shape.sub).min(to.len() - done);
        let to = &mut to[done..done + count];
        match (shape.low_bits, shape.bits) {
            (4, 4) => steps::<FUSED, 4, 0>(layout, block, first, (&s, &t), to),
            (4, 5) => steps::<FUSED, 4, 1>(layout, block, first, (&s, &t), to),
            (4, 6) => steps::<FUSED, 4, 2>(layout, block, first, (&s, &t), to),
            (2, 2) => steps::<FUSED, 2, 0>(layout, block, first, (&s, &t), to),
            (2, 3) => steps::<FUSED, 2, 1>(layout, block, first, (&s, &t), to),
            _ => steps::<FUSED, 8, 0>(layout, block, first, (&s, &t), to),
        }
        done += count;
    }
}

by_level! { fn decode(layout: &Layout, panel: &[u8], from: usize, to: &mut [Line]) = decode_body; }
