//! The block formats of GGUF files, taken apart.
//!
//! Every one of them is the same formula: element `i` of a block is `(d * s[j]) * (q[i] - offset) - (m * t[j])`, where
//! `j` counts the sub-blocks, and the older formats have one, with `s` and `t` 1. What differs is where the bits
//! stand. Source: `ggml-quants.c`, and the same in numpy in the package `gguf`.

use half::f16;

use crate::Format;

/// Elements of the longest block.
pub(crate) const LONGEST: usize = 256;
/// Sub-blocks of the block that has most.
pub(crate) const MOST_SUBS: usize = 16;

/// How the blocks of a format are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Elements of a block, and of one of its sub-blocks.
    pub(crate) len: usize,
    pub(crate) sub: usize,
    /// Bytes of a block.
    pub(crate) bytes: usize,
    /// Bits of an element, and how many of them are the low ones that stand apart from the others.
    pub(crate) bits: usize,
    pub(crate) low_bits: usize,
    /// What is subtracted from every code.
    pub(crate) offset: i32,
    /// Whether sub-blocks have scales of their own, and whether anything is subtracted after scaling.
    pub(crate) sub_scales: bool,
    pub(crate) mins: bool,
}

impl Shape {
    /// The shape of a format's blocks; `None` for the formats without blocks.
    pub(crate) fn of(format: Format) -> Option<Self> {
        let old = |bytes, bits, offset, mins| Self {
            len: 32,
            sub: 32,
            bytes,
            bits,
            low_bits: if bits == 5 { 4 } else { bits },
            offset,
            sub_scales: false,
            mins,
        };
        let k = |bytes, (low_bits, bits), sub, offset, mins| Self {
            len: 256,
            sub,
            bytes,
            bits,
            low_bits,
            offset,
            sub_scales: true,
            mins,
        };
        Some(match format {
            Format::Q4_0 => old(18, 4, 8, false),
            Format::Q4_1 => old(20, 4, 0, true),
            Format::Q5_0 => old(22, 5, 16, false),
            Format::Q5_1 => old(24, 5, 0, true),
            Format::Q8_0 => old(34, 8, 128, false),
            Format::Q2K => k(84, (2, 2), 16, 0, true),
            Format::Q3K => k(110, (2, 3), 16, 4, false),
            Format::Q4K => k(144, (4, 4), 32, 0, true),
            Format::Q5K => k(176, (4, 5), 32, 0, true),
            Format::Q6K => k(210, (4, 6), 16, 32, false),
            Format::F8E4M3 | Format::F8E5M2 | Format::I8 => return None,
        })
    }
}

/// One block, its parts apart.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// `d` and `m` of the formula; `m` is 0 where a format has none.
    pub(crate) scale: f16,
    pub(crate) min: f16,
    /// `s` and `t` of the formula, 1 in the older formats.
    pub(crate) sub_scales: [i8; MOST_SUBS],
    pub(crate) sub_mins: [u8; MOST_SUBS],
    /// `q` of the formula.
    pub(crate) codes: [u8; LONGEST],
}

impl Block {
    /// An empty block.
    pub(crate) fn new() -> Self {
        Self {
            scale: f16::ZERO,
            min: f16::ZERO,
            sub_scales: [1; MOST_SUBS],
            sub_mins: [1; MOST_SUBS],
            codes: [0; LONGEST],
        }
    }

