//! Noise as torch's CPU generator draws it, so that a seed gives the same picture as in the reference.
//!
//! Source: `aten/src/ATen/core/MT19937RNGEngine.h`, `DistributionsHelper.h` and
//! `native/cpu/DistributionTemplates.h` of PyTorch.

use std::{f32, f64};

use candle_core::{Device, Tensor};

use crate::Result;

/// `torch.Generator("cpu").manual_seed(seed)`.
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    engine: Mt19937,
    /// The sine half of a pair of which only the cosine half has been handed out; short draws only.
    spare: Option<f64>,
}

impl TorchGenerator {
    /// A generator at the start of its stream. As in torch, only the low 32 bits of `seed` count.
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed as u32), spare: None }
    }

    /// `torch.randn(n)` in f32: standard normal values that continue the stream.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK { (0..n).map(|_| self.normal() as f32).collect() } else { self.normal_blocks(n) }
    }

    /// `torch.randn((1, channels, height, width))`, handed back as `(1, height, width, channels)` on `device`.
    pub fn latents(
        &mut self,
        channels: usize,
        height: usize,
        width: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let drawn = self.randn(channels * height * width);
        let nchw = Tensor::from_vec(drawn, (1, channels, height, width), &Device::Cpu)?;
        Ok(nchw.permute((0, 2, 3, 1))?.contiguous()?.to_device(device)?)
    }

    /// torch's vectorised path: all uniforms first, then Box-Muller in blocks of 16. A last block that is not full
    /// is replaced by 16 values drawn afresh, which overwrite the end of the one before.
    fn normal_blocks(&mut self, n: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        values.chunks_exact_mut(BLOCK).for_each(box_muller);
        if !n.is_multiple_of(BLOCK) {
            let tail = &mut values[n - BLOCK..];
            tail.iter_mut().for_each(|v| *v = self.uniform_f32());
            box_muller(tail);
        }
        values
    }

    /// torch's scalar path, which works in pairs and in f64.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let (r, theta) = ((-2.0 * (-u2).ln_1p()).sqrt(), f64::consts::TAU * u1);
        self.spare = Some(r * theta.sin());
        r * theta.cos()
    }

    /// 24 random bits in `[0, 1)`.
    fn uniform_f32(&mut self) -> f32 {
        (self.engine.next() & 0xff_ffff) as f32 / (1u32 << 24) as f32
    }

    /// 53 random bits in `[0, 1)`; of the two words the first is the high one.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (self.engine.next(), self.engine.next());
        let bits = (u64::from(high) << 32 | u64::from(low)) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }
}

/// Values that torch transforms at a time; shorter draws take the scalar path.
const BLOCK: usize = 16;

/// 16 uniforms become 16 normals: the first half are the radii, the second the angles. Every intermediate is rounded
/// to f32 as torch rounds it; above all the angle, whose rounding shows in the sixth digit.
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let r = (-2.0 * (1.0 - *a).ln()).sqrt();
        let (sin, cos) = (f32::consts::TAU * *b).sin_cos();
        (*a, *b) = (r * cos, r * sin);
    }
}

/// The Mersenne Twister with its 2002 initialisation.
///
/// Source: Matsumoto and Nishimura, <https://dl.acm.org/doi/10.1145/272991.272995>.
#[derive(Clone)]
struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let previous = state[i - 1];
            state[i] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.next == Self::N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::N] & 0x7fff_ffff;
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ y >> 1 ^ odd;
        }
        self.next = 0;
    }
}

impl std::fmt::Debug for Mt19937 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mt19937").field("next", &self.next).finish_non_exhaustive()
    }
}
