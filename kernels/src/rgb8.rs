//! The VAE's output as bytes.

use candle_core::{DType, Device, Result, Tensor};

use crate::cpu::{self, Level, STEPS_A_FLOAT, by_level, for_each_chunk};
use crate::floats::floats;
use crate::gpu::{self, Launch};

/// Floats of a piece of work.
const PIECE: usize = 16 << 10;

/// Maps `x` of `(height, width, 3)` from -1..1 to 0..255: `round((x / 2 + 0.5) * 255)` with halves to even, clamped,
/// as diffusers' `VaeImageProcessor` does through numpy.
pub fn rgb8(x: &Tensor) -> Result<Vec<u8>> {
    if gpu::takes(x) { on_gpu(x) } else { at_level(Level::best(), x) }
}

/// Rounds where `x` is, so that a quarter of its bytes are copied, or half of them.
fn on_gpu(x: &Tensor) -> Result<Vec<u8>> {
    let (x, count, dtype) = (x.contiguous()?, x.elem_count(), x.dtype());
    let launch = Launch::typed("rgb8", "rgb8", dtype)?.input(&x).output(count, DType::U8);
    launch.index(count).for_each(count.div_ceil(gpu::width(dtype)))?.to_vec1()
}

fn at_level(level: Level, x: &Tensor) -> Result<Vec<u8>> {
    let x = floats(&x.to_device(&Device::Cpu)?)?;
    let x = cpu::elements(&x)?;
    let mut bytes = vec![0; x.len()];
    for_each_chunk(&mut bytes, PIECE, STEPS_A_FLOAT * x.len(), |i, bytes| {
        quantise(level, &x[i * PIECE..][..bytes.len()], bytes);
    });
    Ok(bytes)
}

#[inline(always)]
fn quantise_body<const FUSED: bool>(x: &[f32], bytes: &mut [u8]) {
    for (byte, x) in bytes.iter_mut().zip(x) {
        *byte = ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    }
}

by_level! { fn quantise(x: &[f32], bytes: &mut [u8]) = quantise_body; }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::device;

    #[test]
    fn values_are_clamped_and_rounded() -> Result<()> {
        let x = [-1.0, 1.0, 0.0, -2.0, 3.0, f32::NEG_INFINITY, f32::INFINITY, 0.999, -0.5, 0.5];
        let expected = [0, 255, 128, 0, 255, 0, 255, 255, 64, 191];
        for level in Level::available() {
            // Long enough for whole registers and for what is left over.
            let many: Vec<f32> = x.iter().copied().cycle().take(20_003).collect();
            let bytes = at_level(level, &Tensor::new(many, &Device::Cpu)?)?;
            assert!(bytes.iter().enumerate().all(|(i, b)| *b == expected[i % x.len()]), "{level:?}");
        }
        Ok(())
    }

    #[test]
    fn the_cuda_arm_gives_the_same_bytes() -> Result<()> {
        let x: Vec<f32> =
            (0..1003).map(|i| (i as f32 - 500.0) / 333.0).chain([f32::NEG_INFINITY, f32::INFINITY]).collect();
        let x = Tensor::new(x, &Device::Cpu)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = x.to_dtype(dtype)?;
            assert_eq!(on_gpu(&x.to_device(&device())?)?, at_level(Level::best(), &x)?, "{dtype:?}");
        }
        Ok(())
    }
}