    /// Takes a block of `format` apart; `b` has the format's bytes.
    pub(crate) fn read(&mut self, format: Format, b: &[u8]) {
        let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]);
        match format {
            Format::Q4_0 => {
                self.scale = half(0);
                self.nibbles(&b[2..18], 32);
            }
            // These add a minimum where the others subtract one.
            Format::Q4_1 => {
                (self.scale, self.min) = (half(0), -half(2));
                self.nibbles(&b[4..20], 32);
            }
            Format::Q5_0 => {
                self.scale = half(0);
                self.nibbles(&b[6..22], 32);
                self.fifth_bits(&b[2..6]);
            }
            Format::Q5_1 => {
                (self.scale, self.min) = (half(0), -half(2));
                self.nibbles(&b[8..24], 32);
                self.fifth_bits(&b[4..8]);
            }
            Format::Q8_0 => {
                self.scale = half(0);
                self.codes.iter_mut().zip(&b[2..34]).for_each(|(q, b)| *q = b ^ 0x80);
            }
            Format::Q2K => {
                (self.scale, self.min) = (half(80), half(82));
                for (j, &b) in b[..16].iter().enumerate() {
                    (self.sub_scales[j], self.sub_mins[j]) = ((b & 15) as i8, b >> 4);
                }
                self.pairs(&b[16..80]);
            }
            Format::Q3K => {
                self.scale = half(108);
                self.pairs(&b[32..96]);
                for (i, q) in self.codes.iter_mut().enumerate() {
                    *q |= (b[i % 32] >> (i / 32) & 1) << 2;
                }
                let s = &b[96..108];
                for j in 0..16 {
                    let low = s[j % 8] >> (j / 8 * 4) & 15;
                    let high = s[8 + j % 4] >> (j / 4 * 2) & 3;
                    self.sub_scales[j] = (low | high << 4) as i8 - 32;
                }
            }
            Format::Q4K => {
                (self.scale, self.min) = (half(0), half(2));
                self.six_bit_scales(&b[4..16]);
                self.nibbles(&b[16..144], 64);
            }
            Format::Q5K => {
                (self.scale, self.min) = (half(0), half(2));
                self.six_bit_scales(&b[4..16]);
                self.nibbles(&b[48..176], 64);
                for (i, q) in self.codes.iter_mut().enumerate() {
                    *q |= (b[16 + i % 32] >> (i / 32) & 1) << 4;
                }
            }
            Format::Q6K => {
                self.scale = half(208);
                self.nibbles(&b[..128], 128);
                for (i, q) in self.codes.iter_mut().enumerate() {
                    *q |= (b[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) << 4;
                }
                self.sub_scales.iter_mut().zip(&b[192..208]).for_each(|(s, b)| *s = *b as i8);
            }
            Format::F8E4M3 | Format::F8E5M2 | Format::I8 => {}
        }
    }

    /// Low halves of bytes, then their high halves, for every `run` elements.
    fn nibbles(&mut self, b: &[u8], run: usize) {
        for (q, b) in self.codes.chunks_exact_mut(run).zip(b.chunks_exact(run / 2)) {
            let (low, high) = q.split_at_mut(run / 2);
            for ((low, high), b) in low.iter_mut().zip(high).zip(b) {
                (*low, *high) = (b & 15, b >> 4);
            }
        }
    }

    /// Pairs of bits of 32 bytes, the lowest pairs first, for every 128 elements.
    fn pairs(&mut self, b: &[u8]) {
        for (i, q) in self.codes.iter_mut().enumerate() {
            *q = b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        }
    }

    /// A bit for each of 32 elements.
    fn fifth_bits(&mut self, b: &[u8]) {
        for (i, q) in self.codes.iter_mut().take(32).enumerate() {
            *q |= (b[i / 8] >> (i % 8) & 1) << 4;
        }
    }

    /// Eight scales and eight minima of six bits each, in twelve bytes.
    fn six_bit_scales(&mut self, b: &[u8]) {
        for j in 0..4 {
            (self.sub_scales[j], self.sub_mins[j]) = ((b[j] & 63) as i8, b[j + 4] & 63);
            self.sub_scales[j + 4] = (b[j + 8] & 15 | b[j] >> 6 << 4) as i8;
            self.sub_mins[j + 4] = b[j + 8] >> 4 | b[j + 4] >> 6 << 4;
        }
    }

    /// The elements.
    pub(crate) fn values(&self, shape: &Shape, to: &mut [f32]) {
        let (scale, min) = (self.scale.to_f32(), self.min.to_f32());
        for (j, (to, codes)) in to.chunks_mut(shape.sub).zip(self.codes.chunks(shape.sub)).enumerate() {
            let (s, t) = (scale * f32::from(self.sub_scales[j]), min * f32::from(self.sub_mins[j]));
            for (y, &q) in to.iter_mut().zip(codes) {
                *y = s * (i32::from(q) - shape.offset) as f32 - t;
            }
        }
    }
}
